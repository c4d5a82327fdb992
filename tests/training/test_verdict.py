"""A step on a device that the host would wait for: nothing is read, and what was not finite leaves no trace, later.

On a CPU, whose numbers are there at once, ``reads_late`` is told otherwise. Detectors wait all the same: torchvision's
code asks the device how many boxes there are; ours asks nothing.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import pytest
import torch
from tests.models.zoo import build
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from anyres.config import override
from anyres.flow import Batch, Instances, Labels, Maps, ViewObjects, on_device
from anyres.models import create_model
from anyres.models.dense.detector import Detector
from anyres.models.dense.detector_config import CONFIGS
from anyres.models.dense.segmenter import Segmenter, SegmenterConfig
from anyres.models.dino import ProjectionHead
from anyres.models.pyramids.bottom_up import bottom_up_of
from anyres.tasks.classify import Classify
from anyres.tasks.detect import Learner
from anyres.tasks.segment import EveryHead
from anyres.training import loop
from anyres.training import step as steps
from anyres.training.objectives import DinoConfig, DistillationConfig, Objective, ObjectiveConfig
from anyres.training.objectives.dino import Dino
from anyres.training.objectives.named import Named
from anyres.training.objectives.supervised import Supervised
from anyres.training.optim import build_optimizer
from anyres.training.parallel import build_accelerator
from anyres.training.plan import Plan, TrainConfig
from anyres.training.schedule import OptimConfig
from anyres.training.state import State, build_ema
from anyres.training.step import NonFiniteLoss, make_step, settle

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
aten = torch.ops.aten
READS = {
    *(aten._local_scalar_dense.default, aten.item.default, aten.is_nonzero.default, aten.equal.default),
    *(aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.bincount.default),
}
METHODS = {
    *(torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.__bool__, torch.Tensor.__float__),
    *(torch.Tensor.__int__, torch.Tensor.__index__),
}


def asking() -> str:
    """Whose code asks, ``anyres`` or another package with models, and in which function."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        package = frame.f_globals["__name__"].partition(".")[0]
        if package in ("anyres", "torchvision", "timm", "segmentation_models_pytorch"):
            return f"{package} {frame.f_code.co_name}"
        frame = frame.f_back
    return "a test"


class Dispatched(TorchDispatchMode):
    """Operations by which a host reads what a device has computed, and who asked for each."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.askers: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func in (aten.index.Tensor, aten.index_put_.default) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if func in READS or by_mask:
            self.found.append(str(func))
            self.askers.append(asking())
        return func(*args, **(kwargs or {}))


class Called(TorchFunctionMode):
    """The same of methods that a CPU's tensors answer without any operation."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.askers: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in METHODS:
            self.found.append(str(func))
            self.askers.append(asking())
        return func(*args, **(kwargs or {}))


