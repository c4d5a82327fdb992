"""The demo: one any-size model against its single-size twin, on real photographs, at sizes neither was trained at."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from anyres.evaluation.curve import EvalResult
from anyres.evaluation.curve_file import write_csv
from anyres.evaluation.metrics import Scores, compare
from anyres.evaluation.page import FactGroup, Pairing, ReportPage
from anyres.evaluation.plots.curve import plot
from anyres.evaluation.report import write_html
from anyres.flow import SizeResult
from anyres.recipe import load_recipe
from anyres.runs.inputs import evaluated_sizes
from anyres.runs.opened import TrainedModel, measure_models, open_run
from anyres.runs.report import facts_of
from anyres.runs.samples import samples_of
from anyres.runs.train import train_run

log = logging.getLogger(__name__)
ANY, SINGLE = "any-size", "single-size"
RECIPES = {ANY: "demo/any_size", SINGLE: "demo/single_size"}


@dataclass(frozen=True)
class Demo:
    """What the demo came to: both ``runs`` in ``folder``, measured, compared, and the ``claim`` that this allows."""

    folder: Path
    runs: dict[str, TrainedModel]
    results: Sequence[SizeResult]
    pairings: Sequence[Pairing]
    claim: str


def run_demo(out: Path, seed: int, epochs: int | None) -> Demo:
    """Train both models in ``out/any-size`` and ``out/single-size``; write ``curve.csv``, ``curve.png`` and
    ``report.html`` in ``out``. The same call again continues, or only compares anew."""
    changes = [f"train.seed={seed}", *([f"train.epochs={epochs}"] if epochs is not None else [])]
    runs: dict[str, TrainedModel] = {}
    for name, recipe in RECIPES.items():
        log.info("%s: recipe %s", name, recipe)
        train_run(load_recipe(recipe, changes), out / name, report=False)
        runs[name] = open_run(out / name)
    images = runs[ANY].images()  # both recipes show the same ones in the same way
    measured = measure_models(runs, images, evaluated_sizes(runs[ANY].recipe))
    pairings = compare_runs(measured)
    results = [found.result for those in measured.values() for found in those]
    trained_at = {name: run.recipe.views.parsed for name, run in runs.items()}
    write_csv(results, out / "curve.csv")
    plot(results, out / "curve.png", train_sizes=trained_at)
    samples, how_chosen = samples_of(images, [(name, runs[name], measured[name]) for name in RECIPES])
    page = ReportPage(
        title="One model for every size",
        claim=conclusion(pairings, results[0].n),
        points=results,
        comparisons=pairings,
        samples=samples,
        samples_lead=how_chosen,
        notes=[*images.source.notes, NOISE.format(n=results[0].n)],
        facts=facts_of_both(runs),
        train_sizes=trained_at,
    )
    write_html(out / "report.html", page)
    return Demo(out, runs, results, pairings, page.claim)


def facts_of_both(runs: Mapping[str, TrainedModel]) -> list[FactGroup]:
    """What is the same in all runs once, then what is each one's own."""
    facts = {name: [pair for group in facts_of(run) for pair in group.facts] for name, run in runs.items()}
    first = next(iter(facts.values()))
    alike = [pair for pair in first if all(pair in own for own in facts.values())]
    own = [FactGroup(name, [pair for pair in pairs if pair not in alike]) for name, pairs in facts.items()]
    return [group for group in (FactGroup("Both models", alike), *own) if group.facts]


NOISE = (
    "The test set has {n} images, so an accuracy near 76 % has a 95 % interval of about 3 points to each side. "
    "Differences are judged on the same images by the exact McNemar test."
)


def compare_runs(measured: dict[str, list[EvalResult]]) -> list[Pairing]:
    """The any-size model minus the single-size one at every size, judged on the same images."""
    pairings = []
    for a, b in zip(measured[ANY], measured[SINGLE], strict=True):
        first, second = (cast(Scores, found.scores).correct for found in (a, b))  # both recipes classify
        pairings.append(Pairing(ANY, SINGLE, a.result.size, compare(first, second)))
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
