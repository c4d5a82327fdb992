"""Any model with weights, as the command line measures it: which weights, which order of classes, which pixels."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anyres.evaluation.curve import EvalResult
from anyres.evaluation.metrics import Scores
from anyres.flow import Cost, Estimate, Size, SizeResult
from anyres.models import create_model
from anyres.models.index import known_weights
from anyres.models.weights import save_weights
from anyres.models.zoo import MODEL_STATS
from anyres.recipe import Claim
from anyres.runs.inputs import describe_preprocessing, open_images, scored_batches
from anyres.runs.opened import DataSpec, _native_side, load
from anyres.runs.report import Evaluation, compared
from anyres.tasks.classify import Classify
from tests.command import COMMANDS, anyres, parse, refused
from tests.conftest import TinyRun
from tests.pictures import draw


def test_help_shows_published_weights() -> None:
    for line in re.findall(r"Published weights: `([^`]+)`", COMMANDS["eval"].help):
        assert parse(line) == "eval"
        assert line.split()[2] in {row.name for row in known_weights()}
    assert "Published weights" in anyres("eval", "--help").out


NO_SCORES = Scores(*[np.zeros(0, kind) for kind in (int, int, int, "f4", bool, bool, "f4")])


@pytest.fixture(scope="module")
def five(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run's model with five classes, its own three in another order; the file does not name them."""
    trained = load(str(tiny_run.folder))
    model = create_model("restv2_nano", 5)
    state = trained.model.state_dict()
    for key in ("head.weight", "head.bias"):
        wide = torch.full_like(model.state_dict()[key], -9.0 if key.endswith("bias") else 0.0)
        wide[[4, 0, 2]] = state[key]  # disc, square, stripes
        state[key] = wide
    path = tmp_path_factory.mktemp("weights") / "five.pth"
    torch.save({"model": state}, path)
    return path


def top1(out: str) -> list[str]:
    """The measured top-1 of a table, a row for each size."""
    return re.findall(r"^\S+ +\d+(?:x\d+)? +([\d.]+) ", out, re.M)


def test_a_file_is_measured_as_the_run_it_is_of(tiny_run: TinyRun) -> None:
    words = ("--data", tiny_run.data, "--sizes", "32,40x56")
    of_run = anyres("eval", tiny_run.folder, *words)
    of_file = anyres("eval", "restv2_nano", "--weights", tiny_run.folder, *words)
    assert of_file.code == 0, of_file.err
    assert top1(of_run.out) == top1(of_file.out) != []
    assert "center crop; bicubic, antialiased; mean 0.485 0.456 0.406, std 0.229 0.224 0.225" in of_file.out


def test_the_order_of_classes_comes_from_a_file(tiny_run: TinyRun, five: Path, tmp_path: Path) -> None:
    words = ("--data", tiny_run.data, "--sizes", "48", "--split", "train")
    listed = tmp_path / "five.csv"
    listed.write_text("square\nhexagon\nstripes\nstar\ndisc\n")
    answer = anyres("eval", "restv2_nano", "--weights", five, *words, "--classes", listed)
    assert answer.code == 0, answer.err
    assert "images of 3 of the 5 classes; all 5 can be predicted" in answer.err
    assert top1(answer.out) == top1(anyres("eval", tiny_run.folder, *words).out) != []
    line = refused("eval", "restv2_nano", "--weights", five, *words)
    assert "has 3 classes and the weights 5: give --classes a file" in line
    listed.write_text("square\nhexagon\n")
    assert "2 classes are named" in refused("eval", "restv2_nano", "--weights", five, *words, "--classes", listed)
    assert "--classes goes with --weights" in refused("eval", tiny_run.folder, "--classes", listed)


