"""Runs compared with the first of them, as values: differences, what they say in words, and what to know before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from anyres.evaluation.choice import NothingFits, pick
from anyres.evaluation.metrics import Comparison
from anyres.evaluation.page import Pairing
from anyres.flow import Metric, SizeResult
from anyres.runs.measured_runs import MeasuredRun

MOST_SAID = 3  # runs of which the claim tells


@dataclass(frozen=True, eq=False)
class RunComparison:
    """Runs, the first of which the others are compared with.

    ``pairings``: each other run minus the first, at every size that both have, on the same images. ``wholes``: the same
    over these sizes together, by run, where the metric is a mean over images. ``apart``: differences to runs that were
    scored on other images.
    """

    runs: tuple[MeasuredRun, ...]
    pairings: tuple[Pairing, ...]
    wholes: Mapping[str, Comparison]
    apart: tuple[Pairing, ...]

    @property
    def first(self) -> MeasuredRun:
        """The run the others are compared with."""
        return self.runs[0]

    @property
    def metric(self) -> Metric:
        """By which they are compared."""
        return self.first.metric

    @property
    def points(self) -> list[SizeResult]:
        """Every run at every size, with the metrics that all have."""
        every = [result for run in self.runs for result in run.results.values()]
        described = tuple(m for m in every[0].described if all(m.key in result.metrics for result in every))
        return [replace(result, described=described) for result in every]

    def paired(self, run: MeasuredRun) -> bool:
        """Whether a run was scored on the images of the first."""
        return run.about.images == self.first.about.images

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary of plain values per run and size, with the columns of ``compare.csv``: those of ``curve.csv``,
        and of the difference to the first run ``difference``, its interval (``difference_low``, ``difference_high``),
        ``p``, ``p_adjusted``, ``only_this``, ``only_first``, ``same_images``; None where there is none."""
        pairs = {(pair.first, pair.size): pair for pair in (*self.pairings, *self.apart)}
        rows = []
        for run in self.runs:
            for size, result in run.results.items():
                row: dict[str, Any] = {"run": run.name, **result.row()}
                del row["model"]
                pair = pairs.get((run.name, size))
                c = pair.comparison if pair else None
                rows.append(
                    row
                    | {
                        "difference": c.difference if c else None,
                        "difference_low": c.low if c else None,
                        "difference_high": c.high if c else None,
                        "p": c.p_value if c else None,
                        "p_adjusted": pair.p_adjusted if pair else None,
                        "only_this": c.only_a if c else None,
                        "only_first": c.only_b if c else None,
                        "same_images": self.paired(run) if c else None,
                    }
                )
        return rows

    def facts(self) -> dict[str, Any]:
        """The same as plain values for JSON, with the curves as a whole, and the cautions."""
        rows = [{key: None if _is_nan(value) else value for key, value in row.items()} for row in self.rows()]
        wholes = {name: asdict(c) | {"inside_noise": c.inside_noise} for name, c in self.wholes.items()}
        return {
            "metric": self.metric.key,
            "unit": self.unit,
            "runs": {run.name: str(run.folder) for run in self.runs},
            "points": rows,
            "whole_curves": wholes,
            "cautions": self.cautions(),
        }

    @property
    def unit(self) -> str:
        """Of the differences."""
        return "percentage points" if self.metric.unit == "%" else self.metric.unit or self.metric.name

    def summary(self) -> list[str]:
        """Below the table, for people: each run against the first, over all sizes and at each, and what it costs to be
        as good."""
        return [sentence for run in self.runs[1:] for sentence in self.verdict(run)]

    @property
    def claim(self) -> str:
        """What it comes to, in a sentence or two: each run against the first, over all sizes where that can be said."""
        said = [(self.verdict(run) or [""])[0] for run in self.runs[1:]]
        if len(said) > MOST_SAID or not all(said):
            return f"Scored by {self.metric.name} at every size measured; differences are to {self.first.name}."
        return " ".join(f"{sentence}." for sentence in said)

    def verdict(self, run: MeasuredRun) -> list[str]:
        """What is to be said of a run against the first."""
        pairs = [pair for pair in (*self.pairings, *self.apart) if pair.first == run.name]
        said = []
        head = f"{run.name} minus {self.first.name}, {self.metric.name} in {self.unit}"
        if whole := self.wholes.get(run.name):
            chance = "inside the noise" if whole.inside_noise else "clear"
            said.append(
                f"{head}: {self.number(whole.difference)} over {len(pairs)} sizes together, 95 % interval "
                f"{self.number(whole.low)} to {self.number(whole.high)}: {chance}"
            )
        if pairs:
            how = "" if self.paired(run) else " (on other images, so nothing is paired)"
            said.append(f"{head}{how}: {self._by_size(run, pairs)}")
        return [*said, *self.as_good(run)]

    def _by_size(self, run: MeasuredRun, pairs: Sequence[Pairing]) -> str:
        def listed(chosen: Sequence[Pairing]) -> str:
            return ", ".join(f"{pair.size} ({self.number(pair.comparison.difference)})" for pair in chosen)

        ahead = [pair for pair in pairs if pair.winner == run.name]
        behind = [pair for pair in pairs if pair.winner == self.first.name]
        noise = [pair for pair in pairs if pair.winner is None]
        parts = [("clearly better at ", ahead), ("clearly worse at ", behind), ("inside the noise at ", noise)]
        return "; ".join(words + listed(chosen) for words, chosen in parts if chosen)

    def as_good(self, run: MeasuredRun) -> list[str]:
        """Where a run is as good as the best of the first, and in what time; nothing where it never is."""
        best = max(self.first.results.values(), key=lambda result: result.quality)
        try:
            found = pick(list(run.results.values()), best.best.value)
        except NothingFits:
            return []
        ratio = found.cost.latency_ms / best.cost.latency_ms
        if not math.isfinite(ratio):
            return []
        return [
            f"{run.name} is as good as {self.first.name} at its best ({best.headline.text(best.best.value)} at "
            f"{best.size}) at {found.size} px, in {ratio:.2f} times the time of one image"
        ]

    def number(self, difference: float) -> str:
        """``+1.8``, or with a true minus sign ``-1.8``; three significant digits where it is not in points."""
        shown = f"{difference:+.1f}" if self.metric.unit == "%" else f"{difference:+.3g}"
        return shown.replace("-", "\N{MINUS SIGN}")

    def cautions(self) -> list[str]:
        """What to know before believing the numbers."""
        said = []
        if others := [run.name for run in self.runs[1:] if not self.paired(run)]:
            said.append(
                f"{', '.join(others)} was scored on other images than {self.first.name}: differences to it are of "
                "models and images together, and nothing is paired; `--data` measures all runs on the same images"
            )
        known = {frozenset(run.about.classes) for run in self.runs}
        if len(known) > 1:
            counts = ", ".join(f"{run.name} {len(run.about.classes)}" for run in self.runs)
            said.append(f"the runs do not know the same classes ({counts}), so they were not asked the same")
        if not all(run.now for run in self.runs):
            said.append(
                "times were measured by each run's own curve, at different moments: `--fresh` measures all in turn in "
                "one window"
            )
        return said


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
