"""One trained model behind the fastest engine of this machine: images or tensors in, classes or logits out."""

from __future__ import annotations

import copy
import hashlib
import io
import logging
import math
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from anyres.config import UserError
from anyres.data.decode import Unreadable, decode
from anyres.data.mix import normalize
from anyres.data.pixels import array_to_channels
from anyres.data.views import eval_view
from anyres.deploy.engines.backend import Backend, build, candidates, parse_precision
from anyres.deploy.engines.compiled_cache import CompiledCache, Shape
from anyres.deploy.engines.engine import BackendUnavailable, Precision, Runner
from anyres.deploy.engines.timing_cache import BackendTiming, TimingCache
from anyres.deploy.fuse import fuse
from anyres.deploy.fuse.folded import Patches
from anyres.deploy.fuse.tables import bake
from anyres.flow import Batch, Labels, Record, Size
from anyres.models.contract import Backbone
from anyres.ops.patch import pad_to_multiple
from anyres.ops.processors import processors

log = logging.getLogger(__name__)

LIMITS = {"fp32": 1e-3, "bf16": 0.1, "int8": 0.3}
"""Largest relative distance |a - b| / |b| of an engine's logits from eager float32's that is accepted."""

WARM_UP, ROUNDS = 2, 7  # of a measurement, the backends in turn; the median counts
MOST_AT_ONCE = 32  # images that a predictor without a batch of its own runs at a time

Picture = Path | str | Image.Image | Tensor | np.ndarray
"""A file, Pillow's image, a tensor uint8 (c, h, w), or an array (h, w) or (h, w, c) as images are read, in RGB."""

Activation = Literal["softmax", "sigmoid"]
"""How logits become probabilities: of one class out of all, or of each class by itself."""


class Preprocessing(NamedTuple):
    """How an image becomes a model's input."""

    mean: tuple[float, ...]  # of each channel, of pixels in [0, 1]
    std: tuple[float, ...]  # of each channel
    crop: float  # the centre crop's share of the short side, in (0, 1]
    warp: bool = False  # resize to the size without cropping
    interpolation: str = "bicubic"  # or bilinear


@dataclass(frozen=True)
class EngineOptions:
    """How a model is run."""

    backend: str = "auto"  # see Predictor
    batch: int = 8  # images at a time
    huge_pages: bool = False  # move this process's memory into huge pages (Linux)


class Prediction(NamedTuple):
    """One class of an image."""

    label: int  # its index
    name: str  # its name, or its index where it has none
    probability: float  # in [0, 1]


