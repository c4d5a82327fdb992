"""Processes that are timed: they end with their pipe, and one that dies says so."""

import os

import pytest

from anyres.config import UserError
from anyres.deploy.worker import Worker, matrix_product


def test_one_that_nobody_asks_to_build_ends_by_itself() -> None:
    with Worker(matrix_product, 1) as worker:
        assert worker.receive() is None
    assert worker.process.exitcode == 0


def die(code: int) -> str:
    os._exit(code)


def test_one_that_dies_is_one_line() -> None:
    with Worker(die, 7) as worker:
        worker.receive()
        with pytest.raises(UserError, match=r"a measuring process died \(exit code 7\)"):
            worker.build()
