"""The members of a plain tar file, and proof that it is whole: nothing is read as less than it is.

Python's ``tarfile`` ends without a word at a damaged header and at a copy that broke off between two members.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from anyres.config import UserError
from anyres.data.raw_dataset import shorten

_END = 2 * tarfile.BLOCKSIZE  # an archive ends with two blocks of zeros
_CHUNK = 2**20
_MEND = "copy it anew, or write it again"


class Member(NamedTuple):
    """A regular file in an archive: its name, and its bytes within the archive's file."""

    name: str
    offset: int
    size: int


def members(path: Path) -> Iterator[Member]:
    """The regular files of an archive, in its order.

    Raises UserError for what is no plain tar, for one that is damaged or cut short, at the end of the iteration if not
    before, and for two members of one name.
    """
    seen: dict[str, int] = {}
    length = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.offset_data + member.size > length and member.isreg():
                    raise UserError(
                        f"{path} is cut short: {shorten(member.name)} at byte {member.offset} ends after the file's "
                        f"{length} bytes: {_MEND}"
                    )
                if not member.isreg() or member.issparse():
                    continue
                before = seen.setdefault(member.name, member.offset)
                if before != member.offset:
                    raise UserError(
                        f"{path} has two members called {shorten(member.name)}, at bytes {before} and {member.offset}: "
                        "each sample needs a name of its own"
                    )
                yield Member(member.name, member.offset_data, member.size)
            stopped = tar.offset
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is no plain tar ({error}): a compressed one must be unpacked to .tar first") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    _check_end(path, stopped, length)


def _check_end(path: Path, stopped: int, length: int) -> None:
    """Raises UserError unless the end of the archive stands at ``stopped``, and nothing after it."""
    with path.open("rb") as file:
        file.seek(max(0, stopped))
        head = file.read(_END)
        if any(head):
            raise UserError(f"{path} is damaged: at byte {stopped} of {length} stands no header of a member: {_MEND}")
        if len(head) < _END:
            raise UserError(f"{path} is cut short: it ends at byte {length} without the mark of its end: {_MEND}")
        while chunk := file.read(_CHUNK):
            if any(chunk):
                raise UserError(
                    f"{path} goes on after its end at byte {stopped}, as joined archives do: unpack it with "
                    "`tar --ignore-zeros` and pack it anew, or name the parts"
                )
