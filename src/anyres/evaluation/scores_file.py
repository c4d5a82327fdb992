"""What a model said of every image at every size, in one file beside its curve, so that two models can be compared
later on the same images.

Numbers survive exactly. An image and size cost 13 bytes where images have one class (and 8 more for all sizes
together); 4 bytes a class where they have several; about 18 bytes for each class of a class map; about 15 for each box
that a detector finds.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from safetensors import safe_open
from safetensors.numpy import save_file

from anyres.config import Damaged, first_line
from anyres.data.sources import Source
from anyres.evaluation.average_precision import Matches
from anyres.evaluation.coco import BoxScores, CocoScores
from anyres.evaluation.evaluator import ImageScores, ImageValues
from anyres.evaluation.metrics import Scores
from anyres.evaluation.miou import MapScores
from anyres.evaluation.multilabel import LabelScores
from anyres.flow import Annotation, Size
from anyres.storage import atomic_write, parse_json

SCORES = "scores.safetensors"
MOST_BYTES = 2**26
"""Of one file: what would be larger is not kept."""
Array = Shaped[np.ndarray, "..."]
Arrays = dict[str, Array]


@dataclass(frozen=True)
class About:
    """What scores are of: the ``task``, a digest of the ``images`` with their labels (see ``images_digest``), the
    model's ``classes``, the ``data`` and ``split`` by name, a digest of the ``weights`` ("" where none is known)."""

    task: str
    images: str
    classes: tuple[str, ...]
    data: str
    split: str
    weights: str


@dataclass(frozen=True)
class KeptScores:
    """The scores per image at each size, and what they are ``about``."""

    about: About
    by_size: Mapping[Size, ImageScores]


