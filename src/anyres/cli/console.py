"""Where the command line prints: results on stdout, sentences and progress bars on stderr. The only rich.Console."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import rich
from rich.console import Console

from anyres.runs.stderr import StderrHandler

PIPE_WIDTH = 1000  # columns where a file or a program takes the output: a pipe has no edge to wrap at


def start_logging() -> None:
    """Show what anyres logs, from INFO on, and progress bars, on stderr. A second call does nothing."""
    log = logging.getLogger("anyres")
    if not any(isinstance(handler, StderrHandler) for handler in log.handlers):
        log.addHandler(StderrHandler())
        log.propagate = False
    log.setLevel(logging.INFO)
    rich.reconfigure(stderr=True, highlight=False, soft_wrap=False)


def stdout(width: int = PIPE_WIDTH) -> Console:
    """Where results go: as wide as the terminal, and at least ``width`` where a file or a program takes them."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else width)


def report_(*sentences: str) -> None:
    """Print result sentences on stdout, one line each however long, names as they are."""
    console = stdout()
    for sentence in sentences:
        console.print(sentence, markup=False, soft_wrap=True)


def print_json(values: dict[str, Any]) -> None:
    """Print plain values as JSON on stdout."""
    print(json.dumps(values, indent=1))


def is_stdout(path: Path | None) -> bool:
    """Whether ``--json`` names stdout."""
    return str(path) == "-"
