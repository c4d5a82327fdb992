"""ImageNet-1k's classes by name, from the lists that timm carries; timm itself is not imported: it takes seconds."""

from __future__ import annotations

from collections import Counter
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

from anyres.evaluation.classes import Names
from anyres.storage import read_bytes

IMAGENET = "imagenet"
"""What ``--classes`` says for these names."""
COUNT = 1000
_LISTS = "timm/data/_info"


@cache
def imagenet_names() -> Names:
    """The 1,000 classes in the order of their WordNet ids, as all weights of ImageNet-1k count them.

    Each by its id and its words, the last one for people: its first word, with the id where two classes share it.
    """
    ids = _lines("imagenet_synsets.txt")
    wanted = set(ids)
    said = dict(line.split("\t", 1) for line in _lines("imagenet_synset_to_lemma.txt") if line[:9] in wanted)
    words = {each: tuple(said[each].split(", ")) for each in ids}
    often = Counter(first for first, *_ in words.values())

    def shown(each: str) -> str:
        first = words[each][0]
        return first if often[first] == 1 else f"{first} ({each})"

    return tuple(tuple(dict.fromkeys((each, *words[each][1:], words[each][0], shown(each)))) for each in ids)


def _lines(name: str) -> list[str]:
    return read_bytes(Path(str(distribution("timm").locate_file(f"{_LISTS}/{name}")))).decode().splitlines()
