"""`anyres compare`: runs side by side, from what their curves recorded, on the same images or not."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from safetensors import safe_open
from scipy.stats import binomtest

import anyres as public
from anyres.evaluation.scores_file import SCORES, read_scores
from anyres.flow import Size
from anyres.recipe import load_recipe
from anyres.runs.compare_page import differing, page_of, parameters_of, seed_groups
from anyres.runs.measured_runs import recorded
from anyres.runs.train import train_run
from tests.command import anyres, refused
from tests.pictures import draw, make_folder
from tests.runs import listening, record_curve

TINY = (
    *("name=resmlp_nano", "model.depth=2", "views.sizes=[32,24]", "data.batch_size=8", "data.workers=0"),
    *("train.epochs=1", "train.precision=fp32", "evaluate.sizes=[24,32]", "data.cache_side=32"),
)


class Runs(NamedTuple):
    """Two finished runs on the same pictures, of another seed and learning rate; another set; the folder of all."""

    first: Path
    second: Path
    other: Path
    root: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("compare")
    data = make_folder(root / "shapes", per_class=20)
    for kind, name in enumerate(("disc", "square")):
        (root / "other" / name).mkdir(parents=True)
        for i in range(12):
            draw(kind, 900 + 100 * kind + i).save(root / "other" / name / f"{i}.png")
    recipes = {"first": (), "second": ("optim.lr=2e-3", "train.seed=1", "train.epochs=4")}
    for name, more in recipes.items():
        values = [v.replace("name=", "model.name=") for v in TINY]
        train_run(load_recipe("nano", [f"data.source={data}", *values, *more]), root / name, report=name == "first")
    record_curve(root / "second")
    return Runs(root / "first", root / "second", root / "other", root)


@pytest.fixture(scope="module")
def out(runs: Runs) -> Path:
    """The comparison of the two, written."""
    answer = anyres("compare", runs.first, runs.second, "--out", runs.root / "out", "--json", runs.root / "found.json")
    assert answer.code == 0, answer.err
    (runs.root / "said.txt").write_text(answer.out)
    return runs.root / "out"


def test_differences_are_those_of_the_recorded_answers(runs: Runs, out: Path) -> None:
    kept = [read_scores(run / SCORES) for run in (runs.first, runs.second)]
    with (out / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["height"]) for row in rows] == [
        *(("first", "24"), ("first", "32")),
        *(("second", "24"), ("second", "32")),
    ]
    for row in rows[2:]:
        size = Size(int(row["height"]), int(row["width"]))
        before, after = (one.by_size[size].correct for one in kept)  # type: ignore[union-attr]
        gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
        assert (int(row["only_this"]), int(row["only_first"])) == (gained, lost)
        assert float(row["difference"]) == pytest.approx(100 * (gained - lost) / len(before))
        tested = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        assert float(row["p"]) == pytest.approx(tested)
        assert float(row["top1"]) == after.mean()
        assert row["same_images"] == "True"
        assert float(row["p_adjusted"]) >= float(row["p"])
    assert {row["difference"] for row in rows[:2]} == {""}


def test_the_table_and_json_say_the_same(runs: Runs, out: Path) -> None:
    said, found = (runs.root / "said.txt").read_text(), json.loads((runs.root / "found.json").read_text())
    assert "second minus first, top-1 in percentage points" in said
    assert "over 2 sizes together, 95 % interval" in said
    assert "settings that differ: optim.lr, train.epochs, train.seed" in said
    assert found["whole_curves"]["second"]["n"] == found["points"][0]["n"]
    assert found["runs"] == {"first": str(runs.first), "second": str(runs.second)}
    assert "different moments" in " ".join(found["cautions"])


def test_the_page_shows_curves_differences_cost_and_settings(out: Path) -> None:
    html = (out / "compare.html").read_text()
    for text in (
        *("second against first", "On the same images", "exact McNemar", "Benjamini and Hochberg", "Whole curves"),
        *("optim.lr", "train.seed", "0.002", "Settings that differ", "Model and training", "images/s"),
        *("One seed for each recipe", "Class by class", "stripes"),
    ):
        assert text in html, text
    assert "<script" not in html
    assert {path.name for path in out.iterdir()} == {"compare.csv", "compare.html", "compare.png"}
    with safe_open(out.parent / "first" / "model.safetensors", framework="numpy") as file:
        count = sum(file.get_tensor(key).size for key in file.keys())  # noqa: SIM118
    assert f"{count / 1e6:.2f} M" in html
    assert parameters_of(out / "nowhere") == 0


def test_a_run_without_a_curve_is_measured(runs: Runs, out: Path, tmp_path: Path) -> None:
    """As the demo's are: what is measured now is what the curve had recorded, and nothing is written into the run."""
    bare = Path(shutil.copytree(runs.second, tmp_path / "bare"))
    for name in ("curve.csv", SCORES):
        (bare / name).unlink()
    before = sorted(bare.iterdir())
    with listening() as said:
        found = public.compare([runs.first, bare])
    assert any("no curve recorded" in line and str(bare) in line for line in said)
    assert sorted(bare.iterdir()) == before
    again = public.compare([runs.first, runs.second])
    for one, other in zip(found.pairings, again.pairings, strict=True):
        assert (one.size, one.comparison, one.p_adjusted) == (other.size, other.comparison, other.p_adjusted)
    assert {row["top1"] for row in found.rows()} == {row["top1"] for row in again.rows()}
    fresh = public.compare([runs.first, bare], fresh=True, sizes=32)
    assert [pair.comparison for pair in fresh.pairings] == [found.pairings[1].comparison]
    assert not any("moments" in caution for caution in fresh.cautions())


