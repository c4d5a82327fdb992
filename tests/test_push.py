"""A run on the hub: what is sent to a stand-in of it, read back by anyres, and read by timm with the same logits."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard, constants, parse_eval_result_entries

from anyres.config import UserError
from anyres.models import create_model
from anyres.models.weights import save_weights
from anyres.recipe import load_recipe
from anyres.runs.export import export
from anyres.runs.hub import PushOptions, push, timm_config, write_timm_config
from anyres.runs.opened import WEIGHTS, ModelSpec, TrainedModel, load, open_model, open_run
from anyres.runs.train import train_run
from tests.command import anyres, refused
from tests.hub_stand_in import TOKEN, Hub, standing_in
from tests.pictures import draw, make_folder

# what huggingface_hub's own call of httpx2 says to it
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small DeiT, trained for an epoch on pictures in a folder whose path is nobody's business."""
    root = tmp_path_factory.mktemp("push")
    data = make_folder(root / "home-of-mine" / "shapes", per_class=10)
    draw(0, 1).save(root / "photo.png")
    values = (
        *(f"data.source={data}", "model.name=deit_tiny_patch16_224", "model.depth=2", "model.dim=48", "model.heads=3"),
        *("model.img_size=64", "views.sizes=[64,48]", "data.batch_size=8", "data.workers=0", "train.epochs=1"),
        *("train.precision=fp32", "evaluate.sizes=[48,64]", "data.cache_side=80"),
    )
    train_run(load_recipe("nano", values), root / "run")
    return root / "run"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with standing_in(tmp_path / "cache", monkeypatch) as hub:
        yield hub


def test_a_run_is_sent_and_read_back(run: Path, hub: Hub, tmp_path: Path) -> None:
    words = ("push", run, "someone/shapes", "--private", "--license", "apache-2.0", "--dataset", "someone/photos")
    answer = anyres(*words)
    assert answer.code == 0, answer.err
    assert re.search(r"\d+ files sent to \S+/someone/shapes; timm reads it, too", answer.out)
    assert TOKEN not in answer.out + answer.err
    assert hub.tokens - {None} == {f"Bearer {TOKEN}"}
    assert hub.repositories == {"someone/shapes": True}
    names = {path for _, path in hub.files}
    expected = {WEIGHTS, "recipe.yaml", "run.json", "curve.csv", "curve.png", "config.json"}
    assert names == expected | {"README.md", ".eval_results/anyres.yaml"}
    assert hub.files["someone/shapes", WEIGHTS] == (run / WEIGHTS).read_bytes()
    for path, content in hub.files.items():
        assert b"home-of-mine" not in content, path
        assert TOKEN.encode() not in content

    photo = run.parent / "photo.png"
    mine, theirs = (anyres("predict", where, photo) for where in (run, "hf:someone/shapes"))
    assert theirs.code == 0, theirs.err
    assert mine.out.split()[-6:] == theirs.out.split()[-6:]
    pulled = load("hf:someone/shapes")
    assert pulled.weights == "hf:someone/shapes"
    assert pulled.classes == open_run(run).classes
    where = ("--data", run.parent / "home-of-mine" / "shapes", "--sizes", "48")
    assert "is a run on the hub: give --out" in refused("curve", "hf:someone/shapes", *where)
    assert anyres("curve", "hf:someone/shapes", *where, "--out", tmp_path / "curve").code == 0
    assert "is not on the Hugging Face hub" in refused("predict", "hf:someone/else", photo)
    del hub.files["someone/shapes", "recipe.yaml"]
    with pytest.raises(UserError, match=r"has no file 'recipe\.yaml'"):
        load("hf:someone/shapes@other")


