"""DINO (Caron et al., ICCV 2021): the loss, the teacher and its center, the schedules, whole runs."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tests.command import anyres, refused
from tests.models.zoo import SMALL, build
from tests.pictures import make_folder
from tests.runs import forget_the_end, to_earlier_version
from torch import Tensor

from anyres.config import UserError
from anyres.flow import Batch, Labels
from anyres.models import create_model
from anyres.models.dino import ProjectionHead
from anyres.models.weights import load_weights
from anyres.recipe import load_recipe
from anyres.runs.opened import open_run
from anyres.training.objectives import DinoConfig
from anyres.training.objectives.dino import Dino, MomentumTeacher
from anyres.training.optim import build_optimizer, clip_each
from anyres.training.parallel import build_accelerator
from anyres.training.plan import Plan, TrainConfig
from anyres.training.schedule import OptimConfig
from anyres.training.state import State
from anyres.training.step import NonFiniteLoss, make_step

SMALL_HEAD = DinoConfig(out_dim=24, hidden=16, bottleneck=8)
HALF = replace(SMALL_HEAD, momentum=0.5)
SIZES = ((32, 32), (32, 32), (24, 16), (16, 16))


def make_dino(family: str = "dino", config: DinoConfig = SMALL_HEAD) -> Dino:
    backbone = build(family, classes=0)
    head = ProjectionHead(backbone.num_features, config.out_dim, config.hidden, config.bottleneck)
    return Dino(backbone, head, config)


def make_batch(count: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32) -> Batch:
    torch.manual_seed(seed)
    views = tuple(torch.randn(count, 3, h, w, dtype=dtype) for h, w in SIZES)
    return Batch(views, Labels(torch.zeros(count, dtype=torch.int64)), torch.arange(count))


def np_log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


@pytest.fixture
def dino() -> Dino:
    """Student and teacher that differ, in double precision, and a center away from nought."""
    made = make_dino()
    made.student.double()
    made.teacher = MomentumTeacher(made.student, SMALL_HEAD)
    torch.manual_seed(1)
    for parameter in made.student.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    made.teacher.center.copy_(0.1 * torch.randn(24))
    return made


def test_the_loss_is_the_mean_over_pairs_of_taught_and_other_views(dino: Dino) -> None:
    """Equation 3 and the two lines below it."""
    teacher, batch = dino.teacher, make_batch(dtype=torch.float64)
    teacher.reset(0.05)
    made = list(dino.terms(dino.student, batch))
    with torch.no_grad():
        said = [dino.student(view).numpy() for view in batch.views]
        taught = [teacher.copy(view).numpy() for view in batch.views[:2]]
    center, total, pairs = teacher.center.double().numpy(), 0.0, 0
    for i in range(2):
        q = np.exp(np_log_softmax((taught[i] - center) / 0.05))
        for v in range(4):
            if v != i:
                total -= float((q * np_log_softmax(said[v] / 0.1)).sum(1).mean())
                pairs += 1
    assert pairs == 2 * (4 - 1)
    assert sum(term.loss.item() for term in made) == pytest.approx(total / pairs, rel=1e-9)
    shown = {name: float(value) for term in made for name, value in term.logged.items()}
    assert list(shown) == ["dino/32.1", "dino/32.2", "dino/24x16", "dino/16"]
    assert (shown["dino/32.1"] + shown["dino/32.2"] + 2 * shown["dino/24x16"] + 2 * shown["dino/16"]) / 6 == (
        pytest.approx(total / pairs, rel=1e-9)
    )


def test_a_view_at_a_time_gives_the_gradients_of_the_joint_loss(dino: Dino) -> None:
    """Joint as official code has it: views of one size in one pass, the head once for all."""
    student, teacher, batch = dino.student, dino.teacher, make_batch(dtype=torch.float64)
    joint = copy.deepcopy(student)
    for term in dino.terms(student, batch):
        term.loss.backward()
    groups = (torch.cat(batch.views[:2]), *batch.views[2:])
    features = [joint.backbone(group) for group in groups]  # headless: the pooled vector
    log_p = (joint.head(torch.cat(features)) / 0.1).log_softmax(-1).chunk(4)
    q = teacher(torch.cat(batch.views[:2])).chunk(2)
    loss = sum(-(q[i] * log_p[v]).sum(-1).mean() for i in range(2) for v in range(4) if i != v) / 6
    loss.backward()
    checked = 0
    for (name, a), b in zip(student.named_parameters(), joint.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None) == (name == "head.last_layer.weight_g"), name
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-9, msg=name)
            checked += bool(a.grad.abs().sum() > 0)
    assert checked > 40
    assert all(p.grad is None for p in teacher.copy.parameters())


def test_the_center_moves_by_a_tenth_to_the_mean_of_raw_scores_of_both_crops() -> None:
    """Equation 4."""
    dino = make_dino()
    student, teacher = dino.student, dino.teacher
    views = [torch.randn(5, 3, 32, 32), torch.randn(3, 3, 32, 32)]
    center = np.zeros(24)
    for _ in range(3):
        teacher.reset(0.04)
        for view in views:  # as well in parts of a batch
            teacher(view)
        raw = np.concatenate([teacher.copy(view).detach().double().numpy() for view in views])
        teacher.update(student, 1.0, build_accelerator("fp32"))
        center = 0.9 * center + 0.1 * raw.mean(0)
        np.testing.assert_allclose(teacher.center, center, rtol=1e-4, atol=1e-7)
    assert np.abs(center).max() > 1e-3
    assert "centre" in dino.copies["teacher_head"].state_dict()  # its name in checkpoints of every version


def test_schedule_check_values() -> None:
    """Of 100 epochs of 2,502 steps; and numpy's linspace for the temperature, as official code has it."""
    how = DinoConfig()
    assert how.momentum_at(0.0) == pytest.approx(0.996)
    assert how.momentum_at(125_100 / 250_200) == pytest.approx(0.998)
    assert 1 - 1e-12 < how.momentum_at(250_199 / 250_200) < 1
    assert {how.temperature_at(epoch) for epoch in range(100)} == {0.04}
    boosted = DinoConfig(teacher_temperature=0.07, warmup_epochs=30)
    wanted = [*np.linspace(0.04, 0.07, 30), *[0.07] * 270]
    np.testing.assert_allclose([boosted.temperature_at(epoch) for epoch in range(300)], wanted)
    plan, dino = Plan(250_200, 2502, 512, TrainConfig(), OptimConfig()), make_dino()
    dino.config = boosted
    for step, temperature in ((29 * 2502, 0.07), (2501, 0.04)):
        dino.begin(plan, step)
        assert dino.teacher.temperature == pytest.approx(temperature)
    moved = []
    for step in (0, 2501, 2502):
        for parameter in dino.student.parameters():
            parameter.grad = torch.zeros_like(parameter)
        dino.hold(plan, step)
        moved.append(dino.student.get_parameter("head.last_layer.weight_v").grad is not None)
        assert dino.student.get_parameter("head.mlp.0.weight").grad is not None
    assert moved == [False, False, True]


