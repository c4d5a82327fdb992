"""What the package knows, as tables for a terminal: models, recipes, built-in data."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from anyres.config import UserError, nearest

SHOWN = (128, 160, 224, 384)  # of the sizes a model was published at


def show_models(pattern: str) -> None:
    """Print the models whose name matches ``pattern``: a line for each published way of training, top-1 by size."""
    from anyres.models.registry import ALIASES, CLAIMS, OURS, list_models

    names = list_models(pattern)
    if not names:
        raise UserError(f"no model matches {pattern!r}{nearest(pattern, list_models())}")
    tidy = {official: alias for alias, official in ALIASES.items()}
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("model", no_wrap=True)
    table.add_column("also called", no_wrap=True)
    table.add_column("trained at px")
    for size in SHOWN:
        table.add_column(str(size), justify="right", no_wrap=True)
    for name in names:
        if name in OURS:
            table.add_row(name, tidy.get(name), "ours")
        for i, claim in enumerate(CLAIMS.get(name, ())):
            called = (name, tidy.get(name)) if i == 0 else ("", "")
            trained = _sizes_of(claim.trained)
            table.add_row(*called, trained, *(f"{claim.top1[s]:.1f}" if s in claim.top1 else "" for s in SHOWN))
    Console(highlight=False).print(table)
    Console(highlight=False).print(
        "Numbers: top-1 % on ImageNet-1k as published, by test size in px; every model takes any size.\n"
        "ours: small, for quick work, in no paper."
    )


def _sizes_of(trained: str) -> str:
    """``at 224 px, fine-tuned at 384 px`` -> ``224, then 384``: short enough for a terminal of 80 columns."""
    for long, short in (("at ", ""), (" px", ""), (" and ", ", "), ("fine-tuned", "then")):
        trained = trained.replace(long, short)
    return trained


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

    Console(highlight=False, soft_wrap=True).print(describe(), markup=False)
