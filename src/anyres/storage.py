"""Where fetched things are kept, whether anything may be fetched, and the one way to write a file. A leaf."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock

DRAFT = ".partial"
"""How the name of an unfinished file or folder ends."""


def cache_root() -> Path:
    """The folder for what is fetched once: $ANYRES_CACHE if set, else the user's cache folder of this platform."""
    import platformdirs

    return Path(os.environ.get("ANYRES_CACHE") or platformdirs.user_cache_dir("anyres")).expanduser()


def offline() -> bool:
    """Whether the user forbids the network: ANYRES_OFFLINE or HF_HUB_OFFLINE says 1, true, yes or on."""
    said = (os.environ.get(name, "").lower() for name in ("ANYRES_OFFLINE", "HF_HUB_OFFLINE"))
    return any(word in ("1", "true", "yes", "on") for word in said)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A draft beside ``path`` to be written inside; afterwards it replaces ``path`` at once, on disk.

    The folder is made if it is missing. On any exception the draft is removed and ``path`` is as it was. A killed
    process leaves a file called ``.NAME.*.partial``, which ``remove_drafts`` finds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}{DRAFT}")
    try:
        yield draft
        descriptor = os.open(draft, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    with atomic_write(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content``, whole or not at all."""
    with atomic_write(path) as draft:
        draft.write_bytes(content)


def remove_drafts(folder: Path) -> None:
    """Remove what a killed process left unfinished in ``folder``."""
    for draft in folder.glob(f".*{DRAFT}"):
        if draft.is_file():
            draft.unlink(missing_ok=True)


def locked(path: Path, timeout: float = -1) -> BaseFileLock:
    """A lock between processes, held while the returned context is open; its file is ``path``.

    ``timeout`` in seconds; negative: waits for ever. Raises filelock.Timeout.
    """
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, timeout=timeout)
