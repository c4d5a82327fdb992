"""``anyres check``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anyres.cli.app import app
from anyres.cli.arguments import AsJson, Sizes

if TYPE_CHECKING:
    from rich.table import Table

    from anyres.runs.check import Checked

MOST_ROWS = 30


class Tasks(StrEnum):
    """What is to be trained."""

    classify = "classify"
    detect = "detect"
    segment = "segment"


@app.command()
def check(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="A folder or file with boxes, outlines or class maps (COCO json, VOC xml, YOLO txt, CSV, ADE20K's "
            "folders), lungs, trees, or anything that --data of `anyres train` takes.",
        ),
    ],
    task: Annotated[Tasks | None, typer.Option(help="What is to be trained; what the set has if not given.")] = None,
    sizes: Sizes = None,
    masks: Annotated[bool, typer.Option("--masks", help="Every object needs an outline (instance masks).")] = False,
    drop_empty: Annotated[
        bool, typer.Option("--drop-empty", help="Leave out pictures without objects, which else are negatives.")
    ] = False,
    max_faulty: Annotated[
        float, typer.Option(help="Share of annotations and of pictures that may be left out; ten always may.")
    ] = 0.01,
    quick: Annotated[bool, typer.Option("--quick", help="Read only the heads of pictures, no pixels.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for box_sizes.png and faults.csv; runs/check-DATA.")
    ] = None,
    as_json: AsJson = None,
) -> None:
    """Count pictures, objects and classes, show how large boxes are at each training size, and list what is wrong.

    A training size S is the short side of the picture, HxW both its sides. The exit code is 2 where nothing could be
    trained on the set.

    Example: `anyres check lungs --sizes 64,128,224`
    """
    from anyres.cli.console import is_stdout, print_json
    from anyres.config import UserError
    from anyres.data.annotations.annotated import Rules
    from anyres.flow import parse_sizes
    from anyres.runs.check import check as examine
    from anyres.storage import write_json

    rules = Rules(needs_masks=masks, drop_empty=drop_empty, max_faulty=max_faulty)
    wanted = parse_sizes(sizes) if sizes else ()
    found = examine(data, task.value if task else None, wanted, rules, out=out, quick=quick)
    if is_stdout(as_json):
        print_json(found.plain())
    else:
        _print(found)
    if as_json is not None and not is_stdout(as_json):
        write_json(as_json, found.plain())
    if found.stop:
        raise UserError(f"{data} cannot be trained on: {found.stop}")


def _print(found: Checked) -> None:
    from anyres.cli.console import report_, stdout

    console = stdout()
    splits = ", ".join(f"{split} {n}" for split, n in found.pictures.items() if n)
    used = sum(row.objects or 0 for row in found.classes)
    objects = f", {used} objects" + (f" of {found.annotations} annotations" if used != found.annotations else "")
    drawn = {"classify": "", "detect": objects, "segment": ", each with a class map"}
    sides = f"; short side {found.sides[0]} to {found.sides[2]} px, median {found.sides[1]}" if found.sides else ""
    n = len(found.classes)
    total = sum(found.pictures.values())
    report_(
        f"{found.data} ({found.form}): {total} pictures ({splits or 'none'}){drawn[found.task]}, "
        f"{n} class{'es' * (n != 1)}{sides}"
    )
    if found.classes:
        console.print(_class_table(found))
    if n > MOST_ROWS:
        report_(f"... {n - MOST_ROWS} more classes: --json has all")
    if found.boxes:
        console.print(_size_table(found))
    if found.faults.counts:
        console.print(_fault_table(found))
        for fault in found.faults.kept[:MOST_ROWS]:
            report_(fault.line)
        if len(found.faults.kept) > MOST_ROWS:
            report_(f"... {len(found.faults.kept) - MOST_ROWS} more lines in {found.written[-1]}")
    else:
        report_("no fault")
    report_(*(f"note: {note}" for note in found.notes))
    if found.written:
        report_(f"written: {', '.join(str(path) for path in found.written)}")


def _table(*columns: str, text: int = 1) -> Table:
    """A table whose first ``text`` columns are words, the others numbers."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < text else "right")
    return table


def _class_table(found: Checked) -> Table:
    what = {"classify": [], "detect": ["objects"], "segment": ["% of pixels"]}[found.task]
    table = _table("class", "pictures in train", "in val and test", *what)
    for row in found.classes[:MOST_ROWS]:
        more = (
            []
            if found.task == "classify"
            else [str(row.objects)]
            if row.pixels is None
            else [f"{100 * row.pixels:.1f}"]
        )
        table.add_row(row.name, str(row.train), str(row.other), *more)
    return table


def _size_table(found: Checked) -> Table:
    from anyres.runs.check import TINY

    heads = ("median", "95 %", f"below {TINY:g} px", "below 32 px", "above 96 px")
    table = _table("training size", "box side: 5 %", *heads)
    for row in found.boxes:
        shares = f"{100 * row.small:.0f} %", f"{100 * row.large:.0f} %"
        table.add_row(
            f"{row.size} px", f"{row.low:.1f}", f"{row.median:.1f}", f"{row.high:.1f}", str(row.tiny), *shares
        )
    return table


def _fault_table(found: Checked) -> Table:
    table = _table("fault", "done", "times", text=2)
    for (kind, done), count in found.faults.counts.most_common():
        table.add_row(kind, done, str(count))
    return table
