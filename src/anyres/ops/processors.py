"""How many processors this process may use: its affinity, and the quota of its control groups (containers, systemd).

PyTorch is not imported here: its thread pools read the environment once, when they are loaded.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

SPINS = "20000"
"""How often a waiting OpenMP thread looks before it sleeps (libgomp, GOMP_SPINCOUNT)."""
FOLLOWS_QUOTA = "ANYRES_FOLLOWS_QUOTA"
"""Set where OMP_NUM_THREADS is ours, not the user's."""


def processors(proc: Path = Path("/proc")) -> int:
    """Those of the process's affinity, or as many whole ones as its quota gives, 1 at least. ``proc``: the system's."""
    quota = cpu_quota(proc)
    allowed = affinity()
    return allowed if quota is None else max(1, min(allowed, math.floor(quota + 0.01)))


def affinity() -> int:
    """How many processors the process may be scheduled on."""
    return os.cpu_count() or 1 if sys.platform in ("darwin", "win32") else len(os.sched_getaffinity(0))


def peak_memory() -> int:
    """The most memory that this process has held so far, in bytes; 0 on Windows, which is not asked."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def cpu_quota(proc: Path = Path("/proc")) -> float | None:
    """Processors' worth of time that the process's control groups allow it (v1 and v2, the least of its own group and
    those around it); None: no quota, or no control groups."""
    found = [limit for folder in _groups(proc) if (limit := _limit(folder)) is not None]
    return min(found, default=None)


def prepare_threads() -> None:
    """Set, for the command line and before PyTorch is loaded, what its threads are to do; what the user set stays.

    Threads that wait sleep soon: one that spins takes the time of the thread it waits for, where others use the
    machine (a training step of restv2_nano beside three busy processes: 3 images/s, 59 with this). With a quota below
    the number of processors there are only so many threads.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
        os.environ.setdefault("KMP_BLOCKTIME", "0")
    if "OMP_NUM_THREADS" not in os.environ and processors() < affinity():
        os.environ |= {"OMP_NUM_THREADS": str(processors()), FOLLOWS_QUOTA: "1"}


def _groups(proc: Path) -> Iterator[Path]:
    """The folders of the process's control groups that may limit its processors, its own before those around it."""
    mine: dict[str, str] = {}
    for line in _lines(proc / "self" / "cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        for name in controllers.split(",") if controllers else ["v2"]:
            mine[name] = group
    for line in _lines(proc / "self" / "mountinfo"):
        before, _, after = line.partition(" - ")
        place, kind = before.split(), after.split()
        if len(place) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        name = "v2" if kind[0] == "cgroup2" else "cpu"
        if name not in mine or (name == "cpu" and "cpu" not in kind[2].split(",")):
            continue
        root, mount = Path(place[3]), Path(place[4].replace("\\040", " "))
        path = Path(mine[name])
        below = path.relative_to(root) if path.is_relative_to(root) else Path()  # as seen from within a container
        for part in (below, *below.parents):
            yield mount / part


def _limit(folder: Path) -> float | None:
    """A group's own quota in processors."""
    texts = [" ".join(_lines(folder / name)).split() for name in ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us")]
    amount, period = (
        texts[0][:2] if len(texts[0]) > 1 else [*texts[1][:1], *texts[2][:1]] if all(texts[1:]) else ("", "")
    )
    with contextlib.suppress(ValueError, ZeroDivisionError):
        return float(amount) / float(period) if float(amount) > 0 else None
    return None  # "max"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
