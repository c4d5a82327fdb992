"""Where images come from: a folder of classes, a manifest, shards, a library's or a built-in set -> Source.

Nothing is decoded here. Every split of one source has the same classes: in the order that the source itself gives them
(numbers by value, names of a library's set as it lists them), else in plain ``sorted`` order of their names.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal

from anyres.config import UserError, nearest
from anyres.data.annotations.builtin_sets import DRAWN
from anyres.data.folders import images_in, listed, read_folder, subfolders
from anyres.data.manifests import read_csv, read_jsonl
from anyres.data.pace import PACE
from anyres.data.parquet import read_parquet
from anyres.data.patterns import expand
from anyres.data.raw_dataset import ENDINGS, Found, Item, Parts, shorten
from anyres.data.shards import read_shards
from anyres.flow import Annotation, Record
from anyres.storage import as_path

SPLITS = ("train", "val", "test", "trainval")
BUILTIN = ("groceries", "groceries:fine")


Labelling = Literal["none", "one", "several", "text", "drawn"]
"""Of every image of a set: no label, one class, any number of classes, its label as it is written, or what is drawn on
it."""
Wanted = Literal["classes", "optional", "text", "maps", "boxes", "clips"]
"""What is wanted of a set: labels that are classes; the same where there are any; labels as they are written; class
maps; boxes, with outlines where there are any; films with labels that are
classes."""


@dataclass(frozen=True)
class Source:
    """One split of a set. ``notes`` says what was left out.

    ``records[i].target`` by ``labelling``: ``one``: indexes ``classes``; ``several``: a tuple of such indices;
    ``none``: -1, and no ``classes``; ``text``: the label itself, and no ``classes``; ``drawn``: ``flow.Objects`` or
    ``flow.MapFile``, whose class indices count in ``classes``. ``mirrored``: the class that each becomes where a
    picture is mirrored left to right; (): none changes.
    """

    name: str
    classes: tuple[str, ...]
    records: tuple[Record, ...]
    notes: tuple[str, ...]
    split: str
    labelling: Labelling = "one"
    mirrored: tuple[int, ...] = ()

    @property
    def present(self) -> set[int]:
        """The indices of the classes that any image has."""
        return {index for record in self.records for index in class_indices(record)}

    def labels(self, i: int) -> tuple[str, ...]:
        """What image i is called."""
        target = self.records[i].target
        return (target,) if isinstance(target, str) else tuple(self.classes[c] for c in class_indices(self.records[i]))

    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) of what decides a run's samples: the classes in their order, and every image's name
        and target in theirs.

        Where the images lie does not count, nor in which Unicode form a name is written; their pixels are not read.
        """
        digest = hashlib.sha256()
        head = (self.labelling, self.classes)
        for part in (head, *((record.name, _plain(record)) for record in self.records)):
            text = unicodedata.normalize("NFC", json.dumps(part, ensure_ascii=False))
            digest.update(text.encode("utf-8", "surrogateescape") + b"\n")
        return digest.hexdigest()


def _plain(record: Record) -> object:
    """The record's target as JSON takes it."""
    return record.target.plain() if isinstance(record.target, Annotation) else record.target


def class_indices(record: Record) -> tuple[int, ...]:
    """The indices of the record's classes: of one, of several, or of none."""
    if isinstance(record.target, tuple):
        return record.target
    return (record.target,) if isinstance(record.target, int) and record.target >= 0 else ()


def open_source(data: str, split: str, *, val_share: float = 0.2, wanted: Wanted = "classes") -> Source:
    """One split (train, val, test, trainval) of what ``builtin.FORMS`` lists, or of a built-in set (by its bare name).

    Without a val split, ``val_share`` of each class is held out of train by a hash of the path: the same images on
    every machine, at least one per class of two or more (of a multi-label set, by an image's rarest class). Without a
    test split, ``test`` is val. ``wanted``: with ``optional``, images without labels will do, and what has fewer than
    two classes is taken for such; nothing is held out of them. Raises UserError.
    """
    _check_split(split)
    if not 0 < val_share < 1:
        raise UserError(f"val_share is {val_share}: it must lie between 0 and 1, as 0.2 does")
    found = _find_labelled(data, wanted)
    if wanted == "text":
        return _with_texts(data, found, split, val_share)
    return _assemble(data, found, split, val_share, wanted == "optional")


