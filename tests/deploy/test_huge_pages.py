"""Huge pages: memory in use is moved, and what it holds is not changed."""

from __future__ import annotations

import mmap
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from anyres.deploy.engines import huge_pages as pages
from anyres.deploy.engines.huge_pages import HUGE, use_huge_pages, writable

PLACES = 8


def linux() -> tuple[int, ...]:
    if sys.platform != "linux":
        return (0,)
    return tuple(int(part) for part in re.findall(r"\d+", Path("/proc/sys/kernel/osrelease").read_text())[:2])


pytestmark = pytest.mark.skipif(linux() < (6, 1), reason="MADV_COLLAPSE came with Linux 6.1")


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Untouched memory of at least ``PLACES`` huge pages, the only one that is looked at."""
    memory = mmap.mmap(-1, (PLACES + 1) * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    array = np.frombuffer(memory, dtype=np.uint8)
    start = array.__array_interface__["data"][0]
    places = [place for place in writable() if start <= place <= start + array.nbytes - HUGE]
    assert len(places) >= PLACES
    monkeypatch.setattr(pages, "writable", lambda: iter(places))
    return array


def huge_kib() -> int:
    """Of this process."""
    return int(re.findall(r"AnonHugePages: +(\d+)", Path("/proc/self/smaps_rollup").read_text())[0])


def test_memory_in_use_is_moved_and_keeps_what_it_holds(own: np.ndarray) -> None:
    held = np.random.default_rng(0).integers(256, size=own.size, dtype=np.uint8)
    before = huge_kib()
    own[:] = held  # where the system gives huge pages unasked, it does here
    use_huge_pages()
    assert huge_kib() - before >= PLACES // 2 * HUGE // 1024  # the system may lack some
    assert (own == held).all()


def test_memory_that_was_never_touched_takes_no_room(own: np.ndarray) -> None:
    before = huge_kib()
    use_huge_pages()
    assert huge_kib() == before
    assert not own.any()


def test_no_more_is_asked_for_than_allowed(own: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MOST", 1)
    own[:] = 1
    before = huge_kib()
    use_huge_pages()
    assert huge_kib() - before <= HUGE // 1024
    assert own.all()
