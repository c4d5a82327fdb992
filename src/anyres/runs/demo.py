"""The demo: one any-size model against its single-size twin, on real photographs, at sizes neither was trained at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anyres.evaluation.curve import Measured, plot, write_csv
from anyres.evaluation.metrics import Scores, compare
from anyres.evaluation.report import Pairing, ReportPage, console_table, write_html
from anyres.flow import Size
from anyres.recipe import load_recipe
from anyres.runs.opened import Trained, evaluated_sizes, open_run
from anyres.runs.report import facts_of, messages, samples_of, screen
from anyres.runs.train import train_run

ANY, SINGLE = "any-size", "single-size"
RECIPES = {ANY: "demo/any_size", SINGLE: "demo/single_size"}


def run_demo(out: Path, seed: int, epochs: int | None) -> None:
    """Train both models in ``out/any-size`` and ``out/single-size``; write ``curve.csv``, ``curve.png`` and
    ``report.html`` in ``out`` and print the table. The same command again continues, or only compares anew."""
    changes = [f"train.seed={seed}", *([f"train.epochs={epochs}"] if epochs is not None else [])]
    measured: dict[str, list[Measured]] = {}
    runs: dict[str, Trained] = {}
    for name, recipe in RECIPES.items():
        messages().print(f"{name}: recipe {recipe}")
        train_run(load_recipe(recipe, changes), out / name, report=False)
    for name in RECIPES:
        runs[name] = open_run(out / name)
        images = runs[name].images()
        measured[name] = runs[name].measure(images, evaluated_sizes(runs[name].recipe), name)
    pairings = compare_runs(measured)
    points = [m.point for those in measured.values() for m in those]
    trained_at = {name: run.recipe.views.parsed for name, run in runs.items()}
    write_csv(points, out / "curve.csv")
    plot(points, out / "curve.png", train_sizes=trained_at)
    page = ReportPage(
        title="One model for every size",
        claim=conclusion(pairings, points[0].n),
        points=points,
        comparisons=pairings,
        samples=samples_of(images, [(name, runs[name], measured[name]) for name in RECIPES], 12),
        notes=[*images.source.notes, NOISE.format(n=points[0].n)],
        facts=[(f"{name}: {key}", value) for name, run in runs.items() for key, value in facts_of(run)],
        train_sizes=trained_at,
    )
    write_html(out / "report.html", page)
    out_to = screen()
    out_to.print(console_table(points, pairings))
    for name, run in runs.items():
        facts = run.facts
        out_to.print(f"{name}: {facts['pixels'] / 1e9:.2f} G pixels, {facts['seconds']:.0f} s of training")
    out_to.print(page.claim)
    out_to.print(f"written: {out / 'curve.csv'}, {out / 'curve.png'}, {out / 'report.html'}")


NOISE = (
    "The test set has {n} images, so an accuracy near 76 % has a 95 % interval of about 3 points to each side. "
    "Differences are judged on the same images by the exact McNemar test."
)


def compare_runs(measured: dict[str, list[Measured]]) -> list[Pairing]:
    """The any-size model minus the single-size one at every size, judged on the same images."""
    pairings = []
    for a, b in zip(measured[ANY], measured[SINGLE], strict=True):
        assert isinstance(a.scores, Scores)
        assert isinstance(b.scores, Scores)
        size = Size(a.point.height, a.point.width)
        pairings.append(Pairing(ANY, SINGLE, size, compare(a.scores.correct, b.scores.correct)))
    return pairings


def conclusion(pairings: Sequence[Pairing], n: int) -> str:
    """One sentence: at which sizes the difference is clear, and where it is inside the noise."""

    def listed(chosen: Sequence[Pairing]) -> str:
        return ", ".join(f"{p.size} ({p.comparison.difference:+.1f})" for p in chosen)

    clear = [p for p in pairings if not p.comparison.inside_noise]
    ahead = [p for p in clear if p.comparison.difference > 0]
    behind = [p for p in clear if p.comparison.difference < 0]
    noise = [p for p in pairings if p.comparison.inside_noise]
    parts = [
        f"clearly ahead at {listed(ahead)}" if ahead else "",
        f"clearly behind at {listed(behind)}" if behind else "",
        f"inside the noise at {listed(noise)}" if noise else "",
    ]
    said = "; ".join(part for part in parts if part)
    return f"Points of top-1 on the same {n} test photographs, {ANY} minus {SINGLE}: {said}."
