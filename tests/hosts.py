"""Machines on one network, made of Linux namespaces: each has its own name, addresses, processes and power switch.

They share the file system, as the machines of a cluster do. Needs root.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

_ALONE = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


def why_not() -> str:
    """Why hosts cannot be made here; empty where they can."""
    missing = [name for name in ("unshare", "nsenter", "ip", "mount", "hostname") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)}: not installed"
    tried = subprocess.run([*_ALONE, "ip", "link", "add", "type", "veth"], capture_output=True, text=True, check=False)
    return f"namespaces are not permitted: {tried.stderr.strip()}" if tried.returncode else ""


class Network:
    """A switch; its hosts are joined to it by a cable each. ``with Network(folder) as network: network.host("a")``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.names = folder, list[str]()
        self.table = folder / "hosts"
        self.table.write_text("127.0.0.1 localhost\n")
        self.hosts: list[Host] = []

    def __enter__(self) -> Network:
        self.switch = Host("switch", self.table)
        self.switch.do("ip link add bridge type bridge", "ip link set bridge up")
        return self

    def __exit__(self, *_: object) -> None:
        for host in (*self.hosts, self.switch):
            host.off()

    def host(self, name: str) -> Host:
        """Switch on the host ``name``; one that was switched off before has its old addresses."""
        if name in self.names:
            self.switch.do(f"ip link del {name}", must=False)  # what is left of its cable, if anything is
        else:
            self.names.append(name)
            with self.table.open("a") as table:
                table.write(f"10.77.0.{len(self.names)} {name}\n")
        host, number = Host(name, self.table), self.names.index(name) + 1
        self.hosts.append(host)
        self.switch.do(
            f"ip link add {name} type veth peer name cable address 02:00:00:00:00:0{number} netns {host.pid}",
            f"ip link set {name} master bridge",
            f"ip link set {name} up",
        )
        host.do(f"ip addr add 10.77.0.{number}/24 dev cable", "ip link set cable up")
        return host


class Host:
    """One machine. ``pid`` is its first process, as seen from here."""

    def __init__(self, name: str, table: Path) -> None:
        self.name = name
        self._power = subprocess.Popen([*_ALONE, "cat"], stdin=subprocess.PIPE)  # which ends when this process does
        children = Path(f"/proc/{self._power.pid}/task/{self._power.pid}/children")
        while not children.read_text() or Path(f"/proc/{children.read_text().strip()}/comm").read_text() != "cat\n":
            time.sleep(0.01)
        self.pid = int(children.read_text())
        self.do(f"hostname {name}", f"mount --bind {table} /etc/hosts", "ip link set lo up")

    def _enter(self, *more: str) -> list[str]:
        return ["nsenter", "--target", str(self.pid), "--net", "--uts", "--mount", *more]

    def do(self, *commands: str, must: bool = True) -> None:
        """Run short commands to their end, one after another; ``must`` they succeed?"""
        for command in commands:
            subprocess.run([*self._enter(), *command.split()], check=must, capture_output=not must)

    def start(self, words: list[str], said: Path) -> subprocess.Popen[bytes]:
        """Begin a long command; what it says is appended to ``said``."""
        with said.open("ab") as file:
            return subprocess.Popen([*self._enter("--pid"), *words], stdout=file, stderr=file)

    def kill(self, *words: str) -> int:
        """SIGKILL to its processes whose command line holds all of ``words``; how many there were."""
        return kill(*words, among=str(Path(f"/proc/{self.pid}/ns/pid").readlink()))

    def off(self) -> None:
        """Cut the power: every process dies, and the network hears nothing of it."""
        if self._power.poll() is None:
            self.do("ip link set group default down")
        self._power.kill()
        self._power.communicate()


def enter(pid: int) -> None:
    """Let the process that calls this live on the host of that ``pid`` from now on, all but its power switch."""
    libc = ctypes.CDLL(None, use_errno=True)
    for kind in ("net", "uts", "mnt"):
        with Path(f"/proc/{pid}/ns/{kind}").open() as namespace:
            if libc.setns(namespace.fileno(), 0):
                raise OSError(ctypes.get_errno(), f"setns {kind}")


def kill(*words: str, setting: str = "", among: str = "") -> int:
    """SIGKILL to the processes whose command line holds all of ``words``, whose environment says ``setting`` and who
    live in the PID namespace ``among``, where these are given; how many there were."""
    killed = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line, environment = ((folder / name).read_text().split("\0") for name in ("cmdline", "environ"))
            known = all(word in line for word in words) and (not setting or setting in environment)
            if known and str((folder / "ns/pid").readlink()).startswith(among):
                os.kill(int(folder.name), signal.SIGKILL)
                killed += 1
        except OSError:  # it ended meanwhile
            continue
    return killed
