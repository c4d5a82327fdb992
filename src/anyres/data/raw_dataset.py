"""Images of each split before their classes are numbered: what every reader of a source gives back."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from anyres.config import UserError
from anyres.flow import Stored

_FORMATS = "jpg jpeg jpe jfif png gif bmp webp tif tiff ppm pgm pbm pnm avif jp2 tga ico npy"
ENDINGS = frozenset("." + ending for ending in _FORMATS.split())
_WORDS = {
    "train": ("train", "training", "trainval"),
    "val": ("val", "valid", "validation", "dev", "devel", "development", "eval", "evaluation"),
    "test": ("test", "testing"),
}
SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}
"""What files, folders and columns call the splits, in lower case."""
_SET = re.compile(r"[-_ ]?(set|split|data|images|imgs)")


def folder_split(name: str) -> str | None:
    """The split that a folder of this name holds: ``val``, ``Dev``, ``training_set``; None: it may be a class."""
    name = name.lower()
    return SPLIT_OF.get(name) or next((SPLIT_OF[word] for word in SPLIT_OF if _is_set(name, word)), None)


def _is_set(name: str, word: str) -> bool:
    return name.startswith(word) and _SET.fullmatch(name, len(word)) is not None


def readable_text(name: str) -> str:
    """A name as text that any file can hold: bytes that are no UTF-8 are written as ``\\xe9``."""
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def one_form(label: str) -> str:
    """A label as text in one Unicode form (NFC), so that 'café' of a Mac is that of every other machine."""
    return label if label.isascii() else unicodedata.normalize("NFC", readable_text(label))


def cut(text: str, most: int = 300) -> str:
    """A text cut for a message of one line."""
    return text if len(text) <= most else f"{text[:most]}..."


def shorten(text: object) -> str:
    """``repr`` of what stands in a file, cut for a message of one line."""
    return cut(repr(text), 80)


@dataclass(frozen=True)
class Item:
    """An image before classes are numbered: ``key`` is its path below the root, stable between machines; ``labels``
    are one, in a multi-label set any number, where nothing is labelled none."""

    key: str
    labels: tuple[str, ...]
    source: Path | bytes | Stored


Parts = dict[str, list[Item]]  # split -> images


@dataclass(frozen=True)
class Found:
    """What a reader found: images by split, the class names in their own order (None: sorted), and what to tell.

    ``unlabelled``: the line with which whoever wants labels is refused, where there are none.
    """

    parts: Parts
    order: Sequence[str] | None = None
    notes: list[str] = field(default_factory=list)
    several: bool = False
    unlabelled: str = ""

    def tidied(self) -> Found:
        """The same with every name as text that any file can hold, and each label in one form."""

        def tidy(item: Item) -> Item:
            labels = tuple(dict.fromkeys(map(one_form, item.labels)))
            key = readable_text(item.key)
            return item if (key, labels) == (item.key, item.labels) else Item(key, labels, item.source)

        order = None if self.order is None else list(dict.fromkeys(map(one_form, self.order)))
        parts = {split: [tidy(item) for item in items] for split, items in self.parts.items()}
        return replace(self, parts=parts, order=order, notes=[readable_text(note) for note in self.notes])

    @property
    def items(self) -> Iterator[Item]:
        """The images of all splits."""
        return (item for items in self.parts.values() for item in items)


def split_of(key: str) -> str:
    """The split that a file's name begins with (``val-0003.tar``), or that its folder is named after, or train."""
    *folders, name = key.lower().split("/")
    match = re.match(r"[a-z]+", name)
    words = [*([match[0]] if match else []), *reversed(folders)]
    return next((SPLIT_OF[word] for word in words if word in SPLIT_OF), "train")


def keys_of(paths: Sequence[Path]) -> list[str]:
    """A name for each file: its path below the folder that all have in common."""
    root = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    return [path.absolute().relative_to(root).as_posix() for path in paths]


def number_order(items: Iterable[Item]) -> list[str]:
    """Their labels sorted: by value when all are whole numbers (9 before 10), else as text."""
    different = {label for item in items for label in item.labels}
    if all(re.fullmatch(r"-?[0-9]+", label) for label in different):
        return sorted(different, key=_by_value)
    return sorted(different)


def _by_value(number: str) -> tuple[int, int, str, str]:
    """Orders whole numbers of any length, of which ``int`` reads only some thousand digits."""
    digits = number.lstrip("-").lstrip("0")
    if not digits:
        return 0, 0, "", number
    if number.startswith("-"):
        return -1, -len(digits), "".join(chr(ord("9") - ord(d) + ord("0")) for d in digits), number
    return 1, len(digits), digits, number


def label_text(value: object, where: str) -> str:
    """A label as text: a name, or a whole number. Raises UserError that begins with ``where``."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(f"{where}: the label {shorten(value)} is neither a name nor a whole number")
    text = str(value).strip()
    if not text:
        raise UserError(f"{where}: the label is empty")
    return text


class LabelParser:
    """The labels of one set, image by image: a name or a whole number each; or a list of them each (multi-label); or
    none at all, and then ``unlabelled`` is the line to say so.

    ``names``: of the classes, where the set lists them; then a whole number is a place in this list.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names = names
        self.several: bool | None = None  # not known before the first label
        self.unlabelled = ""
        self._first = ""

    def read(self, value: object, where: str) -> tuple[str, ...]:
        """One image's labels, each once. Raises UserError that begins with ``where``."""
        if self.unlabelled:
            raise UserError(self.unlabelled)
        several = isinstance(value, list | tuple)
        if self.several is None:
            self.several, self._first = several, where
        if several != self.several:
            raise UserError(
                f"{where}: the label {shorten(value)} is {'a' if several else 'no'} list, unlike the one at "
                f"{self._first}: give a list to every image, or to none"
            )
        each = value if isinstance(value, list | tuple) else (value,)
        return tuple(dict.fromkeys(self._text(one, where) for one in each))

    def miss(self, line: str) -> tuple[str, ...]:
        """Of an image without a label, none. Raises UserError with this ``line`` where others have one."""
        if self.several is not None:
            raise UserError(line)
        self.unlabelled = self.unlabelled or line
        return ()

    def _text(self, value: object, where: str) -> str:
        if not self.names or isinstance(value, bool) or not isinstance(value, int):
            return label_text(value, where)
        if not 0 <= value < len(self.names):
            raise UserError(f"{where}: the label {value} is none of the {len(self.names)} classes that the set names")
        return self.names[value]
