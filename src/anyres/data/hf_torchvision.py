"""Sets that other libraries hold: ``hf:owner/name`` (Hugging Face datasets) and ``torchvision:CIFAR10@FOLDER``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from anyres.config import UserError, nearest, need
from anyres.data.raw_dataset import SPLIT_OF, Found, Item, LabelParser, Parts, number_order
from anyres.storage import as_path, cache_root, locked, offline


@dataclass(frozen=True)
class HubCell:
    """One image of a Hugging Face dataset, which lies in mapped Arrow files."""

    dataset: Any
    column: str
    row: int

    def read(self) -> bytes:
        """The image's bytes, from the cell or from the file that it names."""
        value = self.dataset[self.row][self.column]
        return bytes(value["bytes"]) if value["bytes"] is not None else Path(value["path"]).read_bytes()


def read_hub(name: str) -> Found:
    """``owner/name``, ``owner/name:config`` or a folder that the datasets library reads. Raises UserError."""
    repo, _, config = name.partition(":")
    if offline():  # before the library is imported: it reads them then
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    library: Any = need("datasets", extra="data", purpose=f"hf:{name}")
    if not repo:
        raise UserError("hf: names no set: write hf:owner/name or hf:owner/name:config")
    try:
        loaded = library.load_dataset(repo, config or None)
    except Exception as error:  # the library's own errors are of many kinds
        told = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(f"hf:{name} cannot be had: {told}") from None
    parts: Parts = {}
    notes: list[str] = []
    order: Sequence[str] = ()
    reader = LabelParser()
    for split, dataset in loaded.items():
        part = SPLIT_OF.get(str(split).lower())
        if part is None:
            notes.append(f"split {split!r} of hf:{name} is none of train, validation, test: left out")
            continue
        image, label = _columns(name, library, dataset.features)
        reader.names = names = _class_names(dataset.features.get(label))
        order = order or names
        plain = dataset.cast_column(image, library.Image(decode=False)).select_columns([image])
        values = dataset[label] if label else [None] * len(dataset)
        for row, value in enumerate(values):
            where = f"{split} row {row}"
            if names and isinstance(value, int) and not 0 <= value < len(names):  # -1: a test split without labels
                continue
            labels = reader.read(value, f"hf:{name} {where}") if label else reader.miss(_no_labels(name, dataset))
            parts.setdefault(part, []).append(Item(where, labels, HubCell(plain, image, row)))
        if part not in parts:
            notes.append(f"split {split!r} of hf:{name} has no labels: left out")
    found = Found(parts, None, notes, bool(reader.several), reader.unlabelled)
    return replace(found, order=order or number_order(found.items))


def _columns(name: str, library: Any, features: Any) -> tuple[str, str | None]:
    """The columns of images and of labels, None where there are no labels. Raises UserError without images."""
    images = [key for key, kind in features.items() if isinstance(kind, library.Image)]
    labels = [key for key in ("label", "labels") if key in features]
    labels = labels or [key for key, kind in features.items() if _class_names(kind)]
    if not images:
        raise UserError(f"hf:{name} has no column of images (columns: {', '.join(features)})")
    return images[0], labels[0] if labels else None


def _class_names(kind: Any) -> list[str]:
    """The names of a ClassLabel, or of a list of them; [] of anything else."""
    kind = kind[0] if isinstance(kind, list) and kind else getattr(kind, "feature", kind)
    return list(getattr(kind, "names", None) or [])


def _no_labels(name: str, dataset: Any) -> str:
    return f"hf:{name} has no column of labels (columns: {', '.join(dataset.features)})"


class _Set(NamedTuple):
    """How a class of torchvision is opened and where it keeps what it read."""

    splits: dict[str, dict[str, Any]]  # our split -> options
    images: str  # attribute: an array of pictures, a list of paths, or of (path, label)
    labels: str | None  # attribute, None where images has them
    named: bool = True  # whether it has the attribute classes


_FLAG = {"train": {"train": True}, "test": {"train": False}}
_TWO: dict[str, dict[str, Any]] = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE = {**_TWO, "val": {"split": "val"}}
SETS = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST"), _Set(_FLAG, "data", "targets")),
    "SVHN": _Set(_TWO, "data", "labels", named=False),
    "STL10": _Set(_TWO, "data", "labels"),
    **dict.fromkeys(("Flowers102", "DTD", "FGVCAircraft"), _Set(_THREE, "_image_files", "_labels")),
    "Food101": _Set(_TWO, "_image_files", "_labels"),
    "OxfordIIITPet": _Set({"train": {"split": "trainval"}, "test": {"split": "test"}}, "_images", "_labels"),
    "GTSRB": _Set(_TWO, "_samples", None, named=False),
    "RenderedSST2": _Set(_THREE, "_samples", None),
    "Country211": _Set({**_TWO, "val": {"split": "valid"}}, "samples", None),
    "EuroSAT": _Set({"train": {}}, "samples", None),
}


@dataclass(frozen=True)
class Picture:
    """One picture of an array: uint8 (h, w), (h, w, 3) or (3, h, w)."""

    pictures: Any
    row: int

    def read(self) -> bytes:
        """The picture as an uncompressed image file (PPM)."""
        import numpy as np

        pixels = np.asarray(self.pictures[self.row])
        if pixels.ndim == 3 and pixels.shape[0] == 3 != pixels.shape[2]:
            pixels = pixels.transpose(1, 2, 0)  # (3, h, w) -> (h, w, 3)
        if pixels.ndim == 2:
            pixels = np.stack([pixels] * 3, axis=-1)  # grey (h, w) -> (h, w, 3)
        return f"P6 {pixels.shape[1]} {pixels.shape[0]} 255\n".encode() + pixels.astype(np.uint8).tobytes()


def read_torchvision(name: str) -> Found:
    """``CIFAR10`` or ``CIFAR10@FOLDER``; fetched into the folder at first use unless offline. Raises UserError."""
    kind, _, folder = name.partition("@")
    if kind not in SETS:
        raise UserError(f"torchvision:{kind} is not known{nearest(kind, SETS)} (known: {', '.join(sorted(SETS))})")
    root = as_path(folder) if folder else cache_root() / "torchvision"
    parts: Parts = {}
    order: Sequence[str] | None = None
    for part, options in SETS[kind].splits.items():
        opened = _open(kind, root, options)
        images, labels = getattr(opened, SETS[kind].images), SETS[kind].labels
        targets = [int(t) for t in getattr(opened, labels)] if labels else [int(t) for _, t in images]
        names = list(opened.classes) if SETS[kind].named else None
        order = order or names
        pictures = images if labels else [path for path, _ in images]
        parts[part] = [
            Item(
                f"{kind} {part} {row}",
                (names[target] if names else str(target),),
                Path(pictures[row]) if isinstance(pictures, list) else Picture(pictures, row),
            )
            for row, target in enumerate(targets)
        ]
    found = Found(parts)
    return replace(found, order=order or number_order(found.items))


def _open(kind: str, root: Path, options: dict[str, Any]) -> Any:
    from torchvision import datasets

    try:
        with locked(root / f".{kind}.lock"):
            return getattr(datasets, kind)(str(root), **options, download=not offline())
    except (RuntimeError, OSError, ValueError, ImportError) as error:  # absent, no network, damaged, scipy for SVHN
        told = " ".join(str(error).split())
        mend = "the network is switched off: go online once, or" if offline() else "go online once, or"
        raise UserError(f"torchvision:{kind} cannot be had in {root} ({told}): {mend} put its files there") from None