class Predictor:
    """``model``, folded where its family can be, run by ``backend`` at one ``size`` in batches of at most ``batch``, or
    of what it is given.

    What each argument means: see ``anyres.Predictor``, which opens runs too. ``preprocessing``: how images are prepared
    (None: as the model's ``pretrained_cfg`` says). ``model`` is copied and stays unchanged. Raises UserError.
    """

    def __init__(
        self,
        model: Backbone,
        backend: str = "auto",
        size: int | str | Size = 224,
        *,
        batch: int | None = None,
        preprocessing: Preprocessing | None = None,
        names: Sequence[str] = (),
        activation: Activation = "softmax",
        calibration: Sequence[Picture] = (),
        any_size: bool = False,
        huge_pages: bool = False,
    ) -> None:
        if batch is not None and batch < 1:
            raise UserError(f"batch={batch} must be 1 or more")
        self.size = size_of(size)
        self.batch, self.names, self.threads = batch or 1, tuple(names), min(torch.get_num_threads(), processors())
        self.preprocessing = preprocessing or preprocessing_of(model, self.size)
        self.channels = int(model.pretrained_cfg["input_size"][0])
        self.activation, self.any_size, self.huge_pages = activation, any_size, huge_pages
        self.device = next(model.parameters()).device
        self.model = fuse(model, None if any_size else (self.size.height, self.size.width))
        self.multiple = next((m.patch_size for m in self.model.modules() if isinstance(m, Patches)), 1)
        self.calibration = [self.prepare([picture]) for picture in calibration]
        self.cache = CompiledCache(self._build)
        self.timings: tuple[BackendTiming, ...] = ()
        self.backend = self._choose(backend)
        slow = self.backend.engine == "inductor" or self.backend.precision == "int8"  # a program takes up to a minute
        learns = batch is None and not slow
        self.wholes = CompiledCache(self._whole_or_parts, fallback=self._in_parts) if learns else None
        if any_size:
            if self.backend.precision == "int8":
                raise UserError("int8 is made for one size: leave any_size out")
            eager = build(self.model, replace(self.backend, engine="eager"), self._zeros(self._shape(self.batch)))
            self.cache.fallback = eager
            if self.backend.engine == "eager":  # which takes any shape as it is
                self.cache.make = lambda _: eager

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "b c h w"]) -> Float32[Tensor, "b k"]:
        """Normalised pixels of this predictor's size, any number of images -> logits, on the model's device."""
        if self.any_size:
            x = pad_to_multiple(x, self.multiple)  # as the model itself would
        elif tuple(x.shape[2:]) != self.size:
            raise UserError(
                f"this predictor was made for {self.size} px, not for {Size(*x.shape[2:])}: make one for it"
            )
        x = x.to(self.device, torch.float32).contiguous()
        if self.wholes is None:
            return self._in_parts(x)
        return torch.cat(
            [self.wholes[Shape(len(part), *part.shape[2:])](part) for part in torch.split(x, MOST_AT_ONCE)]
        )

    __call__ = forward

    def predict(self, pictures: Picture | Sequence[Picture], top: int = 1) -> list[list[Prediction]]:
        """The ``top`` likeliest classes of each image, likeliest first; one image is a list of one. Raises UserError.

        An image is a file, Pillow's image, a tensor uint8 (c, h, w), or an array (h, w) or (h, w, c) in RGB; a tensor
        or array of one more dimension is several.
        """
        pictures = listed(pictures)
        answers: list[list[Prediction]] = []
        at_once = self.batch if self.wholes is None else MOST_AT_ONCE
        for i in range(0, len(pictures), at_once):
            logits = self.forward(self.prepare(pictures[i : i + at_once]))
            probabilities = logits.softmax(1) if self.activation == "softmax" else logits.sigmoid()
            answers += likeliest(probabilities, self.names, top)
        return answers

    def prepare(self, pictures: Picture | Sequence[Picture]) -> Float32[Tensor, "b c h w"]:
        """Images as model input: decoded, resized, cropped, normalized. Raises UserError."""
        pictures = listed(pictures)
        how = self.preprocessing
        side = math.ceil(max(self.size) / how.crop)
        decoded = (pixels_of(picture, len(how.mean), side) for picture in pictures)
        views = [eval_view(image, self.size, how.crop, how.warp, how.interpolation) for image in decoded]
        count = torch.arange(len(views))
        made = normalize(Batch((torch.stack(views),), Labels(count), count), how.mean, how.std, self.device)
        return made.views[0]

    def _in_parts(self, x: Tensor) -> Tensor:
        """Logits of any number of images, ``batch`` at a time."""
        return torch.cat([self._run(part) for part in torch.split(x, self.batch)])

    def _whole_or_parts(self, shape: Shape) -> Runner:
        """The faster of a program for a whole batch, and of the one for single images; it came before, so may again."""
        if shape.batch == 1:
            return self._run
        example = torch.randn(self._zeros(shape).shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        ways = {"at once": self.cache.make(shape), "one by one": self._in_parts}
        times = {name: min(_seconds(run, example) for _ in range(3)) for name, run in ways.items()}
        best = min(times, key=times.__getitem__)
        log.info("batches of %d run %s: %.1f ms", shape.batch, best, 1000 * times[best])
        return ways[best]

    def _run(self, x: Tensor) -> Tensor:
        """Logits of at most ``batch`` images; engines are built for powers of two and ``batch``, others filled up."""
        count = len(x)
        wanted = min(1 << (count - 1).bit_length(), self.batch)
        if count < wanted:
            x = torch.cat([x, x.new_zeros(wanted - count, *x.shape[1:])])
        return self.cache[Shape(wanted, *x.shape[2:])](x)[:count]

    def _build(self, shape: Shape, backend: Backend | None = None) -> Runner:
        """A runner for one shape, with tensors that depend on the grid alone as constants."""
        example, model = self._zeros(shape), self.model
        if self.any_size:
            model = copy.deepcopy(model)
            bake(model, example[:1])
        return build(
            model, backend or self.backend, example, self.calibration, self.threads, huge_pages=self.huge_pages
        )

    def _zeros(self, shape: Shape) -> Float32[Tensor, "b c h w"]:
        return torch.zeros(shape.batch, self.channels, shape.height, shape.width, device=self.device)

    def _shape(self, batch: int) -> Shape:
        """Of so many images of this predictor's size, padded where sizes share a program."""
        if not self.any_size:
            return Shape(batch, *self.size)
        height, width = (-(-side // self.multiple) * self.multiple for side in self.size)
        return Shape(batch, height, width)

    def _choose(self, text: str) -> Backend:
        """The named backend, or the fastest for ``auto`` and ``auto:PRECISION``."""
        name, _, precision = text.partition(":")
        if name != "auto":
            return Backend.parse(text)
        wanted: tuple[Precision, ...] = (parse_precision(precision),) if precision else ("fp32", "bf16")
        tried = candidates(self.device, wanted)
        cache = TimingCache(self._key(tried))
        self.timings = tuple(timing for timing in cache.read() if timing.backend in map(str, tried))
        if self.timings:
            source = f", as measured before ({cache.path})"
        else:
            self.timings = tuple(self._measure(tried))
            cache.write(self.timings)
            source = f", the fastest of {len(self.timings)} here"
        best = self.timings[0]
        log.info("backend %s: %.1f ms for %d at %s px%s", best.backend, best.ms, self.batch, self.size, source)
        return Backend.parse(best.backend)

    def _measure(self, tried: Sequence[Backend]) -> Iterator[BackendTiming]:
        """Time the backends in turn, round by round; fastest first, without those that fail or answer otherwise."""
        shape = self._shape(self.batch)
        example = torch.randn(self._zeros(shape).shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        truth = build(self.model, Backend("eager", "fp32"), example)(example)
        runners: dict[Backend, Runner] = {}
        errors: dict[Backend, float] = {}
        for number, backend in enumerate(tried, 1):
            log.info("building backend %s (%d of %d)", backend, number, len(tried))
            try:
                made = self._build(shape, backend)
            except BackendUnavailable as error:
                log.info("backend %s is left out: %s", backend, error)
                continue
            errors[backend] = distance(made(example), truth)
            if errors[backend] <= LIMITS[backend.precision]:
                runners[backend] = made
            else:
                log.info("backend %s is left out: its logits are %.2g from eager float32's", backend, errors[backend])
        if not runners:
            raise UserError(f"no backend answers as eager PyTorch does; tried {', '.join(map(str, tried)) or 'none'}")
        times: dict[Backend, list[float]] = {backend: [] for backend in runners}
        for i in range(WARM_UP + ROUNDS):
            for backend, run in runners.items():
                run(example).cpu()  # the threads of the one before may still be spinning
                took = _seconds(run, example)
                if i >= WARM_UP:
                    times[backend].append(1000 * took)
        ranked = sorted(runners, key=lambda backend: statistics.median(times[backend]))
        self.cache[shape] = runners[ranked[0]]
        yield from (BackendTiming(str(b), round(statistics.median(times[b]), 3), errors[b]) for b in ranked)

    def _key(self, tried: Sequence[Backend]) -> dict[str, Any]:
        """What a measurement is valid for."""
        shapes = [(key, *tensor.shape) for key, tensor in self.model.state_dict().items()]
        return {
            "model": type(self.model).__name__ + hashlib.sha256(repr(shapes).encode()).hexdigest()[:16],
            "size": str(self.size),
            "batch": self.batch,
            "tried": [str(backend) for backend in tried],
            "machine": f"{machine(self.device)}, {self.threads} threads",
            "huge_pages": self.huge_pages,
            "versions": {name: version(name) for name in ("torch", "anyres")},
        }


def _seconds(run: Runner, example: Tensor) -> float:
    """Of one call, with its answer on the CPU."""
    start = time.perf_counter()
    run(example).cpu()
    return time.perf_counter() - start


def size_of(size: int | str | Size) -> Size:
    """A side in pixels, ``"320x192"`` or a Size. Raises UserError."""
    return size if isinstance(size, Size) else Size.parse(size)


def listed(pictures: Picture | Sequence[Picture]) -> list[Picture]:
    """One picture as a list of one; several, also in one tensor or array, as a list."""
    if isinstance(pictures, Tensor | np.ndarray):
        return [pictures] if pictures.ndim < 4 else list(pictures)
    return [pictures] if isinstance(pictures, str | Path | Image.Image) else list(pictures)


def preprocessing_of(model: Backbone, size: Size) -> Preprocessing:
    """What the model's ``pretrained_cfg`` says, and its family of images of this size."""
    config = model.pretrained_cfg
    crop, how = float(config["crop_pct"]), config["interpolation"]
    warp_from = model.traits.warp_from
    warp = warp_from is not None and min(size) >= warp_from
    return Preprocessing(tuple(config["mean"]), tuple(config["std"]), crop, warp, how)


def likeliest(shares: Float[Tensor, "b k"], names: Sequence[str], top: int) -> list[list[Prediction]]:
    """The ``top`` classes of each row of probabilities, likeliest first; one without a name is called by its label."""
    best = shares.topk(min(top, shares.shape[1]), dim=1)
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [[Prediction(k, names[k] if names else str(k), p) for k, p in zip(*row, strict=True)] for row in rows]


def distance(logits: Tensor, truth: Tensor) -> float:
    """|logits - truth| / |truth|; infinite where one is not finite."""
    apart = ((logits - truth).norm() / truth.norm().clamp_min(1e-12)).item()
    return apart if math.isfinite(apart) else math.inf


def machine(device: torch.device) -> str:
    """The processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    about = Path("/proc/cpuinfo")
    lines = about.read_text("utf-8").splitlines() if about.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def pixels_of(picture: Picture, channels: int = 3, view_side: int | None = None) -> UInt8[Tensor, "c h w"]:
    """An image decoded as everywhere here: upright, with so many channels; a file of a very large one at a fraction
    (``view_side``: see ``decode``). Raises UserError."""
    if isinstance(picture, Tensor):
        if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != channels:
            raise UserError(f"an image is uint8 ({channels}, h, w), not {picture.dtype} {tuple(picture.shape)}")
        return picture
    if isinstance(picture, np.ndarray):
        try:
            return torch.from_numpy(array_to_channels(picture, channels, [])).permute(2, 0, 1)
        except ValueError as error:
            raise UserError(f"an array is no image here: {error}") from None
    if isinstance(picture, Image.Image):
        whole = io.BytesIO()  # through a file's bytes, so that alpha, palettes and depths are treated as a file's are
        ImageOps.exif_transpose(picture).save(whole, "PNG", compress_level=0)
        return decode(Record(whole.getvalue(), -1, "the picture"), channels=channels).image
    try:
        return decode(Record(Path(picture), -1, str(picture)), channels=channels, view_side=view_side).image
    except Unreadable as error:
        raise UserError(f"{error.name} is unreadable: {error.reason}") from None
