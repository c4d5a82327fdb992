"""``anyres show``."""

from __future__ import annotations

from typing import Annotated

import typer

from anyres.cli.app import app
from anyres.cli.arguments import Overrides
from anyres.config import UserError


@app.command()
def show(
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE|MODEL")] = None,
    overrides: Overrides = None,
    explain: Annotated[
        str | None,
        typer.Option("--explain", metavar="KEY", help="Say what a key means, its range and default; or a group's."),
    ] = None,
) -> None:
    """Print a recipe with every value written out, as a run would use it; or what a key means (`--explain optim.lr`).

    Example: `anyres show demo/any_size train.epochs=5`
    """
    from anyres.recipe import dump_recipe, load_recipe

    made = load_recipe(recipe, overrides or []) if recipe is not None else None
    if explain is not None:
        from anyres.cli.explain import explain as told

        print(told(explain, made))
    elif made is None:
        raise UserError("name a recipe or a model to show (`anyres recipes`, `anyres models`), or --explain KEY")
    else:
        print(dump_recipe(made), end="")
