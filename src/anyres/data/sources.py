"""Where labelled images come from: a folder of classes, a table of paths, or a built-in set -> Source.

Nothing is decoded here. Every split of one source has the same classes, in plain ``sorted`` order of their names.
"""

from __future__ import annotations

import csv
import hashlib
import os
import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from anyres.config import UserError, nearest
from anyres.flow import Record

SPLITS = ("train", "val", "test", "trainval")
BUILTIN = ("groceries", "groceries:fine")
_FORMATS = "jpg jpeg jpe jfif png gif bmp webp tif tiff ppm pgm pbm pnm avif jp2 tga ico"
ENDINGS = frozenset("." + ending for ending in _FORMATS.split())
_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
_SPLIT_OF = {folder: split for split, folders in _FOLDERS.items() for folder in folders}


@dataclass(frozen=True)
class Source:
    """One split of a labelled set. ``records[i].target`` indexes ``classes``; ``notes`` says what was left out."""

    name: str
    classes: tuple[str, ...]
    records: tuple[Record, ...]
    notes: tuple[str, ...]
    split: str

    @property
    def targets(self) -> Int64[Tensor, " n"]:
        """Class index of each record."""
        return torch.tensor([record.target for record in self.records], dtype=torch.int64)


@dataclass(frozen=True)
class Item:
    """An image before classes are numbered: ``key`` is its path below the root, stable between machines."""

    key: str
    label: str
    source: Path | bytes


Parts = dict[str, list[Item]]  # split -> images