def test_other_sizes_are_measured_when_asked_for(runs: Runs) -> None:
    found = public.compare([runs.first, runs.second], sizes="32,20x28")
    assert [str(pair.size) for pair in found.pairings] == ["32", "20x28"]
    assert found.points[1].size == Size(20, 28)


def test_stale_answers_are_not_used(runs: Runs, tmp_path: Path) -> None:
    stale = Path(shutil.copytree(runs.second, tmp_path / "stale"))
    assert recorded("stale", stale, ()) is not None
    shutil.copy(runs.first / "model.safetensors", stale / "model.safetensors")
    with listening() as said:
        assert recorded("stale", stale, ()) is None
    assert "has other weights than those of its curve" in said[0]
    (stale / SCORES).write_bytes(b"no file of ours, nor anybody's")
    with listening() as said:
        assert recorded("stale", stale, ()) is None
    assert "is damaged" in said[0]
    assert recorded("run", runs.first, (Size(40, 40),)) is None, "a size that was not recorded"


def test_other_images_are_compared_without_pairing(runs: Runs, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    record_curve(runs.second, elsewhere, runs.other)
    answer = anyres("compare", runs.first, elsewhere)
    assert answer.code == 0, answer.err
    assert "nothing is paired" in answer.out
    found = public.compare([runs.first, elsewhere])
    page = page_of(found)
    assert page.comparisons == ()
    assert "Fisher" in next(section.lead for section in page.sections if section.anchor == "apart")
    assert any("other images" in caution for caution in page.cautions)
    assert [row["same_images"] for row in found.rows()] == [None, None, False, False]
    both = public.compare([runs.first, runs.second], data=runs.other, sizes=24)
    assert both.apart == ()
    assert both.pairings[0].comparison.n == 24, "one set for both"


def test_runs_of_other_seeds_are_put_together(runs: Runs, tmp_path: Path) -> None:
    twin = Path(shutil.copytree(runs.first, tmp_path / "twin"))
    text = (twin / "recipe.yaml").read_text()
    (twin / "recipe.yaml").write_text(text.replace("seed: 0", "seed: 7"))
    found = public.compare([runs.first, twin, runs.second])
    assert differing(found.runs[:2]) == {"train.seed": [0, 7]}
    assert [[run.name for run in group] for group in seed_groups(found.runs)] == [["first", "twin"], ["second"]]
    page = page_of(found)
    assert page.title == "twin and second against first"
    seeds = next(section for section in page.sections if section.anchor == "seeds")
    assert "what chance in training changes" in seeds.lead
    assert [row[:3] for row in seeds.tables[0].rows] == [("first, twin", "0, 7", "24"), ("first, twin", "0, 7", "32")]
    assert page.sections[0].tables[0].rows[0][2:] == ("+0.0", "+0.0 to +0.0", "1.000", "inside the noise")


def test_names_tell_runs_apart(runs: Runs, tmp_path: Path) -> None:
    twin = Path(shutil.copytree(runs.second, tmp_path / "first"))
    found = public.compare([runs.first, twin])
    assert [run.name for run in found.runs] == [f"{runs.root.name}/first", f"{tmp_path.name}/first"]


def test_what_cannot_be_compared_is_one_line(runs: Runs, tmp_path: Path) -> None:
    first, second = runs.first, runs.second
    assert "wants two runs or more" in refused("compare", first)
    assert "is given twice" in refused("compare", first, second, f"{second}/")
    assert "is not a run folder" in refused("compare", first, tmp_path / "nowhere")
    lonely = tmp_path / "lonely"
    record_curve(second, lonely, sizes=[40])
    assert "no size in common: give --sizes, such as --sizes 24,32" in refused("compare", first, lonely)
    other = Path(shutil.copytree(second, tmp_path / "map"))
    text = (other / "curve.csv").read_text()
    (other / "curve.csv").write_text(text.replace("top1", "map", 3).replace(",top5,loss", ",f1,loss"))
    assert "by top-1 and" in refused("compare", first, other)
    assert np.all([path.is_file() for path in (first / "curve.csv", second / "curve.csv")])
