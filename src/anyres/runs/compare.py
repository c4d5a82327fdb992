"""Runs side by side: their curves, differences on the same images with intervals and tests, cost, settings."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from anyres.config import UserError
from anyres.evaluation.metrics import Comparison
from anyres.evaluation.page import Pairing, as_one_family
from anyres.evaluation.paired import compare_curves, compare_scores, compare_sets
from anyres.runs.compare_page import write_page
from anyres.runs.evaluate import Sizes, parse
from anyres.runs.measured_runs import MeasuredRun, measured_now, recorded, runs_named
from anyres.runs.opened import DataSpec, check_run
from anyres.runs.run_comparison import RunComparison
from anyres.runs.stderr import doing, show_log
from anyres.storage import write_rows

log = logging.getLogger(__name__)


def compare(
    runs: Sequence[str | Path],
    *,
    sizes: Sizes = (),
    data: str | Path | None = None,
    split: str | None = None,
    fresh: bool = False,
    out: str | Path | None = None,
) -> RunComparison:
    """Compare runs with the first of them: curves, paired differences on the same images, cost and settings.

    ``runs``: folders of runs, or of curves (``anyres curve --out``), two or more. What their curves recorded is used;
    where a run has none with ``sizes`` (sides in pixels, ``"320x192"`` or ``"64:320:32"``), it is measured now.
    ``data``, ``split``: images to measure all runs on, anew; ``fresh``: measure all anew, speed in one window. ``out``:
    a folder for ``compare.csv``, ``compare.png`` and ``compare.html``.

    Returns a RunComparison: ``.pairings`` has the difference of each run to the first at each size, in percentage
    points where the metric is a share, with a 95 % interval and a p-value; ``.rows()`` all as dictionaries. Raises
    UserError where the runs are measured by different metrics, have no size in common, or know other classes and saw
    other images.
    """
    show_log()
    named, wanted = runs_named(runs), parse(sizes)
    anew = fresh or data is not None or split is not None
    known = {} if anew else {name: recorded(name, folder, wanted) for name, folder in named.items()}
    kept = {name: run for name, run in known.items() if run is not None}
    rest = {name: folder for name, folder in named.items() if name not in kept}
    for folder in rest.values():
        check_run(folder)
    if rest and not anew:
        log.info("measured now, as no curve recorded what is asked: %s", ", ".join(map(str, rest.values())))
    if rest:
        at = wanted or tuple(dict.fromkeys(size for run in kept.values() for size in run.results))
        kept |= measured_now(rest, at, DataSpec(str(data) if data is not None else None, split))
    found = compared([kept[name] for name in named])
    if out is not None:
        with doing("writing the comparison"):
            write_comparison(found, Path(out))
            write_page(found, Path(out))
    return found


def compared(runs: Sequence[MeasuredRun]) -> RunComparison:
    """The differences of runs to the first of them. Raises UserError where they cannot be compared."""
    first, *others = runs
    pairings: list[Pairing] = []
    apart: list[Pairing] = []
    wholes: dict[str, Comparison] = {}
    for run in others:
        _check_alike(first, run)
        sizes = [size for size in run.results if size in first.results]
        for size in sizes:
            a, b = run.scores[size], first.scores[size]
            same = run.about.images == first.about.images
            found = compare_scores(a, b, first.metric) if same else compare_sets(a, b)
            if found is not None:
                pair = Pairing(run.name, first.name, size, found, lower_is_better=not first.metric.higher_is_better)
                (pairings if same else apart).append(pair)
        if run.about.images == first.about.images and len(sizes) > 1:
            whole = compare_curves([run.scores[s] for s in sizes], [first.scores[s] for s in sizes], first.metric)
            if whole is not None:
                wholes[run.name] = whole
    return RunComparison(tuple(runs), tuple(as_one_family(pairings)), wholes, tuple(as_one_family(apart)))


def _check_alike(first: MeasuredRun, run: MeasuredRun) -> None:
    """Raises UserError where nothing can be said of two runs."""
    if first.metric.key != run.metric.key:
        raise UserError(
            f"{first.folder} is measured by {first.metric.name} and {run.folder} by {run.metric.name}: compare runs of "
            "one task"
        )
    shared = set(first.about.classes) & set(run.about.classes)
    if first.about.images != run.about.images and (first.about.classes or run.about.classes) and not shared:
        raise UserError(
            f"{first.folder} and {run.folder} know no class in common and were scored on different images: there is "
            "nothing to compare"
        )
    if not first.results.keys() & run.results.keys():
        raise UserError(
            f"{first.folder} and {run.folder} were measured at no size in common: give --sizes, such as "
            f"--sizes {','.join(map(str, first.results))}"
        )


def write_comparison(found: RunComparison, folder: Path) -> None:
    """Write ``compare.csv``, the columns of ``RunComparison.rows``."""
    rows = found.rows()
    columns = list(dict.fromkeys(column for row in sorted(rows, key=len, reverse=True) for column in row))
    write_rows(folder / "compare.csv", [columns, *([row.get(column, "") for column in columns] for row in rows)])