def test_the_card_and_its_results(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = anyres("push", run, "someone/shapes", "--folder", out, "--dataset", "someone/photos", "--license", "MIT")
    assert answer.code == 0, answer.err
    assert "written to" in answer.out
    card = ModelCard.load(out / "README.md")
    assert (card.data.license, card.data.library_name) == ("mit", "timm")
    assert card.data.pipeline_tag == "image-classification"
    assert "anyres" in card.data.tags
    for text in (
        *("| size, px | top-1 % | 95 % interval |", "| 48 | ", "anyres predict hf:someone/shapes photo.jpg"),
        *("deit\\_tiny", "views: 64, 48 px", "disc, square, stripes", 'timm.create_model("hf-hub:someone/shapes"'),
    ):
        assert text in card.text, text
    entries = parse_eval_result_entries(yaml.safe_load((out / ".eval_results" / "anyres.yaml").read_text()))
    rows = (out / "curve.csv").read_text().splitlines()[1:]
    assert [(one.dataset_id, one.task_id) for one in entries] == [
        ("someone/photos", "top1_at_48"),
        ("someone/photos", "top1_at_64"),
    ]
    assert [one.value for one in entries] == [pytest.approx(100 * float(row.split(",")[3]), abs=1e-3) for row in rows]
    assert "is there already" in refused("push", run, "someone/shapes", "--folder", out)
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert recipe["data"]["source"] == "shapes"
    export(run, tmp_path / "exported.safetensors", "safetensors")
    bare = push(run, "shapes", PushOptions(files=(tmp_path / "exported.safetensors",)), tmp_path / "bare")
    assert {"exported.safetensors", "exported.safetensors.certificate.json"} <= set(bare.files)
    assert re.search(r"\| `exported\.safetensors` \| 64, .* of \d+ \|", (tmp_path / "bare" / "README.md").read_text())
    assert not (tmp_path / "bare" / ".eval_results").exists(), "nobody said which data set of the hub it is"
    assert bare.in_timm


def test_timm_reads_the_folder_with_the_same_logits(run: Path, tmp_path: Path) -> None:
    push(run, "someone/shapes", folder=tmp_path / "out")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert type(model).__module__.startswith("timm.")
    trained = open_run(run)
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(model(pixels), trained.model(pixels), rtol=1e-5, atol=1e-6)
        assert model(torch.zeros(1, 3, 48, 80)).shape == (1, 3)
    config = timm.data.resolve_model_data_config(model)
    assert (tuple(config["mean"]), config["crop_pct"]) == (
        tuple(trained.recipe.data.mean),
        trained.recipe.evaluate.crop or 0.875,
    )
    assert model.pretrained_cfg["label_names"] == ["disc", "square", "stripes"]


SMALL = {
    "cait_XXS24_224": {"depth": 2, "img_size": 48},
    "deit_tiny_distilled_patch16_224": {"depth": 1, "img_size": 48},
    "deit_tiny_patch16_LS": {"depth": 1, "img_size": 32},
    "deit_small_patch16_36": {"depth": 1, "img_size": 32},
    "resmlp_12": {"img_size": 32},
    "timm:resnet10t": {},
    "vit_tiny": {"depth": 1, "img_size": 48},
}
ALONE = ("S60", "resmlp_nano", "resformer_nano", "restv2_nano", "deit_small_patch16_18x2_LS")


@pytest.mark.parametrize("name", SMALL)
def test_families_that_timm_knows(name: str, tmp_path: Path) -> None:
    """Random weights at every place, so that no part of the model could be missing unseen."""
    trained = untrained(name, SMALL[name])
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in trained.model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(0.05 * torch.randn_like(tensor) + (1.0 if tensor.ndim < 2 else 0.0))
    save_weights(trained.model, tmp_path / WEIGHTS, {})
    assert write_timm_config(trained, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_classes"] == trained.model.num_classes
    with torch.no_grad():
        next(iter(trained.model.parameters())).mul_(1.5)
    assert not write_timm_config(trained, tmp_path), "other weights than those of the file"
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("name", ALONE)
def test_families_that_timm_does_not_know(name: str) -> None:
    options = {"depth": 1} if name.startswith("deit") else {}
    assert timm_config(untrained(name, options)) is None


def untrained(name: str, options: dict[str, Any]) -> TrainedModel:
    spec = open_model(ModelSpec(name, "none"))
    classes = 0 if name == "vit_tiny" else 5
    return replace(spec, model=create_model(name, classes, **options).eval())


def test_what_the_hub_refuses_is_one_line(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    for status, said in (
        (401, "does not know this token: run `hf auth login`"),
        (403, "does not let this token write"),
    ):
        hub.refuse = status
        line = refused("push", run, "someone/shapes")
        assert said in line
        assert TOKEN not in line
    hub.refuse = 0
    assert "is no name on the hub" in refused("push", run, "some one/shapes/more")
    monkeypatch.setenv("ANYRES_OFFLINE", "1")
    assert "the hub is switched off" in refused("push", run, "someone/shapes")
    monkeypatch.delenv("ANYRES_OFFLINE")
    monkeypatch.setattr(constants, "ENDPOINT", "http://mirror.example")
    assert "is not secure" in refused("push", run, "someone/shapes"), "the token would be read by anyone"
    assert hub.files == {}


def test_what_cannot_be_sent_is_one_line(run: Path, tmp_path: Path) -> None:
    folder = ("--folder", tmp_path / "out")
    assert "is not a run folder" in refused("push", tmp_path / "nowhere", "me/x", *folder)
    assert "with its certificate" in refused("push", run, "me/x", *folder, "--with", tmp_path / "no.onnx")
    bare = Path(shutil.copytree(run, tmp_path / "bare"))
    (bare / "curve.csv").unlink()
    assert "has no curve, which is what its card shows" in refused("push", bare, "me/x", "--folder", tmp_path / "other")
