"""What a set of pictures holds, and what is wrong with it, before anything is trained on it."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from anyres.config import UserError
from anyres.data.annotations.annotated import AnnotatedSet, Kind, Rules
from anyres.data.annotations.builtin_sets import DRAWN
from anyres.data.annotations.faults import NO_PICTURE, STOP, Faults
from anyres.data.annotations.forms import open_annotations, recognized
from anyres.data.annotations.masks import class_map
from anyres.data.annotations.pictures import look
from anyres.data.decode import Unreadable, decode_in_thread
from anyres.data.drawn_sources import drawn_source
from anyres.data.sources import BUILTIN, Source, class_indices, open_source
from anyres.evaluation.plots.box_sizes import box_sizes_png
from anyres.flow import IGNORED, MapFile, Objects, Record, Size
from anyres.ops.processors import processors
from anyres.runs.stderr import doing
from anyres.storage import as_path, write_bytes, write_rows

Task = Literal["classify", "detect", "segment"]
TINY = 8.0
"""Pixels of a box's side (the root of its area) below which a detector sees little of it."""
SMALL, LARGE = 32.0, 96.0
"""COCO's bounds of small and large objects, as sides."""
USUAL = {"classify": (Size(224, 224),), "detect": tuple(Size(s, s) for s in (320, 480, 640)), "segment": ()}
_KIND: dict[Task, Kind] = {"detect": "boxes", "segment": "maps"}
PICTURE, TABLE = "box_sizes.png", "faults.csv"


@dataclass(frozen=True)
class ClassCount:
    """One class: how many pictures have it, in train and elsewhere; how many objects, or what share of the pixels."""

    name: str
    train: int
    other: int
    objects: int | None = None
    pixels: float | None = None


@dataclass(frozen=True)
class BoxSizes:
    """The boxes at one training size: sides in pixels (5 %, median, 95 %), and shares of all boxes."""

    size: Size
    low: float
    median: float
    high: float
    tiny: int  # how many are below 8 px
    small: float  # share below 32 px
    large: float  # share above 96 px


@dataclass(frozen=True)
class Checked:
    """What was found. ``stop``: why nothing can be trained on the set, in one line; None: it can be.

    ``pictures``: how many of each split can be used. ``sides``: the smallest, median and largest short side of a
    picture, in pixels. ``written``: files with all of the faults and the picture of box sizes.
    """

    data: str
    task: Task
    form: str
    pictures: dict[str, int]
    annotations: int
    sides: tuple[int, int, int] | None
    classes: tuple[ClassCount, ...]
    boxes: tuple[BoxSizes, ...]
    faults: Faults
    notes: tuple[str, ...]
    stop: str | None
    written: tuple[Path, ...] = ()

    def plain(self) -> dict[str, object]:
        """All of it as plain values, for JSON."""
        counts = [{"kind": kind, "done": done, "count": n} for (kind, done), n in self.faults.counts.items()]
        return {
            "data": self.data,
            "task": self.task,
            "form": self.form,
            "pictures": self.pictures,
            "annotations": self.annotations,
            "sides": self.sides,
            "classes": [asdict(row) for row in self.classes],
            "boxes": [asdict(row) | {"size": str(row.size)} for row in self.boxes],
            "fault_counts": counts,
            "faults": [asdict(fault) for fault in self.faults.kept],
            "notes": list(self.notes),
            "stop": self.stop,
            "written": [str(path) for path in self.written],
        }


def check(
    data: str,
    task: Task | None = None,
    sizes: Sequence[Size] = (),
    rules: Rules = Rules(),
    *,
    out: Path | None = None,
    quick: bool = False,
) -> Checked:
    """Read a whole set as training would, and say what is in it and what is wrong.

    ``task``: None takes what the set has: boxes, class maps, or classes of whole pictures. ``sizes``: training sizes at
    which boxes are measured; ``S`` is the short side of the picture, ``HxW`` both its sides. ``out``: the folder for
    the picture of box sizes and the table of all faults (``runs/check-NAME``). ``quick``: read only the heads of
    pictures, and no pixels of class maps. Raises UserError where there is no such set.
    """
    folder = out or Path("runs") / f"check-{re.sub(r'[^A-Za-z0-9_.-]+', '-', as_path(data).name or data)}"
    annotated = None
    if task in (None, "detect", "segment"):
        forms = [] if data in (*BUILTIN, *DRAWN) or ":" in data else recognized_or_none(data)
        if data in DRAWN or forms or task is not None:
            with doing(f"reading the annotations of {data}"):
                annotated = open_annotations(data, _KIND.get(task) if task else None, rules)
    if annotated is None:
        return _written(_check_classes(data, sizes, quick), folder, {})
    found, sides = _check_annotated(annotated, sizes, rules, quick)
    return _written(found, folder, sides)


