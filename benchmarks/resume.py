"""Exact resume, at length: 60 steps left alone against 60 steps cut again and again, compared bit for bit.

    python benchmarks/resume.py [--seed N] [CASE ...]

The run is tests/runs.py's MESSY: augmentation, erasing, mixup and CutMix, repeated augmentation, stochastic depth,
batch norm, moving average, epochs of 5 steps and a checkpoint every 3. Compared are every recorded number, the
published weights, and of the last checkpoint weights, moving average, optimiser and progress. Steps and moments of
the cuts are drawn from the seed. Every process is started as a user would start it, with ``anyres`` or ``torchrun``.
The two hosts are Linux namespaces with a switch between them (tests/hosts.py); these cases need root and are left out
without.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.hosts import Host, Network, kill, why_not  # noqa: E402
from tests.pictures import make_folder  # noqa: E402
from tests.runs import MESSY, STEPS, differences, reach, recorded  # noqa: E402

ANYRES = [sys.executable, "-m", "anyres"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TWO = [*TORCHRUN, "--standalone", "--nproc-per-node", "2"]
HOSTS = shlex.split("--nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint alpha:29400 --rdzv-id long")
Agents = dict[str, subprocess.Popen[bytes]]
WORKER = "-u"  # torchrun starts its workers with python -u, and is itself without


@dataclass
class Place:
    """Where the runs lie, and what the cuts are drawn from."""

    folder: Path
    rng: random.Random

    def out(self, name: str) -> Path:
        return self.folder / name

    def words(self, name: str, *values: str) -> list[str]:
        return [*MESSY, "--data", str(self.folder / "shapes"), "--out", str(self.out(name)), *values]

    def start(self, name: str, launcher: list[str], *values: str) -> subprocess.Popen[bytes]:
        with self.out(f"{name}.txt").open("ab") as said:
            return subprocess.Popen([*launcher, *self.words(name, *values)], stdout=said, stderr=said)

    def finish(self, name: str, process: subprocess.Popen[bytes]) -> None:
        assert process.wait() == 0, self.out(f"{name}.txt").read_text()[-3000:]
        assert recorded(self.out(name)) == STEPS

    def await_cut(self, name: str, cut: int, cuts: int, *processes: subprocess.Popen[bytes]) -> int:
        """Return at some moment of a step of the ``cut``-th of ``cuts`` parts of the run; that step."""
        part = STEPS // cuts
        step = self.rng.randint(part * cut + 4, part * (cut + 1) - 3)
        reach(self.out(name), step, lambda: all(process.poll() is None for process in processes))
        time.sleep(self.rng.uniform(0, 0.1))
        return step


def alone(place: Place, name: str, launcher: list[str], *values: str) -> None:
    """A run that is left alone."""
    place.finish(name, place.start(name, launcher, *values))


def killed(place: Place, name: str, launcher: list[str], *values: str, cuts: int = 3) -> list[int]:
    """Every process of the run is killed, and the same command is given again."""
    steps = []
    for cut in range(cuts):
        process = place.start(name, launcher, *values)
        steps.append(place.await_cut(name, cut, cuts, process))
        kill(str(place.out(name)))
        process.wait()
    place.finish(name, place.start(name, launcher, *values))
    return steps


def one_worker_killed(place: Place, name: str, cuts: int = 3) -> list[int]:
    """One of two processes is killed; torchrun's agent starts both again."""
    process = place.start(name, [*TWO, f"--max-restarts={cuts}", "-m", "anyres"], "data.workers=0")
    steps = []
    for cut in range(cuts):
        steps.append(place.await_cut(name, cut, cuts, process))
        rank = f"RANK={place.rng.randrange(2)}"
        assert kill(WORKER, str(place.out(name)), setting=rank) == 1
    place.finish(name, process)
    return steps


def told_to_stop(place: Place, name: str, number: signal.Signals) -> list[int]:
    """The agent is sent a signal, as by a scheduler that wants the machine back or by Ctrl-C."""
    values = ("data.workers=0", "train.checkpoint_every=1000")
    process = place.start(name, [*TWO, "-m", "anyres"], *values)
    step = place.await_cut(name, 0, 1, process)
    process.send_signal(number)
    process.wait()
    saved = [int(folder.name[5:]) for folder in place.out(name).glob("step_*")]
    assert max(saved, default=0) >= step, f"nothing was saved on {number.name}"
    place.finish(name, place.start(name, [*TWO, "-m", "anyres"], *values))
    return [step]


