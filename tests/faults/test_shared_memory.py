"""Machines that are short of something while images are loaded: of /dev/shm, as containers are, of descriptors, of
memory for batches; a loader that is killed. Each works, or ends in one line; nothing waits and nothing is lost."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anyres.config import LoaderLost, UserError
from anyres.data.augment_config import AugmentConfig
from anyres.data.decode import Decoded
from anyres.data.shared_batch import SharedBatchBuffer, pack, unpack
from anyres.data.views_config import ViewsConfig
from anyres.flow import Labels, Size
from tests.data.loading import evaluate, load

FORK = "fork" in multiprocessing.get_all_start_methods()
pytestmark = [
    pytest.mark.skipif(not FORK or not Path("/proc/self/fd").is_dir(), reason="descriptors are counted on Linux"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]


class Squares:
    """Twelve small pictures in memory; picture ``kills`` ends the process that reads it."""

    cached, channels = True, 3

    def __init__(self, kills: int = -1) -> None:
        self.kills, self.main = kills, os.getpid()

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> Decoded:
        if i == self.kills and os.getpid() != self.main:
            os.kill(os.getpid(), signal.SIGKILL)
        return Decoded(torch.full((3, 20, 20), i, dtype=torch.uint8), None, f"{i}.png")

    full = __getitem__

    def drawn(self, i: int, draw: object) -> Decoded:
        return self[i]


TARGETS = torch.arange(12)


def training(images: Squares, **options: object) -> Iterator[Tensor]:
    batches = load(
        images,
        TARGETS,
        AugmentConfig(),
        ViewsConfig(sizes=(16,)),
        batch_size=4,
        seed=0,
        start_step=0,
        stop_step=6,
        **options,
    )
    return (batch.views[0] for batch in batches)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("reuse", [True, False])
def test_batches_take_nothing_from_shared_memory(reuse: bool) -> None:
    """PyTorch would open a descriptor for each tensor: there are none more, however many batches are kept."""
    alone = [views.clone() for views in training(Squares(), workers=0)]
    batches = training(Squares(), workers=2, reuse=reuse)
    kept = [next(batches).clone()]
    before = descriptors()
    kept += [views if not reuse else views.clone() for views in batches]
    assert all(map(torch.equal, kept, alone))
    assert descriptors() <= before
    held = [
        line.split("/dev/shm/")[1] for line in Path("/proc/self/maps").read_text().splitlines() if "/dev/shm/" in line
    ]
    assert all(name.startswith("sem.") for name in held), held  # semaphores, of 32 bytes each


def test_evaluation_is_the_same_through_processes() -> None:
    plain, sent = (list(evaluate(Squares(), TARGETS, Size(16, 16), batch_size=4, workers=n)) for n in (0, 2))
    assert len(plain) == len(sent) == 3
    for one, other in zip(plain, sent, strict=True):
        assert torch.equal(one.views[0], other.views[0])
        assert torch.equal(one.targets.of(0), other.targets.of(0))
        assert torch.equal(one.index, other.index)


def test_too_few_descriptors_end_in_a_line() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + 20, hard))
    before = descriptors()
    try:
        with pytest.raises(UserError, match=r"8 loader processes cannot be started: Too many open files: lower"):
            next(training(Squares(), workers=8))
        assert descriptors() <= before
        assert next(training(Squares(), workers=1)).shape == (4, 3, 16, 16)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_loader_ends_in_a_line_between_two_steps(workers: int) -> None:
    """The handler that PyTorch would raise from, in the midst of whatever the program does, is not there."""
    before, handlers = signal.getsignal(signal.SIGCHLD), []
    batches = training(Squares(kills=7), workers=workers)
    start = time.monotonic()
    with pytest.raises(LoaderLost, match=r"a loader process was killed by SIGKILL, .*lower data\.workers"):
        handlers.extend(signal.getsignal(signal.SIGCHLD) for _ in batches)
    assert set(handlers) <= {before}
    assert time.monotonic() - start < 30


def test_batches_beyond_the_machine_are_refused() -> None:
    for capacity in (2**50, 2**70):
        with pytest.raises(UserError, match=r"no memory for the batches of 4 loader processes .*lower the batch size"):
            SharedBatchBuffer(4, 4, capacity)


@pytest.mark.parametrize("kind", [torch.uint8, torch.bool, torch.int64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_are_the_same_after_the_journey(kind: torch.dtype) -> None:
    value = Labels(torch.arange(12).reshape(3, 4).to(kind).t())
    back = unpack(pack((value, None, "x")))
    assert back[1:] == (None, "x")
    assert torch.equal(back[0].value, value.value)
    assert back[0].value.dtype == kind
    back[0].value.zero_()  # it may be written to


def _own_shm(kib: int) -> bool:
    """Give this process, which has one thread, a /dev/shm of its own of so many KiB; False: it may not."""
    libc = ctypes.CDLL(None)
    private = libc.unshare(0x00020000) == 0 and libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None) == 0
    return private and libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, f"size={kib}k".encode()) == 0


def _load_in(kib: int, said: Path) -> None:
    """In a process of its own: what becomes of loading there."""
    if not _own_shm(kib):
        said.write_text("not allowed")
        return
    try:
        count = sum(1 for _ in training(Squares(), workers=8))
        said.write_text(f"{count} batches")
    except UserError as error:
        said.write_text(str(error))


@pytest.mark.parametrize(
    ("kib", "end"),
    [(256, "6 batches"), (64, "8 loader processes cannot be started: No space left on device (/dev/shm): lower")],
)
def test_a_small_shm_loads_or_ends_in_a_line(kib: int, end: str, tmp_path: Path) -> None:
    """Of eight loaders only the semaphores lie in /dev/shm, a page each."""
    process = multiprocessing.get_context("fork").Process(target=_load_in, args=(kib, tmp_path / "said.txt"))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    text = (tmp_path / "said.txt").read_text()
    if text == "not allowed":
        pytest.skip("a /dev/shm of its own needs root")
    assert text.startswith(end)
