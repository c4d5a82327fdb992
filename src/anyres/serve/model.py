"""The model that is served: pictures in, logits out, at any size; and what its sizes cost on this machine."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from anyres.config import UserError
from anyres.data.mix import normalize
from anyres.data.samples import one_thread
from anyres.data.views import eval_view
from anyres.deploy.cascade import Cascade
from anyres.deploy.predictor import EngineOptions, Predictor
from anyres.evaluation.curve_file import read_csv
from anyres.flow import Batch, Labels, Size, SizeResult
from anyres.ops.processors import processors
from anyres.runs.bounds import check_sizes_fit
from anyres.runs.cascade import FILE as CASCADE
from anyres.runs.cascade import predictors_for, preprocessing
from anyres.runs.drift import held_out_of
from anyres.runs.inputs import evaluated_sizes
from anyres.runs.opened import TrainedModel
from anyres.runs.stderr import doing
from anyres.serve.costs import Line
from anyres.serve.options import LEAST_SIDE, ServeOptions
from anyres.serve.pictures import read_picture
from anyres.serve.sizing import Rung, ladder
from anyres.tasks import known_metrics

log = logging.getLogger(__name__)
TIMED = 3
"""Timings of a batch at the start, after one that is not counted; the median counts."""


@dataclass(frozen=True)
class Cuts:
    """The cascade, as the server uses it: see ``deploy.cascade.Cascade``."""

    sizes: tuple[Size, ...] = ()
    temperatures: tuple[float, ...] = ()
    thresholds: tuple[float, ...] = ()


class ServedModel:
    """``trained`` at every size: those to choose from by the engine of ``options``, others by eager PyTorch.

    Both answer as ``anyres.Predictor`` does in fp32. ``engines`` threads at a time may call ``run``, any number the
    others. On a CPU eager PyTorch has as many engines as threads, of one thread each: where several threads begin
    parallel work, their OpenMP teams sleep while they wait, and two threads took twice as long as one.

    Raises UserError for a model that gives no classes, or cannot take the sizes.
    """

    def __init__(self, trained: TrainedModel, options: ServeOptions) -> None:
        if not trained.model.num_classes:
            raise UserError(f"{trained.name} has no classifier: it cannot name classes")
        if trained.task.activation not in ("softmax", "sigmoid"):
            raise UserError(
                f"{trained.name} was trained for task={trained.task.name}, which a server does not answer: "
                "use `anyres predict`"
            )
        self.trained, self.options = trained, options
        self.classes = trained.classes
        self.channels = len(trained.recipe.data.mean)
        self.curve = _curve(trained)
        self.cuts = _cuts(trained, options)
        self.independent = trained.task.activation == "sigmoid"  # several labels, each by itself
        batch = options.pace.batch
        backbone, sizes = trained.backbone, self._sizes()
        backbone.check_sizes(sizes)
        check_sizes_fit(sizes, trained.recipe, batch)
        usual = trained.recipe.views.parsed[0]
        self.any_size = Predictor(
            backbone, "eager", usual, batch=batch, preprocessing=preprocessing(trained, usual), any_size=True
        )
        self.fixed: dict[Size, Predictor] = {}
        if options.backend != "eager":
            self.fixed = predictors_for(trained, sizes, EngineOptions(options.backend, batch))
        on_cpu = self.any_size.device.type == "cpu"
        self.engines = min(processors(), torch.get_num_threads()) if on_cpu and not self.fixed else 1
        self.engine = str(next(iter(self.fixed.values())).backend) if self.fixed else "eager"
        with one_thread() if on_cpu else nullcontext():
            self.lines = {size: self._time(size) for size in sizes}
        known = self.qualities
        free = options.sizes or [size for size in sizes if size not in self.cuts.sizes or size in self._usual_sizes()]
        self.rungs = ladder([Rung(size, known.get(size)) for size in free])
        held_out = held_out_of(trained)
        self.held_out = replace(held_out, usual=str(self.rungs[-1].size)) if held_out else None

    @property
    def name(self) -> str:
        """Of the model, as the open inference protocol addresses it: no slash."""
        return self.trained.name.replace("/", "--")

    @property
    def line(self) -> str:
        """What is served, for people."""
        sizes = ", ".join(str(rung.size) for rung in self.rungs)
        curve = "of its curve" if self.curve else "without a curve: `anyres curve` measures one"
        return f"{self.trained.name}, {len(self.classes)} classes, {self.engine}; sizes {sizes} px ({curve})"

    @property
    def qualities(self) -> dict[Size, float]:
        """The headline metric by size, so that more is better; {} without a curve."""
        return {result.size: result.quality for result in self.curve}

    def check_size(self, size: Size) -> None:
        """Raises UserError for a size that is not answered here."""
        most = self.options.limits.side
        if not LEAST_SIDE <= min(size) <= max(size) <= most:
            raise UserError(f"size {size} is beyond what is answered here: {LEAST_SIDE} to {most} px a side")
        self.trained.backbone.check_sizes([size])

    def read(self, content: bytes) -> UInt8[Tensor, "c h w"]:
        """An encoded image's pixels. Raises TooLarge, Unreadable."""
        limits = self.options.limits
        return read_picture(content, self.channels, 1e6 * limits.megapixels, limits.side)

    def view(self, image: UInt8[Tensor, "c h w"], size: Size) -> UInt8[Tensor, "c H W"]:
        """An image as the model sees it at ``size``, before it is normalized."""
        how = preprocessing(self.trained, size)
        return eval_view(image, size, how.crop, how.warp, how.interpolation)

    def run(self, size: Size, views: Sequence[UInt8[Tensor, "c H W"]]) -> Float32[Tensor, "b k"]:
        """Logits of some images at one size, on the CPU."""
        predictor, count = self.fixed.get(size, self.any_size), torch.arange(len(views))
        mean, std = predictor.preprocessing.mean, predictor.preprocessing.std
        made = normalize(Batch((torch.stack(list(views)),), Labels(count), count), mean, std, predictor.device)
        return predictor.forward(made.views[0]).float().cpu()

    def probabilities(self, logits: Float32[Tensor, " k"], temperature: float = 1.0) -> Float32[Tensor, " k"]:
        """Of one image, after the task's activation."""
        return logits.sigmoid() if self.independent else (logits / temperature).softmax(0)

    def _sizes(self) -> list[Size]:
        """All that is measured at the start: what is chosen from, and the cascade's."""
        return list(dict.fromkeys((*(self.options.sizes or self._usual_sizes()), *self.cuts.sizes)))

    def _usual_sizes(self) -> tuple[Size, ...]:
        """Those of the curve; without one those of the recipe, up to the largest that was trained at."""
        most = self.options.limits.side
        if self.curve:
            found = tuple(result.size for result in self.curve)
        else:
            views = self.trained.recipe.views.parsed
            largest = max(views, key=_pixels)
            smaller = (s for s in evaluated_sizes(self.trained.recipe) if _pixels(s) < _pixels(largest))
            found = tuple(dict.fromkeys((*views, *smaller)))
        fit = tuple(size for size in found if max(size) <= most)
        if not fit:
            raise UserError(f"{self.trained.name} is for {found[0]} px: give --max-side {max(found[0])} or --sizes")
        return fit

    def _time(self, size: Size) -> Line:
        """Run every batch size once, so that each is built, and time the smallest and the largest."""
        most = self.options.pace.batch
        with doing(f"warming up at {size} px"):
            view = torch.zeros(self.channels, *size, dtype=torch.uint8)
            counts = [1 << i for i in range(most.bit_length())]
            times: dict[int, float] = {}
            for count in counts if size in self.fixed else {1, most}:
                logits = self.run(size, [view] * count)
                if not logits.isfinite().all():
                    raise UserError(
                        f"{self.trained.name} answers with numbers that are not finite: its weights are of no use"
                    )
                if count in (1, most):
                    times[count] = self._median_ms(size, [view] * count)
        return Line.through(times[1], times[most], most)

    def _median_ms(self, size: Size, views: Sequence[Tensor]) -> float:
        found = []
        for _ in range(TIMED):
            start = time.perf_counter()
            self.run(size, views)
            found.append(1000 * (time.perf_counter() - start))
        return statistics.median(found)


def _curve(trained: TrainedModel) -> list[SizeResult]:
    """The run's measured curve; [] where there is none that can be read."""
    path = trained.folder / "curve.csv" if trained.folder else Path()
    if not path.is_file():
        return []
    try:
        return read_csv(path, known_metrics())
    except UserError as error:
        log.warning("%s: sizes are chosen by their pixels", error)
        return []


def _cuts(trained: TrainedModel, options: ServeOptions) -> Cuts:
    """The run's cascade, where it has one. Raises UserError where it is asked for and there is none."""
    path = trained.folder / CASCADE if trained.folder else None
    if path is None or not path.is_file() or trained.task.activation != "softmax":
        if options.cascade:
            raise UserError(f"{trained.name} has no cascade: `anyres cascade RUN` chooses one for a run")
        return Cuts()
    kept = Cascade.read(path)
    if max(max(size) for size in kept.parsed) > options.limits.side:
        raise UserError(f"the cascade of {trained.name} goes up to {kept.sizes[-1]} px: raise --max-side")
    return Cuts(kept.parsed, kept.temperatures, kept.thresholds)


def _pixels(size: Size) -> int:
    return size.height * size.width