def open_test_set(
    data: str, split: str | None, *, usual: str = "val", val_share: float = 0.2, wanted: Wanted = "classes"
) -> Source:
    """Images that are only scored: they may lack classes of the model, or have one alone, and need no train split.

    ``split`` as in ``open_source``. None: the ``usual`` one, val or test, where there is such a split; else the other
    of them; else all images, as none of them was held out of a training. ``classes`` are those that any split has: a
    task counts them as its model does. Raises UserError.
    """
    found = _find_labelled(data, wanted)
    parts = {part: items for part, items in found.parts.items() if items}
    split, notes = scored_split(data, {part: len(items) for part, items in parts.items()}, split, usual)
    found.notes.extend(notes)
    if wanted == "text":
        return _with_texts(data, found, split, val_share)
    return _assemble(data, found, split, val_share, wanted == "optional", scored=True)


def scored_split(name: str, counts: Mapping[str, int], split: str | None, usual: str) -> tuple[str, list[str]]:
    """The split to score of a set that has so many images in each, and what to say of that; see ``open_test_set``."""
    if split is None:
        names = (usual, "test" if usual == "val" else "val")
        chosen = next((part for part in names if part in counts), "all")
        everything = f"all {counts.get('train', 0)} images are scored, also those it may have been trained on"
        said = f"no {usual} split: {everything if chosen == 'all' else f'the {chosen} split is scored'}"
        return chosen, [said] if chosen != usual else []
    _check_split(split)
    if counts and "train" not in counts and split not in counts:
        raise UserError(f"{name} has no {split} split: name one that it has ({', '.join(counts)})")
    return split, []


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}{nearest(split, SPLITS)} (known: {', '.join(SPLITS)})")


def _find_labelled(data: str, wanted: Wanted) -> Found:
    found = (_find_clips(data) if wanted == "clips" else _find(data, wanted == "optional")).tidied()
    if found.unlabelled and wanted != "optional":
        raise UserError(found.unlabelled)
    return found


def _find_clips(data: str) -> Found:
    from anyres.data.clip_sources import read_clips  # with torch

    return read_clips(data)


def _find(data: str, unlabelled: bool = False) -> Found:
    path = as_path(data)
    library, colon, name = data.partition(":")
    if data in BUILTIN:
        return _read_builtin(fine=data.endswith(":fine"))
    if data in DRAWN and not path.exists():
        raise UserError(f"{data} has boxes or class maps, and no class of a whole picture: `anyres check {data}` tells")
    if data in PACE and not path.exists():
        raise UserError(f"{data} is of films: train task=video on it, as the recipe video/pace does")
    if colon and library in ("hf", "torchvision"):
        from anyres.data.hf_torchvision import read_hub, read_torchvision

        return read_hub(name) if library == "hf" else read_torchvision(name)
    if path.is_dir():
        return _read_files(files) if (files := _files_of(path)) else read_folder(path, unlabelled)
    if path.is_file():
        return _read_files([path])
    if any(sign in data for sign in "{*?["):
        return _read_files(expand(str(path)))
    raise UserError(_missing(path, data))


def _read_builtin(fine: bool) -> Found:
    from anyres.data.builtin import load

    parts: Parts = {"train": [], "val": [], "test": []}
    for row in load():
        parts[row.split].append(Item(row.name, (row.fine if fine else row.coarse,), row.image))
    return Found(parts)


Reader = Callable[[Sequence[Path]], Found]
"""The files of one set -> its images by split, with labels as text."""
_SINGLE: dict[str, Callable[[Path], Found]] = {".csv": read_csv, ".jsonl": read_jsonl, ".ndjson": read_jsonl}
_SEVERAL: dict[str, Reader] = {".tar": read_shards, ".parquet": read_parquet}
READERS = "anyres.readers"
"""The entry-point group in which another package names its readers, each by the ending it reads (``npz``)."""


