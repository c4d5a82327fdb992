"""Every key of a recipe is explained: the page, ``show --explain``, errors, and the words of other programs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from docs import make_settings

from anyres.cli.explain import families
from anyres.cli.habits import translate
from anyres.config import UserError
from anyres.flow import on_device, pick_device
from anyres.recipe import Recipe, differences, dump_recipe, load_recipe, recipe_settings
from anyres.settings import ELSEWHERE, HABITS, all_settings, fields_of, from_habit, number_range
from tests.command import anyres, refused
from tests.runs import listening

PAGE = (Path(make_settings.__file__).parent / "settings.md").read_text()


def keys_of(cls: type, prefix: str = "") -> set[str]:
    """The keys of a dataclass and of those in it, found without ``anyres.settings``."""
    found: set[str] = set()
    for field, kind in Recipe.__annotations__.items() if cls is Recipe else cls.__annotations__.items():
        name = f"{prefix}{field}"
        held = next((each for each in CONFIGS if each.__name__ in str(kind)), None)
        listed = held is not None and "tuple[" in str(kind)
        if held is None or listed or "None" in str(kind):
            found.add(name)
        if held is not None:
            found |= keys_of(held, f"{name}[]." if listed else f"{name}.")
    return found


CONFIGS: list[Any] = sorted({setting.owner for setting in all_settings(Recipe)} - {Recipe}, key=lambda c: c.__name__)


def test_the_page_is_complete_and_up_to_date() -> None:
    assert make_settings.page() == PAGE, "run python docs/make_settings.py"
    shown = {
        line.split("`")[1] for line in PAGE.partition("## Names of other")[0].splitlines() if line.startswith("| `")
    }
    assert shown == keys_of(Recipe) == set(recipe_settings())
    assert len(shown) > 110


def test_every_key_of_every_recipe_that_is_written_out_is_known() -> None:
    def flat(values: dict[str, Any], prefix: str = "") -> set[str]:
        return {
            name
            for key, value in values.items()
            for name in (flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}"})
        }

    known = recipe_settings()
    for recipe in ("nano", "dino/nano"):
        written = flat(yaml.safe_load(dump_recipe(load_recipe(recipe))))
        written = {name for name in written if not name.startswith(("model.", "claim.top1."))}
        assert written <= set(known), recipe


def test_every_key_says_what_it_means() -> None:
    assert [setting.name for setting in recipe_settings().values() if not setting.meaning] == []


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("optim.lr", "number above 0"),
        ("data.val_share", "number above 0 and below 1"),
        ("train.threads", "whole number from 1 to 1024 or null"),
        ("augment.hue", "number from 0 to 0.5"),
        ("optim.layer_decay", "number above 0 and at most 1"),
        ("train.ema_decay", "number of 0 or more and below 1 or null"),
        ("train.trainable", "all or attention or head"),
        ("evaluate.warp", "true or false or whole number of 1 or more"),
        ("views.groups[].count", "whole number from 1 to 1000"),
    ],
)
def test_ranges_are_what_the_code_accepts(key: str, allowed: str) -> None:
    assert recipe_settings()[key].allowed == allowed


def test_a_range_is_found_by_trying() -> None:
    @dataclasses.dataclass(frozen=True)
    class Odd:
        must: str
        value: float | None = None

        def __post_init__(self) -> None:
            if self.value is not None and not -2.5 < self.value <= 7.25:
                raise ValueError("no")

    assert number_range(Odd, "value", whole=False) == "above -2.5 and at most 7.25"
    assert number_range(Odd, "value", whole=True) == "from -2 to 7"


def test_explain_a_key_a_group_an_ending_and_a_typo() -> None:
    one = anyres("show", "nano", "optim.lr=0.5", "--explain", "optim.lr").out.splitlines()
    assert one[:3] == ["optim.lr: peak learning rate", "  number above 0; default 0.001", "  here: 0.5"]
    assert "  0.0002 in dino/nano" in one
    group = anyres("show", "--explain", "mix").out
    assert [line.split(":")[0] for line in group.splitlines() if line[0] != " "] == [
        f"mix.{setting.name}" for setting in fields_of(type(load_recipe("nano").mix))
    ]
    both = anyres("show", "--explain", "batch_size").out
    assert "data.batch_size: " in both
    assert "evaluate.batch_size: " in both
    assert "objective.dino.momentum: " in anyres("show", "--explain", "objective.dino").out
    assert "'optm.lr' is not a key; did you mean 'optim.lr'" in refused("show", "--explain", "optm.lr")
    assert "model.drop_path: " in anyres("show", "resmlp_12", "--explain", "model.drop_path").out
    assert "name a model too" in refused("show", "--explain", "model.drop_path")
    assert "did you mean 'drop_path'" in refused("show", "resmlp_12", "--explain", "model.drop_pat")
    assert "name a recipe or a model" in refused("show")


def test_recipes_are_named_by_folder() -> None:
    every = ["a/1", "a/2", "a/3", "b/1", "b/2", "b/3", "c"]
    assert families(["a/1", "a/2", "a/3", "b/3", "c"], every) == ["a/*", "b/3", "c"]
    assert families(["a/1", "a/3", "b/1", "b/2"], [*every, "d/1"]) == ["a/1", "a/3", "b/1", "b/2"]
    assert families(["a/1", "a/2", "a/3"], ["a/1", "a/2", "a/3", "a/4"]) == ["a/* but 4"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("train.epochs=many", "(given: 'many'; it takes: whole number of 1 or more)"),
        ("optim.lr=x", "it takes: number above 0)"),
        ("name=first", "name=first is no key of a recipe: give --out FOLDER"),
        ("data=photos", "data=photos is no key of a recipe: give --data FOLDER"),
        ("device=0", "give --device cpu"),
    ],
)
def test_an_error_says_what_the_value_may_be(change: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("nano", [change])
    assert line in str(caught.value)


def test_words_of_other_programs_are_known_keys() -> None:
    for word, key in HABITS.items():
        assert key in recipe_settings() or key.startswith("model."), word
        assert from_habit(f"{word}=1") in (f"{key}=1", f"{key}=auto")
    assert not set(HABITS) & set(ELSEWHERE)
    recipe = load_recipe(
        "nano", ["epochs=5", "batch-size=8", "imgsz=64", "lr0=3e-4", "amp=false", "seed=7", "workers=0"]
    )
    assert recipe.train.epochs == 5
    assert recipe.train.precision == "fp32"
    assert recipe.views.sizes == ("64",)
    assert (recipe.data.batch_size, recipe.data.workers, recipe.optim.lr, recipe.train.seed) == (8, 0, 3e-4, 7)
    assert load_recipe("nano", ["amp=true"]).train.precision == "auto"


OPTIONS = {"--data": True, "--out": True, "--threads": True, "--device": True, "-h": False}


def test_options_of_other_programs_are_put_behind_our_own() -> None:
    words = ["--epochs", "5", "nano", "--data=photos", "--amp", "--out", "--epochs", "optim.lr=1", "imgsz=64"]
    words += ["--batch-size=8", "device=cpu", "--no-amp"]
    with listening() as said:
        assert translate(words, OPTIONS) == [
            *("nano", "--data=photos", "--out", "--epochs", "optim.lr=1", "--device", "cpu"),
            *("train.epochs=5", "train.precision=auto", "views.sizes=64", "data.batch_size=8", "train.precision=fp32"),
        ]
    assert said[0].startswith("taken: --epochs 5 as train.epochs=5, --amp as train.precision=auto, ")
    assert translate(["--amp", "nano", "--", "--epochs"], {}) == ["nano", "--", "--epochs", "train.precision=auto"]
    assert translate(["-h", "nano"], OPTIONS) == ["-h", "nano"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("nano --project x", "there is no option --project: give --out FOLDER"),
        ("nano --resume", "the same command resumes an interrupted run"),
        ("nano --epochs", "--epochs needs a value: train.epochs=VALUE"),
        ("nano --epoch 3", "there is no option --epoch; did you mean '--epochs'"),
        ("nano --dat x", "did you mean '--data'"),
        ("nano --qqqq 1", "a key of the recipe is given as KEY=VALUE"),
        ("nano --data nowhere --device tpu", "device 'tpu' is none of cpu, cuda, cuda:1 and mps"),
        ("nano --data nowhere --device cuda:99", "device 'cuda:99' is not there"),
        ("nano --data nowhere --device 0,1", "several GPUs: `torchrun` (docs/scale.md)"),
    ],
)
def test_other_words_are_refused_and_name_ours(words: str, line: str) -> None:
    assert line in refused("train", *words.split())


def test_the_environment_names_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYRES_DEVICE", "cpu")
    assert str(pick_device()) == "cpu"
    with on_device(None):
        assert str(pick_device()) == "cpu"
    monkeypatch.setenv("ANYRES_DEVICE", "cuda:99")
    with on_device("cpu"):
        assert str(pick_device()) == "cpu"
    with pytest.raises(UserError, match="device 'cuda:99' is not there"):
        pick_device()


def test_one_value_is_a_list_of_one(tmp_path: Path) -> None:
    assert load_recipe("nano", ["views.sizes=128"]).views.sizes == ("128",)
    assert load_recipe("nano", ["views.sizes=96x64,128"]).views.sizes == ("128", "96x64")
    assert load_recipe("nano", ["data.mean=0.5", "data.std=0.25"]).data.mean == (0.5,)
    assert load_recipe("nano", ["train.trackers=wandb"]).train.trackers == ("wandb",)
    file = tmp_path / "mine.yaml"
    file.write_text("model: {name: restv2_nano}\nviews: {sizes: 48}\nevaluate: {sizes: 32}\n")
    assert load_recipe(str(file)).evaluate.sizes == (32,)
    assert differences(load_recipe("nano", ["views.sizes=64"]), load_recipe("nano", ["views.sizes=[64]"])) == []


def test_a_model_with_weights_has_defaults_of_its_own() -> None:
    """Short, slower towards the first layers, lightly augmented; a recipe that is named stays as it is."""
    tuned, scratch = load_recipe("deit_small", texts={"weights": "deit_small.224"}), load_recipe("deit_small")
    assert tuned.weights == "deit_small.224"
    assert tuned.train.epochs < scratch.train.epochs / 5
    assert tuned.optim.layer_decay < 1 == scratch.optim.layer_decay
    assert not tuned.mix.mixup
    assert tuned.model == scratch.model
    assert load_recipe("deit_small", ["weights=deit_small.224"]) == tuned
    assert load_recipe("deit_small", ["weights=null"]) == scratch
    ours = load_recipe("restv2_nano", ["weights=runs/first"])
    assert ours.views.sizes == load_recipe("restv2_nano").views.sizes
    assert ours.optim == tuned.optim
    named = load_recipe("deit/base_transfer", texts={"weights": "a.pth"})
    assert differences(named, load_recipe("deit/base_transfer")) == ["weights: a.pth -> deit_base.224"]