@given(st.integers(0, 12), st.floats(0.01, 0.2), st.floats(0.01, 0.2))
def test_the_temperature_goes_from_one_end_to_the_other(epochs: int, first: float, last: float) -> None:
    how = DinoConfig(warmup_epochs=epochs, warmup_temperature=first, teacher_temperature=last)
    values = [how.temperature_at(epoch) for epoch in range(15)]
    assert min(np.diff(values) * (last - first)) >= -1e-15  # towards the end, always
    assert values[epochs:] == [last] * (15 - epochs)
    if epochs:
        assert values[0] == first


def test_each_gradient_is_clipped_by_its_own_norm() -> None:
    torch.manual_seed(0)
    long, short, without = (torch.nn.Parameter(torch.zeros(4, 3)) for _ in range(3))
    long.grad, short.grad = torch.randn(4, 3) * 9, torch.randn(4, 3) * 0.1
    before = [p.grad.double().numpy().copy() for p in (long, short)]
    clip_each([long, short, without], 3.0)
    norm = np.linalg.norm(before[0])
    assert norm > 3 > np.linalg.norm(before[1])
    np.testing.assert_allclose(long.grad, before[0] * 3 / (norm + 1e-6), rtol=1e-6)
    np.testing.assert_array_equal(short.grad.double(), before[1])
    assert without.grad is None


