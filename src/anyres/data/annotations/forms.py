"""Which form a folder or file of annotations has, and the reader for it."""

from __future__ import annotations

import mmap
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from anyres.config import UserError, nearest
from anyres.data.annotations.annotated import AnnotatedSet, Kind, Rules
from anyres.data.annotations.coco import read_coco
from anyres.data.annotations.masks import Pair, read_masks, read_names
from anyres.data.annotations.raw import RawSet
from anyres.data.annotations.rules import assemble
from anyres.data.annotations.table import is_box_table, read_table
from anyres.data.annotations.voc import read_voc
from anyres.data.annotations.yolo import LABELS, label_file, pictures_in, read_data_yaml, read_yolo
from anyres.data.folders import images_in, listed, subfolders, walk
from anyres.data.raw_dataset import SPLIT_OF, folder_split, one_form
from anyres.storage import as_path, read_bytes

_MAP_FOLDERS = ("annotations", "Annotations", "masks", "mask", "labels", "SegmentationClass", "gt")
_PICTURE_FOLDERS = ("images", "imgs", "JPEGImages", "img")
_NAME_FILES = ("classes.txt", "classes.names", "obj.names", "labels.txt", "labels/classes.txt")


@dataclass(frozen=True)
class Form:
    """A form that a folder has: ``name`` for people, ``by`` what it shows by, and how to read it."""

    name: str
    by: Path
    kind: Kind
    read: Callable[[Rules], AnnotatedSet]


def open_annotations(data: str, kind: Kind | None = None, rules: Rules = Rules()) -> AnnotatedSet:
    """AnnotatedSet pictures in any form that is known, or a built-in set (``lungs``, ``trees``).

    ``kind``: which to read where a folder has both boxes and maps. Nothing is refused for its faults: ``checked`` does
    that. Raises UserError where no form fits, several do, or a file cannot be read at all.
    """
    from anyres.data.annotations.builtin_sets import DRAWN, open_builtin

    if data in DRAWN:
        return open_builtin(data, kind, rules)
    forms = recognized(data)
    if not forms:
        raise UserError(f"{data} has no annotations of a form that is known: COCO json, VOC xml, YOLO txt, CSV, maps")
    fitting = [form for form in forms if kind in (None, form.kind)]
    if not fitting:
        has, task = ("boxes", "detect") if kind == "maps" else ("class maps", "segment")
        raise UserError(f"{data} has {has} ({forms[0].name}): give --task {task}")
    if len(fitting) > 1:
        told = " and ".join(f"{form.name} ({form.by.name})" for form in fitting)
        mend = "give --task" if len({form.kind for form in fitting}) > 1 else "name the file, or take one away"
        raise UserError(f"{data} fits {len(fitting)} forms, {told}: {mend}")
    return fitting[0].read(rules)


def recognized(data: str) -> list[Form]:
    """Every form that a folder or file fits. Raises UserError where there is nothing, or a file of it is unclear."""
    path = as_path(data)
    if path.is_dir():
        makers = (_coco, _yolo, _voc, _table, _maps)
        return [form for make in makers if (form := make(data, path)) is not None]
    if not path.is_file():
        siblings = [p.name for p in path.absolute().parent.iterdir()] if path.absolute().parent.is_dir() else []
        raise UserError(f"no folder or file {data}{nearest(path.name, siblings, 1)}")
    ending = path.suffix.lower()
    if ending == ".json" and _looks_like_coco(path):
        return [_boxes("COCO json", data, path, lambda: read_coco([(path, _split(path))], _above(path)))]
    if ending in (".yaml", ".yml"):
        return [_boxes("YOLO txt", data, path, lambda: _read_yaml(path))]
    if ending == ".csv" and is_box_table(path):
        return [_boxes("CSV table", data, path, lambda: read_table([(path, _split(path))], path.parent))]
    return []


def _boxes(name: str, data: str, by: Path, read: Callable[[], RawSet]) -> Form:
    return Form(name, by, "boxes", lambda rules: assemble(data, read(), rules))


def _above(path: Path) -> Path:
    """The folder of a set of which a file of annotations is known."""
    return path.parent.parent if path.parent.name.lower() in ("annotations", "labels") else path.parent


def _split(path: Path) -> str:
    """The split that a file's name or folder says; else train."""
    words = [*re.split(r"[^a-z]+", path.stem.lower())[::-1], path.parent.name.lower()]
    return next((SPLIT_OF[word] for word in words if word in SPLIT_OF), "train")


