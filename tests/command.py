"""The ``anyres`` command inside this process, as a user meets it: exit code, stdout, stderr."""

from __future__ import annotations

import contextlib
import io
from typing import NamedTuple
from unittest import mock

from anyres.cli import main


class Answer(NamedTuple):
    code: int
    out: str
    err: str


def anyres(*words: object) -> Answer:
    """What ``anyres WORDS`` prints, and its exit code."""
    out, err = io.StringIO(), io.StringIO()
    patched = mock.patch("sys.argv", ["anyres", *map(str, words)])
    with patched, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
            code = 0
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else int(bool(stopped.code))
    return Answer(code, out.getvalue(), err.getvalue())


def refused(*words: object) -> str:
    """The one line with which ``anyres WORDS`` is refused."""
    answer = anyres(*words)
    assert answer.code == 2, answer
    assert answer.err.startswith("error: "), answer.err
    assert answer.err.endswith("\n"), answer.err
    assert answer.err.count("\n") == 1, answer.err
    assert "Traceback" not in answer.err + answer.out
    return answer.err.strip()
