"""Huge pages for what an engine keeps in memory, on request (``--huge-pages``).

A batch reads weights and activations from more small pages (4 KiB) than a core caches translations of. Linux 6.1 and
later moves memory into huge pages (2 MiB) on request; elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path

HUGE = 2**21
"""Bytes of a huge page on systems with small pages of 4 KiB."""
COLLAPSE = 25
"""MADV_COLLAPSE of Linux's <linux/mman.h>."""
MOST = 2048
"""Limit of huge pages that are requested (4 GiB)."""


def use_huge_pages() -> None:
    """Move the memory of this process that mostly fills a huge page into one.

    All private memory, not an engine's own alone, which lies partly in what was freed before. It changes the process
    (more resident memory, a third of a second for each 100 MiB), so callers ask for it. OpenVINO bf16 on AMX, in turn:
    1.02 to 1.05 times as fast (docs/lab/2026-11-29-huge-pages.md). Where the system refuses, memory stays as it is.
    """
    if sys.platform != "linux" or mmap.PAGESIZE != 4096:
        return
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    small = (ctypes.c_ubyte * (HUGE // mmap.PAGESIZE))()
    asked = 0
    for address in writable():
        there = libc.mincore(address, HUGE, small) == 0  # else it was given back since
        if there and 2 * sum(each & 1 for each in small) >= len(small):
            libc.madvise(address, HUGE, COLLAPSE)
            asked += 1
        if asked == MOST:
            break


def writable() -> Iterator[int]:
    """Addresses of the aligned huge pages that lie wholly within private anonymous writable memory."""
    for line in Path("/proc/self/maps").read_text("utf-8").splitlines():
        span, rights, _, _, inode, *_ = line.split()
        first, end = (int(address, 16) for address in span.split("-"))
        if rights == "rw-p" and inode == "0":
            yield from range(-(-first // HUGE) * HUGE, end // HUGE * HUGE, HUGE)
