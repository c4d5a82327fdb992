"""What no machine can do, or what is no number, is refused in one line before anything is decoded.

Situations: sizes, ranges, counts, batches, crops, workers and channels beyond the machine; nan and inf in any field;
paths that look like YAML.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from anyres.config import UserError
from anyres.flow import Size, parse_sizes
from anyres.recipe import load_recipe
from anyres.runs.bounds import check_recipe, check_sizes_fit, memory
from tests.command import refused

BEYOND = [
    "evaluate.sizes=[100000]",
    "evaluate.sizes=['1:99999999999:1']",
    "evaluate.sizes=['1:9999999999999999999999999:1']",
    f"evaluate.sizes=[{','.join(map(str, range(1, 1500)))}]",
    "evaluate.crop=1e-9",
    "evaluate.crop=1e-320",
    "evaluate.batch_size=1000000000000",
    "views.sizes=[100000]",
    "views.groups=[{size: 32, count: 1000000000}]",
    "data.batch_size=1000000000",
    "data.workers=100000",
    "data.channels=1000000000",
    "data.cache_gib=-1",
    "optim.eps=-1",
    "optim.betas=[2,3]",
    "train.seed=9223372036854775808",
    f"train.epochs={'9' * 5000}",
]
NO_NUMBERS = [
    "optim.lr=nan",
    "optim.lr=.inf",
    "optim.weight_decay=inf",
    "optim.min_lr=.nan",
    "optim.warmup_epochs=.inf",
    "optim.clip_norm=inf",
    "data.mean=[.nan, 0, 0]",
    "data.cache_gib=inf",
    "mix.mixup=inf",
    "augment.hue=.nan",
    "augment.crop_ratio=[1, .inf]",
    "objective.temperature=nan",
    "objective.options={a: {b: [.nan]}}",
    "model.drop_path=nan",
    "claim.top1={'32': .nan}",
]


@pytest.mark.parametrize("text", [*BEYOND, *NO_NUMBERS], ids=lambda text: text[:40])
def test_a_recipe_beyond_any_machine_is_refused(text: str) -> None:
    with pytest.raises(UserError) as error:
        check_recipe(load_recipe("restv2_nano", [text]))
    said = str(error.value)
    assert "\n" not in said
    assert len(said) < 400


def test_a_recipe_that_fits_is_not() -> None:
    check_recipe(load_recipe("resmlp_nano", ["data.batch_size=4096", "evaluate.crop=0.5", "evaluate.sizes=[2048]"]))
    check_recipe(load_recipe("resmlp_nano", ["train.seed=4294967296", "optim.eps=0"]))


def test_the_memory_of_this_machine_is_known_and_of_its_container() -> None:
    assert 10**8 < memory() < 10**14
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if path.is_file() and path.read_text().strip().isdecimal():
            assert memory() <= int(path.read_text())


def test_sizes_are_refused_wherever_they_are_given(tmp_path: Path) -> None:
    for text in ("100000", "32x100000", "1" * 5000, "٣", "-3", "nan", "1e3"):
        with pytest.raises(UserError, match="size"):
            Size.parse(text)
    assert len(parse_sizes(["1:1000:1"])) == 1000
    recipe = load_recipe("resmlp_nano")
    largest = Size(32768, 32768)
    with pytest.raises(UserError, match="GB"):
        check_sizes_fit([largest], recipe, math.ceil(memory() / (largest.height * largest.width)))
    for verb in ("curve", "eval"):
        assert "too long" in refused(verb, tmp_path, "--sizes", "1:99999999999:1")
    assert "beyond" in refused("predict", tmp_path, tmp_path / "x.jpg", "--size", "100000")


@pytest.mark.parametrize(
    "words",
    ["pick x --max-ms nan", "cascade x --max-loss inf", "bench data x --seconds inf", f"probe x --seed {2**70}"],
)
def test_options_are_numbers_too(words: str) -> None:
    assert "is no number to work with" in refused(*words.split())


NAMES = ("2024", "2024-05-01", "2024-13-45", "on", "null", "1_000", "[v2]", "a: b", "*x", "#x", "caf\udce9", "~nouser")


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_a_path_and_never_read_as_yaml(name: str) -> None:
    recipe = load_recipe("resmlp_nano", texts={"data.source": name, "weights": name})
    assert (recipe.data.source, recipe.weights) == (name, name)
    written = load_recipe("resmlp_nano", [f"data.source={name}", f"weights={name}"])
    assert (written.data.source, written.weights) == ((None, None) if name == "null" else (name, name))
    assert "Traceback" not in refused("train", "resmlp_nano", "--data", name)


def test_text_may_still_be_quoted_and_other_keys_are_yaml() -> None:
    recipe = load_recipe("resmlp_nano", ["data.source='a b'", "weights=null", "views.sizes=[32, 64]", "optim.lr=1e-3"])
    assert (recipe.data.source, recipe.weights, recipe.views.sizes, recipe.optim.lr) == (
        "a b",
        None,
        ("64", "32"),
        1e-3,
    )