def _one_each(files: Iterable[Path], what: str) -> list[tuple[Path, str]]:
    """Files with their splits, train first. Raises UserError where two say the same."""
    named: dict[str, Path] = {}
    for path in files:
        before = named.setdefault(_split(path), path)
        if before is not path:
            raise UserError(f"{before} and {path} are both {what} of {_split(path)}: name the one that is meant")
    return [(named[split], split) for split in ("train", "val", "test") if split in named]


def _split_folders(root: Path) -> list[Path]:
    return [folder for folder in subfolders(root) if folder_split(folder.name)]


def _files(root: Path, ending: str) -> list[Path]:
    """The files with an ending right in a folder."""
    entries = (e for e in listed(root) if e.name.lower().endswith(ending) and not e.name.startswith("."))
    return [path for path in map(Path, entries) if path.is_file()]


# --- COCO ---------------------------------------------------------------------------------------------------------


def _coco(data: str, root: Path) -> Form | None:
    folders = [root, *(root / name for name in ("annotations", "Annotations") if (root / name).is_dir())]
    files = [path for folder in [*folders, *_split_folders(root)] for path in _files(folder, ".json")]
    files = [path for path in files if _looks_like_coco(path)]
    files = [path for path in files if path.stem.startswith("instances")] or files
    if not files:
        return None
    named = _one_each(files, "COCO files")
    return _boxes("COCO json", data, named[0][0], lambda: read_coco(named, root))


def _looks_like_coco(path: Path) -> bool:
    """Whether the keys of COCO stand in a JSON file, which may be large."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return all(content.find(key) >= 0 for key in (b'"images"', b'"annotations"'))
    except (OSError, ValueError):  # empty, or no file
        return False


# --- YOLO ---------------------------------------------------------------------------------------------------------


def _yolo(data: str, root: Path) -> Form | None:
    sheets = [path for path in (*_files(root, ".yaml"), *_files(root, ".yml")) if _names_pictures(path)]
    if len(sheets) > 1:
        raise UserError(f"{root} has {len(sheets)} YOLO files, {sheets[0].name} and {sheets[1].name}: name one")
    if sheets:
        return _boxes("YOLO txt", data, sheets[0], lambda: _read_yaml(sheets[0]))
    for pictures, labels in LABELS.items():
        if (root / pictures).is_dir() and (root / labels).is_dir() and next((root / labels).rglob("*.txt"), None):
            return _boxes("YOLO txt", data, root / labels, partial(_read_plain_yolo, root, root / pictures))
    if any(label_file(path).is_file() for path in images_in(root)) and _yolo_names(root):
        return _boxes("YOLO txt", data, root, lambda: _read_plain_yolo(root, root))
    return None


def _names_pictures(path: Path) -> bool:
    """Whether a YAML file is YOLO's."""
    try:
        keys = set(re.findall(rb"(?m)^(\w+) *:", read_bytes(path)))
    except (OSError, UserError):
        return False
    return {b"names", b"train"} <= keys


def _read_yaml(path: Path) -> RawSet:
    names, pictures = read_data_yaml(path)
    return read_yolo(pictures, path.parent, names)


def _yolo_names(root: Path) -> list[str]:
    for name in _NAME_FILES:
        if (root / name).is_file():
            lines = read_bytes(root / name).decode("utf-8-sig", "replace").splitlines()
            return [line.strip() for line in lines if line.strip()]
    return []


def _read_plain_yolo(root: Path, folder: Path) -> RawSet:
    names = _yolo_names(root)
    if not names:
        raise UserError(
            f"{root} has YOLO labels and no names: write a data.yaml, or a classes.txt with one name a line"
        )
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{root}: the class {twice!r} stands twice in its list of names: rename one")
    return read_yolo(pictures_in(root, folder), root, names)


# --- VOC ----------------------------------------------------------------------------------------------------------


def _voc(data: str, root: Path) -> Form | None:
    nested = [folder for folder in subfolders(root) if re.fullmatch(r"VOC\d{4}", folder.name)]
    if len(nested) > 1:
        raise UserError(f"{root} has {', '.join(folder.name for folder in nested)}: name one of them")
    top = nested[0] if nested else root
    folder = next((top / name for name in ("Annotations", "annotations") if (top / name).is_dir()), top)
    files = dict.fromkeys(_files(folder, ".xml"), "train")
    lists = _listed([*_voc_lists(top, "Main"), *(top / f"{name}_list.txt" for name in ("train", "val", "test"))])
    unlisted = [path for path in files if path.stem not in lists] if lists else []
    if len(unlisted) < len(files):
        files = {path: lists.get(path.stem, "train") for path in files if path not in set(unlisted)}
    else:
        unlisted = []
    for part in _split_folders(top):
        files |= {path: folder_split(part.name) or "train" for path in _files(part, ".xml")}
    if not files:
        return None
    told = [f"{len(unlisted)} files, as {unlisted[0].name}, are in no list of a split: left out"] if unlisted else []
    return _boxes("VOC xml", data, next(iter(files)), lambda: read_voc(files, top, _voc_names(top), told))


