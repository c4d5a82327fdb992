"""Write docs/settings.md: every key of a recipe, read from the dataclasses and the recipes of the package.

python docs/make_settings.py           # write
python docs/make_settings.py --check   # exit 1 if it is not up to date
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

from anyres.cli.explain import set_by_recipes, users
from anyres.recipe import recipe_settings
from anyres.settings import HABITS, REQUIRED, Setting, as_yaml

PAGE = Path(__file__).parent / "settings.md"
OPENING = """\
# Settings

Every key of a recipe, made by `docs/make_settings.py` from the code that reads it; a test compares. A key is given as
`key=value` behind `anyres train RECIPE`, as `optim.lr=3e-4`, or stands in a YAML file. `anyres show --explain KEY`
prints the same for one key, `anyres show RECIPE` every value of a recipe. Options of the models, below `model`, are in
the [reference](reference.md#model-options).

*May be*: a type with the range that is accepted while other keys have their defaults. *Recipes*: those of the package
that set the key otherwise; `deit/*` are all of a family."""
HABITS_HEAD = """\
## Names of other programs

`anyres train` reads these words as `--word VALUE` or `word=value`, and says what it took them for."""


def page() -> str:
    """The whole page."""
    used = set_by_recipes()
    parts = [OPENING]
    groups: dict[str, list[Setting]] = {}
    for setting in recipe_settings().values():
        groups.setdefault(group_of(setting), []).append(setting)
    for group, settings in groups.items():
        rows = [row(setting, users(setting, used.get(setting.name, {}))) for setting in settings]
        parts += [f"## {group}" if group else "## A run", *about(group), table(rows)]
    words = "\n".join(f"| `{word}` | `{key}` |" for word, key in HABITS.items())
    return "\n\n".join([*parts, HABITS_HEAD, f"| word | our key |\n|---|---|\n{words}"]) + "\n"


def group_of(setting: Setting) -> str:
    """The group that holds a key; empty for the recipe's own keys."""
    return setting.name.rpartition(".")[0]


def about(group: str) -> Iterator[str]:
    """What is said of a group."""
    if group:
        owner = next(setting.owner for setting in recipe_settings().values() if group_of(setting) == group)
        yield (inspect.getdoc(owner) or "").replace("``", "`")


def row(setting: Setting, recipes: list[str]) -> tuple[str, ...]:
    """The cells of a key."""
    default = "to be given" if setting.default is REQUIRED else f"`{as_yaml(setting.default)}`"
    return f"`{setting.name}`", default, setting.allowed, setting.meaning, "; ".join(recipes)


def table(rows: list[tuple[str, ...]]) -> str:
    """Cells as a table of Markdown."""
    lines = [("key", "default", "may be", "meaning", "recipes"), ("---",) * 5, *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def main() -> None:
    """Write the page, or with ``--check`` say whether it is up to date."""
    made = page()
    old = not PAGE.is_file() or PAGE.read_text() != made
    if "--check" in sys.argv:
        sys.exit("run python docs/make_settings.py: docs/settings.md changed" if old else 0)
    if old:
        PAGE.write_text(made)
        print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
