"""Where fetched things are kept, whether anything may be fetched, and the one way to write and to read a file.

A leaf but for the users' error it raises. Files of ours are read with a bound on their size and a schema, for they may
come from anyone: a run folder is passed on, a cache lies where others write.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from anyres.config import Damaged, UserError, printable

if TYPE_CHECKING:
    from filelock import BaseFileLock

CLOSED_IN_CHILDREN = 0 if sys.platform == "win32" else os.O_CLOEXEC
WITHOUT_WAITING = 0 if sys.platform == "win32" else os.O_NONBLOCK
"""Flags of ``os.open``; Windows closes by itself, and has no pipes among its files."""
MOST_BYTES = 64 * 2**20
"""Of a text file of ours: many times the largest."""
DAY = 24 * 3600.0
DRAFT = ".partial"
"""How the name of an unfinished file or folder ends."""
_SAFETENSORS_DRAFT = ".tmp" + "[A-Za-z0-9]" * 6
"""The library writes a file of its own before it replaces the draft."""


def cache_root() -> Path:
    """The folder for what is fetched once: $ANYRES_CACHE if set, else the user's cache folder of this platform."""
    import platformdirs

    return as_path(os.environ.get("ANYRES_CACHE") or platformdirs.user_cache_dir("anyres"))


def offline() -> bool:
    """Whether the user forbids the network: ANYRES_OFFLINE or HF_HUB_OFFLINE says 1, true, yes or on."""
    said = (os.environ.get(name, "").lower() for name in ("ANYRES_OFFLINE", "HF_HUB_OFFLINE"))
    return any(word in ("1", "true", "yes", "on") for word in said)


def as_path(text: str | Path) -> Path:
    """The path that a user means, with ``~`` as the shell reads it; a name such as ``~nobody`` is a name."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def exists(path: Path) -> bool:
    """Whether there is anything at ``path``; a name that no file can have, as one too long, is not there."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A draft beside ``path`` to be written inside; afterwards it replaces ``path`` at once, on disk.

    The folder is made if it is missing. The draft is a new file that only this call knows, so that no link which lies
    in the folder is written through; ``path`` has the permissions of any new file. On any exception the draft is
    removed and ``path`` is as it was; of whatever says that the system refused (a full disk, no permission), OSError
    with the name of ``path``. A killed process leaves a file called ``.NAME.*.partial``, which ``remove_drafts`` finds.
    """
    if not path.name or path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_beside(path)
    try:
        descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | CLOSED_IN_CHILDREN, 0o666)
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)  # as the user's umask has it
        os.close(descriptor)
        yield draft
        draft.chmod(mode)  # safetensors makes the file anew, for its owner alone
        flush(draft)
        draft.replace(path)
    except Exception as error:
        number = refusal(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def draft_beside(path: Path) -> Path:
    """A new name beside ``path``, hidden, which says whose draft it is: ``remove_drafts`` reads it."""
    return path.with_name(f".{path.name[:40]}.{_host()}-{os.getpid()}-{secrets.token_hex(8)}{DRAFT}")


def flush(path: Path) -> None:
    """Return when a file, or what a folder lists, lies on the disk. Windows keeps folders by itself."""
    if sys.platform == "win32" and path.is_dir():
        return
    descriptor = os.open(path, (os.O_RDWR if sys.platform == "win32" else os.O_RDONLY) | CLOSED_IN_CHILDREN)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_TORCH_SAVE = ("PytorchStreamWriter failed writing", "iostream error")
"""What torch.save says where it cannot write, in the middle or at its beginning and end."""


def refusal(error: BaseException) -> int | None:
    """The errno with which the system refused what a library was doing, also where only the text tells it; or None."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error)
    if told := re.search(r"\bos error (\d+)|\bcode: (\d+), kind|\[Errno (\d+)\]", text):
        return int(told[told.lastindex or 1])
    if any(said in text for said in _TORCH_SAVE) or ("inline_container" in text and "unexpected pos" in text):
        return errno.ENOSPC  # torch.save keeps no errno: what else stops a write in the middle is rare
    known = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    return next((number for number in known if os.strerror(number) in text), None)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values as JSON, whole or not at all."""
    write_text(path, json.dumps(values, indent=1) + "\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content``, whole or not at all."""
    with atomic_write(path) as draft:
        draft.write_bytes(content)