def test_predict_names_the_classes_or_counts_them(five: Path, tmp_path: Path) -> None:
    photo, listed = tmp_path / "photo.png", tmp_path / "five.json"
    draw(2, 7).save(photo)
    listed.write_text('["square", "hexagon", "stripes", "star", "disc"]')
    words = ("predict", "restv2_nano", photo, "--weights", five, "--size", "48", "--top", 5)
    named, counted = anyres(*words, "--classes", listed), anyres(*words)
    assert named.code == counted.code == 0, named.err + counted.err
    of_named = dict(re.findall(r"([a-z]+) ([\d.]+) %", named.out))
    of_counted = dict(re.findall(r" (\d) ([\d.]+) %", counted.out))
    names = ("square", "hexagon", "stripes", "star", "disc")
    assert {names[int(i)]: share for i, share in of_counted.items()} == of_named
    assert len(of_named) == 5


def test_a_curve_of_weights_goes_where_it_is_told(tiny_run: TinyRun, tmp_path: Path) -> None:
    words = ("curve", "restv2_nano", "--weights", tiny_run.folder, "--data", tiny_run.data, "--sizes", "32")
    assert "has no run folder: give --out a folder" in refused(*words)
    answer = anyres(*words, "--out", tmp_path / "curve")
    assert answer.code == 0, answer.err
    assert {"curve.csv", "curve.png", "report.html"} <= {p.name for p in (tmp_path / "curve").iterdir()}
    page = (tmp_path / "curve" / "report.html").read_text()
    assert str(tiny_run.folder) in page
    assert "seconds of training" not in page
    elsewhere = anyres("curve", tiny_run.folder, "--sizes", "32", "--out", tmp_path / "of_run")
    assert elsewhere.code == 0
    assert (tmp_path / "of_run" / "curve.csv").is_file()


