"""Everything that survives a crash, in one dataclass.

There is no random-number state here: every draw of a step is seeded by (seed, step, rank), and every sample by
(seed, epoch, index), so a step is a function of this state and the recipe.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from anyres.training.parallel import GlooBatchNorm
from anyres.training.plan import TrainConfig, Version
from anyres.training.shard import copy_full, local, shard

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3

    from anyres.training.verdict import Verdict


@dataclass
class Progress:
    """The plain numbers of a run: ``step`` is the next to be made; ``pixels`` counts the model's input pixels;
    ``training_images`` are in the set (0: not known); ``skipped`` steps were not finite, ``skipped_in_row`` of them
    just now; ``best`` is the best headline metric scored, after step ``best_step`` (-1: none yet); ``scores`` are the
    last ones, by version of the weights and by metric, and ``best_scores`` those of ``best_step``; ``scored`` counts
    the scorings, ``since_best`` those after the best; ``elapsed`` are seconds in all,
    ``seconds`` those of steps alone; ``unscored``: the last step is still to be scored; ``threads`` of the CPU, whose
    number decides how sums are rounded (0: not known); ``data``: what the images were when the run began, by what is
    told of them ({}: not known)."""

    step: int = 0
    images: int = 0
    pixels: int = 0
    seconds: float = 0.0
    best: float = -1.0
    best_step: int = -1
    training_images: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    best_scores: dict[str, dict[str, float]] = field(default_factory=dict)
    scored: int = 0
    since_best: int = 0
    elapsed: float = 0.0
    unscored: bool = False
    threads: int = 0
    data: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StudentParts:
    """Of a module to be trained: its ``modules``; ``frozen``, the batch norm among them that keeps its statistics as it
    keeps its weights; its ``parameters``; and ``buffers``, what forward passes may change of it and of what is called
    beside it, as a module and the name there."""

    modules: Sequence[nn.Module]
    frozen: Sequence[nn.Module]
    parameters: Sequence[nn.Parameter]
    buffers: Sequence[tuple[nn.Module, str]]

    @classmethod
    def of(cls, student: nn.Module, state: State) -> StudentParts:
        """``state`` says what is called beside the student: all but the moving average."""
        modules = list(student.modules())
        frozen = [m for m in modules if isinstance(m, _BatchNorm | GlooBatchNorm) and not m.weight.requires_grad]
        passed = [part for name, whole in state.modules.items() if name != "ema" for part in whole.modules()]
        buffers = [(part, name) for part in passed for name, _ in part.named_buffers(recurse=False)]
        return cls(modules, frozen, list(student.parameters()), buffers)

    def statistics(self) -> list[Tensor]:
        """The buffers' tensors."""
        return [getattr(part, name) for part, name in self.buffers]

    def set_to_train(self) -> None:
        """Training mode, but for frozen batch norm."""
        trains = sum(module.training for module in self.modules)
        if trains == len(self.modules) - len(self.frozen) and not any(module.training for module in self.frozen):
            return  # as after most steps
        self.modules[0].train()
        for module in self.frozen:
            module.eval()