def _voc_names(root: Path) -> list[str] | None:
    if (root / "labels.txt").is_file():
        lines = read_bytes(root / "labels.txt").decode("utf-8-sig", "replace").splitlines()
        return [one_form(line.strip()) for line in lines if line.strip()]
    return None


def _listed(files: Iterable[Path]) -> dict[str, str]:
    """The split of each name that lists such as ``train.txt`` hold, a name a line; the first list decides.

    A line may be ``0012``, ``0012 1``, or ``JPEGImages/0012.jpg Annotations/0012.xml``.
    """
    placed: dict[str, str] = {}
    for path in files:
        if path.is_file():
            split = SPLIT_OF[path.stem.removesuffix("_list")]
            for line in read_bytes(path).decode(errors="surrogateescape").splitlines():
                for word in (line.strip(), *line.split()[:1]):
                    placed.setdefault(word, split)
                    placed.setdefault(Path(word).stem, split)
    return placed


def _voc_lists(root: Path, what: str) -> list[Path]:
    """The lists of VOC, ``trainval`` last: of it everything is train that no other list names."""
    return [root / "ImageSets" / what / f"{name}.txt" for name in ("train", "val", "test", "trainval")]


# --- CSV ----------------------------------------------------------------------------------------------------------


def _table(data: str, root: Path) -> Form | None:
    files = [path for folder in [root, *_split_folders(root)] for path in _files(folder, ".csv")]
    files = [path for path in files if is_box_table(path)]
    if not files:
        return None
    named = _one_each(files, "tables")
    return _boxes("CSV table", data, named[0][0], lambda: read_table(named, root))


# --- maps ---------------------------------------------------------------------------------------------------------


def _maps(data: str, root: Path) -> Form | None:
    found = [pair for folder in [root, *_split_folders(root)] if (pair := _map_folders(folder))]
    if not found:
        return None
    is_ade = found[0][1].name == "annotations" and any(
        (found[0][1] / name).is_dir() for name in ("training", "validation")
    )
    form = "ADE20K layout" if is_ade else "folders of class maps"
    by = found[0][1]

    def read(_: Rules) -> AnnotatedSet:
        pairs = [pair for pictures, maps in found for pair in _pairs(root, pictures, maps)]
        return read_masks(data, form, root, pairs, read_names(root), first=int(is_ade))

    return Form(form, by, "maps", read)


def _map_folders(root: Path) -> tuple[Path, Path] | None:
    """The folders of pictures and of maps in a folder."""
    pictures = next((root / name for name in _PICTURE_FOLDERS if (root / name).is_dir()), None)
    if pictures is None:
        return None
    for name in _MAP_FOLDERS:
        if (root / name).is_dir() and walk(root / name).images:
            return pictures, root / name
    return None


def _pairs(root: Path, pictures: Path, maps: Path) -> list[Pair]:
    """Pictures and maps of one name, without their endings, below the two folders. Raises UserError for two alike."""
    files: dict[str, list[Path | None]] = defaultdict(lambda: [None, None])
    for place, folder in enumerate((pictures, maps)):
        for path in walk(folder).images:
            stem = path.relative_to(folder).with_suffix("").as_posix()
            stem = re.sub(r"_(mask|labelIds|gt|label)$", "", stem) if place else stem
            if files[stem][place] is not None:
                raise UserError(f"{files[stem][place]} and {path} have one name: rename or remove one")
            files[stem][place] = path
    within = pictures.relative_to(root).parts[:-1]
    lists = _listed(_voc_lists(root, "Segmentation"))
    made = []
    for stem, (picture, mask) in sorted(files.items()):
        if lists and stem not in lists:
            continue
        words: Sequence[str] = [*Path(stem).parts[:-1], *within]
        split = lists.get(stem) or next((part for word in words if (part := folder_split(word))), "train")
        made.append(Pair(stem, picture, mask, split))
    return made