MISTAKES = {
    "eval deit3_smal.384": "did you mean 'deit3_small.384'",
    "eval restv2_nanno": "'restv2_nano'",
    "eval deit3_small": "is a model, not its weights: give --weights a file, an address, a hub id or a name of the "
    "index (deit3_small.224,",
    "eval deit3_small --weights deit3_base.384": "is of deit_base_patch16_LS, not of deit_small_patch16_LS",
    "eval deit3_small.224 --weights deit3_small.384": "are two sets of weights: name one",
    "eval deit3_smal --weights x.pth": "there is no model 'deit3_smal'; did you mean 'deit3_small'",
    "eval deit3_small --weights nowhere.pth": "there is no file nowhere.pth",
    "eval resformer_tiny.mr": "has no direct download",
    "eval vit_tiny --weights none": "has no classifier: `anyres probe` measures what its features are worth",
    "predict vit_tiny x.jpg --weights none": "has no classifier",
    "eval restv2_nano --weights none": "give --data a folder",
    "eval restv2_nano --weights none --classes none.csv": "none.csv: No such file",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANYRES_OFFLINE", "1")
    answer = anyres(*words.split())
    assert answer.code == 2
    assert MISTAKES[words] in answer.err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_each_row_of_the_index_is_seen_as_it_says() -> None:
    """Bicubic is the one way in which anyres resizes for evaluation: every row must say so."""
    assert {row.interpolation for row in known_weights()} == {"bicubic"}
    assert {row.crop_mode for row in known_weights()} == {"center", "squash"}
    trained = load("restv2_tiny.384", "none")
    assert trained.recipe.evaluate.warp
    assert describe_preprocessing(trained.recipe).startswith("warped to the size; bicubic")
    assert trained.recipe.claim.top1 == {"384": 83.7}
    assert trained.recipe.evaluate.sizes == (384,)
    cropped = load("resmlp_s12.224", "none").recipe
    assert describe_preprocessing(cropped).startswith("short side to int(size / 0.9), center crop")
    assert cropped.model["img_size"] == 224


def test_a_warped_image_keeps_its_edges(tmp_path: Path) -> None:
    """The pixels that reach the model: ResTv2's at 384 px show the whole image, at 224 px its middle."""
    for kind in ("left", "right"):
        (tmp_path / kind).mkdir()
        image = Image.new("RGB", (96, 32), "black")
        image.paste("white", (0, 0, 24, 32))
        for i in range(4):
            image.save(tmp_path / kind / f"{i}.png")
    seen = {}
    for name in ("restv2_tiny.384", "restv2_tiny.224"):
        trained = load(name, "none")
        recipe, images = trained.recipe, open_images(trained.recipe, "val", str(tmp_path))
        batches = scored_batches(recipe, trained.task, images, Size(32, 32), trained.device)
        seen[name] = next(batches).views[0][0, 0, 16, 2]
    assert seen["restv2_tiny.384"] > 2  # white, normalised
    assert seen["restv2_tiny.224"] < -2  # black


def test_the_grid_of_a_file_is_found_by_its_shapes() -> None:
    """A table of 24 x 24 is not carried to 14 x 14 and back."""
    for name, side in (("deit3_small", 384), ("deit3_small", 224), ("resmlp_s12", 224)):
        with torch.device("meta"):
            state = create_model(name, 7, img_size=side).state_dict()
        assert _native_side(name, None, state) == side
    assert _native_side("deit3_small", None, {}) == 224
    assert _native_side("restv2_tiny", None, {"x": torch.zeros(1)}) == 224


def test_a_run_beside_a_model_of_its_name(tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_run.folder, tmp_path / "restv2_nano")
    assert load("restv2_nano").folder == Path("restv2_nano")
    assert load("restv2_nano", "none").folder is None


def test_names_of_models_and_of_weights_differ() -> None:
    names = {name for models in MODEL_STATS.values() for name in models}
    assert not names & {row.name for row in known_weights()}


def test_multi_head_files_are_counted(tmp_path: Path) -> None:
    """PatchConvNet's S60_multi has one head of one number for each class."""
    model = create_model("S60_multi", 3, depth=1)
    save_weights(model, tmp_path / "multi.safetensors", {})
    line = refused("eval", "S60_multi", "--weights", tmp_path / "multi.safetensors")
    assert "does not fit this model" in line
    assert "classes" not in line


@pytest.fixture(scope="module")
def many(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """ResFormer-tiny with three classes, untrained, in a file; and the file of their names."""
    root = tmp_path_factory.mktemp("many")
    torch.manual_seed(0)
    save_weights(create_model("resformer_tiny", 3), root / "tiny.safetensors", {})
    (root / "names.csv").write_text("disc\nsquare\nstripes\n")
    return root / "tiny.safetensors", root / "names.csv"


def test_the_difference_to_what_was_published(tiny_run: TinyRun, many: tuple[Path, Path], tmp_path: Path) -> None:
    weights, names = many
    told = tmp_path / "deep" / "told.json"
    words = ("eval", "resformer_tiny.mr", "--weights", weights, "--data", tiny_run.data, "--classes", names)
    answer = anyres(*words, "--sizes", "96,32", "--json", told)
    assert answer.code == 0, answer.err
    said = json.loads(told.read_text())
    first, second = said["points"]
    assert (first["size"], first["claim"], second["size"]) == ("96", 61.40, "32")
    assert "claim" not in second
    assert first["difference"] == pytest.approx(100 * first["top1"] - 61.40, abs=1e-3)
    line = next(line for line in answer.out.splitlines() if line.startswith("claimed at 96 px: 61.40 %"))
    assert "ResFormer paper, table 1, on ImageNet-1k" in line
    assert f"a difference of {100 * first['top1'] - 61.4:+.2f}" in line
    holds = first["top1_low"] <= 0.614 <= first["top1_high"]
    assert f"{'holds' if holds else 'does not hold'} the claim" in line
    assert "claimed at 32" not in answer.out
    assert said["seen"] == {
        "short_side_at_most": None,
        "crop": 0.875,
        "warp": False,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    assert (said["images"], said["classes"], said["of_classes"]) == (42, 3, 3)  # all: there is no split
    assert said["weights"] == str(weights)
    assert all(digits in answer.out for digits in said["fingerprint"]["pixels"].values())
    only = anyres(*words, "--sizes", "32")
    assert "claimed only at 96, 112," in only.out


def test_json_instead_of_the_table(tiny_run: TinyRun) -> None:
    answer = anyres("eval", tiny_run.folder, "--sizes", "32", "--json", "-")
    assert answer.code == 0
    said = json.loads(answer.out)
    assert said["points"][0]["n"] == said["images"] == 9
    assert said["seen"]["short_side_at_most"] == 192
    assert said["notes"] == ["no val split: 9 of 42 images held out of train for it"]


def test_a_claim_for_more_classes_than_there_are(tiny_run: TinyRun, five: Path, tmp_path: Path) -> None:
    listed = tmp_path / "five.csv"
    listed.write_text("square\nhexagon\nstripes\nstar\ndisc\n")
    trained = load("restv2_nano", str(five), listed)
    trained = replace(trained, recipe=replace(trained.recipe, claim=Claim(source="us", top1={"48": 90.0})))
    images = trained.images(DataSpec(str(tiny_run.data)))

    def sentences(high: float) -> list[str]:
        metrics = {"top1": Estimate(0.5, 0.3, high), "top5": Estimate(0.9), "loss": Estimate(1.0)}
        point = SizeResult("m", Size(48, 48), metrics, tuple(Classify.metrics), 9, Cost(1.0, 1.0, 1))
        return compared(Evaluation(trained, images, (EvalResult(point, NO_SCORES),)))

    first, second = sentences(high=0.95)
    assert "measured 50.00 %, a difference of -40.00; the 95 % interval 30.00 to 95.00 holds the claim" in first
    assert second == "the claim is for 5 classes, here are images of 3: not the same task"
    assert sentences(high=0.8)[0].endswith("80.00 does not hold the claim")


def test_a_run_keeps_its_evaluation(tiny_run: TinyRun, tmp_path: Path) -> None:
    facts = json.loads((tiny_run.folder / "run.json").read_text())
    assert [p["size"] for p in facts["evaluation"]["points"]] == ["32", "48"]
    folder = shutil.copytree(tiny_run.folder, tmp_path / "run")
    assert anyres("curve", folder, "--sizes", "40").code == 0
    again = json.loads((folder / "run.json").read_text())
    assert [p["size"] for p in again.pop("evaluation")["points"]] == ["40"]
    del facts["evaluation"]
    assert again == facts
    page = (folder / "report.html").read_text()
    assert "decoder and resize" in page
    line = refused("curve", "restv2_nano", "--weights", folder, "--data", tiny_run.data, "--out", folder)
    assert "is the run folder of something else" in line


def test_classes_and_their_mistakes_are_written_where_asked(tiny_run: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "eval"
    answer = anyres("eval", tiny_run.folder, "--sizes", "32,48", "--out", out, "--split", "train")
    assert answer.code == 0, answer.err
    names = {"per_class.csv", "confusion.csv", "confusion_32.png", "confusion_48.png"}
    assert {p.name for p in out.iterdir()} == names
    assert all(str(out / name) in answer.err for name in names)
    with (out / "per_class.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["size"] == "48"]
    assert [row["class"] for row in rows] == ["disc", "square", "stripes"]
    share = sum(int(row["correct"]) for row in rows) / sum(int(row["n"]) for row in rows)
    assert f"{100 * share:.1f}" == top1(answer.out)[1]
    wrong = [row for row in rows if row["correct"] != row["n"]]
    assert bool(wrong) <= ("worst classes at" in answer.out)


def test_the_page_shows_the_classes(tiny_run: TinyRun) -> None:
    page = (tiny_run.folder / "report.html").read_text()
    assert 'id="classes"' in page
    assert page.count("data:image/png") == 6
    assert "Confusion matrix" in page
    assert len(page) < 1_500_000


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shapes with a held-out set that is large enough to tell two models apart."""
    root = tmp_path_factory.mktemp("probe") / "shapes"
    for part, count, first in (("train", 24, 0), ("val", 60, 5000)):
        for kind, name in enumerate(("disc", "square", "stripes")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                draw(kind, first + 100 * kind + i).save(root / part / name / f"{i:02d}.jpg", quality=92)
    return root


def test_training_makes_features_better(shapes: Path, tmp_path: Path) -> None:
    """Real images through the whole verb: a trained model's neighbours and linear layer beat an untrained one's."""
    run, told = tmp_path / "run", {}
    values = ("views.sizes=[48]", "augment.crop_scale=[0.8,1.0]", "data.batch_size=24", "evaluate.sizes=[48]")
    quick = ("train.epochs=24", "train.ema_decay=0.9", "optim.lr=2e-3", "optim.warmup_epochs=1")
    done = anyres("train", "restv2_nano", "--data", shapes, "--out", run, *values, *quick)
    assert done.code == 0, done.err
    words = ("--data", shapes, "--size", 48, "--k", "10,500", "--lr", 0.02, "--json")
    for name, what in {"trained": (run,), "untrained": ("restv2_nano", "--weights", "none")}.items():
        answer = anyres("probe", *what, *words, tmp_path / f"{name}.json")
        assert answer.code == 0, answer.err
        assert "72 training and 180 held-out images of 3 classes, at 48 px" in answer.out
        told[name] = json.loads((tmp_path / f"{name}.json").read_text())
        assert all(f"{100 * one['top1']:.1f}" in answer.out for one in told[name]["probes"])
    assert [one["name"] for one in told["trained"]["probes"]] == ["10-NN", "72-NN", "linear"]
    for trained, untrained in zip(told["trained"]["probes"], told["untrained"]["probes"], strict=True):
        assert trained["low"] > untrained["high"], (trained, untrained)
    assert "it has learnt nothing" in answer.err


def test_kept_features_save_the_model_its_work(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("probe", tiny_run.folder, "--size", 32, "--keep", tmp_path / "kept", "--linear", "--json", "-")
    first = anyres(*words)
    assert first.code == 0, first.err
    assert {p.name for p in (tmp_path / "kept").iterdir()} == {"train_32.safetensors", "val_32.safetensors"}

    def never(*_: object) -> None:
        raise AssertionError("the features were computed again")

    monkeypatch.setattr("anyres.runs.opened.pool", never)
    again = anyres(*words)
    assert again.out == first.out
    assert [one["name"] for one in json.loads(again.out)["probes"]] == ["linear"]
    other = anyres("probe", "restv2_nano", "--weights", "none", "--data", tiny_run.data, *words[2:])
    assert other.code == 2
    assert "holds features of another model: choose another --keep, or remove it" in other.err.splitlines()[-1]


def test_probing_goes_by_any_classes(tiny_run: TinyRun, tmp_path: Path) -> None:
    """Not those that the model was trained on, and with a model that has no classifier."""
    other = shutil.copytree(tiny_run.data, tmp_path / "other")
    (other / "disc").rename(other / "circle")
    shutil.rmtree(other / "stripes")
    answer = anyres("probe", tiny_run.folder, "--data", other, "--size", 32, "--knn")
    assert answer.code == 0, answer.err
    assert "images of 2 classes" in answer.out
    assert "linear" not in answer.out
    headless = anyres("probe", "vit_tiny", "--weights", "none", "--data", other, "--size", 32, "--k", "3")
    assert headless.code == 0, headless.err
    assert "3-NN" in headless.out


def test_what_was_published_by_probes_is_said(tiny_run: TinyRun, tmp_path: Path) -> None:
    save_weights(create_model("resmlp_12", 3), tmp_path / "dino.safetensors", {})
    words = ("--weights", tmp_path / "dino.safetensors", "--data", tiny_run.data)
    answer = anyres("probe", "resmlp_s12.dino", *words)
    assert answer.code == 0, answer.err
    assert "published on ImageNet-1k: 62.6 % by k-NN, 67.5 % linear" in answer.out


def test_probing_what_was_learnt_from_is_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    for split in ("train", "trainval"):
        assert "is what the probe learns from" in refused("probe", tiny_run.folder, "--split", split)
    assert "--k '10,x': give numbers" in refused("probe", tiny_run.folder, "--k", "10,x")
    assert "give numbers of neighbours" in refused("probe", tiny_run.folder, "--k", "0")
    assert "lr above 0" in refused("probe", tiny_run.folder, "--lr", "0")
    run = shutil.copytree(tiny_run.folder, tmp_path / "run")
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("train_split: train", "train_split: trainval"))
    assert "are in trainval and test: add a test split" in refused("probe", run, "--split", "test")