def run(objective: Dino, steps: int, batch: Batch | None = None, **changes: object) -> State:
    """``steps`` steps of SGD in epochs of two, with a momentum of 0.5 and the gradients of each tensor clipped."""
    accelerator = build_accelerator("fp32")
    student = objective.student
    optim = OptimConfig(name="sgd", lr=0.1, warmup_epochs=0.0, clip_each=0.5)
    plan = Plan(20, 2, 4, TrainConfig(ema_decay=None, **changes), optim)
    optimizer = accelerator.prepare(build_optimizer(student, optim, student.no_weight_decay()))
    state = State(objective.trained, None, optimizer, copies=objective.copies, published=objective.published)
    for step in range(steps):
        make_step(accelerator, student, objective, state, batch or make_batch(seed=step), plan)
        state.progress.step += 1
    return state


def tensors(state: State) -> dict[str, Tensor]:
    return {
        f"{part}.{key}": tensor.clone()
        for part, module in state.modules.items()
        for key, tensor in module.state_dict().items()
    }


@pytest.mark.parametrize("family", SMALL)
def test_a_step_moves_the_student_and_half_as_far_its_teacher(family: str) -> None:
    dino = make_dino(family, HALF)
    start, teacher = dino.student, dino.teacher
    before = {name: p.detach().clone() for name, p in start.named_parameters()}
    state = run(dino, 1)
    moved = {name for name, p in start.named_parameters() if not torch.equal(p, before[name])}
    assert not {name for name in moved if "last_layer" in name}  # the first epoch
    assert {"head.mlp.0.weight"} < moved
    for name, mine in teacher.copy.named_parameters():
        wanted = 0.5 * before[name] + 0.5 * start.get_parameter(name)
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-7, msg=name)
    assert teacher.center.abs().sum() > 0
    assert state.evaluated is teacher.copy.backbone
    for (name, its), mine in zip(start.named_buffers(), teacher.copy.buffers(), strict=False):
        if "running_mean" in name:  # official code copies parameters only: two batches were seen, not four
            assert mine.abs().sum() > 0
            assert not torch.equal(mine, its), name


def test_the_last_layer_moves_from_the_second_epoch_on_and_keeps_its_lengths() -> None:
    first, third = (run(make_dino(config=HALF), steps).model.state_dict() for steps in (2, 3))
    start = make_dino().student.state_dict()
    assert torch.equal(first["head.last_layer.weight_v"], start["head.last_layer.weight_v"])
    assert not torch.equal(third["head.last_layer.weight_v"], start["head.last_layer.weight_v"])
    assert torch.equal(third["head.last_layer.weight_g"], torch.ones(24, 1))


@pytest.mark.parametrize("parts", [2, 3])
def test_a_step_in_parts_is_the_step_in_one_piece(parts: int) -> None:
    whole, cut = (tensors(run(make_dino(config=HALF), 3, accumulate=n)) for n in (1, parts))
    for key, tensor in whole.items():
        torch.testing.assert_close(tensor, cut[key], rtol=2e-4, atol=2e-6, msg=key)


@pytest.mark.parametrize("family", ["dino", "restv2"])
def test_a_step_that_is_not_finite_changes_nothing(family: str) -> None:
    dino = make_dino(family, HALF)
    state = run(dino, 1)
    before, batch = tensors(state), make_batch()
    batch.views[-1][0, 0, 0, 0] = float("nan")
    accelerator, optim = build_accelerator("fp32"), OptimConfig(warmup_epochs=0.0)
    plan = Plan(20, 2, 4, TrainConfig(ema_decay=None), optim)
    with pytest.raises(NonFiniteLoss):
        make_step(accelerator, dino.student, dino, state, batch, plan)
    after = tensors(state)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


