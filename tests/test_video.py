"""One class for each clip, by the command line: trained, scored at any size, picked, asked, continued bit for bit."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from anyres.config import UserError
from anyres.models import create_model
from anyres.recipe import load_recipe
from anyres.runs.opened import load
from anyres.runs.predict import predict
from anyres.runs.train import train_run
from tests.command import anyres, refused
from tests.films import film
from tests.runs import differences, forget_the_end, listening

TINY = (
    "model.dim=32",
    "model.depth=1",
    "model.heads=2",
    "clip.frames=4",
    "clip.sampling=uniform",
    "head.frames=4",
    "views.sizes=[24,16]",
    "data.batch_size=6",
    "data.workers=0",
    "data.cache_side=null",
    "train.precision=fp32",
    "train.ema_decay=null",
    "evaluate.sizes=[16,24,16x20]",
    "evaluate.batch_size=4",
)


class Trained(NamedTuple):
    """A finished run on films that grow lighter or darker, those, and its recipe's values."""

    folder: Path
    data: Path
    values: tuple[str, ...]


def draw(root: Path, split: str = "train", count: int = 3) -> Path:
    """Films of two sizes: of each the frames are the same in both classes, in the order of time or the other way."""
    for i in range(count):
        ramp = range(20 + 10 * i, 220 + 10 * i, 20)
        for name, values in (("lighter", ramp), ("darker", reversed(ramp))):
            film(root / split / name / f"{i}.mp4", values, size=((32, 48), (40, 32))[i % 2], key_every=1)
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("video")
    data = draw(draw(root / "set"), "val", 2)
    (data / "val" / "lighter" / "broken.mp4").write_bytes(b"no film")
    values = ("train.epochs=90", "train.eval_every=90", "train.checkpoint_every=80", "train.log_every=1")
    values = (*TINY, *values, "optim.lr=4e-3", "optim.warmup_epochs=2", f"data.source={data}")
    answer = anyres("train", "video/pace", *values, "--out", root / "run")
    assert answer.code == 0, answer.err
    assert "val/lighter/broken.mp4: unreadable (no film that can be read): left out" in answer.err
    return Trained(root / "run", data, values)


def test_the_order_of_frames_is_learnt_and_scored_at_every_size(run: Trained) -> None:
    rows = list(csv.DictReader((run.folder / "curve.csv").read_text().splitlines()))
    assert [(row["height"], row["width"]) for row in rows] == [("16", "16"), ("24", "24"), ("16", "20")]
    assert [float(row["top1"]) for row in rows] == [1.0, 1.0, 1.0]
    answer = anyres("eval", run.folder, "--data", run.data, "--split", "train", "--sizes", "40x24", "--json", "-")
    assert answer.code == 0, answer.err
    (point,) = json.loads(answer.out)["points"]
    assert (point["top1"], point["n"]) == (1.0, 6)
    assert "4 frames of a film (uniform)" in anyres("eval", run.folder, "--sizes", "16").out
    assert "confusion" in (run.folder / "report.html").read_text().lower()


def test_without_time_the_order_of_frames_cannot_be_known(run: Trained, tmp_path: Path) -> None:
    values = (*run.values, "head.kind=average", "train.epochs=9", "train.eval_every=9", "train.checkpoint_every=9")
    train_run(load_recipe("video/pace", values), tmp_path / "run", report=False)
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["val/top1/24"], last["val/top1/16"]) == (0.5, 0.5)


