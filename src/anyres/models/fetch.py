"""Remote weights as local files: a URL or a Hugging Face hub id, fetched once and checked at every use.

URLs lie in ``$ANYRES_CACHE/weights`` (else the user's cache folder), each in a folder of its own, with the SHA-256 of
the first fetch beside them; hub ids lie in huggingface_hub's own cache. A stopped download goes on where it stopped.
ANYRES_OFFLINE=1 or HF_HUB_OFFLINE=1: what is not there is not fetched.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from anyres.config import Damaged, UserError
from anyres.models.download import Download, direct, no_weights, refuse_downgrade
from anyres.storage import cache_root, exists, offline, open_regular, read_json, write_json

if TYPE_CHECKING:
    import httpx2

HUB_ID = re.compile(r"(?:hf:)?(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^@:\s]+))?(?::(?P<file>[^:\s]+))?", re.ASCII)
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
# as torch.hub names files: name-xxxxxxxx.pth, with 8 digits or more; eight that are a date are no hash
NAMED_DIGEST = re.compile(r"-(?!(?:19|20)\d\d(?:0[1-9]|1[0-2])[0-3]\d\.)([0-9a-f]{8,64})\.\w+$")


def fetch_run(source: str, files: Sequence[str], optional: Sequence[str] = ()) -> Path:
    """The folder in the hub's cache with the ``files`` of a repository (``hf:owner/name[@revision]``), and with those
    of ``optional`` that it has. Raises UserError as ``fetch`` does, and where it lacks one of ``files``."""
    match = HUB_ID.fullmatch(source.strip())
    if match is None or match["file"] or _climbs(source):
        raise UserError(f"{source!r} is no run on the hub: write hf:owner/name, with @revision where wanted")
    found = [fetch(f"{source}:{name}") for name in files]
    for name in optional:
        with suppress(UserError):
            fetch(f"{source}:{name}")
    return found[0].parent


def fetch(source: str, *, sha256: str | None = None) -> Path:
    """The local file of a URL (http, https) or hub id (``[hf:]owner/name[@revision][:file]``), fetched if need be.

    ``sha256``: its digest or the first 8 digits or more; without, what the URL's name says (``-xxxxxxxx.pth``); and in
    any case the file must be as it was when first fetched. Of a hub repository model.safetensors is taken, else
    pytorch_model.bin, else its only .safetensors or .pth. Raises UserError, one line that says what to do.
    """
    source = source.strip()
    digest = sha256.strip().lower() if sha256 is not None else None
    if digest is not None and not re.fullmatch("[0-9a-f]{8,64}", digest):
        raise UserError(f"{sha256!r} is no SHA-256: give its 64 hexadecimal digits or at least the first 8")
    if re.match(r"https?://", source, re.IGNORECASE):
        return _from_url(_place(source), digest)
    if HUB_ID.fullmatch(source) and not _climbs(source):
        return _from_hub(source, digest)
    raise UserError(
        f"{source!r} is neither an address (http://..., https://...) nor a hub id (hf:owner/name[@revision][:file])"
    )


def _climbs(hub_id: str) -> bool:
    """Whether a revision or file of a hub id leads out of its folder: ``..``, an absolute path, a backslash."""
    match = HUB_ID.fullmatch(hub_id)
    named = [match["revision"], match["file"]] if match else []
    return any(part in ("", ".", "..") for name in named if name for part in re.split(r"[/\\]", name))


def is_remote(source: str | Path) -> bool:
    """Whether ``fetch`` is meant: an address, ``hf:...``, or ``owner/name`` where no such file or folder is.

    A name that ends as weights do (.pth, .pt, .bin, .safetensors) means a local file unless it begins with ``hf:``.
    """
    if isinstance(source, Path):
        return False
    text = source.strip()
    if re.match(r"\w+://|hf:", text):
        return True
    hub = HUB_ID.fullmatch(text)
    if hub is None or text.startswith(".") or exists(Path(text)):
        return False
    if _climbs(text):
        return False
    return bool(hub["file"]) or Path(text).suffix not in (".pth", ".pt", ".bin", ".safetensors")


def cache_folder() -> Path:
    """Where files of URLs lie."""
    return cache_root() / "weights"


# --- URLs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """A URL, how it is shown, and where its file lies, with its record (.json), .part and .lock beside it."""

    url: str
    shown: str
    file: Path

    def beside(self, suffix: str) -> Path:
        return self.file.with_name(self.file.name + suffix)


def _place(url: str) -> _Place:
    """Each URL has a folder of its own: its host and a hash of all of it, so that no two files are mixed up."""
    url = url.partition("#")[0]
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        netloc = host if parts.port is None else f"{host}:{parts.port}"
        key = hashlib.sha256(url.encode()).hexdigest()[:10]
    except ValueError as error:
        raise UserError(f"{url!r} is no address ({error})") from error
    if not host or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise UserError(f"{url!r} is no address: it should read https://host/path/file.pth")
    name = re.sub(r"[^\w.+-]+", "_", unquote(parts.path.rstrip("/").rpartition("/")[2]), flags=re.ASCII)[-100:]
    folder = re.sub(r"[^\w.-]+", "_", host, flags=re.ASCII).strip(".")[:60] + "-" + key
    shown = f"{parts.scheme.lower()}://{netloc}{parts.path}" + ("?..." if parts.query else "")
    return _Place(url, shown, cache_folder() / folder / (name.lstrip(".") or "weights"))


def _from_url(place: _Place, digest: str | None) -> Path:
    if digest is None and (named := NAMED_DIGEST.search(place.file.name)):
        digest = named[1]
    try:
        if place.file.is_file():
            return _checked(place, digest)
        if offline():
            raise UserError(
                f"{place.shown} is not in the cache and the network is switched off: unset ANYRES_OFFLINE and"
                f" HF_HUB_OFFLINE, or copy the file to {place.file}"
            )
        place.file.parent.mkdir(parents=True, exist_ok=True)
        with _locked(place.beside(".lock")):
            if place.file.is_file():  # another process was quicker
                return _checked(place, digest)
            download = Download(place.url, place.shown, place.beside(".part"))
            download.run()
            return _kept(place, download, digest)
    except OSError as error:
        mend = "make room and try again, it goes on where it stopped, or " if error.errno == errno.ENOSPC else ""
        raise UserError(
            f"cannot keep {place.shown} in {place.file.parent}: {error.strerror or error}; {mend}set ANYRES_CACHE to a"
            " folder of yours"
        ) from error


def _checked(place: _Place, digest: str | None) -> Path:
    """The file, if it is what was recorded and what is wanted; a file that someone put there is recorded now."""
    actual = _sha256(place.file)
    record = place.beside(".json")
    try:
        recorded = str(read_json(record, dict[str, str])["sha256"])
    except FileNotFoundError:
        recorded = None
    except (Damaged, KeyError) as error:
        raise UserError(f"{record} is damaged: delete it and {place.file.name} to fetch {place.shown} anew") from error
    if recorded not in (None, actual):
        raise UserError(
            f"{place.file} has changed since it was fetched: its SHA-256 begins {actual[:8]}, not {str(recorded)[:8]};"
            f" delete it to fetch {place.shown} anew"
        )
    if digest is not None and not actual.startswith(digest):
        raise UserError(
            f"{place.file} is not the file wanted: its SHA-256 begins {actual[:8]}, not {digest[:8]};"
            f" delete it to fetch {place.shown} anew, or correct the digest"
        )
    if recorded is None:
        with suppress(OSError):  # a folder that may only be read
            _record(place, actual)
    return place.file


def _kept(place: _Place, download: Download, digest: str | None) -> Path:
    """Checks what came and gives it its name; what is wrong is thrown away."""
    with open_regular(download.part) as file:
        head = file.read(64)
    actual = _sha256(download.part)
    fault = no_weights(head)
    if fault == "is empty":
        fault += ": look for another address"
    elif fault:
        fault += f": {direct(place.url)}"
    elif cut_short(download.part, head):
        fault = "came cut short, and was not kept: try again"
    elif digest is not None and not actual.startswith(digest):
        fault = (
            f"has another SHA-256 than expected, it begins {actual[:8]}, not {digest[:8]}, and was not kept:"
            " try again, and if that does not help the file or the digest is wrong"
        )
    if fault:
        download.discard()
        raise UserError(f"{place.shown} {fault}")
    _record(place, actual)  # first, so that the file is never there without it
    download.part.replace(place.file)
    download.discard()
    return place.file


def cut_short(path: Path, head: bytes) -> bool:
    """Whether a file that begins as an archive or as safetensors lacks its end."""
    if head.startswith(b"PK\x03\x04"):
        return not zipfile.is_zipfile(path)
    if head[8:9] != b"{":
        return False
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return length > path.stat().st_size - 8 or _data_bytes(file.read(length)) > path.stat().st_size - 8 - length


def _data_bytes(header: bytes) -> int:
    """How much of tensors follows the header of a safetensors file; 0 where it is none."""
    try:
        tensors = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
        return max((int(entry["data_offsets"][1]) for entry in tensors), default=0)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return 0


def _record(place: _Place, digest: str) -> None:
    write_json(place.beside(".json"), {"url": place.shown, "sha256": digest})


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the system frees the lock of one that dies."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        print(f"Waiting for another process that fetches {path.stem} ...", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


# --- the hub ------------------------------------------------------------------------------------------------------


def _from_hub(source: str, digest: str | None) -> Path:
    import httpx2
    from huggingface_hub import errors

    local = offline()
    if not local:
        guard_hub()
    repo, revision, name = _hub_id(source)
    nothing = source if source.startswith("hf:") else f"there is no file or folder {source} here, and as a hub id it"
    try:
        path = _hub_file(source, local)
    except errors.GatedRepoError as error:
        raise UserError(
            f"{source} asks for its owner's consent: get it on the hub's page, then run `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{nothing} is not on the Hugging Face hub: check the name (for a private one run `hf auth login`)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{source}: {repo} has no revision {revision!r}; see its branches and tags on the hub"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        state = "switched off: unset ANYRES_OFFLINE and HF_HUB_OFFLINE" if local else "not reached: try again online"
        raise UserError(f"{nothing} is not in the hub's cache, and the hub is {state}") from error
    except errors.EntryNotFoundError as error:
        raise UserError(f"{source}: {repo} has no file {name!r}; see its list of files on the hub") from error
    except (errors.HFValidationError, ValueError) as error:
        raise UserError(f"{source} is no hub id: write hf:owner/name, with @revision and :file where wanted") from error
    except (errors.HfHubHTTPError, httpx2.HTTPError) as error:
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{source}: the hub fails ({told}); try again later") from error
    except OSError as error:
        raise UserError(f"cannot keep {source}: {error.strerror or error}; set HF_HOME to a folder of yours") from error
    return _checked_blob(source, path, digest)


def guard_hub() -> None:
    """What the hub answers is checked from here on: huggingface_hub makes paths of its headers as they are.

    Raises UserError where HF_ENDPOINT names another machine without https.
    """
    from huggingface_hub import constants, get_session

    endpoint = urlsplit(constants.ENDPOINT)
    if endpoint.scheme != "https" and endpoint.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise UserError(
            f"HF_ENDPOINT={constants.ENDPOINT} is not secure: anyone could change the file; give https://..."
        )
    session = get_session()
    hooks = session.event_hooks
    if _check_hub not in hooks["response"]:
        hooks["response"].append(_check_hub)
        session.event_hooks = hooks


def _check_hub(answer: httpx2.Response) -> None:
    """Raises UserError for a header of the hub's that would lead out of the cache, and for a way without https."""
    refuse_downgrade(answer)
    for name in ("etag", "x-linked-etag", "x-repo-commit"):
        value = answer.headers.get(name, "").removeprefix("W/").strip('"')
        if answer.request.method == "HEAD" and re.search(r"[/\\\0]|^\.+$", value):
            raise UserError(f"{answer.request.url.host} is no hub: its header {name} is {value[:80]!r}")


