"""One trained model behind the fastest engine of this machine: pictures or tensors in, classes or logits out."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from jaxtyping import Float, Float32, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from anyres.config import UserError
from anyres.data.decode import Unreadable, decode
from anyres.data.mix import normalize
from anyres.data.views import eval_view
from anyres.deploy.engines.backend import PRECISIONS, Choice, Run, Unavailable, build, candidates
from anyres.deploy.engines.compiled_cache import Programs, Shape
from anyres.deploy.fuse import fuse
from anyres.deploy.fuse.folded import Patches
from anyres.deploy.fuse.tables import pin
from anyres.flow import Batch, Labels, Record, Size
from anyres.models.contract import Backbone
from anyres.ops.patch import pad_to_multiple
from anyres.storage import cache_root

LIMITS = {"fp32": 1e-3, "bf16": 0.1, "int8": 0.3}
"""How far the logits may be from eager float32's, as |a - b| / |b|, before an engine is not believed."""

WARM_UP, ROUNDS = 2, 7  # of a measurement, the engines in turn; the median counts

Picture = Path | str | Image.Image | Tensor
"""A file, Pillow's image, or uint8 (3, h, w)."""


class Seen(NamedTuple):
    """How a picture becomes a model's input: channel means and deviations, centre-crop ratio, warped or cropped."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop: float
    warp: bool = False


class Prediction(NamedTuple):
    """One class of a picture: its label (an index), its name (the label where it has none), its probability."""

    label: int
    name: str
    probability: float


@dataclass(frozen=True)
class Timing:
    """One engine on this machine: median milliseconds for one batch, and its distance from eager float32's logits."""

    choice: str
    ms: float
    error: float