@pytest.fixture
def _late(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (steps, loop):
        monkeypatch.setattr(module, "reads_late", lambda _: True)


def images(count: int = 2, seed: int = 0) -> Batch:
    torch.manual_seed(seed)
    views = tuple(torch.randn(count, 3, side, side) for side in (32, 24))
    return Batch(views, Labels(torch.randn(count, 5).softmax(-1)), torch.arange(count))


def maps(count: int = 4, seed: int = 0) -> Batch:
    views = tuple(torch.randn(count, 3, side, side) for side in (64, 32))
    classes = tuple(torch.randint(5, (count, side, side), dtype=torch.uint8) for side in (64, 32))
    return Batch(views, Maps(classes), torch.arange(count))


def supervised(**values: Any) -> Objective:
    config = ObjectiveConfig(**values)
    teacher = (lambda view: view.mean((2, 3)) @ torch.ones(3, 5)) if config.distillation.kind != "none" else None
    return Supervised(build("rest"), config, Classify().loss, teacher)


def dino(family: str = "dino") -> Objective:
    config = DinoConfig(out_dim=24, hidden=16, bottleneck=8, freeze_last_layer=1)
    backbone = build(family, classes=0)
    return Dino(backbone, ProjectionHead(backbone.num_features, 24, 16, 8), config)


def segment() -> Objective:
    torch.manual_seed(0)
    trunk = create_model("resformer_nano", 0)
    model = Segmenter(bottom_up_of(trunk, "segmentation"), SegmenterConfig(num_classes=5, width=16, auxiliary_width=8))
    return Named(model, EveryHead(model), model.losses)


def detect(kind: str) -> Objective:
    torch.manual_seed(0)
    stages = (2, 3, 4) if kind == "retinanet" else (1, 2, 3, 4)
    trunk = bottom_up_of(create_model("restv2_nano", 0), "detection", stages)
    small = {"width": 16, "hidden": 32, "mask_convs": 1, "proposals": 30, "taught": 16, "norm": "group"}
    model = Detector(trunk, override(CONFIGS[kind], {"num_classes": 5, **small}, kind))
    return Named(model, Learner(model, masks=model.has_masks))


def objects(count: int = 2, seed: int = 0) -> Batch:
    """Two objects on each image but for the last, which has none."""
    torch.manual_seed(seed)
    views, drawn = tuple(torch.randn(count, 3, side, side) for side in (64, 32)), []
    for side in (64, 32):
        boxes = torch.tensor([[1.0, 2.0, side / 2, side / 2], [8.0, 8.0, 30.0, 31.0]])
        masks = torch.zeros(2, side, side, dtype=torch.uint8)
        masks[:, 8 : side // 2, 8 : side // 2] = 1
        there = ViewObjects(boxes, torch.tensor([0, 4]), masks, torch.zeros(2, dtype=torch.bool))
        drawn.append((*[there] * (count - 1), there.changed(lambda x: x[:0])))
    return Batch(views, Instances(tuple(drawn)), torch.arange(count))


OBJECTIVES: dict[str, tuple[Callable[[], Objective], Callable[..., Batch]]] = {
    "supervised": (supervised, images),
    "consistency": (lambda: supervised(consistency="smooth_l1"), images),
    "distillation": (
        lambda: supervised(distillation=DistillationConfig(kind="hard", teacher="x", alpha=0.5)),
        images,
    ),
    "dino": (dino, images),
    "segment": (segment, maps),
}


@dataclass
class Setting:
    """All that a step is given."""

    objective: Objective
    state: State
    plan: Plan

    def step(self, batch: Batch) -> dict[str, Tensor]:
        objective = self.objective
        return make_step(build_accelerator("fp32"), objective.student, objective, self.state, batch, self.plan)


def setting(objective: Objective, name: str = "adamw", fused: bool = True, ema: float | None = 0.9) -> Setting:
    optim = OptimConfig(name=name, lr=1e-2, warmup_epochs=0.0, clip_norm=5.0, clip_each=2.0)
    model = objective.trained
    optimizer = build_optimizer(model, optim, set())
    for group in optimizer.param_groups:
        group["fused"] = fused or None  # as on a CUDA device
    optimizer = build_accelerator("fp32").prepare(optimizer)
    state = State(model, build_ema(model, ema), optimizer, copies=objective.copies, published=objective.published)
    return Setting(objective, state, Plan(20, 2, 4, TrainConfig(seed=1), optim))


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.usefixtures("_late")
def test_between_logged_steps_nothing_is_read(name: str) -> None:
    make, batch = OBJECTIVES[name]
    given = setting(make())
    with Dispatched() as dispatched, Called() as called:
        for step in range(3):
            shown = given.step(batch(seed=step))
            given.state.progress.step += 1
    assert dispatched.found == []
    assert called.found == []
    settle(given.state)
    assert shown["loss"].isfinite()


@pytest.mark.usefixtures("_late")
def test_what_reads_is_found() -> None:
    """The counters count: of a step that shows its loss, and an objective that asks for a number."""
    for read in (float, Tensor.tolist, lambda loss: loss[loss > 0], lambda loss: loss.cpu().numpy(), bool):
        given = setting(supervised())
        with Dispatched() as dispatched, Called() as called:
            read(given.step(images())["loss"])
        assert len(dispatched.found + called.found) >= 1


@pytest.mark.parametrize("kind", ["mask_rcnn", "retinanet"])
@pytest.mark.usefixtures("_late")
def test_a_detector_asks_by_torchvision_alone(kind: str) -> None:
    """How many boxes match, are left and lie on each level are shapes there, which the host has to know: where losses
    are computed, proposals filtered, matches sampled and regions pooled. Nothing of ours asks."""
    given = setting(detect(kind))
    with Dispatched() as dispatched, Called() as called:
        for step in range(2):
            shown = given.step(objects(seed=step))
            given.state.progress.step += 1
    askers = {*dispatched.askers, *called.askers}
    assert {asker.partition(" ")[0] for asker in askers} == {"torchvision"}, askers
    assert {"torchvision forward", "torchvision compute_loss"} <= askers
    settle(given.state)
    assert shown["loss"].isfinite()


def everything(state: State) -> dict[str, Any]:
    """All of a state that a checkpoint holds."""
    modules = {name: copy.deepcopy(module.state_dict()) for name, module in state.modules.items()}
    return {"modules": modules, "optimizer": copy.deepcopy(state.optimizer.state_dict()), "at": replace(state.progress)}


def same(a: Any, b: Any) -> bool:
    """Bit for bit."""
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def harmed(step: int, bad: tuple[int, ...]) -> Batch:
    batch = images(seed=step)
    if step in bad:
        batch.views[-1][0, 0, 0, 0] = float("nan")
    return batch


def to_model(batch: Batch, given: Setting) -> Batch:
    device = next(given.state.model.parameters()).device
    return replace(batch, views=tuple(view.to(device) for view in batch.views), targets=batch.targets.to(device))


def skipping(given: Setting, bad: tuple[int, ...], count: int = 4) -> list[int]:
    """``count`` steps, those that are not finite left out; which they were."""
    found, progress = [], given.state.progress
    for step in range(count):
        while True:
            try:
                given.step(to_model(harmed(step, bad), given))
                break
            except NonFiniteLoss as error:
                found.append(error.step)
                if error.step == step:
                    break
        progress.step += 1
    try:
        settle(given.state)
    except NonFiniteLoss as error:
        found.append(error.step)
    return found


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_GPU)])
@pytest.mark.parametrize(
    ("make", "kind", "fused"),
    [(supervised, "adamw", True), (lambda: dino("restv2"), "adamw", True), (supervised, "lamb", False)],
    ids=["supervised", "dino", "lamb"],
)
def test_a_skipped_step_leaves_the_same_state_late_as_at_once(
    make: Callable[[], Objective], kind: str, fused: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step, before which the optimizer has no numbers, and two in a row, the last ones."""
    bad, made = (0, 2, 3), []
    for late in (False, True):
        for module in (steps, loop):
            monkeypatch.setattr(module, "reads_late", lambda _, late=late: late)
        objective = make()
        objective.student.to(device)
        for copied in objective.copies.values():
            copied.to(device)
        with on_device(device):
            given = setting(objective, kind, fused)
            assert skipping(given, bad) == list(bad)
        made.append(everything(given.state))
    assert same(*made)
    assert made[0]["at"].images == 2


@pytest.mark.usefixtures("_late")
def test_what_is_heard_late_is_raised_before_the_next_update() -> None:
    made = []
    for late in (False, True):
        given = setting(supervised())
        steps.reads_late = lambda _, late=late: late  # the fixture puts it back
        given.step(images())
        given.state.progress.step += 1
        if late:
            given.step(harmed(1, (1,)))
            given.state.progress.step += 1
        with pytest.raises(NonFiniteLoss, match="not finite at step 1") as caught:
            given.step(harmed(1 + late, (1,)))
        assert caught.value.index.tolist() == [0, 1]
        assert given.state.progress.step == 1 + late
        given.state.progress.step = 1
        made.append(everything(given.state))
    assert same(*made)
