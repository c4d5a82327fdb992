"""Huge pages for what an engine keeps in memory.

A model's weights and activations are read for each batch, from more small pages (4 KiB) than a core has translations of
at hand. Linux 6.1 and later moves memory into huge ones (2 MiB) when asked; elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path

HUGE = 2**21
"""Bytes of a huge page where small ones have 4 KiB."""
COLLAPSE = 25
"""MADV_COLLAPSE of Linux's <linux/mman.h>."""
MOST = 2048
"""So many huge pages (4 GiB) are asked for at most: moving 100 MiB takes a third of a second."""


def use_huge_pages() -> None:
    """What this process has in memory now, and mostly fills a huge page, is moved into one.

    All of it, not an engine's own alone: that lies partly in what was freed before. OpenVINO bf16 on AMX, in turn:
    1.02 to 1.05 times as fast (docs/lab.md). Where the system refuses, memory stays as it is.
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
    """Addresses of the places for huge pages that lie whole within private writable memory, which is no file's."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, rights, _, _, inode, *_ = line.split()
        first, end = (int(address, 16) for address in span.split("-"))
        if rights == "rw-p" and inode == "0":
            yield from range(-(-first // HUGE) * HUGE, end // HUGE * HUGE, HUGE)
