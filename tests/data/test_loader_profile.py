"""``anyres bench data``: the stages that a run has, what is said of them, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.command import anyres, refused
from tests.pictures import make_folder

from anyres.data import loader_profile as stages
from anyres.data.augment_config import AugmentConfig
from anyres.data.cache import DecodedImages
from anyres.data.loader_profile import Loading, measure_loading
from anyres.data.sources import open_source
from anyres.data.views import make_views
from anyres.data.views_config import ViewsConfig
from anyres.recipe import load_recipe
from anyres.runs.bench_data import advise

PLAIN = ["views.sizes=[32, 24]", "data.cache_side=null", "data.batch_size=4", "data.workers=0"]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("stages") / "shapes", per_class=4)  # 72 pixels on the short side


def test_the_verb_measures_each_stage_and_the_whole_loader(shapes: Path, tmp_path: Path) -> None:
    answer = anyres(
        "bench", "data", shapes, "--recipe", "nano", *PLAIN, "--seconds", "0.1", "--json", tmp_path / "a.json"
    )
    assert answer.code == 0, answer
    told = json.loads((tmp_path / "a.json").read_text())
    rows = [line.split() for line in answer.out.splitlines() if line.split()[:1] == ["decode"]]
    assert float(rows[0][1]) == pytest.approx(told["milliseconds"]["decode"], abs=6e-4)
    assert f"{told['binds']} binds" in answer.out
    assert all(sentence in answer.out for sentence in told["advice"])
    assert list(told["milliseconds"]) == [s for s in stages.STAGES if s in told["milliseconds"]]
    assert {"read", "decode", "crop", "layout", "batch"} <= told["milliseconds"].keys()
    assert all(ms > 0 for ms in told["milliseconds"].values())
    assert told["images_per_s_per_core"] == pytest.approx(1e3 / sum(told["milliseconds"].values()))
    assert told["loader"] > 0
    kept = anyres(
        "bench", "data", shapes, "--recipe", "nano", *PLAIN, "data.cache_side=40", "--seconds=0.1", "--json=-"
    )
    told = json.loads(kept.out)
    assert told["cached"]
    assert not {"read", "decode"} & told["milliseconds"].keys()


@pytest.mark.parametrize("share", [False, True])
def test_what_is_measured_is_what_a_run_makes(shapes: Path, share: bool) -> None:
    images = DecodedImages(open_source(str(shapes), "train"), None, 0.0, progress=False)
    how = AugmentConfig(rand_augment="rand-m9-mstd0.5-inc1")
    views = ViewsConfig(sizes=(32, 24), share=share)
    maker = stages._Maker(images, how, views)
    made = maker._views(maker._picture(1), 1)
    assert all(
        torch.equal(a.pixels, b) for a, b in zip(made, make_views(images[1].image, how, views, 0, 0, 1), strict=True)
    )
    assert ("shrink" in maker.clock.spent) == share


def test_workers_do_the_whole_and_unreadable_images_are_passed_over(tmp_path: Path) -> None:
    images = DecodedImages(
        open_source(str(make_folder(tmp_path / "shapes", per_class=4)), "train"), None, 0.0, dct_side=32, progress=False
    )
    for record in images.source.records[::2]:
        assert isinstance(record.source, Path)
        record.source.write_bytes(b"no image")
    loading = measure_loading(images, AugmentConfig(), ViewsConfig(sizes=(32,)), batch_size=2, workers=1, seconds=0.1)
    assert (loading.workers, loading.reducible) == (1, 0.0)  # what is decoded at a fraction is 36 pixels short
    assert loading.loader > 0


def test_advice_names_the_binding_stage_and_keys_that_there_are() -> None:
    off = load_recipe("folder", ["data.cache_side=null"])

    def advice(binds: str, *overrides: str, **more: object) -> str:
        times = {"decode": 1.0, "crop": 1.0, "colors": 1.0, binds: 2.0}
        values = {"loader": 100.0, "workers": 2, "processors": 2, "cached": False, "reducible": 0.0, **more}
        loading = Loading(times, **values)  # type: ignore[arg-type]
        assert loading.bottleneck == binds
        assert loading.per_core == 250
        told = list(advise(load_recipe("folder", ["data.cache_side=null", *overrides]), loading, 1000))
        for sentence in told:
            load_recipe("folder", [word for word in sentence.split() if word.startswith("data.")])
        return " ".join(told)

    assert off.data.dct is False
    assert advice("decode") == "data.cache_side=256 data.cache_gib=1 keeps the images decoded in memory"
    assert "data.dct=true decodes 50 % of the images" in advice("decode", reducible=0.5)
    assert "data.dct" not in advice("decode", "data.dct=true", reducible=0.5)
    assert "data.workers=4 would load at most 1000 images/s" in advice("decode", processors=4)
    assert "cache" not in advice("decode", cached=True)
    assert "rand_augment" in advice("colors")


def test_mistakes_are_one_line(shapes: Path, tmp_path: Path) -> None:
    assert "no folder or table" in refused("bench", "data", tmp_path / "absent")
    assert "'data.wrkers' is not a key; did you mean 'workers'" in refused("bench", "data", shapes, "data.wrkers=1")
    assert "neither a recipe" in refused("bench", "data", shapes, "--recipe", "foldr")
    assert "0.1" in refused("bench", "data", shapes, "--seconds", "0")
    refused("bench", "datta", shapes)
