"""The command line itself: the verbs' registry, options for every verb, and one door out for every mistake."""

from __future__ import annotations

import atexit
import functools
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_command

from anyres.config import Stopped, UserError
from anyres.ops.processors import prepare_threads
from anyres.training.stop import ended_by_signal, stopped_by

app = typer.Typer(
    help="Train one vision backbone that holds its accuracy at every input size, and run it at the cheapest size "
    "that does the job.",
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
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print results, warnings and errors alone: no progress, no remarks.")
    ] = False,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", help="Print the version and stop.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options before the verb hold for every verb."""
    if offline:
        os.environ["ANYRES_OFFLINE"] = "1"
    if quiet:
        from anyres.cli.console import silence

        silence()


def main() -> None:
    """The ``anyres`` command. Whatever ends it is one line on stderr and an exit code: see ``anyres.cli.ending``."""
    try:
        with ended_by_signal() as came:
            _main(came)
    except (Stopped, KeyboardInterrupt) as told:  # while the command line itself was imported
        print(str(told) or "stopped", file=sys.stderr)
        sys.exit(told.code if isinstance(told, Stopped) else 130)


def _main(came: Sequence[int]) -> NoReturn:
    from anyres.cli.alive import alive
    from anyres.cli.console import open_streams, say, start_logging
    from anyres.cli.others import quiet_others

    prepare_threads()
    words = sys.argv[1:] or ["--help"]
    open_streams()
    start_logging()
    quiet_others()
    with alive(words):
        code, line = _run(words, came)
    try:
        sys.stdout.flush()
    except OSError as error:
        if code == 0:
            error.filename = None if isinstance(error, BrokenPipeError) else "stdout"
            code, line = _ended(error)
        _discard_stdout()
    if line:
        say(line)
    sys.exit(code)


def command() -> NoReturn:
    """``main``, in a process of its own that ends when it is done: to free what PyTorch and the engines hold takes
    Python seconds, in which a terminal shows nothing.
    """
    code = 1

    def leave() -> None:  # the first to be registered is the last to be called: what others registered is done by then
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)

    atexit.register(leave)
    try:
        main()  # ends by SystemExit
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    sys.exit(code)


def _run(words: list[str], came: Sequence[int]) -> tuple[int, str]:
    """The exit code, and the line for stderr. ``came``: the signals so far."""
    streams = sys.stdout, sys.stderr
    try:
        code = _command()(words, prog_name="anyres", standalone_mode=False)
    except typer.TyperException as error:  # of the command line itself
        return 2, f"error: {error.format_message().rstrip('.')}{_hint(words)}"
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except SystemExit as error:  # typer's answer to a pipe that nobody reads
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        sys.stdout, sys.stderr = streams
        return _ended(error.__context__)
    except (Exception, Stopped) as error:
        # What a signal raises where a library is imported, the library may swallow, and fail as it is half there.
        return _ended(error if isinstance(error, Stopped) or not came else stopped_by(came[-1]))
    return (code, "stopped" if code == 130 else "") if isinstance(code, int) else (0, "")


def _command() -> Any:
    """The command of all verbs, each of which takes only numbers that are some."""
    command = get_command(app)
    groups: list[Any] = [command]
    while groups:
        for verb in groups.pop().commands.values():
            if isinstance(verb, TyperGroup):
                groups.append(verb)
            elif verb.callback:
                verb.callback = _with_numbers(verb.callback)
    return command


def _with_numbers(verb: Callable[..., Any]) -> Callable[..., Any]:
    """A verb that is refused for an option that is not finite, or beyond any use."""

    @functools.wraps(verb)
    def checked(**options: Any) -> Any:
        for name, value in options.items():
            if isinstance(value, int | float) and not abs(value) <= 2**53:
                raise UserError(f"--{name.replace('_', '-')} {value} is no number to work with: give another")
        return verb(**options)

    return checked


def _ended(error: Exception | Stopped) -> tuple[int, str]:
    from anyres.cli.ending import ending

    ended = ending(error)
    return ended.code, ended.line


def _discard_stdout() -> None:
    """What is left in the buffer goes nowhere, so that Python does not complain of it at the end."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _hint(words: list[str]) -> str:
    """Where to read on after a mistake in the command line itself."""
    verbs = [str(command.name or command.callback.__name__) for command in app.registered_commands if command.callback]
    if words[0] in verbs:
        return f" (`anyres {words[0]} --help` shows an example)"
    return " (`anyres --help` lists the verbs)"
