"""Checkpoints are whole or absent, verified, and fall back."""

from pathlib import Path

import pytest
import torch

from anyres import create_model
from anyres.config import UserError
from anyres.training import checkpoint
from anyres.training.optim import build_optimizer
from anyres.training.schedule import OptimConfig
from anyres.training.state import Progress, State, build_ema


def make_state(step: int = 0) -> State:
    torch.manual_seed(step)
    model = create_model("restv2_nano", num_classes=3)
    optimizer = build_optimizer(model, OptimConfig(), model.no_weight_decay())
    state = State(model, build_ema(model, 0.9), optimizer, Progress(step=step, best=0.5, unreadable={"a.jpg": "cut"}))
    model(torch.randn(2, 3, 32, 32)).square().mean().backward()
    optimizer.step()
    return state


def test_round_trip_is_exact(tmp_path: Path) -> None:
    saved, other = make_state(7), make_state(1)
    assert checkpoint.save(tmp_path, saved).name == "step_000007"
    assert checkpoint.restore(tmp_path, other) == []
    assert other.progress == saved.progress
    for a, b in ((saved.model, other.model), (saved.ema.module, other.ema.module)):
        for (key, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
            assert torch.equal(x, y), key
    moments = [(s["exp_avg"], s["exp_avg_sq"]) for s in saved.optimizer.state.values()]
    again = [(s["exp_avg"], s["exp_avg_sq"]) for s in other.optimizer.state.values()]
    assert len(moments) == len(again) > 0
    assert all(
        torch.equal(a, b) for pair, twin in zip(moments, again, strict=True) for a, b in zip(pair, twin, strict=True)
    )


def test_only_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 20, 1000000):
        checkpoint.save(tmp_path, make_state(step))
    assert [p.name for p in checkpoint.found(tmp_path)] == ["step_1000000", "step_000020"]
    assert not list(tmp_path.glob(".*"))


def test_the_best_is_kept_beside_the_newest_two(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        state = make_state(step)
        state.progress.best_step = 10 if step >= 10 else 5
        checkpoint.save(tmp_path, state)
    assert [p.name for p in checkpoint.found(tmp_path)] == ["step_000020", "step_000015", "step_000010"]


@pytest.mark.parametrize("harm", ["cut", "flip", "missing", "no state", "not json"])
def test_a_damaged_newest_falls_back(tmp_path: Path, harm: str) -> None:
    checkpoint.save(tmp_path, make_state(1))
    folder = checkpoint.save(tmp_path, make_state(2))
    file = folder / ("state.json" if harm in ("no state", "not json") else "optimizer.pt")
    data = file.read_bytes()
    if harm in ("missing", "no state"):
        file.unlink()
    else:
        cut = {"cut": data[: len(data) // 2], "flip": bytes([data[0] ^ 1]) + data[1:], "not json": b"<html>"}
        file.write_bytes(cut[harm])
    state = make_state(3)
    (said,) = checkpoint.restore(tmp_path, state)
    assert "step_000002" in said
    assert state.progress.step == 1


def test_all_damaged_is_one_clear_error(tmp_path: Path) -> None:
    (checkpoint.save(tmp_path, make_state(1)) / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="every checkpoint"):
        checkpoint.restore(tmp_path, make_state(2))
