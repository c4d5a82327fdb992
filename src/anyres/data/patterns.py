"""The files that a pattern stands for: braces, ``*``, ``?``, ``[..]``, as in a shell; counted before they are made."""

from __future__ import annotations

import os
import re
from pathlib import Path

from braceexpand import braceexpand

from anyres.config import UserError
from anyres.data.raw_dataset import cut

MOST_FILES = 1_000_000
"""So many files a pattern may stand for."""


def expand(pattern: str) -> list[Path]:
    """``a-{00..12}.tar``, ``{train,val}/*.tar`` -> the files, in order. Raises UserError for one that is not there."""
    paths: list[Path] = []
    for word in words_of(pattern):
        found = _matching(Path(word))
        if not found or not all(path.is_file() for path in found):
            wrong = next((path for path in found if path.exists()), None)
            what = f"{wrong} is no file" if wrong else f"no file {cut(word)}"
            raise UserError(what + (f", of the pattern {cut(pattern)}" if word != pattern else ""))
        paths += found
    each: dict[str, Path] = {}
    for path in paths:
        each.setdefault(os.path.realpath(path), path)
    return list(each.values())


def words_of(pattern: str) -> list[str]:
    """What a shell makes of braces: ``{a,b}`` and ``{008..012}``, nested too, from left to right. Raises UserError
    for more than ``MOST_FILES``, before anything is expanded."""
    if countwords_of(pattern) > MOST_FILES:
        raise UserError(f"the pattern {cut(pattern)} stands for more than {MOST_FILES:,} files: give fewer")
    try:
        return list(braceexpand(pattern, escape=False))
    except (ValueError, RecursionError):  # one without its other: a file may be called so
        return [pattern]


def countwords_of(pattern: str) -> int:
    """How many words braces stand for, without making them; of unbalanced ones at least as many."""
    open_ones: list[tuple[int, int, int]] = []  # where its text begins, words of the branches before, words beside it
    here = 1  # words of the branch that is read
    for place, sign in enumerate(pattern):
        if sign == "{":
            open_ones.append((place + 1, 0, here))
            here = 1
        elif sign == "," and open_ones:
            start, before, beside = open_ones[-1]
            open_ones[-1], here = (start, before + here, beside), 1
        elif sign == "}" and open_ones:
            start, before, beside = open_ones.pop()
            ends = re.fullmatch(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?\d+)?", pattern[start:place])
            if ends and max(map(len, ends.groups())) > 18:
                return MOST_FILES + 1
            here = beside * (abs(int(ends[2]) - int(ends[1])) + 1 if ends else before + here)
    for _, before, beside in open_ones:
        here = beside * (before + here)
    return here


def _matching(pattern: Path) -> list[Path]:
    """The paths that ``*``, ``?`` and ``[..]`` of a pattern stand for, sorted; a path without them is itself."""
    wild = next((i for i, part in enumerate(pattern.parts) if re.search(r"[*?[]", part)), None)
    if wild is None:
        return [pattern]
    return sorted(Path(*pattern.parts[:wild]).glob(str(Path(*pattern.parts[wild:]))))
