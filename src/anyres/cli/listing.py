"""What the package knows, as tables for a terminal: models, recipes, built-in data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from anyres.cli.console import report_, stdout
from anyres.config import UserError, nearest

if TYPE_CHECKING:
    from rich.console import Console

    from anyres.models.index import Weights
    from anyres.models.zoo import ModelStats

SHOWN = (128, 224, 384, 512)  # of the sizes a model was published at, beside its native one
WIDE = 114  # columns from which a model's numbers stand on one line


def show_models(pattern: str) -> None:
    """Print the models whose name matches ``pattern`` as a table; a single one with all that is known of it."""
    from anyres.models.registry import list_models, model_names

    names = list_models(pattern)
    if not names:
        raise UserError(f"no model matches {pattern!r}{nearest(pattern, model_names())}")
    console = stdout(WIDE)
    if len(names) == 1:
        _show_model(console, names[0])
    else:
        _list_models(console, names)


def _list_models(console: Console, names: list[str]) -> None:
    from anyres.models.index import known_weights
    from anyres.models.registry import known_stats
    from anyres.models.zoo import OURS

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("model", no_wrap=True)
    for heading in ("params", "MACs", "px"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("top-1 %", "licence", "files"):
        table.add_column(heading, no_wrap=True)
    for name in names:
        stats, rows = known_stats(name), known_weights(name)
        best: dict[int, float] = {}
        for row in rows:
            for size, top1 in row.top1.items():
                if size in (*SHOWN, stats.size if stats else None):
                    best[size] = max(top1, best.get(size, 0.0))
        how = _weights(rows)
        table.add_row(
            name,
            *_cost(stats),
            (" " if console.width >= WIDE else "\n").join(f"{best[size]:.1f}@{size}" for size in sorted(best)),
            "" if how == "none" else (rows[0].licence or "not stated").partition(" (")[0],
            "ours" if name in OURS else how,
        )
    console.print(table)
    console.print(
        "MACs: for one image of px. top-1: the best published on ImageNet-1k @ test size; every model takes any size. "
        "files: weights that anyres can fetch; hand: a person can, where authors put them; ours: small, in no paper. "
        "One model's weights and other names: `anyres models NAME`."
    )


def _weights(rows: tuple[Weights, ...]) -> str:
    """How a model's weights can be had."""
    fetched = sum(row.url is not None for row in rows)
    if fetched:
        return str(fetched)
    return "none" if all(row.published == "not released" for row in rows) else "hand"


def _show_model(console: Console, name: str) -> None:
    from anyres.models.index import known_weights
    from anyres.models.registry import aliases, known_stats
    from anyres.models.zoo import OURS

    stats, rows = known_stats(name), known_weights(name)
    parameters, macs, size = _cost(stats)
    tidy = [alias for alias, official in aliases().items() if official == name]
    console.print(Text.assemble((name, "bold"), f", also called {', '.join(tidy)}" if tidy else ""))
    if stats:
        what = f"{parameters} parameters, {macs} multiply-accumulates for one image of {size} px"
        console.print(f"{what}; takes any size")
    else:
        console.print("a model of another package: what it costs is not written down")
    if name in OURS:
        console.print("ours, small, for quick work; in no paper")
    for row in rows:
        found = [f"{top1:.2f} @ {size}" for size, top1 in row.top1.items()]
        found += [f"{row.knn} by k-NN"] if row.knn else []
        found += [f"{row.linear} by a linear probe"] if row.linear else []
        numbers = f": top-1 % {', '.join(found)} ({row.source})" if found else ""
        console.print()
        console.print(Text.assemble((row.name, "bold"), f", {row.trained}{numbers}"), soft_wrap=True)
        console.print(f"  {row.url or row.published}; {row.licence or 'licence not stated'}", soft_wrap=True)
    fetchable = next((row.name for row in rows if row.url), None)
    if fetchable:
        console.print()
        console.print(f"anyres.create_model({name!r}, pretrained={fetchable!r})", soft_wrap=True)


def _cost(stats: ModelStats | None) -> tuple[str, str, str]:
    """Parameters, MACs and native size for people; empty where nobody wrote them down."""
    return (f"{stats.parameters / 1e6:.1f} M", f"{stats.macs / 1e9:.1f} G", str(stats.size)) if stats else ("", "", "")


def show_recipes() -> None:
    """Print the recipes' names and what each is."""
    from anyres.recipe import list_recipes

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it is")
    for name, line in list_recipes().items():
        table.add_row(name, line)
    stdout().print(table)


def show_data() -> None:
    """Print the forms of ``--data``, and what the built-in sets hold, their licence and citation."""
    from anyres.data.builtin import describe

    report_(*describe().splitlines())
