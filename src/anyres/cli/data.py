"""``anyres data``."""

from __future__ import annotations

from anyres.cli.app import app


@app.command("data")
def data_sets() -> None:
    """Describe where images may come from, and the built-in sets: contents, licence, citation.

    Example: `anyres data`
    """
    from anyres.cli.listing import show_data

    show_data()
