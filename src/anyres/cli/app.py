"""The command line itself: the verbs' registry, options for every verb, and one door out for every mistake."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated

import typer

from anyres.config import Stopped, UserError
from anyres.ops.processors import prepare_threads
from anyres.training.stop import ended_by_signal

app = typer.Typer(
    help="Train one vision backbone that holds its accuracy at every input size, and run it at the cheapest size "
    "that does the job.",
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> bool:
    from importlib.metadata import version

    if asked:
        print(f"anyres {version('anyres')}")
        raise typer.Exit
    return asked


@app.callback()
def options(
    offline: Annotated[
        bool, typer.Option("--offline", help="Fetch nothing: only weights and images already in the cache.")
    ] = False,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", help="Print the version and stop.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options before the verb hold for every verb."""
    if offline:
        os.environ["ANYRES_OFFLINE"] = "1"


@ended_by_signal()
def main() -> None:
    """The ``anyres`` command. A user's mistake is one line on stderr and exit code 2."""
    from anyres.cli.console import start_logging

    prepare_threads()
    words = sys.argv[1:] or ["--help"]
    warnings.formatwarning = lambda message, *_, **__: f"note: {message}\n"  # for people: without file and line
    start_logging()
    try:
        code = app(words, prog_name="anyres", standalone_mode=False)
    except typer.TyperException as error:  # of the command line itself
        code = fail(f"{error.format_message().rstrip('.')}{_hint(words)}")
    except UserError as error:
        code = fail(str(error))
    except OSError as error:  # a full disk, a folder that may not be written
        if error.filename is None:
            raise
        code = fail(f"{error.filename}: {error.strerror}")
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.code)
    except typer.Abort:
        code = 130
    if code == 130:
        print("stopped", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def fail(text: str) -> int:
    """Print ``text`` as the one line a mistake is worth; returns the exit code."""
    print(f"error: {' '.join(text.splitlines())}", file=sys.stderr)
    return 2


def _hint(words: list[str]) -> str:
    """Where to read on after a mistake in the command line itself."""
    verbs = [str(command.name or command.callback.__name__) for command in app.registered_commands if command.callback]
    if words[0] in verbs:
        return f" (`anyres {words[0]} --help` shows an example)"
    return " (`anyres --help` lists the verbs)"
