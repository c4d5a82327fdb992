"""Faults of every kind against a short training run: how each try ends, and whether the same command then ends as ever.

    python benchmarks/faults.py [--seed N] [--tries N] [--jobs N] [--kinds kill,disk,signal,early,halfway,finished]

The run has augmentation, a moving average, checkpoints every two steps, evaluation, curve and page. Its tries:

* killed at the n-th operation that changes its folder (create, write, fsync, rename, remove, make a folder), every n;
* the disk full from the n-th of them on, every n (a preloaded library, benchmarks/faults.c, compiled by gcc, answers
  ENOSPC to whatever needs space);
* SIGTERM, SIGINT, SIGHUP or SIGUSR1 to its whole process group at a random moment, with no loader and with two,
  and from the moment its Python starts;
* a bit flipped, or the end cut off, in a file of its folder after a kill in mid-run;
* the same damage in a file of the finished folder, which then answers `predict`.

After each, the same command is given again without a fault. "same bits": metrics, weights, moving average, optimizer
and progress equal those of a run left alone. "debris": files that a run left alone does not have. Needs gcc.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import platform
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

SERVER = multiprocessing.get_context("forkserver")
LIBRARY = "ANYRES_FAULTS"
WORDS = shlex.split(
    "train restv2_nano model.dims=[8,16,32,64] model.depths=[1,1,1,1] views.sizes=[32,24] data.batch_size=6 "
    "data.workers=0 augment.erasing=0.5 mix.mixup=0.8 train.epochs=3 train.eval_every=2 train.log_every=1 "
    "train.checkpoint_every=2 train.ema_decay=0.9 evaluate.sizes=[24,32]"
)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
PATIENCE_S = 900.0  # a machine with neighbors may be slow


@dataclass
class Ended:
    """How a process ended: its exit code (negative: killed by that signal), what it printed, whether it hung."""

    code: int
    said: str
    hung: bool = False

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.said

    @property
    def one_line(self) -> bool:
        return self.code in (2, 130, 143) and not self.traceback


@dataclass
class Tally:
    """The tries of one kind."""

    tries: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, *outcomes: str) -> None:
        self.tries += 1
        for outcome in outcomes:
            self.counts[outcome] += 1
            self.examples.setdefault(outcome, name)


def child(words: list[str], said: Path, kill_at: int, full_from: int, out: str) -> None:
    """``anyres WORDS`` in a process of its own group, armed."""
    os.setsid()
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    library = ctypes.CDLL(os.environ[LIBRARY])
    library.faults_arm(f"{out}/".encode(), ctypes.c_long(kill_at), ctypes.c_long(full_from))
    from anyres.cli import main
    from anyres.runs import opened

    opened.TIMED_S = 0.05  # nothing here asks how exact the page's timings are
    sys.argv = ["anyres", *words]
    try:
        main()
    finally:
        said.with_suffix(".count").write_text(str(library.faults_count()))


def fork(words: list[str], said: Path, out: Path, kill_at: int = 0, full_from: int = 0) -> multiprocessing.Process:
    process = SERVER.Process(target=child, args=(words, said, kill_at, full_from, str(out)))
    process.start()
    return process  # type: ignore[return-value]


def wait(process: multiprocessing.Process, said: Path) -> Ended:
    process.join(PATIENCE_S)
    if hung := process.is_alive():
        os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
    text = said.read_text(errors="replace") if said.exists() else ""
    return Ended(process.exitcode if process.exitcode is not None else -9, text, hung)


@dataclass
class Bench:
    """A folder for all tries, and the run left alone that each is compared with."""

    folder: Path
    rng: random.Random

    def __post_init__(self) -> None:
        from tests.pictures import make_folder

        self.data, self.base = make_folder(self.folder / "shapes", per_class=6), self.folder / "alone"
        self.run(self.folder / "first")  # the server of forks imports everything
        begun = time.perf_counter()
        ended = self.run(self.base)
        self.seconds = time.perf_counter() - begun
        assert ended.code == 0, ended.said
        self.operations = int(self.said(self.base).with_suffix(".count").read_text())
        self.picture = next(path for path in self.data.rglob("*") if path.is_file())
        self.answer = self.predict(self.base).said

    def said(self, out: Path) -> Path:
        return out.with_name(f"{out.name}.txt")

    def words(self, out: Path, *values: str) -> list[str]:
        return [*WORDS, "--data", str(self.data), "--out", str(out), *values]

    def run(self, out: Path, *values: str, kill_at: int = 0, full_from: int = 0) -> Ended:
        return wait(fork(self.words(out, *values), self.said(out), out, kill_at, full_from), self.said(out))

    def predict(self, out: Path) -> Ended:
        said = out.with_name(f"{out.name}.answer.txt")
        return wait(fork(["predict", str(out), str(self.picture)], said, out), said)

    def again(self, out: Path) -> list[str]:
        """What is wrong after the same command is given again without a fault."""
        from tests.runs import differences

        ended = self.run(out)
        if ended.hung:
            return ["hang"]
        if ended.traceback:
            return ["traceback"]
        if ended.code:
            return ["one line" if ended.one_line else "other ending"]
        extra = names(out) - names(self.base)
        wrong = ["other result"] if differences(self.base, out) else ["same bits"]
        return [*wrong, *(f"debris: {min(extra)}" for _ in range(bool(extra)))]

    def forget(self, out: Path) -> None:
        shutil.rmtree(out, ignore_errors=True)
        for path in out.parent.glob(f"{out.name}.*"):
            path.unlink()

    # the kinds: each yields (name, the try: what came of it)

    def kills(self, tries: int) -> Iterator[tuple[str, Callable[[Path], list[str]]]]:
        for n in spread(self.operations, tries):
            yield f"killed at operation {n}", partial(self._killed, n)

    def _killed(self, n: int, out: Path) -> list[str]:
        self.run(out, kill_at=n)
        return self.again(out)

    def full_disks(self, tries: int) -> Iterator[tuple[str, Callable[[Path], list[str]]]]:
        for n in spread(self.operations, tries):
            yield f"no space from operation {n}", partial(self._full, n)

    def _full(self, n: int, out: Path) -> list[str]:
        return [*first(self.run(out, full_from=n)), *self.again(out)]

    def signals(self, tries: int) -> Iterator[tuple[str, Callable[[Path], list[str]]]]:
        for i in range(tries):
            number, loaders = SIGNALS[i % 4], (0, 2)[i // 4 % 2]
            moment = self.rng.uniform(0, self.seconds * (1 + loaders / 4))
            yield f"{number.name} after {moment:.2f} s, {loaders} loaders", partial(self._told, number, loaders, moment)

    def _told(self, number: signal.Signals, loaders: int, moment: float, out: Path) -> list[str]:
        process = fork(self.words(out, f"data.workers={loaders}"), self.said(out), out)
        time.sleep(moment)
        try:
            os.killpg(process.pid or 0, number)
        except ProcessLookupError:  # not yet its own group, or done
            if process.is_alive():
                os.kill(process.pid or 0, number)
        return [*first(wait(process, self.said(out)), told=True), *self.again(out)]

    def early_signals(self, tries: int) -> Iterator[tuple[str, Callable[[Path], list[str]]]]:
        for i in range(tries):
            number, moment = SIGNALS[i % 4], self.rng.uniform(0.2, 6)
            yield f"{number.name} {moment:.2f} s after the start of Python", partial(self._early, number, moment)

    def _early(self, number: signal.Signals, moment: float, out: Path) -> list[str]:
        with self.said(out).open("w") as said:
            words = [sys.executable, "-m", "anyres", *self.words(out)]
            process = subprocess.Popen(words, stdout=said, stderr=said, start_new_session=True)
            time.sleep(moment)
            process.send_signal(number)
            try:
                code, hung = process.wait(PATIENCE_S), False
            except subprocess.TimeoutExpired:
                process.kill()
                code, hung = -9, True
        return [*first(Ended(code, self.said(out).read_text(errors="replace"), hung), told=True), *self.again(out)]

    def damage(self, tries: int) -> Iterator[tuple[str, Callable[[Path], list[str]]]]:
        half = self.folder / "half"
        self.run(half, kill_at=self.operations * 6 // 10)
        for name, spoil in self._spoilt(half, tries):
            yield f"mid-run: {name}", partial(self._damaged, half, spoil)

    def _damaged(self, half: Path, spoil: Callable[[Path], None], out: Path) -> list[str]:
        shutil.copytree(half, out)
        spoil(out)
        return self.again(out)

    def finished(self, tries: int) -> Iterator[tuple[str, Callable[[Path], list[str]]]]:
        for name, spoil in self._spoilt(self.base, tries):
            yield f"finished: {name}", partial(self._asked, spoil)

    def _asked(self, spoil: Callable[[Path], None], out: Path) -> list[str]:
        shutil.copytree(self.base, out)
        spoil(out)
        ended = self.predict(out)
        if ended.code == 0:
            return ["same bits" if ended.said == self.answer else "other answer"]
        return first(ended)

    def _spoilt(self, run: Path, tries: int) -> Iterator[tuple[str, Callable[[Path], None]]]:
        files = sorted(path.relative_to(run) for path in run.rglob("*") if path.is_file())
        for i in range(tries):
            file = files[i % len(files)]
            size = (run / file).stat().st_size
            at, bit = self.rng.randrange(max(size, 1)), self.rng.randrange(8)
            if i // len(files) % 4 == 3:
                yield f"{file} cut at byte {at}", partial(cut, file, at)
            else:
                yield f"{file} bit {bit} of byte {at}", partial(flip, file, at, bit)


def names(run: Path) -> set[str]:
    """The files and folders of a run, without TensorBoard's, which are called by the time and the process.

    Checkpoints count as one: of a stopped run the newest two and the best may be of other steps.
    """
    parts = (path.relative_to(run).parts for path in run.rglob("*"))
    return {
        str(Path("step" if first.startswith("step_") else first, *rest))
        for first, *rest in parts
        if first != "tensorboard"
    }


def spread(operations: int, tries: int) -> list[int]:
    """``tries`` of the numbers from 1 to ``operations``, evenly spread; all of them if there are no more."""
    return sorted({1 + i * operations // tries for i in range(tries)})


def first(ended: Ended, told: bool = False) -> list[str]:
    """How the faulty process itself ended. ``told``: by a signal, which may also come before or after its work."""
    if ended.hung:
        return ["hang"]
    if ended.traceback:
        return ["traceback"]
    if ended.one_line:
        return ["one line"]
    if ended.code == 0:
        return ["went on"]
    return ["killed at once" if told and ended.code < 0 else "other ending"]


def flip(file: Path, at: int, bit: int, run: Path) -> None:
    content = bytearray((run / file).read_bytes())
    if content:
        content[at] ^= 1 << bit
    (run / file).write_bytes(content)


def cut(file: Path, at: int, run: Path) -> None:
    os.truncate(run / file, at)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tries", type=int, default=120, help="at most so many of each kind (default: 120)")
    parser.add_argument("--jobs", type=int, default=2)
    every = "kill,disk,signal,early,halfway,finished"
    parser.add_argument("--kinds", default=every, help=f"those of {every} to try; the table's other rows stay")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "faults.json")
    options = parser.parse_args()
    import torch

    about = {"what": __doc__, "torch": torch.__version__, "python": platform.python_version(), "seed": options.seed}
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "faults.so"
        source = Path(__file__).with_suffix(".c")
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        preload = {"LD_PRELOAD": str(library), LIBRARY: str(library), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        os.environ |= preload
        SERVER.set_forkserver_preload(["anyres.runs.train", "anyres.runs.report", "matplotlib.pyplot"])
        bench = Bench(Path(folder), random.Random(options.seed))
        print(f"left alone: {bench.operations} file operations, {bench.seconds:.1f} s", flush=True)
        kinds = {
            "kill": ("SIGKILL at a file operation", bench.kills, 1),
            "disk": ("disk full from a file operation on", bench.full_disks, 1),
            "signal": ("a signal to the process group", bench.signals, 1),
            "early": ("a signal while Python starts", bench.early_signals, 6),
            "halfway": ("damaged in mid-run", bench.damage, 1),
            "finished": ("damaged when finished, then predict", bench.finished, 1),
        }
        rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
        for short in options.kinds.split(","):
            kind, found, share = kinds[short]
            tries = found(options.tries // share)
            rows = [row for row in rows if row["kind"] != kind]
            tally = Tally()
            with ThreadPoolExecutor(options.jobs) as pool:
                numbered = ((name, attempt, bench.folder / f"try{i}") for i, (name, attempt) in enumerate(tries))
                for name, outcomes in pool.map(partial(one, bench), numbered):
                    tally.add(name, *outcomes)
            rows.append({"kind": kind, "tries": tally.tries, **tally.counts, "first of each": tally.examples})
            print(json.dumps(rows[-1]), flush=True)
            options.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    bad = ("traceback", "hang", "debris", "other result", "other ending")
    sys.exit(any(str(outcome).startswith(bad) for row in rows for outcome in row))


def one(bench: Bench, numbered: tuple[str, Callable[[Path], list[str]], Path]) -> tuple[str, list[str]]:
    name, attempt, out = numbered
    try:
        return name, attempt(out)
    finally:
        bench.forget(out)


if __name__ == "__main__":
    main()