def images_digest(source: Source) -> str:
    """SHA-256 of what decides whether two models were asked the same: every image's name and label, labels by their
    names, in the order of the images; where something is drawn on images, the classes in their order too."""
    digest = hashlib.sha256()
    drawn = any(isinstance(record.target, Annotation) for record in source.records)
    parts: list[Any] = [source.classes] if drawn else []
    for i, record in enumerate(source.records):
        target = record.target
        parts.append((record.name, target.plain() if isinstance(target, Annotation) else source.labels(i)))
    for part in parts:
        text = unicodedata.normalize("NFC", json.dumps(part, ensure_ascii=False))
        digest.update(text.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


def write_scores(kept: KeptScores, path: Path) -> bool:
    """Write the file, whole or not at all; False, and no file, where the scores are of a kind that is not kept, or
    more than MOST_BYTES."""
    kinds = {_kind(scores) for scores in kept.by_size.values()}
    if len(kinds) != 1 or None in kinds:
        path.unlink(missing_ok=True)
        return False
    kind = str(kinds.pop())
    tensors: Arrays = {}
    first: Arrays = {}
    for size, scores in kept.by_size.items():
        arrays = {"index": scores.index.astype(np.int32), **_KINDS[kind].pack(scores)}
        first = first or arrays
        tensors |= {
            f"{size}.{name}": np.ascontiguousarray(array)
            for name, array in arrays.items()
            if arrays is first or not np.array_equal(array, first[name])
        }
    if sum(array.nbytes for array in tensors.values()) > MOST_BYTES:
        path.unlink(missing_ok=True)
        return False
    about = {**asdict(kept.about), "kind": kind, "sizes": [str(size) for size in kept.by_size]}
    if kind == "value":
        about["key"] = next(iter(kept.by_size.values())).key  # type: ignore[attr-defined]
    with atomic_write(path) as draft:
        save_file(tensors, draft, {"anyres": json.dumps(about)})
    return True


def read_scores(path: Path) -> KeptScores | None:
    """What ``write_scores`` wrote; None where there is no such file. Raises Damaged for any other content."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            about: dict[str, Any] = parse_json((file.metadata() or {}).get("anyres", ""), dict[str, Any])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # it is no dictionary
        sizes = [Size.parse(text) for text in about.pop("sizes")]
        kind, key = _KINDS[about.pop("kind")], about.pop("key", "")
        by_size = {}
        for size in sizes:
            found = {name.partition(".")[2]: tensor for name, tensor in tensors.items() if _is_of(name, sizes[0])}
            found |= {name.partition(".")[2]: tensor for name, tensor in tensors.items() if _is_of(name, size)}
            by_size[size] = kind.unpack(found.pop("index").astype(np.int64), found, key)
        return KeptScores(About(**about | {"classes": tuple(about["classes"])}), by_size)
    except Exception as error:  # whatever a file of any bytes leads to
        raise Damaged(f"{path} is damaged ({first_line(error)})") from None


def _is_of(name: str, size: Size) -> bool:
    return name.partition(".")[0] == str(size)


def kept_form(scores: ImageScores) -> ImageScores:
    """What would be read back of scores: for those of boxes, what decides their average precision."""
    return scores.kept() if isinstance(scores, CocoScores) else scores


@dataclass(frozen=True)
class _Kind:
    """How one type of scores is kept: as arrays beside the index, and back."""

    type: type
    pack: Callable[[Any], Arrays]
    unpack: Callable[[Array, Arrays, str], ImageScores]


def _kind(scores: ImageScores) -> str | None:
    scores = kept_form(scores)
    return next((name for name, kind in _KINDS.items() if isinstance(scores, kind.type)), None)


def _pack_classes(scores: Scores) -> Arrays:
    return {
        "target": scores.target.astype(np.int32),
        "predicted": scores.predicted.astype(np.int32),
        "confidence": scores.confidence,
        "correct5": scores.correct5,
        "losses": scores.losses,
    }


def _unpack_classes(index: Array, found: Arrays, key: str) -> Scores:  # noqa: ARG001
    target, predicted = found["target"].astype(np.int64), found["predicted"].astype(np.int64)
    columns = (target, predicted, found["confidence"], predicted == target, found["correct5"], found["losses"])
    _check_lengths(index, *columns)
    return Scores(index, *columns)


def _pack_labels(scores: LabelScores) -> Arrays:
    return {"target": np.packbits(scores.target, axis=1), "logits": scores.logits}


def _unpack_labels(index: Array, found: Arrays, key: str) -> LabelScores:  # noqa: ARG001
    logits = found["logits"]
    target = np.unpackbits(found["target"], axis=1, count=logits.shape[1]).astype(bool)
    _check_lengths(index, target, logits)
    return LabelScores(index, target, logits)


def _pack_maps(scores: MapScores) -> Arrays:
    """Only the classes of each picture that count anything."""
    picture, klass = np.nonzero(scores.counts.any(1))
    return {
        "shape": np.array(scores.counts.shape, np.int64),
        "picture": picture.astype(np.int32),
        "klass": klass.astype(np.int16),
        "counts": scores.counts[picture, :, klass].astype(np.uint32),
    }


def _unpack_maps(index: Array, found: Arrays, key: str) -> MapScores:  # noqa: ARG001
    n, _, classes = found["shape"].tolist()
    if n != len(index) or classes > len(found["klass"]) + 2**16:
        raise ValueError("its shape is not that of its images")
    counts = np.zeros((n, 3, classes), np.int64)
    counts[found["picture"], :, found["klass"].astype(np.int64)] = found["counts"]
    return MapScores(index, counts)


def _pack_boxes(scores: CocoScores | BoxScores) -> Arrays:
    own = scores.kept() if isinstance(scores, CocoScores) else scores
    matches = own.matches
    return {
        "picture": matches.picture.astype(np.int32),
        "klass": matches.klass.astype(np.int32),
        "score": matches.score,
        "hit": np.packbits(matches.hit, axis=1),
        "ignored": np.packbits(matches.ignored, axis=1),
        "objects": matches.objects.astype(np.int32),
    }


def _unpack_boxes(index: Array, found: Arrays, key: str) -> BoxScores:  # noqa: ARG001
    picture, klass, objects = (found[name].astype(np.int64) for name in ("picture", "klass", "objects"))
    hit, ignored = (np.unpackbits(found[name], axis=1, count=len(picture)).astype(bool) for name in ("hit", "ignored"))
    _check_lengths(index, objects)
    return BoxScores(index, Matches(picture, klass, found["score"], hit, ignored, objects))


def _unpack_values(index: Array, found: Arrays, key: str) -> ImageValues:
    _check_lengths(index, found["values"])
    return ImageValues(key, index, found["values"])


def _check_lengths(index: Array, *columns: Array) -> None:
    if {len(column) for column in columns} != {len(index)}:
        raise ValueError("its columns differ in length")


_KINDS = {
    "classes": _Kind(Scores, _pack_classes, _unpack_classes),
    "labels": _Kind(LabelScores, _pack_labels, _unpack_labels),
    "maps": _Kind(MapScores, _pack_maps, _unpack_maps),
    "boxes": _Kind(BoxScores, _pack_boxes, _unpack_boxes),
    "value": _Kind(ImageValues, lambda scores: {"values": scores.values}, _unpack_values),
}