@contextmanager
def two_hosts(place: Place, name: str) -> Iterator[tuple[Network, dict[str, Host], Callable[[str], None], Agents]]:
    """Two hosts that train; ``start(host)`` begins an agent on it, and leaving waits for both."""
    folder = place.out(f"{name}.hosts")
    folder.mkdir()
    agents: Agents = {}
    with Network(folder) as network:
        hosts = {host: network.host(host) for host in ("alpha", "beta")}

        def start(host: str) -> None:
            words = [*TORCHRUN, *HOSTS, "--max-restarts", "9", "-m", "anyres", *place.words(name, "data.workers=0")]
            agents[host] = hosts[host].start(words, place.out(f"{name}.{host}.txt"))

        for host in hosts:
            start(host)
        yield network, hosts, start, agents
        for host, agent in agents.items():
            assert agent.wait() == 0, place.out(f"{name}.{host}.txt").read_text()[-3000:]
    assert recorded(place.out(name)) == STEPS


def hosts_alone(place: Place, name: str) -> list[int]:
    with two_hosts(place, name):
        return []


def host_worker_killed(place: Place, name: str, cuts: int = 2) -> list[int]:
    """The worker of one host is killed, then that of the other one; the agents start all again."""
    steps = []
    with two_hosts(place, name) as (_, hosts, _, agents):
        for cut, host in enumerate(("beta", "alpha")):
            steps.append(place.await_cut(name, cut, cuts, *agents.values()))
            assert hosts[host].kill(WORKER) == 1
    return steps


def host_killed(place: Place, name: str) -> list[int]:
    """Agent and worker of one host are killed, and the agent is started there again; the other host waits for it."""
    with two_hosts(place, name) as (_, hosts, start, agents):
        step = place.await_cut(name, 0, 1, *agents.values())
        assert hosts["beta"].kill("anyres") == 2
        agents["beta"].wait()
        start("beta")
    return [step]


def power_cut(place: Place, name: str, host: str) -> list[int]:
    """One host loses its power and is started again, then its agent; with ``alpha``, where they meet, both agents."""
    with two_hosts(place, name) as (network, hosts, start, agents):
        step = place.await_cut(name, 0, 1, *agents.values())
        hosts[host].off()
        hosts[host] = network.host(host)
        if host == "alpha":
            hosts["beta"].kill("anyres")
        for other in ("alpha", "beta") if host == "alpha" else ("beta",):
            agents[other].wait()
            start(other)
    return [step]


CASES: dict[str, tuple[str, Callable[[Place, str], list[int]]]] = {
    "one process, killed": ("one", lambda p, n: killed(p, n, ANYRES, "data.workers=0")),
    "one process and 2 loaders, killed": ("one", lambda p, n: killed(p, n, ANYRES, "data.workers=2")),
    "two processes, both killed": ("two", lambda p, n: killed(p, n, [*TWO, "-m", "anyres"], "data.workers=0")),
    "two processes and 2 loaders each, both killed": (
        "two",
        lambda p, n: killed(p, n, [*TWO, "-m", "anyres"], "data.workers=2"),
    ),
    "two processes, one killed, the agent restarts both": ("two", one_worker_killed),
    "two processes, SIGTERM to the agent": ("two", lambda p, n: told_to_stop(p, n, signal.SIGTERM)),
    "two processes, SIGINT to the agent": ("two", lambda p, n: told_to_stop(p, n, signal.SIGINT)),
    "two hosts, left alone": ("two", hosts_alone),
    "two hosts, either's worker killed": ("two", host_worker_killed),
    "two hosts, one killed": ("two", host_killed),
    "two hosts, power cut of one": ("two", lambda p, n: power_cut(p, n, "beta")),
    "two hosts, power cut of the one where they meet": ("two", lambda p, n: power_cut(p, n, "alpha")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"all, or some of: {'; '.join(CASES)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "resume.json")
    options = parser.parse_args()
    chosen = {name: CASES[name] for name in options.cases or CASES}
    os.environ |= {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # docs/scale.md
    reason = why_not()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), random.Random(options.seed))
        make_folder(place.folder / "shapes", per_class=14)
        alone(place, "one", ANYRES, "data.workers=0")
        alone(place, "two", [*TWO, "-m", "anyres"], "data.workers=0")
        for i, (name, (twin, case)) in enumerate(chosen.items()):
            if reason and "hosts" in name:
                rows.append({"case": name, "left out": reason})
            else:
                steps = case(place, f"case{i}")
                different = differences(place.out(twin), place.out(f"case{i}"))
                rows.append({"case": name, "cut at steps": steps, "differs from the uncut run in": different})
            print(rows[-1], flush=True)
    import torch

    about = {"what": __doc__, "torch": torch.__version__, "python": platform.python_version(), "seed": options.seed}
    options.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    sys.exit(any(row.get("differs from the uncut run in") for row in rows))


if __name__ == "__main__":
    main()
