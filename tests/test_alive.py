"""A terminal is never silent for long, and nothing of that line stays on it."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest

from anyres.cli import alive as module
from anyres.cli.alive import alive
from anyres.runs.stderr import doing


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """stdout and stderr are a terminal from now on, and patience is short."""
    made = Terminal()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, made)
    monkeypatch.setattr(module, "FIRST_S", 0.1)
    monkeypatch.setattr(module, "LATER_S", 0.3)
    return made


def fail() -> None:
    with alive(["train"]):
        time.sleep(0.6)
        raise ValueError("no")


def screen(text: str) -> str:
    """What is left to be read, where each CLEAR empties the last line."""
    return re.sub(r"[^\n]*\r\x1b\[K", "", text)


def test_silence_is_broken_and_the_line_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch  # noqa: F401

    shown = terminal(monkeypatch)
    with alive(["train", "x"]):
        time.sleep(0.7)
        with doing("timing 9 sizes"):
            print("a result")
            time.sleep(0.9)
        print("the end", file=sys.stderr)
    said = shown.getvalue()
    assert "anyres train: working ... 0 s" in said
    assert "timing 9 sizes ... " in said
    assert screen(said) == "a result\nthe end\n"
    assert sys.stdout is shown
    assert sys.stderr is shown


def test_the_last_line_goes_where_the_work_ends_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = terminal(monkeypatch)
    with pytest.raises(ValueError, match="no"):
        fail()
    assert "working" in shown.getvalue()
    assert screen(shown.getvalue()) == ""


def test_nothing_is_drawn_in_a_pipe_or_when_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = terminal(monkeypatch)
    with alive(["--quiet", "train"]):
        time.sleep(0.5)
    monkeypatch.setattr(shown, "isatty", lambda: False)
    with alive(["train"]):
        time.sleep(0.5)
    assert shown.getvalue() == ""