VIT = "model={name: vit_tiny, dim: 32, depth: 2, heads: 2, patch_size: 8, img_size: 32}"
VALUES = (
    VIT,
    "views.groups=[{size: 32, blur: 0.5}, {size: 32}, {size: 16, count: 2, crop_scale: [0.1, 0.4]}]",
    "augment={crop_scale: [0.4, 1.0], brightness: 0.4}",
    "objective={dino: {out_dim: 64, hidden: 32, bottleneck: 16, momentum: 0.9, warmup_epochs: 2}}",
    "optim={name: sgd, lr: 0.1, warmup_epochs: 1, clip_each: 3.0, weight_decay_end: 0.4}",  # adam's signs are noisy
    "train={epochs: 3, ema_decay: null, eval_every: 2, log_every: 1, checkpoint_every: 2, precision: fp32}",
    "data={batch_size: 12, workers: 0, cache_side: 48}",
    "evaluate={sizes: [32]}",
)
STEPS = 9


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Images and a finished run on them."""
    root = tmp_path_factory.mktemp("dino")
    data = make_folder(root / "shapes", per_class=16)
    answer = anyres("train", "dino/nano", "--data", data, "--out", root / "run", *VALUES)
    assert answer.code == 0, answer.err
    assert "without labels; scored by the 20 nearest of the training images" in answer.err
    return data, root / "run"


def lines_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_continues_bit_for_bit(finished: tuple[Path, Path], tmp_path: Path) -> None:
    data, whole = finished
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    (cut / "model.safetensors").unlink()
    newest = max(cut.glob("step_*"))
    assert newest.name == "step_000009"
    shutil.rmtree(newest)
    answer = anyres("train", "dino/nano", "--data", data, "--out", cut, *VALUES)
    assert answer.code == 0, answer.err
    assert "continuing from step 8 of 9" in answer.err
    assert lines_of(cut) == lines_of(whole)
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    for name in ("model", "teacher", "teacher_head"):
        ours, theirs = (load_file(run / "step_000009" / f"{name}.safetensors") for run in (cut, whole))
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


def test_a_run_of_an_earlier_version_opens_continues_and_is_done(finished: tuple[Path, Path], tmp_path: Path) -> None:
    data, whole = finished
    older, words = tmp_path / "older", ("train", "dino/nano", "--data", data, "--out", tmp_path / "older", *VALUES)
    shutil.copytree(whole, older)
    to_earlier_version(older)
    assert "centre_momentum: 0.9" in (older / "recipe.yaml").read_text()
    trained = open_run(older)
    assert (trained.task.name, trained.classes, trained.model.num_classes) == ("unlabelled", (), 0)
    assert trained.recipe.objective.dino.center_momentum == 0.9
    assert "is done: it holds" in anyres(*words).err
    forget_the_end(older)
    answer = anyres(*words)
    assert answer.code == 0, answer.err
    assert "continuing from step 8 of 9" in answer.err
    assert lines_of(older) == lines_of(whole)
    assert (older / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert (older / "recipe.yaml").read_bytes() == (whole / "recipe.yaml").read_bytes()
    assert "objective.dino.center_momentum: 0.9 -> 0.8" in refused(*words, "objective.dino.center_momentum=0.8")


@pytest.mark.timeout(300)
def test_two_processes_make_the_steps_of_one(finished: tuple[Path, Path], tmp_path: Path) -> None:
    data, one = finished
    out = tmp_path / "two"
    words = ["-m", "anyres", "train", "dino/nano", "--data", str(data), "--out", str(out), *VALUES]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *words],
        text=True,
        capture_output=True,
        check=False,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = lines_of(one), lines_of(out)
    assert [line["step"] for line in first] == [line["step"] for line in second]
    for a, b in zip(first, second, strict=True):
        for name in a.keys() & b.keys():
            assert a[name] == pytest.approx(b[name], rel=1e-4), (name, a, b)
    for name in ("model", "teacher", "teacher_head"):
        ours, theirs = (load_file(run / "step_000009" / f"{name}.safetensors") for run in (one, out))
        assert max(float((ours[key] - theirs[key]).abs().max()) for key in ours) < 2e-5, name
    assert load_file(out / "step_000009" / "teacher_head.safetensors")["centre"].abs().max() > 0


def test_what_is_published_is_the_teachers_backbone(finished: tuple[Path, Path]) -> None:
    _, run = finished
    options = {"dim": 32, "depth": 2, "heads": 2, "patch_size": 8, "img_size": 32}
    published, best = (create_model("vit_tiny", 0, **options) for _ in range(2))
    assert not load_weights(published, run).new_classifier
    facts = json.loads((run / "run.json").read_text())
    assert facts["best_top1"] == max(line["val/top1"] for line in lines_of(run) if "val/top1" in line)
    for key, tensor in load_file(run / "step_000009" / "teacher.safetensors").items():
        assert torch.equal(tensor, published.state_dict()[key])
    kept = sorted(folder.name for folder in run.glob("step_*"))
    load_weights(best, run / kept[0] / "teacher.safetensors")  # the best one's too
    classifier = create_model("vit_tiny", 3, **options)
    assert load_weights(classifier, run, replace_head="if_needed").new_classifier
    assert torch.equal(classifier.blocks[1].mlp.fc1.weight, published.blocks[1].mlp.fc1.weight)


def test_it_is_scored_by_its_neighbours(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """The curve, ``eval`` and ``probe`` agree; what needs a classifier is refused in one line."""
    _, run = finished
    points = json.loads((run / "run.json").read_text())["evaluation"]["points"]
    assert [point["size"] for point in points] == ["32"]
    assert all(0 < point["loss"] < math.inf and point["macs"] < 1e6 for point in points)
    last = next(line for line in reversed(lines_of(run)) if "val/top1" in line)
    assert last["val/top1/32"] == points[0]["top1"]
    assert anyres("eval", run, "--json", tmp_path / "told.json").code == 0
    told = json.loads((tmp_path / "told.json").read_text())
    assert (told["points"][0]["top1"], told["classes"], told["of_classes"]) == (points[0]["top1"], 3, 3)
    probed = anyres("probe", run, "--size", "32", "--knn", "--k", "20", "--json", "-")
    assert json.loads(probed.out)["probes"][0]["top1"] == points[0]["top1"]
    page = (run / "report.html").read_text()
    assert "Top-1 accuracy of the 20 nearest training images on 9 images of the val split" in page
    assert "not used; scored by the 20 nearest training images" in page
    assert refused("eval", run, "--split", "train").endswith("give val or test")
    assert "has no classifier" in refused("predict", run, "photo.jpg")


PLAIN = ["objective={dino: {}}"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("objective.cosub=true", "objective.dino goes alone: leave out objective.cosub"),
        ("objective.consistency=l2", "objective.dino goes alone: leave out objective.consistency"),
        ("objective.distillation={kind: hard, teacher: regnety_160}", "leave out objective.distillation"),
        ("objective.loss=bce", "objective.dino goes alone: leave out objective.loss"),
        ("objective.views_per_step=1", "objective.dino goes alone: leave out objective.views_per_step"),
        ("mix.mixup=0.8", "objective.dino has no labels to mix or smooth: set mix.mixup"),
        ("views={sizes: [32]}", "objective.dino compares views"),
        ("views={sizes: [32, 16], share: true}", "objective.dino compares views"),
        ("train.ema_decay=0.9", "set train.ema_decay=null"),
        ("train.trainable=head", "objective.dino trains all layers alike"),
        ("optim.layer_decay=0.7", "objective.dino trains all layers alike"),
        ("train.freeze_blocks=1", "objective.dino trains all layers alike"),
        ("optim.clip_each=0", "optim.clip_each=0.0 must be above 0"),
        ("objective.dino.warmup_epochs=200", "objective.dino.warmup_epochs=200 is more than train.epochs=20"),
        ("objective.dino.out_dim=0", "objective.dino.out_dim=0 must be 1 or more"),
        ("objective.dino.teacher_temperature=0", "objective.dino.teacher_temperature=0.0 must be above 0"),
        ("objective.dino.momentum=1.5", "objective.dino.momentum=1.5 must lie between 0 and 1"),
        ("objective.dino.momentun=1", "'objective.dino.momentun' is not a key; did you mean 'momentum'"),
    ],
)
def test_what_does_not_go_with_it_is_one_line(change: str, line: str) -> None:
    assert load_recipe("dino/nano", PLAIN).objective.dino == DinoConfig()
    with pytest.raises(UserError) as caught:
        load_recipe("dino/nano", [*PLAIN, change])
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_that_would_find_themselves_are_refused(finished: tuple[Path, Path], tmp_path: Path) -> None:
    data, _ = finished
    said = refused("train", "dino/nano", "--data", data, "--out", tmp_path / "x", *VALUES, "data.train_split=trainval")
    assert "are in trainval and val: add a val split" in said
