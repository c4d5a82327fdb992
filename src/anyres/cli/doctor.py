"""``anyres doctor``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from anyres.cli.app import app
from anyres.cli.arguments import AsJson

if TYPE_CHECKING:
    from anyres.runs.doctor import Finding


@app.command()
def doctor(into: AsJson = None) -> None:
    """Say what this machine and this installation have, and what is missing for which verb. Nothing is fetched.

    Example: `anyres doctor`
    """
    from dataclasses import asdict

    from anyres.cli.console import is_stdout, print_json, report_
    from anyres.runs.doctor import examine_machine, examine_uses
    from anyres.storage import write_json

    machine, uses = examine_machine(), examine_uses()
    facts = {"machine": [asdict(found) for found in machine], "uses": [asdict(found) for found in uses]}
    if is_stdout(into):
        print_json(facts)
        return
    if into:
        write_json(into, facts)
    _print(machine)
    report_("")
    _print(uses)
    report_("")
    wrong = sum(bool(found.mend) for found in (*machine, *uses))
    report_(f"{wrong} lines with -> say what to do, if you need them" if wrong else "nothing is missing")


def _print(findings: Sequence[Finding]) -> None:
    from rich.table import Table

    from anyres.cli.console import stdout

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", overflow="fold")
    table.add_column(overflow="fold")
    for found in findings:
        table.add_row(found.part, found.said + (f"\n-> {found.mend}" if found.mend else ""))
    stdout().print(table)
