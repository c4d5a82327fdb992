"""Measurements as a terminal shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyres.cli.console import report_, stdout

if TYPE_CHECKING:
    from anyres.runs.report import Evaluation


def print_evaluation(evaluation: Evaluation) -> None:
    """The table of sizes, and below it what is to be said."""
    from anyres.evaluation.tables import console_table

    stdout().print(console_table(evaluation.sizes))
    report_(*evaluation.summary())
