"""Training runs in processes of their own: started, killed at a step, compared bit for bit."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

# Each run is forked from a server that has imported everything once: that takes ten times as long as a small run.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.preload"])

STEPS = 60
MESSY = shlex.split(  # everything that draws numbers or keeps state; epochs of 5 steps, checkpoints off their beat
    "train restv2_nano model.dims=[16,32,64,128] model.depths=[1,1,1,1] model.drop_path=0.2 views.sizes=[40,32] "
    "data.batch_size=6 data.repeats=3 augment.erasing=0.5 augment.blur=0.3 augment.solarize=0.2 mix.mixup=0.8 "
    "mix.cutmix=1.0 mix.smoothing=0.1 train.epochs=12 train.eval_every=4 train.log_every=1 train.checkpoint_every=3 "
    "train.ema_decay=0.99 evaluate.sizes=[32]"
)


class Run:
    """``anyres`` with ``words`` and ``values``, on ``processes`` processes that speak gloo, in the folder ``out``.

    ``before``: a function of a module, called in each process first.
    """

    def __init__(
        self,
        data: Path,
        out: Path,
        *values: str,
        processes: int = 1,
        words: Sequence[str] = MESSY,
        before: Callable[[], None] | None = None,
    ) -> None:
        self.out, self.words = out, [*words, "--data", str(data), "--out", str(out), *values]
        self.processes: list[BaseProcess] = []
        self._count, self._before = processes, before

    def start(self) -> Run:
        world = {"WORLD_SIZE": str(self._count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        self.processes = []
        for rank in range(self._count):
            self._said(rank).unlink(missing_ok=True)
            place = world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if self._count > 1 else {}
            process = SERVER.Process(target=_anyres, args=(self.words, self._said(rank), place, self._before))
            process.start()
            self.processes.append(process)
        return self

    def reach(self, step: int) -> Run:
        """Return when ``step`` steps are recorded."""
        reach(self.out, step, lambda: all(process.is_alive() for process in self.processes))
        return self

    def send(self, number: signal.Signals, rank: int = 0) -> None:
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def kill(self) -> None:
        """SIGKILL to all its processes."""
        for rank, process in enumerate(self.processes):
            self.send(signal.SIGKILL, rank)
            process.join()
        assert not (self.out / "model.safetensors").exists(), "it was done before"

    def wait(self, code: int = 0) -> str:
        """What the first process has said when all have ended with ``code``."""
        for rank, process in enumerate(self.processes):
            process.join(240)
            assert process.exitcode == code, self._said(rank).read_text()
        return self._said().read_text()

    def _said(self, rank: int = 0) -> Path:
        return self.out.with_name(f"{self.out.name}.{rank}.txt")


@contextmanager
def listening() -> Iterator[list[str]]:
    """The sentences that anyres logs meanwhile, with or without a command line that prints them."""
    said: list[str] = []
    handler, log = logging.Handler(), logging.getLogger("anyres")
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield said
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def record_curve(run: Path, out: Path | None = None, data: Path | None = None, sizes: Sequence[int] = (24, 32)) -> None:
    """What `anyres curve` keeps of a run's answers and results, without pictures and page."""
    from anyres.evaluation.curve_file import write_csv
    from anyres.evaluation.scores_file import SCORES, write_scores
    from anyres.flow import Size
    from anyres.runs.opened import DataSpec, open_run
    from anyres.runs.report import kept_scores

    trained = open_run(run)
    images = trained.images(DataSpec(str(data) if data else None))
    measured = trained.measure(images, [Size(side, side) for side in sizes])
    write_csv([found.result for found in measured], (out or run) / "curve.csv")
    write_scores(kept_scores(trained, images, measured), (out or run) / SCORES)


def _anyres(words: list[str], said: Path, world: dict[str, str], before: Callable[[], None] | None) -> None:
    os.environ.update(world)
    say_to(said)
    if before:
        before()
    anyres(words)


def say_to(said: Path) -> None:
    """Let this process, and what it starts, write what it says to the end of a file."""
    with said.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def anyres(words: list[str]) -> None:
    """``anyres WORDS`` in this process, without the report, which is another test's matter."""
    from anyres.cli import main
    from anyres.runs import train as run

    sys.argv = ["anyres", *words]
    run.train_run = partial(run.train_run, report=False)
    main()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def recorded(out: Path) -> int:
    """The number of steps that the run has recorded."""
    path = out / "metrics.jsonl"
    return path.read_text().count('"loss"') if path.exists() else 0


def reach(out: Path, step: int, alive: Callable[[], bool]) -> None:
    """Return when the run has recorded ``step`` steps."""
    deadline = time.monotonic() + 240
    while recorded(out) < step:
        assert alive(), f"{out} ended before step {step}"
        assert time.monotonic() < deadline, f"{out} never reached step {step}"
        time.sleep(0.005)


def differences(a: Path, b: Path) -> list[str]:
    """In what two finished runs differ, bit for bit: records, weights, moving average, optimiser, progress."""
    from anyres.training.checkpoint import found

    pairs = [(a, b), (found(a)[0], found(b)[0])]  # the folders of the runs, and their last checkpoints
    files = [(one / name, two / name) for one, two in pairs for name in FILES if (one / name).exists()]
    different = [str(one.relative_to(a)) for one, two in files if one.read_bytes() != two.read_bytes()]
    states = [torch.load(folder / "optimizer.pt", weights_only=True) for folder in pairs[1]]
    progress = [
        json.loads((folder / "state.json").read_text())["progress"] | {"seconds": 0, "elapsed": 0}
        for folder in pairs[1]
    ]
    nests = {"optimiser": states, "progress": progress}
    return different + [name for name, (one, two) in nests.items() if not _same(one, two)]


def to_earlier_version(run: Path) -> None:
    """Make a finished run's folder what anyres wrote before there were tasks: its recipe and weights name none."""
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    del recipe["task"], recipe["objective"]["name"], recipe["objective"]["options"], recipe["data"]["channels"]
    if dino := recipe["objective"]["dino"]:
        dino["centre_momentum"] = dino.pop("center_momentum")
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    with safe_open(run / "model.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["anyres"])
    del about["task"], about["sha256"]
    save_file(load_file(run / "model.safetensors"), run / "model.safetensors", {"anyres": json.dumps(about)})


def forget_the_end(run: Path) -> None:
    """Leave of a finished run what a crash before its last checkpoint would leave."""
    newest = max(run.glob("step_*"), key=lambda folder: int(folder.name[5:]))
    shutil.rmtree(newest)
    for name in ("model.safetensors", "run.json", "report.html"):
        (run / name).unlink(missing_ok=True)


FILES = ("metrics.jsonl", "model.safetensors", "last.safetensors", "ema.safetensors")


def _same(a: Any, b: Any) -> bool:
    """Whether two nests of tensors and values are the same bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)
