"""What a new user types: no more than with any peer, and commands that there are."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.command import parse

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("first_touch", ROOT / "benchmarks" / "first_touch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)

    sys.modules[spec.name] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


def typed(each: object) -> int:
    """Lines: commands, and a script's."""
    lines = [line for line in vars(each)["script"].splitlines() if line.strip()]
    return (len(vars(each)["typed"]) or bool(lines)) + len(lines)


def test_ours_needs_no_more_than_the_best_in_any_row(script: ModuleType) -> None:
    for task, name in script.TASKS.items():
        tries = [script.ALL[peer][task] for peer in script.PEERS if peer != "anyres"]
        peers = [typed(each) for each in tries if each.note != script.NO_SCRIPT]
        assert typed(script.ANYRES[task]) <= min(peers), name


def test_our_commands_are_there(script: ModuleType) -> None:
    for each in script.ANYRES.values():
        for command in each.typed:
            if command.startswith("anyres"):
                parse(command)