def register_reader(ending: str) -> Callable[[Reader], Reader]:
    """Decorator: makes ``read(paths) -> Found`` the reader of files with this ending, such as ``.npz``.

    ``--data set.npz`` then works everywhere, and so does a pattern or a folder of such files. ``paths``: the files of
    one set. ``Found`` (``anyres.data.raw_dataset``) holds the images of each split (``train``, ``val``, ``test``) as
    ``Item``: a name that stays, labels as text (one, several or none), and the source: a path, the bytes of an image
    file, or an object whose ``read()`` returns such bytes. A package does the same for its users with an entry point in
    the group ``anyres.readers``. Raises UserError for an ending that is taken.
    """
    ending = ending.lower()
    if not ending.startswith(".") or ending in _SINGLE or ending in ENDINGS:
        raise UserError(f"files ending in {ending!r} cannot have a reader: give an ending of your own, as .npz")

    def register(read: Reader) -> Reader:
        known = _SEVERAL.setdefault(ending, read)
        if known.__qualname__ != read.__qualname__:
            raise UserError(f"files ending in {ending!r} have a reader already: {known.__qualname__}")
        return read

    return register


def _reader(ending: str) -> Reader | None:
    """The reader of files with this ending; None: there is none."""
    if ending and ending not in {*_SEVERAL, *_SINGLE, *ENDINGS}:
        for point in entry_points(group=READERS):
            if point.name.lstrip(".").lower() == ending[1:]:
                register_reader(ending)(point.load())
    return _SEVERAL.get(ending)


def _read_files(paths: Sequence[Path]) -> Found:
    """One manifest, or one or several shards or parquet files."""
    endings = sorted({path.suffix.lower() for path in paths})
    if len(endings) > 1:
        raise UserError(f"{paths[0].parent} has files of different kinds ({', '.join(endings)}): name one kind")
    (ending,) = endings
    if read := _reader(ending):
        return read(paths)
    if ending in _SINGLE and len(paths) == 1:
        return _SINGLE[ending](paths[0])
    if ending in _SINGLE:
        raise UserError(f"{len(paths)} manifests are given, as {paths[0]}: write them into one")
    known = ", ".join((*_SINGLE, *_SEVERAL))
    raise UserError(
        f"{paths[0]} is a file but no .csv table or other source (known: a folder of class folders, {known})"
    )


def _files_of(folder: Path) -> list[Path]:
    """The shards or parquet files of a folder that holds nothing else than files; none where there are pictures."""
    if subfolders(folder) or images_in(folder):
        return []
    paths = (Path(entry.path) for entry in listed(folder))
    return [path for path in paths if _reader(path.suffix.lower()) and path.is_file()]


def _missing(path: Path, data: str) -> str:
    parent = path.absolute().parent
    siblings = [p.name for p in parent.iterdir()] if parent.is_dir() else []
    hint = nearest(path.name, [*siblings, *BUILTIN], 1)
    known = ", ".join(BUILTIN)
    return (
        f"no folder or table {data}{hint} (give a folder of class folders, a .csv or .jsonl table, .parquet or .tar "
        f"files, hf:OWNER/NAME, torchvision:NAME, or a built-in set: {known})"
    )


def _assemble(
    name: str, found: Found, split: str, val_share: float, unlabelled: bool, *, scored: bool = False
) -> Source:
    """Number the classes of train (of all splits where images are only scored), hold out val where there is none, and
    pick the split."""
    parts, notes = found.parts, [*found.notes]
    labels = _labels_of(found.items if scored else parts.get("train", []))
    classes = tuple(sorted(labels) if found.order is None else (name for name in found.order if name in labels))
    if len(classes) < (1 if found.several or scored else 2):
        if unlabelled:
            return _without_labels(name, found, split)
        if not scored and not parts.get("train") and any(found.items):
            raise UserError(f"{name} has {', '.join(parts)} but no train split: there is nothing to train on")
        those = f"only the class {shorten(classes[0])}" if classes else "no class with images"
        what = "score: images are needed" if scored else "train on: two or more are needed"
        raise UserError(f"{name} has {those} to {what}, one folder (or label) for each")
    for part in {"val", split} & parts.keys():
        if strange := sorted(_labels_of(parts[part]) - set(classes)):
            hint = nearest(strange[0], classes, 1)
            raise UserError(f"{name}: class {shorten(strange[0])} of {part} has no images in train{hint}")
    chosen, more = choose(name, parts, split, val_share)
    notes += more
    if absent := sorted(set(classes) - _labels_of(chosen)):
        told = ", ".join(map(shorten, absent[:10])) + (f" and {len(absent) - 10} more" if len(absent) > 10 else "")
        notes.append(f"no image of class {told} in {split}")
    number = {label: i for i, label in enumerate(classes)}
    targets = (tuple(sorted(number[label] for label in item.labels)) for item in chosen)
    records = tuple(
        Record(item.source, target if found.several else target[0], item.key)
        for item, target in zip(chosen, targets, strict=True)
    )
    return Source(name, classes, records, tuple(notes), split, "several" if found.several else "one")


