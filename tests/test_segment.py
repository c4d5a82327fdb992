"""A class for each pixel, by the command line: trained, scored at the pictures' own sizes, picked, asked, drawn."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torchmetrics.classification import MulticlassJaccardIndex

from anyres.config import UserError
from anyres.data.drawn_sources import open_scored, open_split
from anyres.data.sources import Source
from anyres.evaluation.evaluator import EvalSettings
from anyres.evaluation.miou import MapScores, classes_at, score_maps
from anyres.flow import IGNORED, Batch, Geometry, OwnMaps, Size
from anyres.models import create_model
from anyres.recipe import load_recipe
from anyres.runs.train import train_run
from anyres.tasks import task_for
from tests.command import anyres, refused
from tests.runs import differences, forget_the_end, listening

CLASSES = ("background", "left", "right")
COLORS = ((40, 40, 40), (230, 90, 60), (70, 110, 240))
TINY = (
    "model.dims=[16,32,64,128]",
    "model.depths=[1,1,1,1]",
    "head.width=32",
    "head.auxiliary_width=16",
    "head.dropout=0",
    "views.sizes=[96,48]",
    "data.batch_size=4",
    "data.workers=0",
    "train.precision=fp32",
    "evaluate.sizes=[48,96,64x80]",
    "evaluate.batch_size=4",
)


def draw(root: Path, count: int = 5) -> Path:
    """Pictures of three sizes, each with a red block and a blue disc, and the palette maps of both."""
    rng = np.random.default_rng(3)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i in range(count):
        width, height = ((48, 48), (64, 48), (48, 56))[i % 3]
        picture = Image.fromarray(rng.integers(0, 60, (height, width, 3), dtype=np.uint8))
        mask = Image.new("P", (width, height))
        mask.putpalette([value for color in COLORS for value in color])
        x, y = (int(rng.integers(1, 6)) for _ in range(2))
        block = (x, y, width // 2 - 3, y + height - 10)
        disc = (width // 2 + 1, y, width - x, height - 4)
        for image, fills in ((picture, COLORS[1:]), (mask, (1, 2))):
            ImageDraw.Draw(image).rectangle(block, fill=fills[0])
            ImageDraw.Draw(image).ellipse(disc, fill=fills[1])
        picture.save(root / "images" / f"{i}.png")
        mask.save(root / "masks" / f"{i}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


class Segmented(NamedTuple):
    """A finished run on drawn pictures, those, and its recipe's values."""

    folder: Path
    data: Path
    values: tuple[str, ...]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Segmented:
    root = tmp_path_factory.mktemp("segment")
    data = draw(root / "set")
    values = ("train.epochs=90", "train.eval_every=90", "train.checkpoint_every=80", "augment.crop_scale=[0.9,1]")
    values += (
        "optim.lr=4e-3",
        "optim.warmup_epochs=3",
        "train.ema_decay=null",
        "augment.flip=0",
        "train.keep=last",
        "augment.brightness=0",
        "augment.contrast=0",
        "train.log_every=1",
    )
    values = (*TINY, *values, f"data.source={data}")
    answer = anyres("train", "segment/lungs", *values, "--out", root / "run")
    assert answer.code == 0, answer.err
    return Segmented(root / "run", data, values)


def test_four_pictures_are_learnt_and_scored_at_their_own_sizes(run: Segmented) -> None:
    answer = anyres("eval", run.folder, "--data", run.data, "--split", "train", "--json", "-", "--sizes", "96")
    assert answer.code == 0, answer.err
    (point,) = json.loads(answer.out)["points"]
    assert point["miou"] > 0.97
    assert point["miou_low"] <= point["miou"] <= point["miou_high"]
    steps = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert {"decode/96", "auxiliary/96", "decode/48", "auxiliary/48"} <= steps[0].keys()
    parts = sum(steps[0][f"{head}/{size}"] for head in ("decode", "auxiliary") for size in (96, 48))
    assert steps[0]["loss"] == pytest.approx(parts / 2, rel=1e-4)


def test_the_curve_has_miou_and_a_size_is_picked_by_it(run: Segmented) -> None:
    rows = list(csv.DictReader((run.folder / "curve.csv").read_text().splitlines()))
    assert [(row["height"], row["width"]) for row in rows] == [("48", "48"), ("96", "96"), ("64", "80")]
    assert {"miou", "miou_low", "miou_high", "pixel_accuracy"} <= rows[0].keys()
    assert all(float(row["miou"]) <= float(row["pixel_accuracy"]) for row in rows)
    picked = anyres("pick", run.folder, "--min-score", "0.3")
    assert picked.code == 0
    assert "mIoU" in picked.out
    assert anyres("pick", run.folder, "--min-score", "1").code == 3


