"""Images in folders: ``root/CLASS/*``, ``root/train/CLASS/*`` (+ val, + test), or all images at any depth.

Everything in a folder is seen or said: a folder that cannot be listed ends the reading, and what is no image file (a
pipe, a link that leads back) is left out with a note.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from anyres.config import UserError
from anyres.data.raw_dataset import ENDINGS, Found, Item, Parts, folder_split


def read_folder(root: Path, unlabelled: bool) -> Found:
    """``root/class/*`` or ``root/train/class/*`` (+ val, + test) -> images of each split; where ``unlabelled`` will do
    and there are no two classes, ``root/**`` or ``root/train/**`` (+ val, + test). Raises UserError."""
    if unlabelled:
        try:
            found = _read_class_folders(root)
        except UserError:
            return _read_loose(root)
        labels = {label for item in found.parts.get("train", []) for label in item.labels}
        return found if sum(folder_split(label) is None for label in labels) > 1 else _read_loose(root)
    return _read_class_folders(root)


def listed(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name. Raises UserError where that cannot be known."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be listed: {error.strerror}: mend it or take it away") from error


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, without hidden ones."""
    return [Path(e.path) for e in listed(folder) if _shown(e) and _is(e, os.DirEntry.is_dir)]


def images_in(folder: Path) -> list[Path]:
    """The image files right in a folder."""
    return [Path(e.path) for e in listed(folder) if _shown(e) and _has_ending(e) and _is(e, os.DirEntry.is_file)]


def _shown(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith((".", "__MACOSX"))


def _has_ending(entry: os.DirEntry[str]) -> bool:
    return f".{entry.name.rpartition('.')[2].lower()}" in ENDINGS


def _is(entry: os.DirEntry[str], kind: Callable[[os.DirEntry[str]], bool]) -> bool:
    """Whether an entry, or what it links to, is of a kind. Raises UserError where that cannot be known."""
    try:
        return kind(entry)
    except OSError as error:
        raise UserError(f"{entry.path} cannot be read: {error.strerror}: mend it or take it away") from error


@dataclass
class _Walk:
    """What lies below a folder: image files, other files, what is no file, and links that lead back."""

    images: list[Path] = field(default_factory=list)
    strange: list[Path] = field(default_factory=list)
    no_file: list[Path] = field(default_factory=list)
    back: list[Path] = field(default_factory=list)
    linked: dict[Path, str] = field(default_factory=dict)  # images that are reached by a link -> where they lie

    def notes(self) -> list[str]:
        kinds = (
            (self.strange, "files without an image ending"),
            (self.no_file, "things with an image's name that are no files, as pipes are"),
            (self.back, "links that lead back to a folder they lie in"),
        )
        return [f"{len(paths)} {what} (first: {min(paths)}): left out" for paths, what in kinds if paths]


def walk(folder: Path) -> _Walk:
    """Everything at any depth below ``folder``, links followed, in the order of the paths. Raises UserError."""
    found = _Walk()
    entered: set[str] = set()  # folders that were reached by a link
    waiting = [(folder, folder.is_symlink())]
    while waiting:
        here, is_linked = waiting.pop()
        for entry in listed(here):
            if entry.name.startswith("."):
                continue
            path, link = Path(entry.path), is_linked or entry.is_symlink()
            if _is(entry, os.DirEntry.is_dir):
                real = os.path.realpath(path) if link else ""
                if link and (real in entered or (entry.is_symlink() and _leads_back(path))):
                    found.back.append(path)
                else:
                    waiting.append((path, link))
                    entered.add(real)
            elif not _has_ending(entry):
                found.strange.append(path)
            elif _is(entry, os.DirEntry.is_file):
                found.images.append(path)
                if link:
                    found.linked[path] = os.path.realpath(path)
            else:
                found.no_file.append(path)
    found.images.sort()
    return found


def _leads_back(link: Path) -> bool:
    """Whether a link to a folder leads to one that it lies in itself, by its path or in truth."""
    above = {os.path.realpath(folder) for folder in link.absolute().parents}
    real = Path(os.path.realpath(link.parent))
    return os.path.realpath(link) in above | {str(real), *map(str, real.parents)}


def _read_loose(root: Path) -> Found:
    """All images at any depth; those below a folder called val or test, if there is one called train, by themselves."""
    folders = {folder_split(path.name): path for path in subfolders(root)}
    named = {split: folder for split, folder in folders.items() if split}
    walked = {split: walk(folder) for split, folder in (named if "train" in named else {"train": root}).items()}
    parts = {
        split: [Item(path.relative_to(root).as_posix(), (), path) for path in found.images]
        for split, found in walked.items()
    }
    notes = [note for found in walked.values() for note in found.notes()]
    return _each_once(root, parts, walked.values(), notes)


def _read_class_folders(root: Path) -> Found:
    notes: list[str] = []
    walked: list[_Walk] = []
    folders = subfolders(root)
    splits = {folder: split for folder in folders if (split := folder_split(folder.name))}
    others = [folder for folder in folders if folder not in splits]
    if not _are_splits(root, splits, others):
        parts: Parts = {"train": _read_classes(root, root, notes, walked)}
        return _each_once(root, parts, walked, notes)
    parts = {}
    notes += [f"folder {folder.name!r} lies beside the splits: left out" for folder in others]
    for folder, split in splits.items():
        if split in parts:
            raise UserError(f"{root} has two folders for the {split} split: keep one of them")
        if not subfolders(folder):
            if split == "train":
                raise UserError(f"{folder} has no class folders: it must hold {folder.name}/CLASS/IMAGE")
            notes.append(f"folder {folder.name!r} has no class folders: left out")
        else:
            parts[split] = _read_classes(folder, root, notes, walked)
    return _each_once(root, parts, walked, notes)


def _are_splits(root: Path, splits: dict[Path, str], others: list[Path]) -> bool:
    """Whether the folders in ``root`` are splits, not classes, some of which may be called so. Raises UserError."""
    train = next((folder for folder, split in splits.items() if split == "train"), None)
    if train is None:
        return bool(splits) and not others
    classes = {folder.name for folder in subfolders(train)}
    if not classes or images_in(train):
        return len(splits) > 1 and not others  # train/IMAGE beside val/IMAGE
    if len(splits) > 1 or not others:
        return True
    alike = next((o for o in others if classes & {folder.name for folder in subfolders(o)}), None)
    if alike is not None:
        raise UserError(
            f"{root}: {train.name!r} and {alike.name!r} hold folders of the same names: if {alike.name!r} is a split, "
            "call it val or test; if not, take it away"
        )
    return False


def _read_classes(folder: Path, root: Path, notes: list[str], walked: list[_Walk]) -> list[Item]:
    items: list[Item] = []
    where = "" if folder == root else f" of {folder.name}"
    if loose := images_in(folder):
        notes.append(f"{len(loose)} images{where} lie in no class folder (first: {loose[0].name}): left out")
    for class_folder in subfolders(folder):
        if class_folder.is_symlink() and _leads_back(class_folder):
            notes.append(f"{class_folder} is a link that leads back to a folder it lies in: left out")
            continue
        found = walk(class_folder)
        walked.append(found)
        if not found.images:
            notes.append(f"class {class_folder.name!r}{where} has no images: left out")
        notes += found.notes()
        items += [Item(path.relative_to(root).as_posix(), (class_folder.name,), path) for path in found.images]
    return items


def _each_once(root: Path, parts: Parts, walked: Iterable[_Walk], notes: list[str]) -> Found:
    """The images, each file once whatever links lead to it. Raises UserError for a file with two classes or splits."""
    linked = {path: real for found in walked for path, real in found.linked.items()}
    if not linked:
        return Found(parts, None, notes)
    real_root = os.path.realpath(root)
    placed = [(item, split) for split, items in parts.items() for item in items]
    placed.sort(key=lambda pair: pair[0].source in linked)  # files before the links to them
    seen: dict[str, tuple[Item, str]] = {}
    repeated: set[str] = set()
    for item, split in placed:
        assert isinstance(item.source, Path)
        real = linked.get(item.source) or str(Path(real_root, item.key))
        before, where = seen.setdefault(real, (item, split))
        if before is item:
            continue
        if where != split or before.labels != item.labels:
            raise UserError(
                f"{root}: {before.key} and {item.key} are one file, by a link: it can have one class and be in one "
                "split, so remove one of the two"
            )
        repeated.add(item.key)
    if repeated:
        notes.append(f"{len(repeated)} links to images that are there already (first: {min(repeated)}): left out")
        parts = {split: [item for item in items if item.key not in repeated] for split, items in parts.items()}
    return Found(parts, None, notes)