def choose(name: str, parts: Parts, split: str, val_share: float) -> tuple[list[Item], list[str]]:
    """The images of a split, val being held out of train where there is none; and what there is to say about that."""
    notes: list[str] = []
    if split == "all":
        return parts["train"], notes
    if not parts.get("val") and parts.get("train"):
        parts = {**parts, **_hold_out(parts["train"], val_share)}
        if split != "trainval":
            held, whole = len(parts["val"]), len(parts["val"]) + len(parts["train"])
            notes.append(f"no val split: {held} of {whole} images held out of train for it")
    if split == "test" and not parts.get("test"):
        parts = {**parts, "test": parts["val"]}
        notes.append("no test split: test is the validation split")
    chosen = parts.get("train", []) + parts["val"] if split == "trainval" else parts[split]
    if not chosen:
        raise UserError(f"{name} has no image for {split}: give a class two images or more, or add a {split} split")
    return chosen, notes


def _with_texts(name: str, found: Found, split: str, val_share: float) -> Source:
    """One split of images whose labels are taken as they are written; val is held out by the hash of the path alone."""
    several = next((item for item in found.items if len(item.labels) != 1), None)
    if several is not None:
        raise UserError(f"{name}: {several.key} has {len(several.labels)} labels: one is wanted for each image")
    if not found.parts.get(split) and not found.parts.get("train"):
        raise UserError(f"{name} has no image for train")
    texts = {item.key: item.labels[0] for item in found.items}
    alike = {part: [replace(item, labels=()) for item in items] for part, items in found.parts.items()}
    chosen, notes = choose(name, alike, split, val_share)
    records = tuple(Record(item.source, texts[item.key], item.key) for item in chosen)
    return Source(name, (), records, (*found.notes, *notes), split, "text")


def _labels_of(items: Iterable[Item]) -> set[str]:
    return {label for item in items for label in item.labels}


def _without_labels(name: str, found: Found, split: str) -> Source:
    """One split of images alone."""
    parts = found.parts
    wanted = {"trainval": ("train", "val"), "all": ("train",)}.get(split, (split,))
    records = tuple(Record(item.source, -1, item.key) for part in wanted for item in parts.get(part, ()))
    if not records:
        raise UserError(f"{name} has no image for {split}")
    return Source(name, (), records, tuple(found.notes), split, "none")


def _hold_out(items: list[Item], share: float) -> Parts:
    """Split train: in each class the images with the smallest hash of their path become val; order is kept.

    An image of several classes counts for the rarest of them, one of none for a class of its own.
    """
    count = Counter(label for item in items for label in item.labels)
    by_class: dict[str, list[str]] = defaultdict(list)
    for item in items:
        by_class[min(item.labels, key=lambda label: (count[label], label), default="")].append(item.key)
    held: set[str] = set()
    for keys in by_class.values():
        most = min(max(1, round(len(keys) * share)), len(keys) - 1)
        held.update(sorted(keys, key=_hash)[:most])
    return {"train": [i for i in items if i.key not in held], "val": [i for i in items if i.key in held]}


def _hash(key: str) -> bytes:
    return hashlib.sha256(unicodedata.normalize("NFC", key).encode("utf-8", "surrogateescape")).digest()
