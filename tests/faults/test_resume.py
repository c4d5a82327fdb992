"""A stopped run goes on as if nothing had happened, or says why not: damaged checkpoints and records, other images or
labels under the same names, foreign folders, and changes that decide nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from anyres.config import Stopped, UserError
from anyres.runs.train import train_run
from anyres.training import checkpoint
from anyres.training.log import RunLog
from anyres.training.state import Progress, State
from tests.faults.small import at_step, small
from tests.pictures import make_folder
from tests.runs import differences, listening


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "shapes", per_class=3)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    train_run(small(data), out, report=False)
    return out


@pytest.fixture(scope="module")
def stopped(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was asked to stop after its second step."""
    out = tmp_path_factory.mktemp("runs") / "stopped"

    def stop() -> None:
        raise Stopped("enough")

    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 2, stop)
        with pytest.raises(Stopped):
            train_run(small(data), out, report=False)
    return out


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


@pytest.fixture
def images(data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data, tmp_path / "elsewhere"))


def rename_a_class(images: Path) -> None:
    (images / "disc").rename(images / "zebra")


def swap_two_labels(images: Path) -> None:
    (images / "disc" / "00.jpg").rename(images / "square" / "90.jpg")
    (images / "square" / "00.jpg").rename(images / "disc" / "90.jpg")


def rename_an_image(images: Path) -> None:
    (images / "stripes" / "01.jpg").rename(images / "stripes" / "01b.jpg")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (rename_a_class, "begun with the classes disc, square, stripes, now they are square, stripes, zebra"),
        (swap_two_labels, "images are not those"),
        (rename_an_image, "images are not those"),
    ],
)
def test_other_images_under_the_same_recipe_are_refused(
    run: Path, images: Path, change: Callable[[Path], None], said: str
) -> None:
    change(images)
    with pytest.raises(UserError, match=said):
        train_run(small(images), run, report=False)


def test_what_decides_nothing_may_change(run: Path, whole: Path, images: Path) -> None:
    """Another place of the images, another number of loaders and of steps between records, another memory."""
    changes = ("data.workers=1", "data.cache_gib=1", "train.checkpoint_every=2", "data.max_unreadable=0.5")
    train_run(small(images, *changes), run, report=False)
    assert not differences(whole, run)


def test_the_folder_of_images_may_be_written_otherwise(run: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a finished run, and of one that does not know its images."""
    for state in run.glob("step_*/state.json"):
        content = json.loads(state.read_text())
        del content["state_sha256"], content["progress"]["data"]
        state.write_text(json.dumps(content))
    monkeypatch.chdir(data.parent)
    recipe = small(Path(data.name))
    assert recipe.data.source == "shapes"
    train_run(recipe, run, report=False)
    with listening() as said:
        train_run(small(data, "train.log_every=7"), run, report=False)
    assert "is done" in said[-1]
    with pytest.raises(UserError, match=r"data\.source"):
        train_run(small(data.parent), run, report=False)
    with pytest.raises(UserError, match=r"optim\.lr"):
        train_run(small(data, "optim.lr=0.5"), run, report=False)


def linear(step: int) -> State:
    torch.manual_seed(step)
    model = nn.Linear(2, 2)
    return State(model, None, torch.optim.SGD(model.parameters()), Progress(step=step, unreadable={"a": "cut"}))


@pytest.fixture
def two(tmp_path: Path) -> Path:
    checkpoint.save(tmp_path, linear(1))
    return checkpoint.save(tmp_path, linear(2))


def restored(folder: Path) -> int:
    state = linear(3)
    checkpoint.restore(folder.parent, state)
    return state.progress.step


def test_every_bit_of_a_state_is_checked(two: Path) -> None:
    file = two / "state.json"
    content = file.read_bytes()
    assert restored(two) == 2
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :])
        assert restored(two) == 1, place


@pytest.mark.parametrize(
    "values",
    [
        *({"step": 10**9}, {"step": "2"}, {"step": None}, {"step": -2}, {"best": float("nan")}, {"unreadable": [1]}),
        *({"seconds": "long"}, {"seconds": 10**400}, {"skipped": True}, {"unscored": 3}, {"other": 1}),
    ],
)
def test_an_earlier_versions_state_of_other_types_or_sizes_falls_back(two: Path, values: dict[str, Any]) -> None:
    progress = asdict(Progress(step=2)) | values
    digests = json.loads((two / "state.json").read_text())["sha256"]
    (two / "state.json").write_text(json.dumps({"progress": progress, "sha256": digests}))
    assert restored(two) == 1


@pytest.mark.parametrize("harm", ["fifo", "list", "nested", "path", "large"])
def test_a_state_that_is_none_falls_back(two: Path, harm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = two / "state.json"
    if harm == "fifo":
        file.unlink()
        os.mkfifo(file)
    elif harm == "large":
        monkeypatch.setattr(checkpoint, "MOST_BYTES", 10)
    else:
        outside = {"progress": {"step": 2}, "sha256": {"../step_000001/optimizer.pt": "0"}}
        texts = {"list": "[]", "nested": "[" * 100_000, "path": json.dumps(outside)}
        file.write_text(texts[harm])
    if harm == "large":
        with pytest.raises(UserError, match="every checkpoint"):
            restored(two)
    else:
        assert restored(two) == 1


def test_what_is_called_otherwise_is_no_checkpoint(two: Path) -> None:
    for name in ("step_backup", "step_000008 (copy)", "step_", "step_-00001"):
        shutil.copytree(two, two.with_name(name))
    two.with_name("step_000009").symlink_to(two)
    assert [folder.name for folder in checkpoint.found(two.parent)] == ["step_000002", "step_000001"]


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_modes_follow_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        folder = checkpoint.save(tmp_path, linear(1))
    finally:
        os.umask(before)
    assert {oct(file.stat().st_mode & 0o777) for file in folder.iterdir()} == {oct(0o666 & ~mask)}


def test_damaged_records_are_left_out_with_a_note(tmp_path: Path) -> None:
    """What a power cut leaves: noughts, a line torn within, a stray byte; and lines that are no records."""
    good = [b'{"step": 0, "loss": 1.0}', b'{"step": 1, "loss": 0.5}', b'{"step": 2, "val/top1": 0.5}']
    bad = [bytes(40), b'{"step": 0, "lo', b'{"step": 1\xff}', b"[]", b'{"loss": 1}', b'{"step": "1"}', b"[" * 5000]
    lines = [good[0], *bad[:4], good[1], *bad[4:], good[2], b'{"step": 3, "loss": 1}', b'{"step": 1, "cut']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    with listening() as said:
        RunLog(tmp_path, 3).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"\n".join(good) + b"\n"
    assert any("7 damaged lines are left out" in line for line in said)
    RunLog(tmp_path, 3, unscored=True).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"\n".join(good[:2]) + b"\n"
