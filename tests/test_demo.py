"""The demos from the command line, an epoch long: what they write, and what they say."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from anyres.recipe import dump_recipe, load_recipe
from anyres.runs import demo
from tests.command import Answer, anyres, refused

SHORTER = ("train.epochs=1", "data.workers=0", "data.cache_side=80", "evaluate.sizes=[32,48x64,64]")
SHORTER_BY = {
    "any_size": ("views.sizes=[64,48x64,32]",),
    "single_size": ("views.sizes=[64]",),
    "segment": ("data.batch_size=4", "head.width=16", "head.auxiliary_width=16"),
}


def shortened(name: demo.DemoName, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a demo take its own recipes with fewer steps, and fewer and smaller sizes."""
    kind, recipes = demo.KINDS[name], {}
    for model, recipe in kind.recipes.items():
        changes = [change for part, some in SHORTER_BY.items() if part in recipe for change in some]
        recipes[model] = str(folder / f"{model}.yaml")
        Path(recipes[model]).write_text(dump_recipe(load_recipe(recipe, [*SHORTER, *changes])))
    monkeypatch.setitem(demo.KINDS, name, replace(kind, recipes=recipes))


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "curve.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")


def told(answer: Answer) -> str:
    assert answer.code == 0, answer.err[-3000:]
    return " ".join(answer.out.split())


@pytest.mark.builtin
@pytest.mark.usefixtures("wide")
def test_the_demo_compares_both_models_at_every_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shortened("sizes", tmp_path, monkeypatch)
    monkeypatch.setattr(demo, "BUSY", 1.0)  # never
    out = tmp_path / "demo"
    said = told(anyres("demo", "--out", out, "--seed", 3))
    rows = rows_of(out)
    assert list(rows[0])[:7] == ["model", "height", "width", "top1", "n", "latency_ms", "macs"]
    sizes = [("32", "32"), ("48", "64"), ("64", "64")]
    for name in (demo.ANY, demo.SINGLE):
        assert [(r["height"], r["width"]) for r in rows if r["model"] == name] == sizes
    assert all(r["n"] == "661" and 0 < float(r["top1"]) < 1 and float(r["latency_ms"]) > 0 for r in rows)
    for name in ("curve.png", "report.html"):
        assert (out / name).stat().st_size > 20_000
    page = (out / "report.html").read_text()
    assert "On the same images" in page
    assert "exact McNemar" in page
    assert "right alone" in page
    assert "any-size 22 steps" in said
    assert "single-size 22 steps" in said
    assert "Points of top-1 on the same 661 test photographs, any-size minus single-size" in said
    assert "busy" not in said + page
    assert anyres("pick", out / demo.ANY, "--min-top1", 0).code == 0, "each run has its own curve"
    compared = anyres("compare", out / demo.SINGLE, out / demo.ANY)
    assert "no curve recorded" not in compared.err
    assert "any-size minus single-size, top-1" in told(compared)


@pytest.mark.builtin
@pytest.mark.usefixtures("wide")
def test_the_demo_of_segmentation_on_a_busy_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shortened("segment", tmp_path, monkeypatch)
    monkeypatch.setattr(demo, "BUSY", -1.0)  # always
    out = tmp_path / "demo"
    answer = anyres("demo", "--segment", "--out", out)
    said, rows = told(answer), rows_of(out)
    assert "takes longer than on a quiet one" in answer.err
    assert [r["width"] for r in rows] == 2 * ["32", "64", "64"]
    assert all(r["n"] == "58" and 0 < float(r["miou"]) < 1 for r in rows)
    page = (out / "report.html").read_text()
    for text in (said, page):
        assert "Points of mIoU on the same 58 test chest films, any-size minus single-size" in text
        assert "while speeds were measured" in text
        assert text.count("disturbed") >= len(rows)
    assert "permutation test" in page
    assert "better alone" in page
    assert "Truth and answer" in page


def test_the_demos_two_models_differ_only_in_what_is_compared() -> None:
    for kind in demo.KINDS.values():
        ours, twin = map(load_recipe, kind.recipes.values())
        assert replace(twin, views=ours.views, objective=ours.objective) == ours
        assert len(twin.views.sizes) == 1
        assert set(twin.views.sizes) <= set(ours.views.sizes)
    assert any("x" in str(size) for size in load_recipe("demo/any_size").views.sizes)


def test_two_demos_at_once_are_refused() -> None:
    assert "give one of them" in refused("demo", "--full", "--segment")
