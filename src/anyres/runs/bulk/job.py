"""What a bulk prediction has written so far, in a hidden folder beside the file of answers.

``.NAME.parts/job.json`` says what the answers depend on, ``images.jsonl`` lists the images, and ``00000012.jsonl`` has
the answers of one part, a row a line, written whole or not at all. So a process that is killed leaves nothing half.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anyres.config import Damaged, UserError, printable
from anyres.data.image_list import ListedImage, StoredList, store_list
from anyres.runs.bulk.worker import AnswerRow
from anyres.storage import locked, read_bytes, read_json, remove_drafts, write_json, write_text

JOB, LOCK = "job.json", "lock"
FORMAT = 1
"""Of the folder."""
MOST_PART = 2**30
"""Bytes of a part's answers."""


@dataclass(frozen=True)
class Facts:
    """What ``job.json`` says."""

    format: int
    images: int  # in the list
    rows: int  # of a part
    asked: dict[str, Any]  # what the answers depend on


@dataclass(frozen=True)
class Job:
    """The parts of one file of answers, ``out``."""

    out: Path
    listed: StoredList

    def __len__(self) -> int:
        """How many images it has."""
        return self.listed.count

    @property
    def folder(self) -> Path:
        """Where the parts lie."""
        return self.listed.folder

    def missing(self) -> list[int]:
        """The parts that are not answered, in order."""
        there = {
            int(found[1]) for path in self.folder.iterdir() if (found := re.fullmatch(r"(\d{8})\.jsonl", path.name))
        }
        return [part for part in range(self.listed.parts) if part not in there]

    def answered(self) -> int:
        """How many images are."""
        return len(self) - sum(map(self.listed.rows_of, self.missing()))

    def write(self, part: int, rows: Sequence[AnswerRow]) -> None:
        """Keep the answers of a part. Raises ValueError where they are not as many as its images."""
        if len(rows) != self.listed.rows_of(part):
            raise ValueError(f"part {part} has {self.listed.rows_of(part)} images, not {len(rows)}")
        write_text(self._path(part), "".join(json.dumps(row) + "\n" for row in rows))

    def read(self, part: int) -> list[AnswerRow]:
        """Them again. Raises UserError where they are not as they were written, and then they are missing."""
        path = self._path(part)
        try:
            rows: list[AnswerRow] = [json.loads(line) for line in read_bytes(path, MOST_PART).splitlines()]
            if len(rows) != self.listed.rows_of(part):
                raise ValueError
            return rows
        except (ValueError, UserError):
            path.unlink(missing_ok=True)
            raise UserError(f"{path} was damaged and is removed: give the same command again") from None

    def parts(self) -> Iterator[list[AnswerRow]]:
        """The answers of all parts, in order."""
        return map(self.read, range(self.listed.parts))

    def remove(self) -> None:
        """The folder and all in it, once the answers are joined."""
        (self.folder / JOB).unlink(missing_ok=True)  # first: a job without some of its parts would answer them again
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, part: int) -> Path:
        return self.folder / f"{part:08d}.jsonl"


def folder_of(out: Path) -> Path:
    """The hidden folder of a file of answers."""
    return out.with_name(f".{out.name}.parts")


def is_begun(out: Path) -> bool:
    """Whether a job for ``out`` was begun and is not finished."""
    return (folder_of(out) / JOB).exists()


def continue_job(out: Path, asked: Mapping[str, Any]) -> Job | None:
    """The job that was begun for ``out``; None where there is none, or one of other things without an answer yet.
    Raises UserError where answers to something else are there."""
    folder = folder_of(out)
    try:
        facts: Facts = read_json(folder / JOB, Facts)
    except OSError:
        return None
    except Damaged as error:
        raise UserError(f"{error}: remove {folder} to begin anew") from None
    job = Job(out, StoredList(folder, facts.images, facts.rows))
    now, before = _flat(json.loads(json.dumps(asked))), _flat(facts.asked)
    different = next((key for key in dict.fromkeys((*before, *now)) if before.get(key) != now.get(key)), None)
    if facts.format == FORMAT and different is None:
        return job
    if not job.answered():
        return None
    key = different or "format"
    told = f"{key} {_short(before.get(key))}, not {_short(now.get(key))}"
    raise UserError(f"{out} was begun with {told}: give the same command as then, or remove {folder} to begin anew")


def begin_job(out: Path, asked: Mapping[str, Any], images: Sequence[ListedImage], rows: int) -> Job:
    """A new job for ``out``, its images in parts of ``rows``."""
    folder = folder_of(out)
    if folder.is_dir():  # of a job without an answer
        for left in (folder / JOB, *folder.glob("*.jsonl"), *folder.glob("*.npy")):
            left.unlink(missing_ok=True)
    listed = store_list(folder, images, rows)
    write_json(folder / JOB, asdict(Facts(FORMAT, len(images), rows, dict(asked))))
    return Job(out, listed)


@contextmanager
def alone(out: Path, rank: int = 0) -> Iterator[None]:
    """Inside, no other process answers for ``out`` (with the same ``rank``). Raises UserError where one does."""
    from filelock import Timeout

    folder = folder_of(out)
    lock = folder / (f"{LOCK}.{rank}" if rank else LOCK)
    existed = folder.is_dir()
    try:
        with locked(lock, timeout=0.0):
            remove_drafts(folder)
            remove_drafts(out.parent)
            yield
    except Timeout:
        raise UserError(f"another process answers for {out} now: wait for it, or name another file") from None
    finally:
        if not existed and not (folder / JOB).exists():  # refused before anything was written
            with suppress(OSError):
                lock.unlink(missing_ok=True)
                folder.rmdir()


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested values by the names that lead to them."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = value
    return found


def _short(value: object) -> str:
    return printable(str(value), 60)