def open_source(data: str, split: str, *, val_share: float = 0.2) -> Source:
    """One split (train, val, test, trainval) of a folder, a ``.csv`` table or a built-in set (by its bare name).

    Without a val split, ``val_share`` of each class is held out of train by a hash of the path: the same images on
    every machine, at least one per class of two or more. Without a test split, ``test`` is val. Raises UserError.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}{nearest(split, SPLITS)} (known: {', '.join(SPLITS)})")
    if not 0 < val_share < 1:
        raise UserError(f"val_share is {val_share}: it must lie between 0 and 1, as 0.2 does")
    notes: list[str] = []
    path = Path(data).expanduser()
    if data in BUILTIN:
        from anyres.data.builtin import load

        parts: Parts = {"train": [], "val": [], "test": []}
        for row in load():
            label = row.fine if data.endswith(":fine") else row.coarse
            parts[row.split].append(Item(row.name, label, row.image))
    elif path.is_dir():
        parts = _read_folder(path, notes)
    elif path.is_file() and path.suffix.lower() == ".csv":
        parts = _read_table(path, notes)
    elif path.is_file():
        raise UserError(f"{path} is a file but no .csv table: give a folder of class folders or a .csv with path,label")
    else:
        raise UserError(_missing(path, data))
    return _assemble(data, parts, split, val_share, notes)


def _missing(path: Path, data: str) -> str:
    parent = path.absolute().parent
    siblings = [p.name for p in parent.iterdir()] if parent.is_dir() else []
    hint = nearest(path.name, [*siblings, *BUILTIN], 1)
    known = ", ".join(BUILTIN)
    return f"no folder or table {data}{hint} (give a folder of class folders, a .csv table, or a built-in set: {known})"


def _read_folder(root: Path, notes: list[str]) -> Parts:
    """``root/class/*`` or ``root/train/class/*`` (+ val, + test) -> images of each split."""
    folders = {p.name.lower(): p for p in _subfolders(root)}
    train = next((folders[name] for name in _FOLDERS["train"] if name in folders), None)
    others = [name for name in folders if name not in _SPLIT_OF]
    has_more = any(_SPLIT_OF.get(name) in ("val", "test") for name in folders)
    is_split = train is not None and _subfolders(train) and not _images_in(train) and (has_more or not others)
    if not is_split:
        if has_more and train is None and not others:
            raise UserError(f"{root} has {', '.join(sorted(folders))} but no train folder: add train/CLASS/IMAGE")
        return {"train": _read_classes(root, root, notes)}
    parts: Parts = {}
    for name, folder in sorted(folders.items()):
        if name not in _SPLIT_OF:
            notes.append(f"folder {folder.name!r} lies beside the splits: left out")
        elif _SPLIT_OF[name] in parts:
            raise UserError(f"{root} has two folders for the {_SPLIT_OF[name]} split: keep one of them")
        elif not _subfolders(folder):
            notes.append(f"folder {folder.name!r} has no class folders: left out")
        else:
            parts[_SPLIT_OF[name]] = _read_classes(folder, root, notes)
    return parts


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__MACOSX")))


def _images_in(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.suffix.lower() in ENDINGS and not p.name.startswith(".") and p.is_file()]


def _read_classes(folder: Path, root: Path, notes: list[str]) -> list[Item]:
    items: list[Item] = []
    where = "" if folder == root else f" of {folder.name}"
    if loose := _images_in(folder):
        notes.append(f"{len(loose)} images{where} lie in no class folder (first: {min(loose).name}): left out")
    for class_folder in _subfolders(folder):
        found: list[Path] = []
        strange: list[Path] = []
        seen: set[str] = set()
        for here, below, files in os.walk(class_folder, followlinks=True):
            real = os.path.realpath(here)
            if real in seen:  # a link that leads back
                below.clear()
                continue
            seen.add(real)
            below[:] = sorted(name for name in below if not name.startswith("."))
            paths = [Path(here, name) for name in files if not name.startswith(".")]
            found += [p for p in paths if p.suffix.lower() in ENDINGS]
            strange += [p for p in paths if p.suffix.lower() not in ENDINGS]
        if not found:
            notes.append(f"class {class_folder.name!r}{where} has no images: left out")
        if strange:
            notes.append(f"{len(strange)} files without an image ending (first: {min(strange)}): left out")
        items += [Item(p.relative_to(root).as_posix(), class_folder.name, p) for p in sorted(found)]
    return items


def _read_table(table: Path, notes: list[str]) -> Parts:
    """A ``.csv`` with the columns path,label[,split]; paths count from the table's folder."""
    parts: Parts = defaultdict(list)
    seen: dict[Path, tuple[int, str, str]] = {}
    repeated = 0
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            names = [str(name).strip() for name in reader.fieldnames or []]
            if missing := [column for column in ("path", "label") if column not in names]:
                raise UserError(f"{table}:1: no column {missing[0]!r}: the first line must be path,label[,split]")
            reader.fieldnames = names
            for row in reader:
                line = reader.line_num
                item, part = _read_row(table, line, row)
                assert isinstance(item.source, Path)
                before, label, part_before = seen.setdefault(item.source, (line, item.label, part))
                if (label, part_before) != (item.label, part):
                    raise UserError(f"{table}:{line}: {item.key} stands on line {before} as {label} ({part_before})")
                if before == line:
                    parts[part].append(item)
                else:
                    repeated += 1
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is no UTF-8 table with commas: {error}") from error
    if repeated:
        notes.append(f"{repeated} repeated lines of {table.name}: left out")
    return dict(parts)


def _read_row(table: Path, line: int, row: dict[str, str | None]) -> tuple[Item, str]:
    values = {column: (row.get(column) or "").strip() for column in ("path", "label", "split")}
    for column in ("path", "label", "split"):
        if not values[column] and (column != "split" or column in row):
            raise UserError(f"{table}:{line}: the column {column!r} is empty")
    part = _SPLIT_OF.get((values["split"] or "train").lower())
    if part is None:
        raise UserError(f"{table}:{line}: unknown split {values['split']!r} (known: train, val, test)")
    path = table.parent / values["path"]
    if not path.is_file():
        raise UserError(f"{table}:{line}: no file {path}; paths count from the table's folder")
    return Item(Path(values["path"]).as_posix(), values["label"], path), part


def _assemble(name: str, parts: Parts, split: str, val_share: float, notes: list[str]) -> Source:
    """Number the classes of train, hold out val where there is none, and pick the split."""
    classes = tuple(sorted({item.label for item in parts.get("train", [])}))
    if len(classes) < 2:
        found = f"only the class {classes[0]!r}" if classes else "no class with images"
        raise UserError(f"{name} has {found} to train on: two or more are needed, one folder (or label) for each")
    for part in {"val", split} & parts.keys():
        if strange := sorted({item.label for item in parts[part]} - set(classes)):
            hint = nearest(strange[0], classes, 1)
            raise UserError(f"{name}: class {strange[0]!r} of {part} has no images in train{hint}")
    if not parts.get("val"):
        parts = {**parts, **_hold_out(parts["train"], val_share)}
        if split != "trainval":
            held, whole = len(parts["val"]), len(parts["val"]) + len(parts["train"])
            notes.append(f"no val split: {held} of {whole} images held out of train for it")
    if split == "test" and not parts.get("test"):
        parts = {**parts, "test": parts["val"]}
        notes.append("no test split: test is the validation split")
    chosen = parts["train"] + parts["val"] if split == "trainval" else parts[split]
    if not chosen:
        raise UserError(f"{name} has no image for {split}: give a class two images or more, or add a {split} split")
    if absent := sorted(set(classes) - {item.label for item in chosen}):
        notes.append(f"no image of class {', '.join(map(repr, absent))} in {split}")
    number = {label: i for i, label in enumerate(classes)}
    records = tuple(Record(item.source, number[item.label], item.key) for item in chosen)
    return Source(name, classes, records, tuple(notes), split)


def _hold_out(items: list[Item], share: float) -> Parts:
    """Split train: in each class the images with the smallest hash of their path become val; order is kept."""
    by_class: dict[str, list[str]] = defaultdict(list)
    for item in items:
        by_class[item.label].append(item.key)
    held: set[str] = set()
    for keys in by_class.values():
        count = min(max(1, round(len(keys) * share)), len(keys) - 1)
        held.update(sorted(keys, key=_hash)[:count])
    return {"train": [i for i in items if i.key not in held], "val": [i for i in items if i.key in held]}


def _hash(key: str) -> bytes:
    return hashlib.sha256(unicodedata.normalize("NFC", key).encode("utf-8", "surrogateescape")).digest()