def test_the_page_shows_truth_beside_answer(run: Segmented) -> None:
    page = (run.folder / "report.html").read_text()
    assert "Truth and answer" in page
    assert "Pictures with the true classes over them" in page
    assert re.search(r"mIoU \d+\.\d\xa0%", page)
    assert "background, left, right" in page  # the truth of a picture


def test_tables_have_each_class(run: Segmented, tmp_path: Path) -> None:
    answer = anyres("eval", run.folder, "--sizes", "48,96", "--out", tmp_path)
    assert answer.code == 0, answer.err
    assert "worst classes at" in answer.out
    rows = list(csv.DictReader((tmp_path / "per_class.csv").read_text().splitlines()))
    assert [(row["size"], row["class"]) for row in rows] == [(size, name) for size in ("48", "96") for name in CLASSES]
    assert all(0 <= float(row["iou"]) <= min(float(row["precision"]), float(row["recall"])) for row in rows)


def test_predict_draws_an_overlay_and_an_index_png(run: Segmented, tmp_path: Path) -> None:
    picture = run.data / "images" / "1.png"
    shutil.copy(picture, tmp_path / "1.png")
    answer = anyres("predict", run.folder, picture, tmp_path / "1.png", "--draw", tmp_path / "drawn", "--json", "-")
    assert answer.code == 0, answer.err
    said = json.loads(answer.out)["images"][0]["classes"]
    assert sum(each["share"] for each in said) == pytest.approx(1)
    names = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert names == ["1-2.classes.png", "1-2.overlay.png", "1.classes.png", "1.overlay.png"]
    with Image.open(tmp_path / "drawn" / "1.classes.png") as indices, Image.open(run.data / "masks" / "1.png") as truth:
        assert indices.mode == "P"
        assert indices.size == truth.size == (64, 48)
        found = np.array(indices)
        assert (found == np.array(truth)).mean() > 0.9
    shares = {each["name"]: each["share"] for each in said}
    assert shares == pytest.approx({name: float((found == i).mean()) for i, name in enumerate(CLASSES)})
    with Image.open(tmp_path / "drawn" / "1.overlay.png") as over:
        assert over.size == (64, 48)


def test_an_interrupted_run_continues_bit_for_bit(run: Segmented, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "run")
    forget_the_end(tmp_path / "run")
    with listening() as said:
        train_run(load_recipe("segment/lungs", run.values), tmp_path / "run", report=False)
    assert "continuing from step 80 of 90" in said
    assert differences(run.folder, tmp_path / "run") == []


def test_a_mirrored_view_swaps_the_classes_of_the_two_sides() -> None:
    both = Source("lungs", CLASSES, (), (), "train", "drawn", mirrored=(0, 2, 1))
    task = task_for("segment", load_recipe("segment/lungs").objective, both)
    truth = torch.tensor([[1, 1, 0, 2]], dtype=torch.uint8)
    geometry = Geometry(Size(1, 4), (0.0, 0.0, 1.0, 4.0), Size(1, 4), flip=True)
    assert task.view(truth, geometry).tolist() == [[1, 0, 2, 2]]
    assert list(task.describe(both)) == ["mirrored views: left and right change places"]


def test_miou_is_torchmetrics_and_counts_no_ignored_pixel() -> None:
    """Six pictures of six sizes, a class that none has and none is said to have, another that is only said."""
    draws = torch.Generator().manual_seed(0)
    sizes = [Size(5 + i, 9 - i) for i in range(6)]
    logits = torch.randn(6, 6, 4, 4, generator=draws)
    logits[:, 5] = -99.0
    truths = [torch.randint(0, 4, tuple(size), generator=draws).byte() for size in sizes]
    for truth in truths:
        truth[0] = IGNORED
    batches = [Batch((logits[i : i + 3],), OwnMaps(tuple(truths[i : i + 3])), torch.arange(i, i + 3)) for i in (0, 3)]
    scores = score_maps(torch.nn.Identity(), batches, EvalSettings(torch.device("cpu")), 6)
    known = MulticlassJaccardIndex(6, average=None, ignore_index=IGNORED)
    mean = MulticlassJaccardIndex(6, ignore_index=IGNORED)
    for each, truth, size in zip(logits, truths, sizes, strict=True):
        said = torch.nn.functional.interpolate(each[None], size=list(size), mode="bilinear").argmax(1)
        known.update(said, truth[None].long())
        mean.update(said, truth[None].long())
    assert np.nan_to_num(scores.iou) == pytest.approx(known.compute().numpy(), abs=1e-6)
    assert scores.miou == pytest.approx(float(mean.compute()), abs=1e-6)
    assert [row.name for row in scores.rows("abcdef")] == list("abcde")
    assert scores.counts[:, 1].sum() == sum(size.height * size.width - size.width for size in sizes)
    assert 0 < scores.interval[0] < scores.miou < scores.interval[1] < 1
    assert scores.interval == MapScores(scores.index, scores.counts).interval