def _hub_file(source: str, local: bool) -> Path:
    """The file in the hub's cache, fetched if need be; where the hub is not reached, what is there must do."""
    import huggingface_hub as hub
    from huggingface_hub import errors

    repo, revision, name = _hub_id(source)
    if name is not None:
        return Path(hub.hf_hub_download(repo, name, revision=revision, local_files_only=local))
    if not local:
        with suppress(errors.LocalEntryNotFoundError):  # the hub is not reached
            for name in HUB_FILES:
                with suppress(errors.RemoteEntryNotFoundError):
                    return Path(hub.hf_hub_download(repo, name, revision=revision))
            name = _chosen(source, repo, hub.HfApi().list_repo_files(repo, revision=revision))
            return Path(hub.hf_hub_download(repo, name, revision=revision))
    folder = Path(hub.snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=[]))
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return folder / _chosen(source, repo, names)


def _hub_id(source: str) -> tuple[str, str | None, str | None]:
    """Repository, revision and file."""
    match = HUB_ID.fullmatch(source)
    assert match is not None
    return match["repo"], match["revision"], match["file"]


def _chosen(source: str, repo: str, names: Sequence[str]) -> str:
    for name in HUB_FILES:
        if name in names:
            return name
    for suffix in (".safetensors", ".pth"):
        fit = [name for name in names if name.endswith(suffix)]
        if len(fit) == 1:
            return fit[0]
        if fit:
            some = ", ".join(fit[:3]) + (", ..." if len(fit) > 3 else "")
            raise UserError(f"{source} has {len(fit)} files of weights ({some}): name one, as in hf:{repo}:{fit[0]}")
    raise UserError(f"{source} has no .safetensors or .pth: name its file of weights, as in hf:{repo}:weights.bin")


def _checked_blob(source: str, path: Path, digest: str | None) -> Path:
    """The file, if it is what the hub says (large files are cached under their SHA-256) and what is wanted."""
    named = path.resolve().name
    recorded = named if re.fullmatch("[0-9a-f]{64}", named) else None
    if recorded is None and digest is None:
        return path
    actual = _sha256(path)
    for wanted, mend in ((recorded, ""), (digest, ", or correct the digest")):
        if wanted is not None and not actual.startswith(wanted):
            raise UserError(
                f"{source} is not the file wanted: its SHA-256 begins {actual[:8]}, not {wanted[:8]};"
                f" delete {path.resolve()} to fetch it anew{mend}"
            )
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
