"""Configuration as values: frozen dataclasses beside the code they configure, and one error for users' mistakes.

A leaf: nothing of anyres is imported here.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import Any, TypeVar, dataclass_transform

C = TypeVar("C")


class UserError(Exception):
    """A mistake the user can mend: shown as one line, without a traceback, and the process exits with code 2."""


class Stopped(BaseException):
    """Work was asked to stop by a signal and did, with everything saved: shown as one line, and the process exits with
    ``code``: 130 after Ctrl-C, else 143. Like KeyboardInterrupt it is no Exception, so that nothing swallows it."""

    def __init__(self, said: str, code: int = 130) -> None:
        super().__init__(said)
        self.code = code


class Damaged(UserError):
    """A file that this package wrote is not as it was written: whoever reads it falls back, or lets the line go up."""


class LoaderLost(UserError):
    """The processes that load images are gone or give nothing more: raised between two steps, so what was reached can
    be saved."""


def need(module: str, *, extra: str, purpose: str = "this") -> ModuleType:
    """Import an optional library, such as ``need("pyarrow", extra="data", purpose="reading parquet files")``.

    ``extra`` is the extra of this package that installs it. Raises UserError, with the command to run, if it is not
    installed; an error inside an installed library passes through.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != library:
            raise
        raise UserError(
            f"{purpose} needs {library}, which is not installed: run pip install 'anyres[{extra}]'"
        ) from None


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config(cls: type[C]) -> type[C]:
    """Class decorator: a frozen, keyword-only dataclass that pydantic (in recipe.py) reads without extra keys."""
    made = dataclass(frozen=True, kw_only=True)(cls)
    made.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    return made


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, marks that turn the direction of writing, and bytes of names that are no UTF-8."""


def printable(text: str, most: int | None = None) -> str:
    """``text`` as it may be shown and written: what a terminal or a file cannot take is spelled out, as ``\\x1b``.

    More than ``most`` characters (None: any number) are cut in the middle.
    """
    if most is not None and len(text) > most:
        text = f"{text[: most // 2]}...{text[-(most // 2 - 3) :]}"
    return _UNPRINTABLE.sub(_spelled, text)


def _spelled(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte of a name that is no UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def nearest(word: str, known: Iterable[str], count: int = 3) -> str:
    """``"; did you mean 'a' or 'b'?"`` for the known words nearest to ``word``, else an empty string."""
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=count, cutoff=0.5)
    return "; did you mean " + " or ".join(repr(by_lower[c]) for c in close) + "?" if close else ""


def override(base: C, values: Mapping[str, Any], what: str) -> C:
    """``base`` with ``values`` replaced. Raises UserError naming an unknown key and the nearest known one."""
    known = {f.name for f in fields(base)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise UserError(f"{what} has no option {key!r}{nearest(key, known)} (known: {', '.join(sorted(known))})")
    return replace(base, **values)  # type: ignore[type-var]
