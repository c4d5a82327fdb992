"""The page of a comparison of runs: what differs in their settings, what they cost, what a seed changes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from anyres.config import printable
from anyres.evaluation.metrics import Scores
from anyres.evaluation.page import PageTable, Pairing, ReportPage, Section
from anyres.evaluation.paired import compared_by
from anyres.evaluation.plots.curve import plot
from anyres.evaluation.report import write_html
from anyres.evaluation.tables import shown_p_value
from anyres.flow import Size
from anyres.models.state_files import readable
from anyres.recipe import flat
from anyres.runs.kept import kept_in
from anyres.runs.measured_runs import MeasuredRun
from anyres.runs.opened import WEIGHTS
from anyres.runs.run_comparison import RunComparison

MOST_CELL = 60  # characters of a setting's value
MOST_SETTINGS = 60
MOST_CLASSES = 8
SEED = "train.seed"
DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


def write_page(found: RunComparison, folder: Path) -> None:
    """Write ``compare.png`` and ``compare.html``."""
    page = page_of(found)
    plot(found.points, folder / "compare.png", train_sizes=page.train_sizes)
    write_html(folder / "compare.html", page)


def page_of(found: RunComparison) -> ReportPage:
    """What the page shows."""
    trained_at = {run.name: run.recipe.views.parsed for run in found.runs if run.recipe}
    first = found.first
    others = " and ".join(run.name for run in found.runs[1:])
    scores = next(iter(first.scores.values()))
    return ReportPage(
        title=f"{others} against {first.name}" if len(found.runs) <= 3 else f"{len(found.runs)} runs side by side",
        claim=found.claim,
        cautions=found.cautions(),
        points=found.points,
        comparisons=found.pairings,
        compared_by=compared_by(scores),
        differences_in=found.unit,
        train_sizes=trained_at,
        notes=[*found.summary(), *_images_of(found.runs)],
        sections=_sections(found),
    )


def _sections(found: RunComparison) -> list[Section]:
    return [
        *_whole(found),
        *_apart(found),
        *_classes(found),
        *_settings(found.runs),
        *_seeds(found),
        _training(found.runs),
    ]


def _whole(found: RunComparison) -> list[Section]:
    """One test for a whole curve."""
    if not found.wholes:
        return []
    rows = []
    for run in found.runs[1:]:
        if (c := found.wholes.get(run.name)) is not None:
            count = sum(pair.first == run.name for pair in found.pairings)
            p_value = shown_p_value(c.p_value)
            verdict = "inside the noise" if c.inside_noise else "clear"
            interval = f"{found.number(c.low)} to {found.number(c.high)}"
            rows.append((run.name, str(count), found.number(c.difference), interval, p_value, verdict))
    table = PageTable("Whole curves", ("run", "sizes", "difference", "95 % interval", "p", "verdict"), rows, (0, 5))
    lead = (
        f"Mean over the sizes that both have, minus that of {found.first.name}, in {found.unit}: one difference for "
        "each image, its interval by bootstrap of the images, its test by exchanging the models' answers."
    )
    return [Section("Whole curves", lead, (table,), anchor="whole")]


def _apart(found: RunComparison) -> list[Section]:
    """Differences to runs that saw other images."""
    if not found.apart:
        return []
    interval, counted = compared_by(next(iter(found.first.scores.values())), paired=False)

    def row(pair: Pairing) -> tuple[str, ...]:
        c = pair.comparison
        p_value = shown_p_value(c.p_value)
        reach = f"{found.number(c.low)} to {found.number(c.high)}"
        return pair.first, str(pair.size), found.number(c.difference), reach, p_value, f"{c.only_a} : {c.only_b}"

    table = PageTable(
        "On other images", ("run", "size", "difference", "95 % interval", "p", counted), [row(p) for p in found.apart]
    )
    lead = (
        f"Minus {found.first.name}, which was scored on other images: a difference may be that of the images. Nothing "
        f"is paired. {interval[0].upper()}{interval[1:]}."
    )
    return [Section("On other images", lead, (table,), anchor="apart")]


def _classes(found: RunComparison) -> list[Section]:
    """The classes whose accuracy differs most, at the first run's best size."""
    base = found.first
    tables = []
    for run in found.runs[1:]:
        sizes = [size for size in run.results if size in base.results]
        if not sizes or not found.paired(run) or run.about.classes != base.about.classes or not base.about.classes:
            continue
        size = max(sizes, key=lambda s: base.results[s].best.value)
        a, b = run.scores[size], base.scores[size]
        if not isinstance(a, Scores) or not isinstance(b, Scores):
            continue
        if rows := _class_rows(a, b, base.about.classes):
            title = f"{run.name} minus {base.name} at {size} px"
            columns = ("class", "difference", f"right, {run.name}", f"right, {base.name}", "images")
            tables.append(PageTable(title, columns, rows))
    if not tables:
        return []
    names = ", ".join(table.name for table in tables)
    lead = f"Where the share of right answers differs most, in percentage points: {names}."
    return [Section("Class by class", lead, tables, anchor="classes")]


def _class_rows(a: Scores, b: Scores, classes: Sequence[str]) -> list[tuple[str, ...]]:
    count = len(classes)
    images = np.bincount(a.target, minlength=count)
    right = [np.bincount(s.target[s.correct], minlength=count) for s in (a, b)]
    apart = right[0] - right[1]
    share = apart / np.maximum(images, 1)
    order = sorted(np.flatnonzero(apart).tolist(), key=lambda c: (-abs(share[c]), c))[:MOST_CLASSES]
    return [
        (classes[c], f"{100 * share[c]:+.1f}".replace("-", MINUS), str(right[0][c]), str(right[1][c]), str(images[c]))
        for c in order
    ]