@dataclass
class State:
    """The model being trained, its moving average (None: not kept), the optimiser and the progress.

    ``copies``: what an objective keeps beside the model, by the name of its file in a checkpoint, and ``published``,
    the one of them that is evaluated and published instead (see Objective). ``replica``: of a model that is split over
    processes, a whole one to be evaluated. ``publish``: which version is evaluated first and published. ``verdict``: of
    the last step, where the host does not know yet whether it was finite; such a state is not saved.
    """

    model: nn.Module
    ema: ModelEmaV3 | None
    optimizer: Optimizer
    progress: Progress = field(default_factory=Progress)
    copies: Mapping[str, nn.Module] = field(default_factory=dict)
    published: nn.Module | None = None
    replica: nn.Module | None = None
    publish: Version = "average"
    verdict: Verdict | None = None
    _parts: tuple[nn.Module, StudentParts] | None = field(default=None, init=False, repr=False, compare=False)

    def parts_of(self, student: nn.Module) -> StudentParts:
        """Of the module that a run trains, which stays the same to its end: looked up once."""
        if self._parts is None or self._parts[0] is not student:
            self._parts = (student, StudentParts.of(student, self))
        return self._parts[1]

    def shard(self, student: nn.Module, device: torch.device, also: Sequence[nn.Module] = ()) -> None:
        """Split all weights over the processes; ``student`` calls the model, and ``also`` what an objective keeps
        beside it. The optimiser is to be built anew."""
        self.replica = copy.deepcopy(self.evaluated).requires_grad_(False)
        shard(student, device)
        if self.ema is not None:
            self.ema.foreach = False  # parameters are split, buffers are not
            shard(self.ema.module, device)
        for copied in also:
            shard(copied, device)

    def sync(self, version: str | None = None) -> nn.Module:
        """A version of ``versions`` to be evaluated (None: the first): asked for by all processes at once.

        Of a model that is split over processes all versions are one module, which holds the one asked for last.
        """
        versions = self.versions
        module = versions[version] if version is not None else next(iter(versions.values()))
        if self.replica is None:
            return module
        copy_full(self.replica, module)
        return self.replica

    @property
    def evaluated(self) -> nn.Module:
        """The weights that are published: the first of ``versions``."""
        return next(iter(self.versions.values())) if self.replica is None else self.replica

    @property
    def published_file(self) -> str:
        """How a checkpoint calls the file of the published weights."""
        first = next(iter(self.versions.values()))
        return next(name for name, module in self.modules.items() if module is first)

    @property
    def versions(self) -> dict[str, nn.Module]:
        """The weights that are scored, those to be published first: the ``raw`` ones, and their ``average`` if kept; or
        the objective's ``own``, alone."""
        if self.published is not None:
            return {"own": self.published}
        raw = {"raw": self.model}
        if self.ema is None:
            return raw
        average: dict[str, nn.Module] = {"average": self.ema.module}
        return average | raw if self.publish == "average" else raw | average

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Everything that has weights, by the name of its file in a checkpoint."""
        named = {"model": self.model}
        if self.ema is not None:
            named["ema"] = self.ema.module
        return named | dict(self.copies)


def ended_by(progress: Progress, train: TrainConfig) -> Literal["", "patience", "time"]:
    """What ends a run before its last step: too many scorings without a better one, or its time; "" if nothing does."""
    if train.max_minutes is not None and progress.elapsed >= 60 * train.max_minutes:
        return "time"
    return "patience" if train.patience is not None and progress.since_best >= train.patience else ""


def first_non_finite(state: State) -> str | None:
    """The first tensor of a model, its average or its copies whose norm is not finite, by name: it holds a number that
    is not, or one beyond 1e19, with which no step can be made either.

    Of a model that is split over processes: of this one's share.
    """
    named = {
        f"{key} of {file}": local(tensor)
        for file, module in state.modules.items()
        for key, tensor in module.state_dict().items()
        if tensor.is_floating_point()
    }
    norms = torch._foreach_norm(list(named.values()), 2, dtype=torch.float32)
    if not norms or torch.stack([norm.to(norms[0].device) for norm in norms]).isfinite().all():
        return None
    return next(name for name, norm in zip(named, norms, strict=True) if not norm.isfinite())


def build_ema(model: nn.Module, decay: float | None, warmup: bool = True) -> ModelEmaV3 | None:
    """A moving average of the whole state (parameters and buffers): with timm's warm-up, so that short runs and small
    data sets do not end with the initial weights in it; or without, as in the papers' code."""
    from timm.utils import ModelEmaV3  # seconds, which an evaluation need not wait for

    return None if decay is None else ModelEmaV3(model, decay=decay, use_warmup=warmup)


def update_ema(ema: ModelEmaV3, model: nn.Module, step: int) -> None:
    """After the update of ``step``. Without warm-up timm is told no step, since it starts anew at the first."""
    ema.update(model, step=step + 1 if ema.use_warmup else None)


def seed_step(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Seed torch's generators for one step, so that a resumed run draws what an uninterrupted one would."""
    number = int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])
    if device.type == "cpu":
        torch.default_generator.manual_seed(number)  # half a millisecond less than for all kinds of devices
    else:
        torch.manual_seed(number)