def recognized_or_none(data: str) -> list[object]:
    """The forms of annotations that a folder or file has; none for a pattern of files."""
    path = as_path(data)
    return [*recognized(data)] if path.is_dir() or path.is_file() else []


def _written(found: Checked, folder: Path, sides: dict[str, Float[np.ndarray, " n"]]) -> Checked:
    """Write the files."""
    written = []
    if sides:
        n = len(next(iter(sides.values())))
        write_bytes(folder / PICTURE, box_sizes_png(sides, f"{n:,} boxes of {Path(found.data).name}"))
        written.append(folder / PICTURE)
    if found.faults.kept:
        head = ("kind", "where", "what", "done", "annotations")
        rows = ((f.kind, f.where, f.what, f.done, f.count) for f in found.faults.kept)
        write_rows(folder / TABLE, [head, *rows])
        written.append(folder / TABLE)
    return replace(found, written=tuple(written))


# --- pictures -----------------------------------------------------------------------------------------------------


def _read_all(records: Sequence[Record], faults: Faults, quick: bool) -> tuple[list[str], tuple[int, int, int] | None]:
    """Read every picture to its end (``quick``: its head): notes, and the short sides. What cannot be read is a fault.

    The records that cannot be read are left in: training leaves them out when it meets them.
    """
    notes: Counter[str] = Counter()
    shorts: list[int] = []
    with (
        doing(f"reading {len(records)} pictures"),
        warnings.catch_warnings(),
        ThreadPoolExecutor(processors()) as threads,
    ):
        warnings.simplefilter("ignore")  # Pillow's
        for short, note, broken in threads.map(_read_head if quick else _read_whole, records):
            if broken:
                faults.add("picture unreadable", broken[0], broken[1], NO_PICTURE)
            else:
                shorts.append(short)
                notes.update([note] if note else [])
    sides = (min(shorts), int(np.median(shorts)), max(shorts)) if shorts else None
    return [f"{count} pictures: {note}" for note, count in notes.most_common(10)], sides


_Read = tuple[int, str | None, tuple[str, str] | None]
"""A picture's short side, what was done to read it, and where and why it cannot be read."""


def _read_whole(record: Record) -> _Read:
    try:
        decoded = decode_in_thread(record)
    except Unreadable as error:
        return 0, None, (error.name, f"the picture cannot be read ({error.reason})")
    return min(decoded.image.shape[1:]), decoded.note, None


def _read_head(record: Record) -> _Read:
    try:
        return min(look(record.source).size), None, None
    except ValueError as error:
        return 0, None, (record.name, f"the picture cannot be read ({error})")


# --- classes of whole pictures ------------------------------------------------------------------------------------


