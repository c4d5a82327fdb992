"""What the package knows, as tables for a terminal: models, recipes, built-in data."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from anyres.config import UserError, nearest


def show_models(pattern: str) -> None:
    """Print the models whose name matches ``pattern``, with native size and published top-1 by size."""
    from anyres.models import list_models, variant

    names = list_models(pattern)
    if not names:
        raise UserError(f"no model matches {pattern!r}{nearest(pattern, list_models())}")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("model", "also called", "size", "trained", "published top-1 % by size"):
        table.add_column(column, overflow="fold")
    for name in names:
        known = variant(name)
        size = str(known.preprocessing["input_size"][-1])
        if known.ours:
            table.add_row(name, known.alias or "", size, "-", "ours, for quick work: no published number")
        for i, claim in enumerate(known.claims):
            row = (name, known.alias or "", size) if i == 0 else ("", "", "")
            table.add_row(*row, claim.trained, "  ".join(f"{s}: {t:.1f}" for s, t in claim.top1.items()))
    Console().print(table)


def show_recipes() -> None:
    """Print the recipes' names and what each is."""
    from anyres.recipe import list_recipes

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it is")
    for name, line in list_recipes().items():
        table.add_row(name, line)
    Console().print(table)


def show_data() -> None:
    """Print what the built-in sets hold, their licence and citation."""
    from anyres.data.builtin import describe

    Console(highlight=False).print(describe(), markup=False)