def test_a_size_is_picked_and_films_are_asked(run: Trained, tmp_path: Path) -> None:
    assert anyres("pick", run.folder, "--min-score", "0.9").code == 0
    films = [run.data / "val" / name / "1.mp4" for name in ("darker", "lighter")]
    answer = anyres("predict", run.folder, *films, "--json", "-")
    assert answer.code == 0, answer.err
    said = [image["classes"][0]["name"] for image in json.loads(answer.out)["images"]]
    assert said == ["darker", "lighter"]
    (direct,) = predict(load(run.folder), films[1], size="16x40", top=1)
    assert direct.values["classes"][0]["name"] == "lighter"
    broken = anyres("predict", run.folder, run.data / "val" / "lighter" / "broken.mp4", films[0])
    assert broken.code == 2
    assert "broken.mp4 is unreadable: no film that can be read" in broken.err
    with pytest.raises(UserError, match=r"none.mp4 is unreadable: No such file"):
        predict(run.folder, tmp_path / "none.mp4")


def test_an_interrupted_run_continues_bit_for_bit(run: Trained, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "run")
    forget_the_end(tmp_path / "run")
    with listening() as said:
        train_run(load_recipe("video/pace", run.values), tmp_path / "run", report=False)
    assert "continuing from step 80 of 90" in said
    assert differences(run.folder, tmp_path / "run") == []


def test_weights_of_an_image_model_begin_a_model_of_clips(run: Trained, tmp_path: Path) -> None:
    torch.manual_seed(0)
    image = create_model("resformer_nano", 7, dim=32, depth=1, heads=2)
    torch.save({"model": image.state_dict()}, tmp_path / "image.pth")
    wanted = {"image.pth": image.state_dict(), "run": load_file(run.folder / "model.safetensors")}
    for name, source in (("image.pth", tmp_path / "image.pth"), ("run", run.folder)):
        values = (*run.values, "train.epochs=1", "train.eval_every=0", "optim.lr=1e-12", "optim.min_lr=0")
        with listening() as said:
            recipe = load_recipe("video/pace", (*values, "optim.warmup_epochs=0", f"weights={source}"))
            train_run(recipe, tmp_path / f"from-{name}", report=False)
        told = "with a new classifier of 2 classes" if name == "image.pth" else "with its classifier too"
        assert f"starting from {source}, {told}" in said
        made = load_file(tmp_path / f"from-{name}" / "model.safetensors")
        key = "blocks.0.attn.qkv.weight"
        before = wanted[name][f"backbone.{key}" if name == "run" else key]
        assert torch.allclose(made[f"backbone.{key}"], before, atol=1e-6)
        fresh = float(made["time.0.fc.weight"].abs().max()) < 1e-6
        assert fresh == (name == "image.pth")


WRONG = [
    (["objective={dino: {}}"], "task=video learns from labels alone"),
    (["objective.distillation.kind=soft", "objective.distillation.teacher=resmlp_12"], "learns from labels alone"),
    (["head.frams=3"], "did you mean 'frames'"),
    (["head.kind=joint"], "head.kind"),
    (["head.frames=0"], "a clip has 1 frame or more"),
    (["clip.frames=0"], "clip.frames=0 must be 1 to 1024"),
    (["clip.stride=0"], "clip.stride=0 must be 1 or more"),
    (["clip.sampling=sparse"], "clip.sampling"),
]


@pytest.mark.parametrize(("values", "line"), WRONG)
def test_what_has_no_meaning_for_clips_is_refused_at_once(values: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("video/pace", values)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_one_line(run: Trained, tmp_path: Path) -> None:
    again = ("train", "video/pace", *TINY, "--data", run.data, "--out", tmp_path / "run")
    assert "clips are cut, mirrored, blurred" in refused(*again, "augment.brightness=0.2")
    assert "the channels of clips are their frames" in refused(*again, "data.channels=1")
    assert "restv2_nano is no plain ViT" in refused(*again, "model={name: restv2_nano}")
    assert "was trained for task=video" in refused("bench", "model", run.folder, "--sizes", "16")
    assert "holds images, and task=video is of films" in refused("probe", run.folder, "--data", "groceries")
    assert "train task=video on it" in refused("train", "nano", "--data", "pace", "--out", tmp_path / "b")
    assert "no folder or table of films" in refused("eval", run.folder, "--data", tmp_path / "nothing")