class Predictor:
    """``model`` folded and run by ``backend`` at one ``size``, in batches of at most ``batch``.

    ``any_size``: tensors of any size are taken, measured and pictured at ``size``. A size that comes again soon gets a
    program of its own (see ``engines/compiled_cache.py``), others eager PyTorch; sizes that the model pads to the same
    size share one.

    ``backend``: ``auto`` measures what this machine has (eager, inductor, onnxruntime, OpenVINO; on a CUDA device eager
    and inductor, each with Triton's kernels and without), checks every answer against eager float32, keeps the fastest
    and remembers it for this model's shape, size, batch and machine; or one of them, as ``openvino`` or
    ``openvino:bf16``. ``precision``: of ``auto`` (the fastest of fp32 and bf16, or one of them) or of a backend named
    alone; int8 needs ``calibration``, some dozens of pictures. ``seen``: how pictures are prepared (None: the family's
    own way). ``names`` of the classes; ``multi_label``: each is decided by itself, by the logistic function instead of
    the softmax. ``threads`` of the CPU (None: the cores that PyTorch counts for this process, so `numactl` and
    containers are respected). ``say`` hears what was chosen.

    The model is copied; it stays as it is. Raises UserError for what cannot be.
    """

    def __init__(
        self,
        model: Backbone,
        backend: str = "auto",
        size: int | str | Size = 224,
        *,
        batch: int = 1,
        precision: str = "auto",
        seen: Seen | None = None,
        names: Sequence[str] = (),
        multi_label: bool = False,
        calibration: Sequence[Picture] = (),
        threads: int | None = None,
        any_size: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        if batch < 1:
            raise UserError(f"batch={batch} must be 1 or more")
        if precision not in ("auto", *PRECISIONS):
            raise UserError(f"precision {precision!r} is none of auto, {', '.join(PRECISIONS)}")
        self.size = size if isinstance(size, Size) else Size.parse(size)
        self.batch, self.names, self.threads = batch, tuple(names), threads or torch.get_num_threads()
        cfg = model.pretrained_cfg
        self.seen = seen or Seen(tuple(cfg["mean"]), tuple(cfg["std"]), cfg["crop_pct"])
        self.multi_label = multi_label
        self.device = next(model.parameters()).device
        self.any_size = any_size
        self.model = fuse(model, None if any_size else (self.size.height, self.size.width))
        self.multiple = next((m.patch_size for m in self.model.modules() if isinstance(m, Patches)), 1)
        self.calibration = [self.prepare([picture]) for picture in calibration]
        self.programs = Programs(self._build)
        self.timings: tuple[Timing, ...] = ()
        self.choice = self._choose(backend, precision, say)
        if any_size:
            if self.choice.precision == "int8":
                raise UserError("int8 is made for one size: leave any_size out")
            eager = build(self.model, replace(self.choice, engine="eager"), self._zeros(self._shape(batch)))
            self.programs.stopgap = eager
            if self.choice.engine == "eager":  # which takes any shape as it is
                self.programs.make = lambda _: eager

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float32[Tensor, "b k"]:
        """Normalised pixels of this predictor's size, any number of images -> logits, on the model's device."""
        if self.any_size:
            x = pad_to_multiple(x, self.multiple)  # as the model itself would
        elif tuple(x.shape[2:]) != self.size:
            raise UserError(
                f"this predictor was made for {self.size} px, not for {Size(*x.shape[2:])}: make one for it"
            )
        x = x.to(self.device, torch.float32).contiguous()
        return torch.cat([self._run(part) for part in torch.split(x, self.batch)])

    __call__ = forward

    def predict(self, pictures: Sequence[Picture], top: int = 1) -> list[list[Prediction]]:
        """The ``top`` likeliest classes of each picture, likeliest first."""
        answers: list[list[Prediction]] = []
        for i in range(0, len(pictures), self.batch):
            logits = self.forward(self.prepare(pictures[i : i + self.batch]))
            answers += likeliest(logits.sigmoid() if self.multi_label else logits.softmax(1), self.names, top)
        return answers

    def prepare(self, pictures: Sequence[Picture]) -> Float32[Tensor, "b 3 h w"]:
        """Pictures as the model sees them: decoded, resized, cropped, normalised. Raises UserError."""
        views = [eval_view(pixels_of(picture), self.size, self.seen.crop, self.seen.warp) for picture in pictures]
        count = torch.arange(len(views))
        made = normalize(Batch((torch.stack(views),), Labels(count), count), self.seen.mean, self.seen.std, self.device)
        return made.views[0]

    def _run(self, x: Tensor) -> Tensor:
        """Logits of at most ``batch`` images; engines are built for powers of two and ``batch``, others filled up."""
        count = len(x)
        wanted = min(1 << (count - 1).bit_length(), self.batch)
        if count < wanted:
            x = torch.cat([x, x.new_zeros(wanted - count, *x.shape[1:])])
        return self.programs[Shape(wanted, *x.shape[2:])](x)[:count]

    def _build(self, shape: Shape, choice: Choice | None = None) -> Run:
        """A program for one shape: what depends on the grid alone is a constant in it."""
        choice, example, model = choice or self.choice, self._zeros(shape), self.model
        if self.any_size:
            model = copy.deepcopy(model)
            pin(model, example[:1])
        return build(model, choice, example, self.calibration, self.threads)

    def _zeros(self, shape: Shape) -> Float32[Tensor, "b 3 h w"]:
        return torch.zeros(shape.batch, 3, shape.height, shape.width, device=self.device)

    def _shape(self, batch: int) -> Shape:
        """Of so many images of this predictor's size, padded where sizes share a program."""
        if not self.any_size:
            return Shape(batch, *self.size)
        height, width = (-(-side // self.multiple) * self.multiple for side in self.size)
        return Shape(batch, height, width)

    def _choose(self, backend: str, precision: str, say: Callable[[str], None]) -> Choice:
        if backend != "auto":
            named = backend if ":" in backend or precision == "auto" else f"{backend}:{precision}"
            return Choice.parse(named)
        wanted = ("fp32", "bf16") if precision == "auto" else (precision,)
        tried = candidates(self.device, wanted)
        if precision == "int8":
            tried = [Choice(engine, "int8") for engine in ("openvino", "onnxruntime")]
        kept = Remembered(self._key(tried))
        self.timings = kept.read()
        if self.timings:
            where = f", as measured before ({kept.path})"
        else:
            self.timings = tuple(self._measure(tried, say))
            kept.write(self.timings)
            where = f", the fastest of {len(self.timings)} here"
        best = self.timings[0]
        say(f"backend {best.choice}: {best.ms:.1f} ms for {self.batch} at {self.size} px{where}")
        return Choice.parse(best.choice)

    def _measure(self, tried: Sequence[Choice], say: Callable[[str], None]) -> Iterator[Timing]:
        """Time the engines in turn, round by round; fastest first, without those that fail or answer otherwise."""
        shape = self._shape(self.batch)
        example = torch.randn(self._zeros(shape).shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        truth = build(self.model, Choice("eager", "fp32"), example)(example)
        runs: dict[Choice, Run] = {}
        errors: dict[Choice, float] = {}
        for choice in tried:
            try:
                made = self._build(shape, choice)
            except Unavailable as error:
                say(f"backend {choice} is left out: {error}")
                continue
            errors[choice] = distance(made(example), truth)
            if errors[choice] <= LIMITS[choice.precision]:
                runs[choice] = made
            else:
                say(f"backend {choice} is left out: its logits are {errors[choice]:.2g} from eager float32's")
        if not runs:
            raise UserError(f"no backend answers as eager PyTorch does; tried {', '.join(map(str, tried))}")
        times: dict[Choice, list[float]] = {choice: [] for choice in runs}
        for i in range(WARM_UP + ROUNDS):
            for choice, run in runs.items():
                run(example).cpu()  # the threads of the one before may still be spinning
                start = time.perf_counter()
                run(example).cpu()
                if i >= WARM_UP:
                    times[choice].append(1000 * (time.perf_counter() - start))
        ranked = sorted(runs, key=lambda choice: statistics.median(times[choice]))
        self.programs[shape] = runs[ranked[0]]
        yield from (Timing(str(c), round(statistics.median(times[c]), 3), errors[c]) for c in ranked)

    def _key(self, tried: Sequence[Choice]) -> dict[str, Any]:
        """What a measurement is valid for."""
        shapes = [(key, *tensor.shape) for key, tensor in self.model.state_dict().items()]
        return {
            "model": type(self.model).__name__ + hashlib.sha256(repr(shapes).encode()).hexdigest()[:16],
            "size": str(self.size),
            "batch": self.batch,
            "tried": [str(choice) for choice in tried],
            "machine": f"{machine(self.device)}, {self.threads} threads",
            "versions": {name: version(name) for name in ("torch", "anyres")},
        }


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
    lines = about.read_text().splitlines() if about.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


class Remembered:
    """Measurements of ``auto`` in the user's cache, so that the second start is quick."""

    def __init__(self, key: dict[str, Any]) -> None:
        self.key = json.dumps(key, sort_keys=True)
        self.path = cache_root() / "backends.json"

    def read(self) -> tuple[Timing, ...]:
        """What was measured for this key, fastest first; nothing if never."""
        return tuple(Timing(**row) for row in self._all().get(self.key, ()))

    def write(self, timings: Sequence[Timing]) -> None:
        """Keep ``timings``; where the cache cannot be written the next start measures again, and a warning says so."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock"):
                rows = self._all() | {self.key: [vars(timing) for timing in timings]}
                part = self.path.with_suffix(".part")
                part.write_text(json.dumps(rows, indent=1))
                part.replace(self.path)
        except OSError as error:
            warnings.warn(f"{self.path} cannot be written ({error.strerror}): every start measures", stacklevel=2)

    def _all(self) -> dict[str, list[dict[str, Any]]]:
        try:
            rows = json.loads(self.path.read_text())
        except (OSError, ValueError):  # none yet, or damaged: measured anew
            return {}
        return rows if isinstance(rows, dict) else {}


def pixels_of(picture: Picture) -> UInt8[Tensor, "3 h w"]:
    """A picture decoded as everywhere here: upright, RGB."""
    if isinstance(picture, Tensor):
        if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != 3:
            raise UserError(f"a picture is uint8 (3, h, w), not {picture.dtype} {tuple(picture.shape)}")
        return picture
    if isinstance(picture, Image.Image):
        whole = io.BytesIO()  # through a file's bytes, so that alpha, palettes and depths are treated as a file's are
        ImageOps.exif_transpose(picture).save(whole, "PNG", compress_level=0)
        return decode(Record(whole.getvalue(), -1, "the picture")).image
    try:
        return decode(Record(Path(picture), -1, str(picture))).image
    except Unreadable as error:
        raise UserError(f"{error.name} is unreadable: {error.reason}") from None
