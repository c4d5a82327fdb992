"""The demo: one any-size model against its single-size twin, on real images, at sizes neither was trained at."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from anyres.data.cache import DecodedImages
from anyres.evaluation.curve import EvalResult
from anyres.evaluation.curve_file import write_csv
from anyres.evaluation.metrics import PAIRED_SHARES, Comparison, Scores, compare
from anyres.evaluation.miou import PAIRED_MAPS, compare_maps
from anyres.evaluation.page import FactGroup, Pairing, ReportPage, as_one_family
from anyres.evaluation.plots.curve import plot
from anyres.evaluation.report import write_html
from anyres.evaluation.speed import share_of_others
from anyres.flow import SizeResult
from anyres.recipe import load_recipe
from anyres.runs.inputs import evaluated_sizes
from anyres.runs.opened import TrainedModel, measure_models, open_run
from anyres.runs.report import facts_of, record
from anyres.runs.samples import best_of, samples_of
from anyres.runs.train import train_run
from anyres.tasks import Shown

log = logging.getLogger(__name__)
ANY, SINGLE = "any-size", "single-size"
BUSY = 0.15
"""Share of the processors' time that goes to other programs, from which on speeds are marked."""
DemoName = Literal["sizes", "full", "segment"]


@dataclass(frozen=True)
class DemoKind:
    """One of the demos: the recipes of its two models, and in which words and by which test they are compared."""

    title: str
    # model -> recipe; both score the same images in the same way
    recipes: Mapping[str, str]
    # the images, in the plural
    images: str
    # the first model's scores against the second's
    compare: Callable[[Any, Any], Comparison]
    # how, and what the last column counts
    compared_by: tuple[str, str]
    # a sentence on what the test set can tell; {n}: its images
    noise: str
    folder: str


def compare_right(first: Scores, second: Scores) -> Comparison:
    """Two classifiers' right answers."""
    return compare(first.correct, second.correct)


_NOISE = (
    "The test set has {n} images, so an accuracy near 76 % has a 95 % interval of about 3 points to each side. "
    "Differences are judged on the same images by the exact McNemar test, all sizes as one family of tests. "
    "Of other seeds that says nothing: they moved a difference by up to 5 points."
)
KINDS: dict[DemoName, DemoKind] = {
    "sizes": DemoKind(
        "One model for every size",
        {ANY: "demo/any_size", SINGLE: "demo/single_size"},
        "photographs",
        compare_right,
        PAIRED_SHARES,
        _NOISE,
        "runs/demo",
    ),
    "full": DemoKind(
        "One model for every size",
        {ANY: "demo/full_any_size", SINGLE: "demo/full_single_size"},
        "photographs",
        compare_right,
        PAIRED_SHARES,
        _NOISE,
        "runs/demo-full",
    ),
    "segment": DemoKind(
        "Two lungs at every size",
        {ANY: "demo/segment_any_size", SINGLE: "demo/segment_single_size"},
        "chest films",
        compare_maps,
        PAIRED_MAPS,
        "The test set has {n} films of patients that neither model has seen. It is small: intervals say how much other "
        "films would change a figure, not what another seed would.",
        "runs/demo-segment",
    ),
}


@dataclass(frozen=True)
class Demo:
    """What the demo came to: both ``runs`` in ``folder``, measured, compared, and the ``claim`` that this allows.

    ``cautions``: what to know before believing it, such as a busy machine.
    """

    folder: Path
    runs: dict[str, TrainedModel]
    results: Sequence[SizeResult]
    pairings: Sequence[Pairing]
    claim: str
    cautions: Sequence[str]


def run_demo(out: Path, seed: int, epochs: int | None, name: DemoName = "sizes") -> Demo:
    """Train both models of the demo ``name`` in ``out/any-size`` and ``out/single-size``; write ``curve.csv``,
    ``curve.png`` and ``report.html`` in ``out``. The same call again continues, or only compares anew."""
    kind = KINDS[name]
    changes = [f"train.seed={seed}", *([f"train.epochs={epochs}"] if epochs is not None else [])]
    others = share_of_others()
    if others > BUSY:
        log.info("%s: this takes longer than on a quiet one, and speeds will be marked", busy(others))
    runs: dict[str, TrainedModel] = {}
    for model, recipe in kind.recipes.items():
        log.info("%s: recipe %s", model, recipe)
        train_run(load_recipe(recipe, changes), out / model, report=False)
        runs[model] = open_run(out / model)
    images = runs[ANY].images()  # both recipes show the same ones in the same way
    before = share_of_others()
    measured = measure_models(runs, images, evaluated_sizes(runs[ANY].recipe))
    others = max(before, share_of_others())
    cautions = [effort(runs)]
    if others > BUSY:
        measured = {model: [marked(found) for found in those] for model, those in measured.items()}
        cautions.append(f"{busy(others)} while speeds were measured: they are marked, and should not be compared")
    pairings = compare_runs(measured, kind.compare)
    results = [found.result for those in measured.values() for found in those]
    demo = Demo(out, runs, results, pairings, conclusion(pairings, results[0], kind.images), cautions)
    write_demo(demo, kind, images, measured)
    return demo


