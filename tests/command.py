"""The ``anyres`` command inside this process, as a user meets it: exit code, stdout, stderr."""

from __future__ import annotations

import contextlib
import io
import logging
import shlex
import threading
import warnings
from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

from typer.main import get_command

from anyres.cli import app, main

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
VERBS = sorted(COMMANDS)


class Answer(NamedTuple):
    code: int
    out: str
    err: str


def anyres(*words: object) -> Answer:
    """What ``anyres WORDS`` prints, and its exit code."""
    out, err = io.StringIO(), io.StringIO()
    patched = mock.patch("sys.argv", ["anyres", *map(str, words)])
    with patched, hooks_restored(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
            code = 0
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else int(bool(stopped.code))
    return Answer(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def hooks_restored() -> Iterator[None]:
    """Whatever a command changes for its process's log, warnings and threads is as before afterwards."""
    logs = [logging.getLogger(name) for name in ("", "anyres", "torch")]
    before = [(log, log.propagate, log.level, [(each, each.level) for each in log.handlers]) for log in logs]
    shown, ended = warnings.showwarning, threading.excepthook
    try:
        yield
    finally:
        for log, log.propagate, level, handlers in before:
            log.setLevel(level)
            log.handlers[:] = [each for each, _ in handlers]
            for handler, its_level in handlers:
                handler.setLevel(its_level)
        warnings.showwarning, threading.excepthook = shown, ended


def refused(*words: object) -> str:
    """The one line with which ``anyres WORDS`` is refused."""
    answer = anyres(*words)
    assert answer.code == 2, answer
    assert answer.err.startswith("error: "), answer.err
    assert answer.err.endswith("\n"), answer.err
    assert answer.err.count("\n") == 1, answer.err
    assert "Traceback" not in answer.err + answer.out
    return answer.err.strip()


def parse(line: str) -> str:
    """The verb of ``anyres VERB ...``, whatever stands before it.

    Raises what the command would for its options and, of a recipe, its keys and values. RECIPE stands for any recipe.
    """
    words = shlex.split(line, comments=True)
    place = next(i for i, word in enumerate(words) if word.split("/")[-1] == "anyres")
    options = [word for word in words[place + 1 :] if word not in ("--offline", "--quiet")]
    verb, *rest = options or ["--help"]
    if verb in ("-h", "--help", "--install-completion"):
        return verb
    assert verb in VERBS, f"{line!r}: there is no verb {verb!r}"
    if {"-h", "--help"} & set(rest):
        return verb
    command = COMMANDS[verb]
    if commands := getattr(command, "commands", {}):  # a verb of several, as `bench data`
        assert set(rest[:1]) & set(commands), f"{line!r}: {verb} is followed by one of {sorted(commands)}"
        command, rest = commands[rest[0]], rest[1:]
    given = command.make_context(verb, rest).params
    if verb in ("train", "show") and given["recipe"] and not given["recipe"].isupper():
        from anyres.recipe import load_recipe

        load_recipe(given["recipe"], given["overrides"] or [])
    return verb