def _check_classes(data: str, sizes: Sequence[Size], quick: bool) -> Checked:
    sources: dict[str, Source] = {split: open_source(data, split) for split in ("train", "val")}
    test = open_source(data, "test")
    if {record.name for record in test.records} != {record.name for record in sources["val"].records}:
        sources["test"] = test
    faults = Faults()
    records = [record for source in sources.values() for record in source.records]
    notes, sides = _read_all(records, faults, quick)
    told = dict.fromkeys(note for source in sources.values() for note in source.notes)
    for size in sizes or USUAL["classify"]:
        if sides and sides[0] < min(size):
            notes.append(f"at {size} px the smallest picture, {sides[0]} px on its short side, is enlarged")
    counted = {split: Counter(c for r in s.records for c in class_indices(r)) for split, s in sources.items()}
    classes = tuple(
        ClassCount(name, counted["train"][i], sum(n[i] for split, n in counted.items() if split != "train"))
        for i, name in enumerate(sources["train"].classes)
    )
    pictures = {split: len(source.records) for split, source in sources.items()}
    lost, n = faults.done(NO_PICTURE), len(records)
    stop = f"{lost} of {n} pictures cannot be read, as {faults.kept[0].where}" if lost > max(10, n // 100) else None
    if n and lost == n:
        stop = f"none of the {n} pictures can be read, as {faults.kept[0].where}: {faults.kept[0].what}"
    form = "built-in set" if data in BUILTIN else "classes of whole pictures"
    return Checked(data, "classify", form, pictures, n, sides, classes, (), faults, (*told, *notes), stop)


# --- boxes and maps -----------------------------------------------------------------------------------------------


def _check_annotated(
    found: AnnotatedSet, sizes: Sequence[Size], rules: Rules, quick: bool
) -> tuple[Checked, dict[str, Float[np.ndarray, " n"]]]:
    records = list(found.records)
    notes, sides = _read_all(records, found.faults, quick)
    task: Task = "detect" if found.kind == "boxes" else "segment"
    boxes: tuple[BoxSizes, ...] = ()
    by_size: dict[str, Float[np.ndarray, " n"]] = {}
    if task == "detect":
        classes = _count_objects(found)
        wanted = tuple(sizes) or USUAL["detect"]
        by_size = {str(size): _box_sides(records, size) for size in wanted} if any(map(_objects_in, records)) else {}
        boxes = tuple(_row(size, by_size[str(size)]) for size in wanted if str(size) in by_size)
        notes += [f"class {row.name!r} has no object in train" for row in classes if not row.train][:10]
    else:
        classes = _count_pixels(found, quick, notes)
    stop = found.stop(rules)
    if stop is None and task == "detect" and not sum(row.train for row in classes):
        stop = "train has no object: there is nothing to learn"
    if stop is None and not found.parts.get("val"):
        notes += _held_out(found)
    pictures = {split: len(found.parts.get(split, ())) for split in ("train", "val", "test")}
    checked = Checked(
        found.name,
        task,
        found.form,
        pictures,
        found.annotations,
        sides,
        classes,
        boxes,
        found.faults,
        (*found.notes, *notes),
        stop,
    )
    return checked, by_size


def _held_out(found: AnnotatedSet) -> Iterator[str]:
    """What there is to say of validation where the set has no val split."""
    try:
        source = drawn_source(found, "val")
    except UserError:
        yield "no val split, and too few train pictures to hold one out: score on test"
    else:
        yield from (note for note in source.notes if note not in found.notes)


def _objects_in(record: Record) -> int:
    return len(record.target) if isinstance(record.target, Objects) else 0


def _count_objects(found: AnnotatedSet) -> tuple[ClassCount, ...]:
    objects: Counter[int] = Counter()
    pictures = {True: Counter[int](), False: Counter[int]()}
    for split, records in found.parts.items():
        for record in records:
            assert isinstance(record.target, Objects)
            objects.update(record.target.classes.tolist())
            pictures[split == "train"].update(set(record.target.classes.tolist()))
    return tuple(
        ClassCount(name, pictures[True][i], pictures[False][i], objects[i]) for i, name in enumerate(found.classes)
    )


def _box_sides(records: Iterable[Record], size: Size) -> Float[np.ndarray, " n"]:
    """The root of the area of every box, in pixels, once its picture has a training size."""
    made = []
    for record in records:
        target = record.target
        if isinstance(target, Objects) and len(target):
            y, x = _scales(target.of_size, size)
            wide, high = (target.boxes[:, 2:] - target.boxes[:, :2]).T
            made.append(np.sqrt((wide * x) * (high * y)))
    return np.concatenate(made).astype(np.float64)


def _scales(picture: Size, size: Size) -> tuple[float, float]:
    """What height and width are multiplied by: by one number where a side is meant, else each side by its own."""
    if size.height == size.width:
        scale = size.height / min(picture)
        return scale, scale
    return size.height / picture.height, size.width / picture.width


def _row(size: Size, sides: Float[np.ndarray, " n"]) -> BoxSizes:
    low, median, high = (float(value) for value in np.percentile(sides, (5, 50, 95)))
    tiny, small, large = int((sides < TINY).sum()), float((sides < SMALL).mean()), float((sides > LARGE).mean())
    return BoxSizes(size, low, median, high, tiny, small, large)


def _count_pixels(found: AnnotatedSet, quick: bool, notes: list[str]) -> tuple[ClassCount, ...]:
    """Read every map; a value that is no class is a fault that stops."""
    n = len(found.classes)
    pixels, ignored = np.zeros(n, np.int64), 0
    pictures = {True: np.zeros(n, np.int64), False: np.zeros(n, np.int64)}
    if quick or not n:
        return tuple(ClassCount(name, 0, 0) for name in found.classes)
    for is_train, target in _maps(found):
        try:
            values = class_map(target, n)
        except UserError as error:
            what = str(error).removeprefix(f"{target.name}: ")
            found.faults.add("map unusable", target.name, what, STOP)
            continue
        counts = np.bincount(values.reshape(-1), minlength=256)
        pixels += counts[:n]
        ignored += int(counts[IGNORED])
        pictures[is_train] += counts[:n] > 0
    if pixels.sum() and (pixels > 0).sum() < 2:
        only = found.classes[int(pixels.argmax())]
        what = f"every pixel is {only!r}{' or 255, which is ignored: write 0 and 1, not 0 and 255' if ignored else ''}"
        found.faults.add("one class alone", found.name, what, STOP)
    total = int(pixels.sum()) + ignored
    if ignored:
        notes.append(f"{100 * ignored / total:.1f} % of the pixels are ignored")
    missing = [name for name, count in zip(found.classes, pixels.tolist(), strict=True) if not count]
    notes += [f"no pixel is of class {name!r}" for name in missing[:10]]
    return tuple(
        ClassCount(name, int(pictures[True][i]), int(pictures[False][i]), None, float(pixels[i]) / max(total, 1))
        for i, name in enumerate(found.classes)
    )


def _maps(found: AnnotatedSet) -> Iterator[tuple[bool, MapFile]]:
    for split, records in found.parts.items():
        for record in records:
            assert isinstance(record.target, MapFile)
            yield split == "train", record.target
