"""Configuration as values: frozen dataclasses beside the code they configure, and one error for users' mistakes.

A leaf: nothing of anyres is imported here.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import Any, TypeVar, dataclass_transform

C = TypeVar("C")


class UserError(Exception):
    """A mistake the user can mend: shown as one line, without a traceback, and the process exits with code 2."""


class Stopped(Exception):
    """Work was asked to stop and did, with everything saved: shown as one line, and the process exits with 130."""


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
