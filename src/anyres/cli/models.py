"""``anyres models``."""

from __future__ import annotations

from typing import Annotated

import typer

from anyres.cli.app import app


@app.command()
def models(pattern: Annotated[str, typer.Argument(help="Names to list, with * and ?.")] = "*") -> None:
    """List the models, their sizes and published accuracies.

    Example: `anyres models "rest*"`
    """
    from anyres.cli.listing import show_models

    show_models(pattern)