def write_demo(demo: Demo, kind: DemoKind, images: DecodedImages, measured: Mapping[str, Sequence[EvalResult]]) -> None:
    """Write the curve as table and picture, and the page; in each run's folder its own curve."""
    for name, run in demo.runs.items():
        record(run, images, measured[name], demo.folder / name)
    trained_at = {name: run.recipe.views.parsed for name, run in demo.runs.items()}
    write_csv(demo.results, demo.folder / "curve.csv")
    plot(demo.results, demo.folder / "curve.png", train_sizes=trained_at)
    samples, how_chosen = samples_of(images, [(name, demo.runs[name], measured[name]) for name in kind.recipes])
    best = best_of(measured[ANY])
    shown = Shown(images.source, lambda i: images[i].image)
    sections = demo.runs[ANY].task.naming(images.source).sections(best.scores, best.result.size, shown)
    page = ReportPage(
        title=kind.title,
        claim=demo.claim,
        points=demo.results,
        comparisons=demo.pairings,
        compared_by=kind.compared_by,
        samples=samples,
        samples_lead=how_chosen,
        notes=[*images.source.notes, kind.noise.format(n=demo.results[0].n)],
        facts=facts_of_both(demo.runs),
        train_sizes=trained_at,
        cautions=demo.cautions,
        sections=[replace(section, title=f"{section.title}, {ANY}") for section in sections],
    )
    write_html(demo.folder / "report.html", page)


def facts_of_both(runs: Mapping[str, TrainedModel]) -> list[FactGroup]:
    """What is the same in all runs once, then what is each one's own."""
    facts = {name: [pair for group in facts_of(run) for pair in group.facts] for name, run in runs.items()}
    first = next(iter(facts.values()))
    alike = [pair for pair in first if all(pair in own for own in facts.values())]
    own = [FactGroup(name, [pair for pair in pairs if pair not in alike]) for name, pairs in facts.items()]
    return [group for group in (FactGroup("Both models", alike), *own) if group.facts]


def effort(runs: Mapping[str, TrainedModel]) -> str:
    """What each training took, in a sentence: steps, pixels and time."""
    told = [
        f"{name} {run.facts.get('steps', 0):,} steps, {run.facts.get('pixels', 0) / 1e9:.2f} G pixels in "
        f"{run.facts.get('seconds', 0):.0f} s"
        for name, run in runs.items()
    ]
    return f"what training took: {'; '.join(told)}"


def busy(others: float) -> str:
    """That the machine is busy."""
    return f"this machine is busy: {100 * others:.0f} % of its processors' time went to other programs"


def marked(found: EvalResult) -> EvalResult:
    """With its speed marked as disturbed."""
    return found._replace(result=replace(found.result, cost=replace(found.result.cost, disturbed=True)))


def compare_runs(
    measured: Mapping[str, Sequence[EvalResult]], compare_scores: Callable[[Any, Any], Comparison]
) -> list[Pairing]:
    """The any-size model minus the single-size one at every size, judged on the same images."""
    return as_one_family(
        [
            Pairing(ANY, SINGLE, a.result.size, compare_scores(a.scores, b.scores))
            for a, b in zip(measured[ANY], measured[SINGLE], strict=True)
        ]
    )


def conclusion(pairings: Sequence[Pairing], of: SizeResult, images: str) -> str:
    """One sentence: at which sizes the difference is clear, and where it is inside the noise. ``of``: a result, for
    its metric and number of images."""

    def listed(chosen: Sequence[Pairing]) -> str:
        return ", ".join(f"{p.size} ({p.comparison.difference:+.1f})" for p in chosen)

    ahead = [p for p in pairings if p.winner == ANY]
    behind = [p for p in pairings if p.winner == SINGLE]
    noise = [p for p in pairings if p.winner is None]
    parts = [
        f"clearly ahead at {listed(ahead)}" if ahead else "",
        f"clearly behind at {listed(behind)}" if behind else "",
        f"inside the noise at {listed(noise)}" if noise else "",
    ]
    said = "; ".join(part for part in parts if part)
    return f"Points of {of.headline.name} on the same {of.n} test {images}, {ANY} minus {SINGLE}: {said}."
