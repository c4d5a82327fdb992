"""Latency of detectors and segmenters against image size: ours beside torchvision's own on a ResNet-50.

    python benchmarks/dense_latency.py           # all sizes -> benchmarks/results/dense_latency.json
    python benchmarks/dense_latency.py --quick   # the two smallest sizes, one round, no file

One image, float32, eager, every model in one process and timed in turn (A B C A B C); the first call of each at each
size is not counted; milliseconds are medians, ratios the medians over rounds of ours by torchvision's of that round.
All answer for 80 classes of objects, or 150 of pixels. Weights are random, as latency depends on them in one place
alone: how many boxes go on from the proposals to the box head, and from there to the mask head. So the layers run, and
what they say is replaced by drawn numbers, the same for every model of a group: they have the same anchors at the same
strides, hence the same proposals and the same detections (the file tells how many). torchvision's resize is left out.
All sizes are multiples of 32, where torchvision has nothing to pad.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import detection, segmentation
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from anyres import create_task_model
from anyres.deploy.predictor import machine
from anyres.flow import Size
from anyres.storage import write_text

RESULTS = Path(__file__).parent / "results" / "dense_latency.json"
OBJECTS, PIXELS = 80, 150  # classes, as COCO and ADE20K have them
DETECTIONS = 100
ROUNDS = (3, 9)  # at least, at most
SMALL = (Size(128, 128), Size(224, 224), Size(320, 320), Size(480, 640), Size(640, 640))
LARGE = Size(800, 1088)  # as detectors are tested on COCO
SURELY_NOT = -20.0  # a logit


class Rival(NamedTuple):
    """A model, and who made it."""

    name: str
    make: Callable[[], nn.Module]
    ours: bool


class Group(NamedTuple):
    """Models that answer the same question, at these sizes."""

    name: str
    rivals: tuple[Rival, ...]
    sizes: tuple[Size, ...]


def theirs(name: str, family: Any, **options: Any) -> Rival:
    """torchvision's model on a ResNet-50, without weights."""
    return Rival(
        f"torchvision {name}", lambda: family.__dict__[name](weights=None, weights_backbone=None, **options), False
    )


def ours(name: str) -> Rival:
    """Our model."""
    return Rival(name, lambda: create_task_model(name), True)


GROUPS = (
    Group(
        "boxes and masks in two stages",
        (
            theirs("maskrcnn_resnet50_fpn", detection, num_classes=OBJECTS + 1),
            ours("detect/mask_rcnn_restv2_tiny"),
            ours("detect/vitdet_resformer_small"),
        ),
        (*SMALL, LARGE),
    ),
    Group(
        "boxes in one stage",
        (
            theirs(
                "retinanet_resnet50_fpn",
                detection,
                num_classes=OBJECTS,
                detections_per_img=DETECTIONS,
            ),
            ours("detect/retinanet_restv2_tiny"),
        ),
        (*SMALL, LARGE),
    ),
    Group(
        "a class for each pixel",
        (
            theirs("fcn_resnet50", segmentation, num_classes=PIXELS),
            theirs("deeplabv3_resnet50", segmentation, num_classes=PIXELS),
            ours("segment/upernet_restv2_tiny"),
            ours("segment/upernet_resformer_small"),
        ),
        SMALL,
    ),
)


# Drawn numbers in the place of what random weights say


