"""Several labels, and none, through the command line: trained, scored, drawn, picked, asked; and what is refused."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageDraw

from anyres.runs.opened import open_run
from anyres.training import checkpoint
from tests.command import anyres, refused
from tests.conftest import TinyRun
from tests.pictures import draw
from tests.runs import to_earlier_version

COLOURS = {"blue": (60, 90, 255), "green": (60, 230, 90), "red": (255, 60, 60)}
TINY = ("model.dims=[16,32,64,128]", "model.depths=[1,1,1,1]", "views.sizes=[32,24]", "data.batch_size=8")
TINY += ("train.precision=fp32", "data.workers=0", "evaluate.sizes=[24,32]", "data.cache_side=32")


def spots(seed: int) -> tuple[Image.Image, list[str]]:
    """A spot of each of some colours, none perhaps, on a noisy ground."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 70, (36, 40, 3), dtype=np.uint8))
    names = [name for name in COLOURS if rng.random() < 0.45]
    for name, quarter in zip(names, rng.permutation(4).tolist(), strict=False):
        x, y = 2 + 20 * (quarter % 2), 2 + 18 * (quarter // 2)
        ImageDraw.Draw(image).ellipse((x, y, x + 14, y + 14), fill=COLOURS[name])
    return image, names


class Spotted(NamedTuple):
    """A finished run on spots, its table and command, and what it said."""

    folder: Path
    table: Path
    command: tuple[str, ...]
    said: str


@pytest.fixture(scope="module")
def spotted(tmp_path_factory: pytest.TempPathFactory) -> Spotted:
    root = tmp_path_factory.mktemp("spots")
    rows = ["path,labels"]
    for i in range(160):
        image, names = spots(i)
        image.save(root / f"{i}.png")
        rows.append(f"{i}.png,{'|'.join(names)}")
    table, run = root / "spots.csv", root / "run"
    table.write_text("\n".join(rows))
    values = ("optim.lr=2e-3", "optim.warmup_epochs=1", "train.epochs=12", "train.eval_every=4", "mix.mixup=0.1")
    values += (
        "train.ema_decay=null",
        "augment.crop_scale=[0.9,1.0]",
        "augment.brightness=0",
        "augment.contrast=0",
        "augment.saturation=0",
    )
    command = ("train", "restv2_nano", "--data", str(table), "--out", str(run), *TINY, *values)
    answer = anyres(*command)
    assert answer.code == 0, answer.err
    return Spotted(run, table, command, answer.err)


def test_it_learns_and_says_what_it_does(spotted: Spotted) -> None:
    assert "images have several labels: every class is decided by itself (objective.loss=soft_bce)" in spotted.said
    assert "of 3 classes" in spotted.said
    lines = [json.loads(line) for line in (spotted.folder / "metrics.jsonl").read_text().splitlines()]
    assert any("soft_bce/32" in line for line in lines)
    scored = [line["val/map"] for line in lines if "val/map" in line]
    assert len(scored) == 3
    assert scored[-1] > 0.85  # a guess has the classes' share, 0.45
    assert not any("val/top1" in line for line in lines)
    facts = json.loads((spotted.folder / "run.json").read_text())
    assert facts["best_map"] == max(scored)
    kept = json.loads((checkpoint.found(spotted.folder)[0] / "state.json").read_text())["progress"]
    assert kept["best"] == max(scored)
    assert (spotted.folder / f"step_{kept['best_step']:06d}").is_dir()
    assert "loss: soft_bce" in (spotted.folder / "recipe.yaml").read_text()
    assert "is done" in anyres(*spotted.command).err


def test_everything_names_map(spotted: Spotted, tmp_path: Path) -> None:
    told = anyres("eval", spotted.folder, "--out", tmp_path / "classes", "--json", tmp_path / "e.json")
    assert told.code == 0, told.err
    assert re.search(r"size +mAP +95 % interval", told.out)
    assert re.search(r"F1 at \d+ px: [\d.]+ %, of decisions at probability 0.5", told.out)
    assert "top-1" not in told.out
    rows = list(csv.DictReader((tmp_path / "classes" / "per_class.csv").read_text().splitlines()))
    assert {(row["size"], row["class"]) for row in rows} == {(s, c) for s in ("24", "32") for c in COLOURS}
    assert not (tmp_path / "classes" / "confusion.csv").exists()
    points = json.loads((tmp_path / "e.json").read_text())["points"]
    assert {"map", "map_low", "map_high", "f1"} <= set(points[0])
    assert not {"top1", "top5", "metric"} & set(points[0])
    large = next(p for p in points if p["size"] == "32")
    mean = np.mean([float(row["average_precision"]) for row in rows if row["size"] == "32"])
    assert large["map"] == pytest.approx(mean)
    answer = anyres("curve", spotted.folder, "--sizes", "24,32", "--out", tmp_path / "c")
    assert answer.code == 0, answer.err
    assert (tmp_path / "c" / "curve.csv").read_text().startswith("model,height,width,map,n,")
    page = (tmp_path / "c" / "report.html").read_text()
    assert "mAP over the classes with its" in page
    assert "average precision" in page
    assert not re.search(r"[Tt]op-\d", page)
    shutil.copy(tmp_path / "c" / "curve.csv", spotted.folder)
    assert re.match(r"(24|32)  mAP [\d.]+ %, ", anyres("pick", spotted.folder, "--min-map", "0.3").out)


def test_predict_gives_every_likely_label(spotted: Spotted, tmp_path: Path) -> None:
    """On pictures that it has not seen; eager and folded answer alike."""
    right, paths = 0, []
    for i in range(1000, 1030):
        spots(i)[0].save(tmp_path / f"{i}.png")
        paths.append(tmp_path / f"{i}.png")
    for words in ((), ("--backend", "eager")):
        answer = anyres("predict", spotted.folder, *paths, *words)
        assert answer.code == 0, answer.err
        lines = {Path(line.split()[0]).stem: line for line in answer.out.splitlines()[1:]}
        right = 0
        for i in range(1000, 1030):
            found = set(re.findall(r"(blue|green|red) [\d.]+ %", lines[str(i)]))
            assert found or lines[str(i)].rstrip().endswith("nothing")
            right += found == set(spots(i)[1])
        assert right >= 18  # of 30; a guess has an eighth
    every = anyres("predict", spotted.folder, paths[0], "--threshold", "0")
    assert all(name in every.out for name in COLOURS)
    assert "nothing" in anyres("predict", spotted.folder, paths[0], "--threshold", "1").out
    weights = anyres("predict", "restv2_nano", paths[0], "--weights", spotted.folder / "model.safetensors")
    assert weights.code == 2  # the file is of other dims; it says so, not something about labels
    assert "--threshold" not in weights.err


def test_a_run_of_an_earlier_version_is_still_one_of_several_labels(spotted: Spotted, tmp_path: Path) -> None:
    older = tmp_path / "older"
    shutil.copytree(spotted.folder, older)
    to_earlier_version(older)
    trained = open_run(older)
    assert (trained.task.name, trained.classes) == ("multilabel", tuple(COLOURS))
    words = [older if word == str(spotted.folder) else word for word in spotted.command]
    assert "is done" in anyres(*words).err
    assert " mAP " in anyres("eval", older, "--sizes", "24").out


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (["objective.loss=ce"], "objective.loss=ce is for one class an image, .*: set objective.loss=soft_bce"),
        (
            ["objective.distillation.kind=hard", "objective.distillation.teacher=restv2_nano"],
            "objective.distillation.kind=hard is for one class an image",
        ),
        (["objective.consistency=soft", "objective.target=logit"], "objective.consistency=soft is for one class"),
        (["data.balance=true"], "data.balance=true wants images of one label each"),
        (["objective.loss=bce", "mix.smoothing=0.1"], "mix.smoothing=0.1 gives every class a share"),
    ],
)
def test_what_is_for_one_class_is_refused(spotted: Spotted, tmp_path: Path, values: list[str], line: str) -> None:
    said = refused("train", "restv2_nano", "--data", spotted.table, "--out", tmp_path / "run", *TINY, *values)
    assert re.search(line, said)
    assert not (tmp_path / "run").exists()


