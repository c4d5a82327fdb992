"""A model split over two processes learns what two copies of it learn, and its checkpoints are anyone's."""

from __future__ import annotations

import json
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from tests.command import refused
from tests.pictures import make_folder
from tests.runs import SERVER, Run, differences, free_port
from torch import nn

from anyres.training.checkpoint import found
from anyres.training.shard import (
    gather_full_state,
    gather_optimizer_state,
    load_full_state,
    load_optimizer_state,
    shard,
    whole,
)

SHORT = ("data.workers=0", "train.epochs=2", "train.eval_every=1", "train.precision=fp32", "optim.clip_norm=1.0")
SPLIT = (*SHORT, "train.shard=true", "optim.name=adamw")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "shapes", per_class=14)


KINDS = {
    "lamb": ("optim.name=lamb", "optim.lr=0.01", "train.grad_checkpointing=true"),
    "dino": (
        *(
            "objective.consistency=none",
            "objective.dino.out_dim=64",
            "objective.dino.hidden=32",
            "train.ema_decay=null",
        ),
        *("mix.mixup=0", "mix.cutmix=0", "mix.smoothing=0", "optim.name=sgd", "objective.dino.warmup_epochs=0"),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_split_and_copied_are_the_same_to_float_tolerance(data: Path, tmp_path: Path, kind: str) -> None:
    copied = Run(data, tmp_path / "copied", *SHORT, *KINDS[kind], processes=2)
    split = Run(data, tmp_path / "split", *SHORT, *KINDS[kind], "train.shard=true", processes=2)
    copied.start().wait()
    assert "split over them" in split.start().wait()
    files = sorted(found(copied.out)[0].glob("*.safetensors"))
    assert len(files) == {"lamb": 2, "dino": 3}[kind]
    for file in files:
        a, b = (load_file(folder / file.name) for folder in (file.parent, found(split.out)[0]))
        assert a.keys() == b.keys()
        assert max(float((a[key].double() - b[key].double()).abs().max()) for key in a) < 2e-5, file.name
    records = [(run.out / "metrics.jsonl").read_text().splitlines() for run in (copied, split)]
    for one, other in zip(*(map(json.loads, lines) for lines in records), strict=True):
        assert one == pytest.approx(other, rel=2e-3, abs=2e-4)


def test_a_killed_one_goes_on_exactly_and_on_one_process_too(data: Path, tmp_path: Path) -> None:
    uncut, run = (Run(data, tmp_path / name, *SPLIT, processes=2) for name in ("uncut", "cut"))
    uncut.start().wait()
    step = random.SystemRandom().randint(4, 8)
    run.start().reach(step).send(signal.SIGKILL, rank=step % 2)
    for process in run.processes:
        process.join(60)
    shutil.copytree(run.out, tmp_path / "alone")
    run.start().wait()
    assert not differences(uncut.out, run.out), f"killed at {step}"
    said = Run(data, tmp_path / "alone", *SPLIT).start().wait()
    assert "continuing from step" in said
    assert "on 1 x cpu" in said
    alone, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("alone", "cut"))
    assert {key: value.shape for key, value in alone.items()} == {key: value.shape for key, value in cut.items()}


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    for other in ("channels_last=true", "compile=true", "precision=fp16"):
        words = ("train", "restv2_nano", "--data", "root", "--out", tmp_path / "run", "train.shard=true")
        assert "train.shard" in refused(*words, f"train.{other}")


def gather_and_restore(rank: int, port: int, out: Path) -> None:
    """On two processes: what each holds of a gathered model and optimizer, and that they are restored to the bit."""
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    shard(model, torch.device("cpu"))
    optimizer = torch.optim.AdamW([{"params": [p]} for p in model.parameters()], lr=0.1)
    model[2].bias.requires_grad_(False)  # it has no state, and must not be given one
    model(torch.randn(8, 5)).square().mean().backward()
    optimizer.step()
    weights, state = gather_full_state(model), gather_optimizer_state(model, optimizer)
    assert bool(weights) == bool(state) == (rank == 0)
    before = {key: whole(value).clone() for key, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.data.zero_()
    optimizer.state.clear()
    load_full_state(model, lambda: weights)
    load_optimizer_state(model, optimizer, lambda: state)
    assert all(torch.equal(whole(value), before[key]) for key, value in model.state_dict().items())
    again = gather_optimizer_state(model, optimizer)
    if rank == 0:
        assert sorted(state["state"]) == sorted(again["state"]) == [0, 1, 2, 3, 4]
        pairs = [(values, again["state"][number]) for number, values in state["state"].items()]
        assert all(torch.equal(one[key], two[key]) for one, two in pairs for key in one)
    with pytest.raises(RuntimeError, match=r"0\.weight"):
        load_full_state(model, lambda: {**weights, "0.weight": torch.zeros(1)})
    dist.destroy_process_group()
    out.write_text("done")


def test_the_first_process_alone_holds_the_whole(tmp_path: Path) -> None:
    port = free_port()
    outs = [tmp_path / str(rank) for rank in (0, 1)]
    made = [SERVER.Process(target=gather_and_restore, args=(rank, port, out)) for rank, out in enumerate(outs)]
    for process in made:
        process.start()
    for process in made:
        process.join(120)
    assert [out.exists() for out in outs] == [True, True]
