"""The size of a measured run that does the job. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from anyres.config import UserError
from anyres.evaluation.choice import pick as choose
from anyres.evaluation.curve_file import read_csv
from anyres.evaluation.measured import MEASURED
from anyres.flow import SizeResult


def pick(run: str | Path, bound: float | None = None, max_ms: float | None = None) -> SizeResult:
    """The size of a measured run that does the job.

    ``run``: a folder with a ``curve.csv``. ``bound``: of the headline metric, at least; of one where less is better,
    such as an error, at most; a share in [0, 1] where its unit is %. ``max_ms``: milliseconds for one image, at most.
    With ``bound`` the cheapest that keeps every bound, with ``max_ms`` alone the best within it.

    Returns the SizeResult. Raises UserError where there is no curve, no size keeps the bounds, or neither is given; and
    where the headline metric is of a task that is not registered here, as nobody knows whether more of it is better.
    """
    path, known = Path(run) / "curve.csv", MEASURED
    results = read_csv(path, known)
    if results and results[0].headline.key not in known:  # of a task of someone else's
        from anyres.tasks import known_metrics  # with torch

        known = known_metrics()
        results = read_csv(path, known)
    if results and results[0].headline.key not in known:
        raise UserError(f"{path} has {results[0].headline.key!r}, of a task that is not registered: import its module")
    return choose(results, bound, max_ms)
