"""The same pictures with the same boxes, written in every form of annotations."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog")


class Box(NamedTuple):
    """A class, and corners in whole pixels."""

    label: str
    x1: int
    y1: int
    x2: int
    y2: int


class Drawn(NamedTuple):
    """A picture of w x h pixels and what is drawn on it."""

    name: str
    w: int
    h: int
    boxes: tuple[Box, ...]
    split: str = "train"


PICTURES = (
    Drawn("1.png", 40, 30, tuple(Box("cat", 3 * i, 2, 3 * i + 9, 20) for i in range(6))),
    Drawn("2.png", 30, 40, tuple(Box("dog", 2, 4 * i, 25, 4 * i + 11) for i in range(6))),
    Drawn("3.png", 33, 33, (Box("cat", 0, 0, 33, 33), Box("dog", 5, 6, 7, 8)), "val"),
)
"""Fourteen boxes: one wrong one is far from a fifth of them."""


def paint(folder: Path, pictures: Sequence[Drawn]) -> None:
    """Write the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        Image.new("RGB", (picture.w, picture.h), (40 * number % 256, 90, 200)).save(folder / picture.name)


def square(box: Box) -> list[int]:
    """The box as a polygon."""
    return [box.x1, box.y1, box.x2, box.y1, box.x2, box.y2, box.x1, box.y2]


def coco(pictures: Sequence[Drawn], masks: bool = False) -> dict[str, Any]:
    """What a COCO file holds; category ids are 7 and 3, in this order."""
    numbers = dict(zip(CLASSES, (7, 3), strict=True))
    document: dict[str, Any] = {
        "images": [{"id": 10 + i, "file_name": p.name, "width": p.w, "height": p.h} for i, p in enumerate(pictures)],
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
        "annotations": [],
    }
    for i, picture in enumerate(pictures):
        for box in picture.boxes:
            annotation = {
                "id": len(document["annotations"]) + 1,
                "image_id": 10 + i,
                "category_id": numbers[box.label],
                "bbox": [box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1],
                "iscrowd": 0,
            }
            document["annotations"].append(annotation | ({"segmentation": [square(box)]} if masks else {}))
    return document


def write_coco(root: Path, pictures: Sequence[Drawn] = PICTURES) -> Path:
    """``root/annotations/instances_train.json`` and its pictures in ``root/images``."""
    paint(root / "images", pictures)
    (root / "annotations").mkdir(parents=True)
    for split in dict.fromkeys(picture.split for picture in pictures):
        some = [picture for picture in pictures if picture.split == split]
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(coco(some)))
    return root


def write_roboflow(root: Path, pictures: Sequence[Drawn] = PICTURES) -> Path:
    """``root/train/_annotations.coco.json`` beside its pictures, and ``root/valid``."""
    for split, name in (("train", "train"), ("val", "valid")):
        if some := [picture for picture in pictures if picture.split == split]:
            paint(root / name, some)
            (root / name / "_annotations.coco.json").write_text(json.dumps(coco(some)))
    return root


def voc(picture: Drawn) -> str:
    """One VOC file: pixels count from 1, the last one is within."""
    objects = "".join(
        f"<object><name>{b.label}</name><bndbox><xmin>{b.x1 + 1}</xmin><ymin>{b.y1 + 1}</ymin>"
        f"<xmax>{b.x2}</xmax><ymax>{b.y2}</ymax></bndbox></object>"
        for b in picture.boxes
    )
    size = f"<size><width>{picture.w}</width><height>{picture.h}</height><depth>3</depth></size>"
    return f"<annotation><filename>{picture.name}</filename>{size}{objects}</annotation>"


def write_voc(root: Path, pictures: Sequence[Drawn] = PICTURES) -> Path:
    """``JPEGImages``, ``Annotations``, ``ImageSets/Main``."""
    paint(root / "JPEGImages", pictures)
    (root / "Annotations").mkdir()
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for picture in pictures:
        stem = Path(picture.name).stem
        (root / "Annotations" / f"{stem}.xml").write_text(voc(picture))
        with (lists / f"{picture.split}.txt").open("a") as file:
            file.write(f"{stem}\n")
    return root


def yolo(picture: Drawn) -> str:
    """One file of labels."""
    w, h = picture.w, picture.h
    rows = [
        (CLASSES.index(b.label), (b.x1 + b.x2) / 2 / w, (b.y1 + b.y2) / 2 / h, (b.x2 - b.x1) / w, (b.y2 - b.y1) / h)
        for b in picture.boxes
    ]
    return "".join(" ".join(map(repr, row)) + "\n" for row in rows)


def write_yolo(root: Path, pictures: Sequence[Drawn] = PICTURES) -> Path:
    """``images/SPLIT``, ``labels/SPLIT`` and ``data.yaml``."""
    splits = dict.fromkeys(picture.split for picture in pictures)
    for split in splits:
        some = [picture for picture in pictures if picture.split == split]
        paint(root / "images" / split, some)
        (root / "labels" / split).mkdir(parents=True)
        for picture in some:
            (root / "labels" / split / f"{Path(picture.name).stem}.txt").write_text(yolo(picture))
    lines = "".join(f"{split}: images/{split}\n" for split in splits)
    (root / "data.yaml").write_text(f"{lines}nc: 2\nnames: [{', '.join(CLASSES)}]\n")
    return root


def write_table(root: Path, pictures: Sequence[Drawn] = PICTURES) -> Path:
    """``boxes.csv`` beside its pictures, with a column of splits."""
    paint(root, pictures)
    with (root / "boxes.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image_path", "xmin", "ymin", "xmax", "ymax", "label", "split"])
        for picture in pictures:
            rows = [(b.x1, b.y1, b.x2, b.y2, b.label) for b in picture.boxes] or [("", "", "", "", "")]
            table.writerows([picture.name, *row, picture.split] for row in rows)
    return root


WRITERS: dict[str, Callable[..., Path]] = {
    "COCO json": write_coco,
    "Roboflow": write_roboflow,
    "VOC xml": write_voc,
    "YOLO txt": write_yolo,
    "CSV table": write_table,
}


def write_maps(root: Path, values: Sequence[np.ndarray], mode: str = "L", names: str = "") -> Path:
    """``images/train`` and ``masks/train``: a picture and a map of each array."""
    for folder in ("images", "masks"):
        (root / folder / "train").mkdir(parents=True)
    for number, pixels in enumerate(values):
        h, w = pixels.shape[:2]
        Image.new("RGB", (w, h), (number, 90, 200)).save(root / "images" / "train" / f"{number}.jpg")
        image = Image.fromarray(pixels)
        if mode == "P":
            image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
        image.save(root / "masks" / "train" / f"{number}.png")
    if names:
        (root / ("classes.csv" if "," in names else "classes.txt")).write_text(names)
    return root
