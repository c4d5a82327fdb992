"""Draw who imports whom in src/anyres, from the imports themselves: docs/structure.png.

    python benchmarks/draw_structure.py

Rooms stand on the diagonal, in the layers of pyproject.toml's contract (shaded in turn). A room imports what stands to
its right: a line goes from it to the column of the imported room, and down. The number at the corner counts imports
between modules, in functions too.
"""

from __future__ import annotations

import argparse
import ast
import tomllib
from collections import Counter
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / "src" / "anyres"
WHAT = {
    "cli": "one file per verb",
    "serve": "HTTP server",
    "runs": "joins the rooms",
    "recipe": "YAML to configs",
    "tasks": "what a target is",
    "deploy": "folding, engines, cascade",
    "maps": "what a model looks at",
    "training": "loop, objectives, checkpoints",
    "evaluation": "metrics, curve, report page",
    "models": "one file per family",
    "data": "files to batches",
    "ops": "shared math",
    "flow": "nouns that travel",
    "config": "UserError, configs",
    "storage": "atomic files, locks",
}
WIDTH, HEIGHT = 1.7, 0.7  # of a box
STEP_X, STEP_Y = 1.62, 1.0  # from one room to the next
COLORS = ("#3b6fb6", "#b6643b", "#3b9c6e", "#8a4fa8", "#a8933b", "#b63b6a", "#3b9fb6", "#6e6e6e", "#55803b")


def layers() -> list[list[str]]:
    """The rooms that exist, layer by layer, highest first."""
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    given = next(contract for contract in contracts if contract["type"] == "layers")["layers"]
    rows = [[room.strip(" ()") for room in layer.split("|")] for layer in given]
    return [kept for row in rows if (kept := [room for room in row if files(room)])]


def files(room: str) -> list[Path]:
    """The modules of a room."""
    single = SOURCE / f"{room}.py"
    return [single] if single.exists() else sorted((SOURCE / room).rglob("*.py"))


def imports(rooms: list[str]) -> Counter[tuple[str, str]]:
    """How often modules of one room import modules of another, in functions too."""
    found: Counter[tuple[str, str]] = Counter()
    for room in rooms:
        for file in files(room):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if names == ["anyres"] and isinstance(node, ast.ImportFrom):
                    names = [f"anyres.{alias.name}" for alias in node.names]
                for name in names:
                    parts = name.split(".")
                    if parts[0] == "anyres" and len(parts) > 1 and parts[1] in rooms and parts[1] != room:
                        found[room, parts[1]] += 1
    return found


def draw(out: Path) -> None:
    """The picture, as PNG."""
    rows = layers()
    rooms = [room for row in rows for room in row]
    counts = imports(rooms)
    place = {room: (i * STEP_X, -i * STEP_Y) for i, room in enumerate(rooms)}
    figure = Figure(figsize=(1.02 * len(rooms) + 1.2, 0.66 * len(rooms) + 0.4), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.005, 0.005, 0.99, 0.99))
    axes.set_axis_off()
    left, right = -1.5 * WIDTH, len(rooms) * STEP_X - 0.2
    for i, row in enumerate(rows):  # a band for each layer
        top = place[row[0]][1] + STEP_Y / 2
        if i % 2 == 0:
            axes.add_patch(Rectangle((left, top - len(row) * STEP_Y), right - left, len(row) * STEP_Y, fc="#f1f3f6"))
    for (importer, imported), count in counts.items():
        (x0, y0), (x1, y1) = place[importer], place[imported]
        color = COLORS[rooms.index(importer) % len(COLORS)]
        axes.plot((x0 + WIDTH / 2, x1), (y0, y0), color=color, lw=1.2, zorder=1)
        axes.plot((x1, x1), (y0, y1 + HEIGHT / 2), color="#9aa0a8", lw=1.0, zorder=1)
        size = 130 + 9 * min(count, 60)
        axes.scatter([x1], [y0], s=size, color="white", edgecolor=color, linewidth=1.4, zorder=3)
        axes.text(x1, y0, str(count), ha="center", va="center", fontsize=8, color=color, zorder=4)
    for room in {imported for _, imported in counts}:
        x, y = place[room]
        axes.annotate(
            "", (x, y + HEIGHT / 2), (x, y + HEIGHT / 2 + 0.2), arrowprops={"arrowstyle": "-|>", "color": "#6c727a"}
        )
    for room, (x, y) in place.items():
        lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files(room))
        color = COLORS[rooms.index(room) % len(COLORS)]
        corner = (x - WIDTH / 2, y - HEIGHT / 2)
        axes.add_patch(
            FancyBboxPatch(
                corner, WIDTH, HEIGHT, boxstyle="round,pad=0,rounding_size=0.08", fc="white", ec=color, lw=1.8
            )
        ).set_zorder(5)
        axes.text(x, y + 0.13, room, ha="center", va="center", fontsize=11, fontweight="bold", color=color, zorder=6)
        many = f"{len(files(room))} files, " if len(files(room)) > 1 else ""
        axes.text(x, y - 0.17, f"{many}{lines:,} lines", ha="center", va="center", fontsize=7.2, color="#555", zorder=6)
        axes.text(x - WIDTH / 2 - 0.12, y, WHAT.get(room, ""), ha="right", va="center", fontsize=8.5, color="#444")
    axes.text(
        left + 0.1,
        place[rooms[-1]][1] + 0.9 * STEP_Y,
        "Follow a row to the right:\nwhat the room imports.\nFollow a column up:\nwho imports the room.\n"
        "The number counts imports\nbetween modules.",
        fontsize=9,
        va="center",
        color="#444",
    )
    axes.set_xlim(left, right)
    axes.set_ylim(place[rooms[-1]][1] - STEP_Y / 2, STEP_Y / 2)
    figure.savefig(out, facecolor="white")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "structure.png")
    draw(parser.parse_args().out)


if __name__ == "__main__":
    main()