def differing(runs: Sequence[MeasuredRun]) -> dict[str, list[Any]]:
    """The settings that are not the same in all runs, with the value of each; None where a run has no recipe."""
    settings = [flat(run.recipe) if run.recipe else {} for run in runs]
    keys = dict.fromkeys(key for own in settings for key in own)
    told = {key: [own.get(key) for own in settings] for key in keys}
    return {key: values for key, values in told.items() if any(value != values[0] for value in values)}


def _settings(runs: Sequence[MeasuredRun]) -> list[Section]:
    found = differing(runs)
    rows = [(key, *(_cell(value) for value in values)) for key, values in list(found.items())[:MOST_SETTINGS]]
    same = "The recipes are the same in every setting."
    lead = f"{len(found)} settings of the recipes are not the same; all others are." if found else same
    if any(run.recipe is None for run in runs):
        lead += f" No recipe: {', '.join(run.name for run in runs if run.recipe is None)}."
    table = PageTable("Settings", ("setting", *(run.name for run in runs)), rows, range(len(runs) + 1))
    return [Section("Settings that differ", lead, (table,) if rows else (), anchor="settings")]


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else DASH if value is None else json.dumps(value)
    return printable(text, MOST_CELL)


def _seeds(found: RunComparison) -> list[Section]:
    """What a seed changes: runs that differ in nothing else."""
    groups = seed_groups(found.runs)
    several = [group for group in groups if len(group) > 1]
    if not several:
        lead = (
            "One seed for each recipe: intervals say how much other images would change a figure, not what another "
            "seed would. Runs that differ in train.seed alone are put together here."
        )
        return [Section("Seeds", lead, anchor="seeds")]
    rows = []
    for group in several:
        for size in [s for s in group[0].results if all(s in run.results for run in group)]:
            rows.append(_seed_row(group, size))
    columns = ("runs", "seeds", "size", "mean", "standard deviation", "lowest", "highest")
    lead = f"{found.metric.name} of runs that differ in train.seed alone: what chance in training changes."
    return [Section("Seeds", lead, (PageTable("Seeds", columns, rows, (0, 1)),), anchor="seeds")]


def _seed_row(group: Sequence[MeasuredRun], size: Size) -> tuple[str, ...]:
    metric = group[0].metric
    values = [run.results[size].best.value for run in group]
    seeds = ", ".join(str(run.recipe.train.seed) for run in group if run.recipe)
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    told = [metric.text(value, 2) for value in (mean, spread, min(values), max(values))]
    return (", ".join(run.name for run in group), seeds, str(size), *told)


def seed_groups(runs: Sequence[MeasuredRun]) -> list[list[MeasuredRun]]:
    """Runs whose recipes differ in the seed alone, together."""
    groups: dict[str, list[MeasuredRun]] = {}
    for run in runs:
        settings: Mapping[str, Any] = flat(run.recipe) if run.recipe else {"folder": str(run.folder)}
        key = json.dumps({name: value for name, value in settings.items() if name != SEED}, sort_keys=True)
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def _training(runs: Sequence[MeasuredRun]) -> Section:
    """What each run is, and what it took."""

    def told(run: MeasuredRun) -> list[str]:
        facts, recipe = run.facts, run.recipe
        kept = kept_in(dict(facts))
        parameters = parameters_of(run.folder / WEIGHTS)
        measured = facts.get("evaluation", {})
        return [
            str(recipe.model["name"]) if recipe else str(measured.get("model", DASH)),
            f"{parameters / 1e6:.2f} M" if parameters else DASH,
            str(recipe.train.seed) if recipe else DASH,
            f"{facts['steps']:,}" if "steps" in facts else DASH,
            f"{facts['images']:,}" if "images" in facts else DASH,
            f"{facts['pixels'] / 1e9:.2f} G" if "pixels" in facts else DASH,
            f"{facts['seconds']:.0f}" if "seconds" in facts else DASH,
            f"epoch {kept.epoch:g}" if kept else DASH,
            " ".join(str(measured[key]) for key in ("device", "dtype") if key in measured) or DASH,
        ]

    names = (
        *("model", "parameters", "seed", "steps", "training images seen", "pixels seen", "seconds of training"),
        *("weights kept", "measured on"),
    )
    columns = list(zip(*(told(run) for run in runs), strict=True))
    rows = [(name, *values) for name, values in zip(names, columns, strict=True)]
    table = PageTable("Training", ("", *(run.name for run in runs)), rows, range(len(runs) + 1))
    return Section("Model and training", "As each run recorded it.", (table,), anchor="cost")


def parameters_of(path: Path) -> int:
    """The numbers in a file of weights, its buffers among them; 0 where there is none."""
    if not path.is_file():
        return 0
    with readable(path), safe_open(path, framework="numpy") as file:
        return sum(int(np.prod(file.get_slice(key).get_shape())) for key in file.keys())  # noqa: SIM118


def _images_of(runs: Sequence[MeasuredRun]) -> list[str]:
    """On which images each was scored."""
    told: dict[str, list[str]] = {}
    for run in runs:
        n = next(iter(run.results.values())).n
        told.setdefault(f"{n} images of the {run.about.split} split of {run.about.data}", []).append(run.name)
    return [f"{', '.join(names)}: {what}" for what, names in told.items()]
