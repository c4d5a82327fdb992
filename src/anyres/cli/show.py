"""``anyres show``."""

from __future__ import annotations

from typing import Annotated

import typer

from anyres.cli.app import app
from anyres.cli.arguments import Overrides


@app.command()
def show(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|MODEL")],
    overrides: Overrides = None,
) -> None:
    """Print a recipe with every value written out, as a run would use it.

    Example: `anyres show demo/any_size train.epochs=5`
    """
    from anyres.recipe import dump_recipe, load_recipe

    print(dump_recipe(load_recipe(recipe, overrides or [])), end="")