@lru_cache(maxsize=16)
def drawn(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Normal numbers, the same for the same shapes."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


@lru_cache(maxsize=4)
def one_class(rows: int, classes: int, mean: float) -> Tensor:
    """Logits (rows, classes): one class of each row is likely, the others are not."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.full((rows, classes), SURELY_NOT)
    logits[torch.arange(rows), torch.randint(classes, (rows,), generator=generator)] = mean + torch.randn(
        rows, generator=generator
    )
    return logits


def proposed(_: nn.Module, __: Any, said: tuple[list[Tensor], list[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """The proposals' head: drawn objectness of every anchor, no anchor moved."""
    objectness, moves = said
    return [*drawn(*(tuple(x.shape) for x in objectness))], [torch.zeros_like(x) for x in moves]


def classified(_: nn.Module, __: Any, said: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The box head: one class for each proposal, half of them with a score to be shown; no box moved."""
    scores, moves = said
    rows = len(scores)
    logits = torch.cat([torch.zeros(rows, 1), one_class(rows, OBJECTS, -2.9)], 1)  # against the background's 0
    return logits, torch.zeros_like(moves)


def answered(_: nn.Module, __: Any, said: dict[str, Tensor]) -> dict[str, Tensor]:
    """RetinaNet's head: as both above."""
    scores = said["cls_logits"]
    logits = one_class(scores.shape[1], scores.shape[2], -2.9)[None]
    return {"cls_logits": logits, "bbox_regression": torch.zeros_like(said["bbox_regression"])}


class Counts:
    """How many proposals the box head of a model has seen last."""

    proposals: int | None = None

    def __call__(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        self.proposals = len(given[0])


def prepared(rival: Rival) -> tuple[nn.Module, Counts]:
    """The model in evaluation mode, its answers replaced by drawn ones."""
    torch.manual_seed(0)
    model, counts = rival.make().eval(), Counts()
    parts = dict(model.named_modules())
    if isinstance(model, GeneralizedRCNN | RetinaNet):
        model.transform.resize = lambda image, target: (image, target)
    if "rpn.head" in parts:
        parts["rpn.head"].register_forward_hook(proposed)
        predictor = parts["roi_heads.box_predictor"]
        predictor.register_forward_hook(classified)
        predictor.register_forward_pre_hook(counts)
    elif "head.classification_head" in parts:
        parts["head"].register_forward_hook(answered)
    return model, counts


# Timing


class Timed(NamedTuple):
    """Milliseconds of one model at one size, round by round, and what it answered."""

    milliseconds: list[float]
    answer: dict[str, int]


def answer_of(output: Any, counts: Counts) -> dict[str, int]:
    """What was answered: objects and proposals, or pixels and classes."""
    if isinstance(output, list):
        found = {"detections": len(output[0]["boxes"])}
        return found if counts.proposals is None else {"proposals": counts.proposals, **found}
    logits = output["out"] if isinstance(output, dict) else output
    return {"classes": logits.shape[1], "rows": logits.shape[2], "columns": logits.shape[3]}


@torch.inference_mode()
def time_in_turn(
    models: Sequence[tuple[nn.Module, Counts]], size: Size, seconds: float, rounds: tuple[int, int]
) -> list[Timed]:
    """Each model once a round, for about ``seconds`` each."""
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    made = [Timed([], answer_of(model(image), counts)) for model, counts in models]  # not counted
    began, least, most = time.perf_counter(), *rounds
    for done in range(1, most + 1):
        for (model, _), timed in zip(models, made, strict=True):
            start = time.perf_counter()
            model(image)
            timed.milliseconds.append(1000 * (time.perf_counter() - start))
        if done >= least and time.perf_counter() - began > seconds * len(models):
            break
    return made


def rows_of(group: Group, size: Size, made: Sequence[Timed]) -> list[dict[str, Any]]:
    """One row for each model: milliseconds, and how many times torchvision's. Raises AssertionError where the models
    had not the same to do."""
    assert all(timed.answer == made[0].answer for timed in made), [timed.answer for timed in made]
    rows = []
    for rival, timed in zip(group.rivals, made, strict=True):
        row: dict[str, Any] = {"model": rival.name, "size": str(size)}
        row |= {"ms": round(statistics.median(timed.milliseconds), 1), "rounds": len(timed.milliseconds)}
        row["range_ms"] = [round(end(timed.milliseconds), 1) for end in (min, max)]
        for other, peer in zip(group.rivals, made, strict=True):
            if rival.ours and not other.ours:
                ratios = [a / b for a, b in zip(timed.milliseconds, peer.milliseconds, strict=True)]
                row[f"x {other.name}"] = round(statistics.median(ratios), 3)
        rows.append(row | timed.answer)
    return rows


def measure(group: Group, quick: bool, seconds: float) -> dict[str, Any]:
    """All rows of a group, and each model's parameters."""
    models = [prepared(rival) for rival in group.rivals]
    parameters = {
        rival.name: sum(p.numel() for p in model.parameters())
        for rival, (model, _) in zip(group.rivals, models, strict=True)
    }
    rows: list[dict[str, Any]] = []
    for size in group.sizes[:2] if quick else group.sizes:
        for row in rows_of(group, size, time_in_turn(models, size, seconds, (1, 1) if quick else ROUNDS)):
            rows.append(row)
            beside = "  ".join(f"{value:.2f} {key}" for key, value in row.items() if key.startswith("x "))
            print(f"{size!s:>9}  {row['model']:36} {row['ms']:9.1f} ms  {beside}", flush=True)
    return {"parameters": parameters, "rows": rows}


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--quick", action="store_true", help="the two smallest sizes, one round, no file")
    words.add_argument("--threads", type=int, default=2)
    words.add_argument("--seconds", type=float, default=2.0, help="of each model at each size, about")
    words.add_argument("--out", type=Path, default=RESULTS)
    options = words.parse_args()
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    facts: dict[str, Any] = {
        "machine": machine(torch.device("cpu")),
        "threads": options.threads,
        "versions": {package: version(package) for package in ("torch", "torchvision", "timm")},
        "what": "one image, float32, eager, random weights; proposals and scores drawn, the same for each group",
    }
    for group in GROUPS:
        print(group.name)
        facts[group.name] = measure(group, options.quick, options.seconds)
    facts["minutes"] = round((time.perf_counter() - start) / 60, 1)
    if not options.quick:
        write_text(options.out, json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