def test_verbs_for_one_class_are_refused(spotted: Spotted, tiny_run: TinyRun) -> None:
    assert "a cascade wants one class an image" in refused("cascade", spotted.folder, "--sizes", "24,32")
    one = spotted.table.with_name("1.png")
    assert "leave out --cascade" in refused("predict", spotted.folder, one, "--cascade")
    assert "nearest neighbours and probes want one each" in refused("probe", spotted.folder)
    assert "have one label each, and the model was trained to give them several" in refused(
        "eval", spotted.folder, "--data", tiny_run.data
    )
    assert "have several labels each, and the model was trained to give them one" in refused(
        "eval", tiny_run.folder, "--data", spotted.table
    )
    assert "--threshold is for several" in refused("predict", tiny_run.folder, one, "--threshold", "0.3")


DINO = ("train", "dino/nano", "views.groups=[{size: 32, count: 2}, {size: 24}]", "data.batch_size=8", "data.workers=0")
DINO += ("train.epochs=2", "objective.dino.out_dim=32", "objective.dino.hidden=16", "train.eval_every=1")
DINO += ("model.dims=[16,32,64,128]", "model.depths=[1,1,1,1]", "optim.warmup_epochs=0", "evaluate.sizes=[24]")


@pytest.mark.parametrize("form", ["flat", "nested", "table.csv", "table.jsonl", "spots"])
def test_dino_on_images_without_classes(tmp_path: Path, tiny_run: TinyRun, spotted: Spotted, form: str) -> None:
    """It trains on all of them, keeps the newest checkpoints, and its features can be probed on labelled images."""
    place = tmp_path / ("nested/deep/er" if form == "nested" else "flat")
    place.mkdir(parents=True)
    for i in range(18):
        draw(i % 3, i, 40).save(place / f"{i}.jpg")
    names = [f"flat/{i}.jpg" for i in range(18)]
    (tmp_path / "table.csv").write_text("\n".join(["path", *names]))
    (tmp_path / "table.jsonl").write_text("\n".join(json.dumps({"path": name}) for name in names))
    data, run = spotted.table if form == "spots" else tmp_path / form, tmp_path / "run"
    answer = anyres(*DINO, "--data", data, "--out", run)
    assert answer.code == 0, answer.err
    if form == "spots":
        assert "nothing to score by, as images have several labels" in answer.err
    else:
        assert "18 training images without labels" in answer.err
        assert "nothing to score by, as there are none: the newest checkpoints are kept" in answer.err
        line = "one folder \\(or label\\) for each" if form in ("flat", "nested") else "no (column )?'label'"
        assert re.search(line, refused("train", "restv2_nano", "--data", data, "--out", tmp_path / "labelled"))
        assert re.search(line, refused("eval", run))
    assert "no curve: `anyres probe" in answer.err
    assert not (run / "report.html").exists()
    assert "best_top1" not in json.loads((run / "run.json").read_text())
    steps = json.loads((run / "run.json").read_text())["steps"]
    assert [path.name for path in checkpoint.found(run)] == [f"step_{steps:06d}", f"step_{steps // 2:06d}"]
    assert "is done" in anyres(*DINO, "--data", data, "--out", run).err
    if form == "flat":
        probed = anyres("probe", run, "--data", tiny_run.data, "--knn", "--k", "5")
        assert probed.code == 0, probed.err
        assert "5-NN" in probed.out