def test_classes_are_the_same_however_many_are_resized_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(7, 5, 6, generator=torch.Generator().manual_seed(1))
    whole = classes_at(logits, Size(11, 13))
    for room in (1, 11 * 13 * 2, 11 * 13 * 3):
        monkeypatch.setattr("anyres.evaluation.miou.VALUES_AT_ONCE", room)
        assert torch.equal(classes_at(logits, Size(11, 13)), whole)


def test_pictures_that_are_only_scored_need_no_split(tmp_path: Path) -> None:
    data = draw(tmp_path / "set", 5)
    source = open_scored(str(data), None, wanted="maps")
    assert (source.split, len(source.records)) == ("all", 5)
    assert "no val split: all 5 images are scored" in source.notes[-1]
    train, val = (open_split(str(data), split, wanted="maps") for split in ("train", "val"))
    assert (len(train.records), len(val.records)) == (4, 1)
    (data / "masks" / "0.png").unlink()
    (note,) = [note for note in open_split(str(data), "train", wanted="maps").notes if "0.png" in note]
    assert "there is no map of this name: picture left out" in note


WRONG = [
    (["objective.consistency=smooth_l1"], "set objective.consistency=none"),
    (["mix.mixup=0.8"], "no classes to mix"),
    (["train.trainable=head"], "set train.trainable=all"),
    (["head.widht=3"], "did you mean 'width'"),
    (["head.width=wide"], "head.width: Input should be a valid integer"),
    (["head.num_classes=3"], "decided by the maps: leave it out"),
    (["head.dropout=1"], "dropout must lie in [0, 1)"),
]


@pytest.mark.parametrize(("values", "line"), WRONG)
def test_what_has_no_meaning_for_maps_is_refused_at_once(values: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("segment/lungs", values)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_one_line(run: Segmented, tmp_path: Path) -> None:
    again = ("train", "segment/lungs", *TINY, "--data", run.data, "--out", tmp_path / "run")
    assert "takes images of 32 px and more a side, not 24x24 px" in refused(*again, "views.sizes=[24]")
    assert "takes images of 32 px and more a side" in refused("eval", run.folder, "--sizes", "16")
    assert "was trained for task=segment" in refused("bench", "model", run.folder, "--sizes", "48")
    assert "--cascade" in refused("predict", run.folder, run.data / "images" / "0.png", "--cascade")
    other = draw(tmp_path / "other", 4)
    (other / "classes.txt").write_text("background\nright\nleft")
    assert "have the classes background, right, left, and the model knows" in refused(
        "eval", run.folder, "--data", other
    )
    value = draw(tmp_path / "value", 4)
    (value / "classes.txt").write_text("background\nleft")
    assert "masks/" in refused("train", "segment/lungs", *TINY, "--data", value, "--out", tmp_path / "b")
    assert "leave out head.width" in refused(
        "train", "nano", "head.width=3", "--data", "groceries", "--out", tmp_path / "c"
    )


def test_weights_of_a_classifier_and_of_a_segmenter_fill_the_backbone(run: Segmented, tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = create_model("restv2_nano", 7, dims=(16, 32, 64, 128), depths=(1, 1, 1, 1))
    torch.save({"model": classifier.state_dict()}, tmp_path / "classifier.pth")
    wanted = {"classifier.pth": classifier.state_dict(), "run": load_file(run.folder / "model.safetensors")}
    for name, source in (("classifier.pth", tmp_path / "classifier.pth"), ("run", run.folder)):
        values = (*run.values, "train.epochs=1", "optim.lr=1e-12", "optim.min_lr=0", f"weights={source}")
        with listening() as said:
            train_run(load_recipe("segment/lungs", values), tmp_path / f"from-{name}", report=False)
        assert f"starting from {source}, the backbone alone" in said
        made = load_file(tmp_path / f"from-{name}" / "model.safetensors")
        for key in ("stem.proj.0.weight", "stem.proj.6.weight"):
            before = wanted[name][f"backbone.{key}" if name == "run" else key]
            assert torch.allclose(made[f"backbone.{key}"], before, atol=1e-6)
