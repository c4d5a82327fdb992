"""A run that is asked to stop loses nothing: by Ctrl-C, SIGTERM, SIGHUP or SIGUSR1, sent to it or to its whole process
group, in a step, in an evaluation, before the first step; and where a loader is killed or nobody reads what it says."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import multiprocessing
import os
import signal
import sys
import time
import weakref
from pathlib import Path

import pytest

from anyres.config import Stopped, UserError
from anyres.runs import train as wiring
from anyres.runs.stderr import StderrHandler
from anyres.runs.train import train_run
from anyres.training import checkpoint
from anyres.training.stop import AGAIN_S, Interrupted, Stop, ended_by_signal, exit_code
from tests.command import anyres
from tests.faults.small import SMALL, at_step, small
from tests.pictures import make_folder
from tests.runs import differences, listening


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "shapes", per_class=3)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was left alone."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train_run(small(data), out, report=False)
    return out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_whole_group_saves_the_step_in_hand(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    """Loaders are signalled first, as they would die first."""

    def group() -> None:
        workers = multiprocessing.active_children()
        assert workers
        for worker in workers:
            assert worker.pid is not None
            os.kill(worker.pid, number)
        signal.raise_signal(number)

    at_step(monkeypatch, 1, group)
    run, recipe = tmp_path / "run", small(data, "data.workers=2")
    with pytest.raises(Stopped, match="the same command continues") as stopped:
        train_run(recipe, run, report=False)
    assert stopped.value.code == code
    assert [folder.name for folder in checkpoint.found(run)] == ["step_000002"]
    assert not multiprocessing.active_children()
    train_run(recipe, run, report=False)
    assert not differences(whole, run)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_closed_terminal_and_slurms_warning_ask_too(number: signal.Signals) -> None:
    usual = signal.signal(number, signal.SIG_DFL)  # under nohup SIGHUP is ignored, and stays so
    before = signal.getsignal(number)
    with Stop() as stop:
        signal.raise_signal(number)
        assert (stop.asked, exit_code(number)) == (number, 143)
        with pytest.raises(Interrupted), stop.leaving():
            raise AssertionError("what can be left is not begun")
    assert signal.getsignal(number) == before
    signal.signal(number, usual)


def test_a_signal_in_an_evaluation_leaves_it_for_the_next_time(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice in the same one, then in the last."""
    score, calls = wiring.score_views, []

    def signalled(*given: object) -> dict[str, float]:
        calls.append(given)
        if len(calls) in (1, 2, 5):  # of the third and fourth, the average and the raw weights, none is signalled
            signal.raise_signal(signal.SIGTERM)
        return score(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(wiring, "score_views", signalled)
    for step in ("step_000003", "step_000003", "step_000006"):
        with pytest.raises(Stopped):
            train_run(small(data), tmp_path / "run", report=False)
        assert checkpoint.found(tmp_path / "run")[0].name == step
    train_run(small(data), tmp_path / "run", report=False)
    assert not differences(whole, tmp_path / "run")


def test_a_loader_that_is_killed_is_one_line_and_costs_no_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill() -> None:
        for worker in multiprocessing.active_children():
            worker.kill()

    at_step(monkeypatch, 1, kill)
    recipe = small(data, "data.workers=2", "train.epochs=20", "train.eval_every=0")
    with listening() as said, pytest.raises(UserError, match=r"loader process was killed by SIGKILL.*data\.workers"):
        train_run(recipe, tmp_path / "run", report=False)
    newest = checkpoint.found(tmp_path / "run")[0].name
    assert newest >= "step_000002"
    assert f"the state after step {int(newest[5:])} is saved" in said


def test_a_signal_before_the_first_step_is_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring, "open_images", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    answer = anyres("train", "restv2_nano", "--data", data, "--out", tmp_path / "run", *SMALL)
    assert answer == (143, "", "stopped by SIGTERM\n")


def test_what_was_ignored_under_nohup_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_by_signal():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            with pytest.raises(Stopped):
                signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_goes_on_where_nobody_reads_what_it_says(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with ``2>&1 | head``."""
    reader, writer = os.pipe()
    os.close(reader)
    raw = os.fdopen(writer, "wb", buffering=0)
    with io.TextIOWrapper(raw, write_through=True) as closed, listening() as said:
        monkeypatch.setattr(sys, "stderr", closed)
        handler = StderrHandler()
        logging.getLogger("anyres").addHandler(handler)
        try:
            train_run(small(data, "train.epochs=1"), tmp_path / "run", report=False)
        finally:
            logging.getLogger("anyres").removeHandler(handler)
    assert said
    assert (tmp_path / "run" / "model.safetensors").exists()


def lose(number: signal.Signals) -> None:
    """Raise a signal within a weak reference's callback, where Python only prints an exception, and work on."""

    class Held:
        pass

    held = Held()
    watched = weakref.ref(held, lambda _: signal.raise_signal(number))
    del held
    for _ in range(500):
        time.sleep(0.01)
    assert watched() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_not_lost_where_python_only_prints_an_exception(number: signal.Signals) -> None:
    with pytest.raises((Stopped, KeyboardInterrupt)), ended_by_signal():
        lose(number)
    with Stop() as stop:
        with pytest.raises(Interrupted), stop.leaving():
            lose(number)
        assert stop.asked == number
        time.sleep(2 * AGAIN_S)  # it does not come a third time


def test_a_signal_that_a_library_swallowed_ends_the_command_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some catch everything where they import what may be missing, and fail later, or not."""
    command_line = importlib.import_module("anyres.cli.app")  # anyres.cli.app is the application itself
    with ended_by_signal():
        with contextlib.suppress(Stopped):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGTERM"), Stop():
            raise AssertionError("a run is not begun")
    with Stop() as stop:
        assert stop.asked is None

    def half_imported() -> None:
        raise RecursionError

    monkeypatch.setattr(command_line, "_command", lambda: lambda *_, **__: half_imported())
    assert command_line._run(["recipes"], [signal.SIGTERM]) == (143, "stopped by SIGTERM")

    def while_it_is_imported(_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(command_line, "_main", while_it_is_imported)
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert (ended.value.code, capsys.readouterr().err) == (130, "stopped\n")
