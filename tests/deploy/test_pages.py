"""Huge pages: memory is moved, and what it holds is not changed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from anyres.deploy import pages
from anyres.deploy.pages import HUGE, use_huge_pages, writable

MEMORY = 16 * HUGE


def huge_kib(array: np.ndarray) -> int:
    """How much of the mappings that the array lies in is in huge pages."""
    start = array.__array_interface__["data"][0]
    total = 0
    for block in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.M)[1:]:
        first, end = (int(address, 16) for address in block.split(maxsplit=1)[0].split("-"))
        if first < start + array.nbytes and start < end:
            total += int(re.findall(r"AnonHugePages: +(\d+)", block)[0])
    return total


def linux() -> tuple[int, ...]:
    found = (
        re.match(r"(\d+)\.(\d+)", Path("/proc/sys/kernel/osrelease").read_text()) if sys.platform == "linux" else None
    )
    return tuple(map(int, found.groups())) if found else (0,)


@pytest.mark.skipif(linux() < (6, 1), reason="MADV_COLLAPSE came with Linux 6.1")
def test_memory_in_use_is_moved_and_keeps_what_it_holds() -> None:
    array = np.random.default_rng(0).integers(256, size=MEMORY, dtype=np.uint8)
    copy = array.copy()
    before = huge_kib(array)
    use_huge_pages()
    assert huge_kib(array) >= max(before, MEMORY // 2 // 1024)  # the system may lack some
    assert (array == copy).all()


@pytest.mark.skipif(linux() < (6, 1), reason="MADV_COLLAPSE came with Linux 6.1")
def test_memory_that_was_never_touched_takes_no_room() -> None:
    array = np.empty(MEMORY, dtype=np.uint8)
    use_huge_pages()
    start = array.__array_interface__["data"][0]
    whole = [address for address in writable() if start <= address and address + HUGE <= start + MEMORY]
    assert len(whole) >= MEMORY // HUGE - 1
    assert huge_kib(array) < MEMORY // 2 // 1024


def test_no_more_is_asked_for_than_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MOST", 1)
    first = np.ones(MEMORY, dtype=np.uint8)
    held = Path("/proc/self/smaps_rollup").read_text() if linux() > (4, 14) else ""
    use_huge_pages()
    if held:
        kib = [int(re.findall(r"AnonHugePages: +(\d+)", text)[0]) for text in (held, rollup())]
        assert kib[1] - kib[0] <= HUGE // 1024
    assert first.all()


def rollup() -> str:
    return Path("/proc/self/smaps_rollup").read_text()
