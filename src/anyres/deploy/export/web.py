"""A page that runs an exported file in a browser: the page of ``anyres serve``, with onnxruntime-web as its server."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from anyres.config import UserError
from anyres.data.augment import resize
from anyres.deploy.export.files import EXTERNAL_FROM
from anyres.deploy.export.npm_files import ONNXRUNTIME_WEB
from anyres.deploy.export.subject import Subject
from anyres.flow import Size, SizeResult

PAGE = {
    "index.html": "index.html",
    "page.css": "page.css",
    "page.js": "page.js",
    "from_files.js": "from_files.js",
    "model.js": "browser.js",
    "worker.js": "worker.js",
    "NOTICE.txt": "NOTICE.txt",
}
"""File of the written folder -> file of ``anyres/deploy/page``. Of a server ``model.js`` is another."""
FACTS = "about.json"
DIAL = (32, 512)
"""The least and the most side that the page's dial is set to, in pixels."""
_CHECKED = Size(48, 64)  # of the drawn picture on which a browser is asked what the model said


@dataclass(frozen=True)
class WebSize:
    """One size that the page shows from the start."""

    size: str  # px, 224 or 320x192 (height x width)
    quality: float | None  # of the run's curve, in its metric; None: not measured


@dataclass(frozen=True)
class WebCheck:
    """What the model itself said of a drawn picture: a browser that answers otherwise says so."""

    pixels: str  # base64 of bytes (height, width, channels)
    height: int
    width: int
    size: str  # px, that the model sees
    probabilities: list[float]


@dataclass(frozen=True)
class WebFacts:
    """What the page is told of its model: the same names as those of a server's ``/about``."""

    model: str
    names: list[str]  # of the classes
    channels: int
    mean: list[float]  # of each channel, of pixels in [0, 1]: the color that covers windows for a map
    metric: str | None  # of ``quality``: its name
    unit: str  # what follows a quality; % : shares in [0, 1]
    sizes: list[WebSize]  # smallest first
    usual: str  # the best of them
    least_side: int  # px, of the dial
    most_side: int  # px
    several: bool  # several labels an image, each by itself
    file: str  # the ONNX file
    check: list[WebCheck]


def check_web(subject: Subject) -> dict[str, bytes]:
    """onnxruntime-web's files by name. Raises UserError where they cannot be had, or a page cannot show the model."""
    referee = subject.referee
    if referee.activation == "none":
        raise UserError(f"{subject.name} names no classes, and the page shows nothing else: try --to onnx")
    channels = len(referee.how.mean)
    if channels not in (1, 3):
        raise UserError(f"{subject.name} reads {channels} channels, and a browser gives gray or RGB: try --to onnx")
    if sum(each.nbytes for each in referee.model.state_dict().values()) >= EXTERNAL_FROM:
        raise UserError(f"{subject.name} has more weights than a browser holds (1.8 GB): try --to onnx")
    return ONNXRUNTIME_WEB.read()


def write_web(subject: Subject, model: Path, runtime: dict[str, bytes]) -> None:
    """Beside the ONNX file ``model`` all that a browser needs: the page, what it is told, and ``runtime``."""
    page = resources.files("anyres.deploy").joinpath("page")
    for name, source in PAGE.items():
        (model.parent / name).write_bytes(page.joinpath(source).read_bytes())
    for name, content in runtime.items():
        (model.parent / name).write_bytes(content)
    facts = json.dumps(asdict(_facts(subject, model.name)), indent=1)
    (model.parent / FACTS).write_text(facts, encoding="utf-8")


def _facts(subject: Subject, file: str) -> WebFacts:
    said: dict[str, Any] = dict(subject.said)
    referee, curve = subject.referee, _known(subject.curve)
    checks = _checks(subject)
    metric = curve[0].headline if curve else None
    qualities = {str(each.size): each.best.value for each in curve}
    if not qualities:
        sizes = {Size(*each) for each in (*said["sizes"]["trained"], *said["sizes"]["evaluated"])}
        usual = str(subject.sizes[0])
    else:
        sizes = {each.size for each in curve}
        best = max if metric is None or metric.higher_is_better else min
        usual = best(qualities, key=lambda size: qualities[size])
    ordered = sorted(sizes, key=lambda size: (size.height * size.width, size))
    return WebFacts(
        subject.name,
        list(said["classes"]) or [str(k) for k in range(len(checks[0].probabilities))],
        len(referee.how.mean),
        list(referee.how.mean),
        metric.name if metric else None,
        metric.unit if metric else "",
        [WebSize(str(size), qualities.get(str(size))) for size in ordered],
        usual,
        DIAL[0],
        max(DIAL[1], *(max(size) for size in ordered)),
        referee.activation == "sigmoid",
        file,
        checks,
    )


def _known(curve: Sequence[SizeResult]) -> list[SizeResult]:
    """Smallest first, so that of equal qualities the cheapest size is the best."""
    found = [each for each in curve if math.isfinite(each.best.value)]
    return sorted(found, key=lambda each: each.size.height * each.size.width)


def _checks(subject: Subject) -> list[WebCheck]:
    """At the usual size and at one that is not square."""
    image = _drawn(len(subject.referee.how.mean))
    text = base64.b64encode(image.numpy().tobytes()).decode()
    found = []
    for size in dict.fromkeys((subject.sizes[0], subject.sizes[-1])):
        (truth,) = subject.referee.ask(image[None], size)
        shares = [float(f"{share:.7g}") for share in truth.tolist()]
        found.append(WebCheck(text, *_CHECKED, str(size), shares))
    return found


def _drawn(channels: int) -> UInt8[Tensor, "h w c"]:
    """A picture of colored clouds: nobody's photo."""
    drawn = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (channels, 6, 8), generator=drawn, dtype=torch.uint8)
    return resize(noise, _CHECKED).permute(1, 2, 0).contiguous()
