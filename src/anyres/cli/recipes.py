"""``anyres recipes``."""

from __future__ import annotations

from anyres.cli.app import app


@app.command()
def recipes() -> None:
    """List the recipes that come with the package.

    Example: `anyres recipes`
    """
    from anyres.cli.listing import show_recipes

    show_recipes()
