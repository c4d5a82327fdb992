"""Words of other programs on the command line: ``--epochs 5`` and ``epochs=5`` for ``train.epochs=5``.

The only list of them is ``anyres.settings.HABITS``; here they are found among a command's words.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand, TyperOption

from anyres.config import UserError, nearest
from anyres.settings import ELSEWHERE, HABITS, from_habit

log = logging.getLogger(__name__)
FLAGS = ("amp", "pretrained", "resume", "val", "exist_ok", "finetune")
"""Words that may stand without a value."""
_VALUES = ("true", "false", "yes", "no", "0", "1", "auto", "fp32", "bf16", "fp16")
"""What may follow a flag."""


class WithHabits(TyperCommand):
    """A command with KEY=VALUE, which takes other programs' options too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        options = {name: each for each in self.params if isinstance(each, TyperOption) for name in each.opts}
        takes = {name: not each.is_flag for name, each in options.items()}
        takes |= dict.fromkeys(self.get_help_option_names(ctx), False)
        return super().parse_args(ctx, translate(args, takes))


def translate(words: Sequence[str], takes: dict[str, bool]) -> list[str]:
    """A command's words with other programs' options as KEY=VALUE of ours, behind all others.

    ``takes``: the command's own options, and whether a value follows. A line of the log says what was taken for what.
    Raises UserError for a word that has another meaning here, naming ours.
    """
    kept: list[str] = []
    found: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, sign, value = word.partition("=")
        if word == "--":
            kept += [word, *rest]
            break
        if name in takes:
            kept += [word, *([rest.pop(0)] if takes[name] and not sign and rest else [])]
        elif name.startswith("--"):
            given, ours = _option(word, rest, takes)
            found[given] = ours
        elif sign and name.lower() == "device" and "--device" in takes:
            kept += ["--device", value]
        elif sign and _key(name) in HABITS:
            found[word] = from_habit(word)
        else:
            kept.append(word)
    if found:
        log.info("taken: %s", ", ".join(f"{theirs} as {ours}" for theirs, ours in found.items()))
    return [*kept, *found.values()]


def _option(word: str, rest: list[str], takes: dict[str, bool]) -> tuple[str, str]:
    """Another program's option as it was given and as KEY=VALUE; its value is taken from ``rest``. Raises UserError."""
    name, sign, value = word.partition("=")
    key = _key(name)
    if key.startswith("no_") and key[3:] in HABITS and key[3:] in FLAGS:
        return word, from_habit(f"{key[3:]}=false")
    if key in ELSEWHERE:
        raise UserError(f"there is no option {name}: {ELSEWHERE[key]}")
    if key not in HABITS:
        raise UserError(f"there is no option {name}{_meant(name, takes)}")
    if not sign and rest and (rest[0].lower() in _VALUES if key in FLAGS else not rest[0].startswith("--")):
        value = rest.pop(0)
    elif not sign and key not in FLAGS:
        raise UserError(f"{name} needs a value: {HABITS[key]}=VALUE")
    return f"{name} {value}".strip(), from_habit(f"{key}={value or 'true'}")


def _key(name: str) -> str:
    """A word as the lists have it."""
    return name.removeprefix("--").replace("-", "_").lower()


def _meant(name: str, takes: dict[str, bool]) -> str:
    """The nearest options, or the way to name any key."""
    own = [f"--{word.replace('_', '-')}" for word in HABITS]
    return nearest(name, [*takes, *own]) or "; a key of the recipe is given as KEY=VALUE (`anyres show --explain KEY`)"