def write_rows(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as CSV (UTF-8), whole or not at all, in which names are data.

    A name that a spreadsheet would take for a formula (``=``, ``+``, ``-``, ``@`` in front, and no number) gets an
    apostrophe before it, as spreadsheets write text; what no file can hold as UTF-8 is spelled out.
    """
    with atomic_write(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = printable(value)
    if text.lstrip()[:1] not in tuple("=+-@"):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def open_regular(path: Path) -> BinaryIO:
    """``path`` open for reading, if it is a regular file: a pipe or a device would wait for ever or never end.

    Raises OSError where it cannot be opened, UserError where it is something else.
    """
    kind = path.stat().st_mode
    if stat.S_ISREG(kind):
        file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # it may have been replaced since
            return file
        file.close()
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise UserError(f"{path} is no file but {_KINDS.get(stat.S_IFMT(kind), 'something else')}: give a regular file")


_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | WITHOUT_WAITING | CLOSED_IN_CHILDREN)


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """What a small file of ours holds. Raises as ``open_regular``, and UserError for more than ``most`` bytes."""
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{path} is larger than {most / 1e6:.3g} MB: it is not what it should be")
    return content


def read_json(path: Path, kind: Any, most: int = MOST_BYTES) -> Any:
    """What a JSON file of ours holds, checked: every value is of the type that ``kind`` says.

    ``kind``: a dataclass (whose ``__post_init__`` may raise ValueError for a range), a TypedDict, or ``dict[str, int]``
    and the like. Raises OSError where there is no such file, Damaged, with file and reason, for any other content.
    """
    try:
        content = read_bytes(path, most)
    except UserError as error:
        raise Damaged(str(error)) from None
    try:
        return parse_json(content, kind)
    except ValueError as error:
        raise Damaged(f"{path} is damaged ({error})") from None


def parse_json(content: str | bytes, kind: Any) -> Any:
    """JSON -> a value of ``kind``, as ``read_json``. Raises ValueError, in one line.

    Python's own reader comes first, as pydantic's refuses names that are no UTF-8 (``\\udce9``).
    """
    try:
        return _checked(json.loads(content), kind)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def check_types(values: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Raises ValueError, in one line, for a value that is not of the type that ``kinds`` has for its key."""
    for key in values.keys() & kinds.keys():
        try:
            _checked(values[key], kinds[key], strict=True)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None


def _checked(value: Any, kind: Any, *, strict: bool = False) -> Any:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(value, strict=strict)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"][:6]))
        raise ValueError(printable(f"{place}: {first['msg']}".removeprefix(": "), 300)) from None
    except UserError as error:  # of a value
        raise ValueError(str(error)) from None


def remove_drafts(folder: Path, *, locked: bool = False) -> None:
    """Remove what killed processes left unfinished in ``folder``: at the start of a command, before it writes.

    The drafts of a process that lives, here or on another machine, stay; after a day nobody's do. ``locked``: nobody
    else writes weights here, so that the library's drafts, which name no process, are left ones too.
    """
    for draft in (*folder.glob(f".*{DRAFT}"), *folder.glob(_SAFETENSORS_DRAFT)):
        try:
            left = locked if draft.suffix != DRAFT else _is_left(draft.name)
            if draft.is_file() and (left or _is_old(draft)):
                draft.unlink(missing_ok=True)
        except OSError:
            continue  # gone, or in a folder that may only be read


def remove_draft_folders(folder: Path, name: str, open_here: Collection[Path] = ()) -> None:
    """The same of folders that ``draft_beside(folder / name)`` called so; ``open_here``: those of this process."""
    for draft in folder.glob(f".{name}.*{DRAFT}"):
        try:
            left = draft not in open_here and _is_left(draft.name)
            if draft.is_dir() and not draft.is_symlink() and (left or _is_old(draft)):
                shutil.rmtree(draft, ignore_errors=True)
        except OSError:
            continue


def _is_old(draft: Path) -> bool:
    """Whether nobody has written for a day. Raises OSError where it is gone."""
    return time.time() - draft.stat().st_mtime > DAY


def _is_left(draft: str) -> bool:
    """Whether the process that made a draft, by its name, has ended; this one, at its start, made none."""
    maker = re.search(r"\.(\w+)-(\d+)-\w+\.partial$", draft)
    if maker is None or maker[1] != _host():
        return False
    number = int(maker[2])
    if number == os.getpid():
        return True
    if sys.platform == "win32":  # where a signal of number 0 is Ctrl-C
        return False
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _host() -> str:
    """A few signs for this machine's name."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


def locked(path: Path, timeout: float = -1) -> BaseFileLock:
    """A lock between processes, held while the returned context is open; its file is ``path``.

    ``timeout`` in seconds; negative: waits for ever. Raises filelock.Timeout.
    """
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, timeout=timeout)
