"""Where the command line prints: results on stdout, sentences and progress bars on stderr. The only rich.Console."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import rich
from rich.console import Console, JustifyMethod, OverflowMethod
from rich.style import Style
from rich.text import Text

from anyres.config import printable
from anyres.runs.stderr import StderrHandler

MOST_LINE = 4000  # characters of a line on stderr; what is longer is cut in the middle
PIPE_WIDTH = 1000  # columns where a file or a program takes the output: a pipe has no edge to wrap at


def start_logging() -> None:
    """Show what anyres logs, from INFO on, and progress bars, on stderr. A second call does nothing."""
    log = logging.getLogger("anyres")
    if not any(isinstance(handler, StderrHandler) for handler in log.handlers):
        log.addHandler(StderrHandler())
        log.propagate = False
    log.setLevel(logging.INFO)
    rich.reconfigure(stderr=True, highlight=False, soft_wrap=False)


def silence() -> None:
    """Show of what anyres logs only warnings, and no progress bar."""
    logging.getLogger("anyres").setLevel(logging.WARNING)
    rich.reconfigure(stderr=True, highlight=False, force_terminal=False)


def open_streams() -> None:
    """Let every name be printed whatever the terminal's encoding, and nothing land in a file where a stream is closed.

    A process that was started without stdout or stderr would give their numbers to the next files it opens.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            with suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                if nowhere != number:
                    os.dup2(nowhere, number)
                    os.close(nowhere)
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(line: str) -> None:
    """Print one line on stderr, whatever stands in it; where nobody reads it any more, nothing."""
    with suppress(OSError, ValueError):
        print(printable(" ".join(line.splitlines()), MOST_LINE), file=sys.stderr, flush=True)


class _Results(Console):
    """A console on which names are data: no markup, no emoji, no control character, in tables as in sentences.

    It raises where nobody reads it any more, as ``print`` does; rich's own ends the process.
    """

    def render_str(
        self,
        text: str,
        *,
        style: str | Style = "",
        justify: JustifyMethod | None = None,
        overflow: OverflowMethod | None = None,
        emoji: bool | None = None,
        markup: bool | None = None,
        highlight: bool | None = None,
        highlighter: Callable[[str | Text], Text] | None = None,
    ) -> Text:
        """A sentence, a cell or a title as rich shows it; a cell may have several lines."""
        plain = "\n".join(printable(line, MOST_LINE) for line in text.split("\n"))
        return super().render_str(
            plain,
            style=style,
            justify=justify,
            overflow=overflow,
            emoji=emoji,
            markup=markup,
            highlight=highlight,
            highlighter=highlighter,
        )

    def on_broken_pipe(self) -> None:
        """Called where BrokenPipeError is handled."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def stdout(width: int = PIPE_WIDTH) -> Console:
    """Where results go: as wide as the terminal, and at least ``width`` where a file or a program takes them."""
    return _Results(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else width)


def report_(*sentences: str) -> None:
    """Print result sentences on stdout, one line each however long, names as they are."""
    console = stdout()
    for sentence in sentences:
        console.print(" ".join(sentence.splitlines()), soft_wrap=True)


def suggest(*commands: str) -> None:
    """Say which commands come next, on stderr; of `anyres --quiet` nothing."""
    logging.getLogger("anyres").info("next: %s", "  or  ".join(f"`{command}`" for command in commands))


def print_json(values: dict[str, Any]) -> None:
    """Print plain values as JSON on stdout."""
    print(json.dumps(values, indent=1))


def is_stdout(path: Path | None) -> bool:
    """Whether ``--json`` names stdout."""
    return str(path) == "-"
