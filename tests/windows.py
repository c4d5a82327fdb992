"""anyres where Python has no more than on Windows: what tests/test_other_systems.py runs in a process of its own.

Other libraries stay as they were imported: they have Windows versions of their own. Then every name that Python lacks
on Windows goes, every module of anyres is imported anew, and a run is trained, found done, asked and exported.
"""

from __future__ import annotations

import importlib
import io
import multiprocessing
import os
import pkgutil
import signal
import sys
from pathlib import Path
from typing import Any

from tests.runs import say_to

MODULES = ["fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty", "triton"]
OF_OS = [
    "O_CLOEXEC",
    "O_DIRECTORY",
    "O_DSYNC",
    "O_NOCTTY",
    "O_NOFOLLOW",
    "O_NONBLOCK",
    "O_SYNC",
    "chown",
    "fchmod",
    "fchown",
    "fork",
    "forkpty",
    "getegid",
    "geteuid",
    "getgid",
    "getpgid",
    "getuid",
    "killpg",
    "mkfifo",
    "nice",
    "openpty",
    "pread",
    "pwrite",
    "sched_getaffinity",
    "sched_setaffinity",
    "sendfile",
    "setsid",
    "sync",
    "sysconf",
    "tcgetpgrp",
    "ttyname",
    "wait4",
]
SIGNALS = [
    "SIGALRM",
    "SIGCHLD",
    "SIGHUP",
    "SIGKILL",
    "SIGPIPE",
    "SIGQUIT",
    "SIGSTOP",
    "SIGTSTP",
    "SIGUSR1",
    "SIGUSR2",
    "alarm",
    "pthread_kill",
    "pthread_sigmask",
    "setitimer",
    "sigwait",
]


def take_away() -> None:
    """All that Windows has not."""
    import select

    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]  # its import fails
    signal.SIGBREAK = signal.Signals.SIGUSR1  # type: ignore[attr-defined]  # what Windows has instead
    for module, names in ((os, OF_OS), (signal, SIGNALS), (select, ["poll", "epoll"])):
        for name in names:
            if name in vars(module):
                delattr(module, name)
    multiprocessing.get_all_start_methods = lambda: ["spawn"]  # type: ignore[method-assign]
    sys.platform = "win32"


def import_all() -> int:
    """How many modules there are."""
    import anyres

    names = [found.name for found in pkgutil.walk_packages(anyres.__path__, "anyres.")]
    wanted = [name for name in names if "triton" not in name and not name.endswith("__main__")]
    for name in wanted:
        importlib.import_module(name)
    return len(wanted)


def forget() -> None:
    """As if anyres had never been imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "anyres"]:
        del sys.modules[name]


def want_encodings() -> None:
    """Let a text file of ours be opened by its encoding alone: Windows takes another than UTF-8."""
    given = io.text_encoding

    def checked(encoding: Any, stacklevel: int = 2) -> Any:
        where = sys._getframe(2).f_globals.get("__name__", "")
        assert encoding is not None or not where.startswith("anyres"), f"{where} opens text without its encoding"
        return given(encoding, stacklevel)

    io.text_encoding = checked  # type: ignore[assignment]


def work(data: str, out: str) -> None:
    """One run from its training to its export, by the command line."""
    from anyres.cli import main

    values = "views.sizes=[32] data.batch_size=6 train.epochs=1 evaluate.sizes=[32] data.workers=0"
    for words in (
        f"train resmlp_nano --data {data} --out {out}/run {values}",
        f"train resmlp_nano --data {data} --out {out}/run {values}",
        f"predict {out}/run {data} --csv {out}/answers.csv",
        f"export {out}/run --to safetensors --out {out}/mine.safetensors",
        "doctor",
        f"predict {out}/none {data}",
    ):
        sys.argv = ["anyres", *words.split()]
        try:
            main()
        except SystemExit as ended:
            print("code", ended.code, words.split()[0], flush=True)


def run(data: str, out: str, said: Path) -> None:
    """All of it; what is said goes to a file."""
    say_to(said)
    from filelock import SoftFileLock

    for name in ("anyres.deploy.engines.openvino_no_telemetry", "psutil"):
        importlib.import_module(name)
    sys.modules["filelock"].FileLock = SoftFileLock  # type: ignore[attr-defined]  # the other one locks by fcntl
    forget()
    take_away()
    want_encodings()
    print("modules", import_all(), flush=True)
    work(data, out)
