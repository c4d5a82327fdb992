"""Tensors out of files: found, fetched, and read without running anything that is in them.

Reads PyTorch files (tensors only, nothing that could run code) and safetensors, flat or wrapped as the official
repositories wrap them.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from anyres.config import UserError, first_line, printable
from anyres.models.download import no_weights
from anyres.models.fetch import fetch, is_remote
from anyres.models.index import known_weights
from anyres.models.wrappings import from_transformers, innermost, plain_names
from anyres.storage import as_path, exists, open_regular

RUN_FILE = "model.safetensors"
"""The name of the weights in a run folder."""
UNPACKED_BYTES = 2**26
"""By which an archive may unpack to more than it is: the code in it."""
EXPANDED_BYTES = 2**20
"""By which a tensor may be larger than its storage (``expand``): a scale, not a matrix."""
ABOUT = "anyres"
"""Under which a safetensors file of ours says what it is, as JSON: name, options, classes, and ``sha256`` of all."""
_ONE_AT_A_TIME = threading.Lock()


class Ignored:
    """Stands for what training scripts save beside tensors: made and filled, and nothing is run or kept."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


_PATHS = [f"{kind}{system}Path" for kind in ("", "Pure") for system in ("Posix", "Windows")]
IGNORED = (
    "argparse.Namespace",
    *(f"{module}.{path}" for module in ("pathlib", "pathlib._local") for path in _PATHS),
    *(f"numpy.{name}.multiarray.{function}" for name in ("core", "_core") for function in ("scalar", "_reconstruct")),
    "numpy.dtype",
    "numpy.ndarray",
)
"""What a file may hold beside tensors, numbers, text and their containers; anything else is refused by name."""


def weights_file(source: str | Path) -> Path:
    """The file that ``source`` means: itself, model.safetensors in a folder, or what is fetched (see load_weights).

    Raises UserError if it is missing, empty, or plainly no weights (a web page, a Git LFS pointer).
    """
    path = as_path(source)
    if not exists(path) and isinstance(source, str):
        path = _fetched(source)
    if not exists(path):
        raise UserError(f"there is no file {printable(str(path), 300)}")
    if path.is_dir():
        if not (path / RUN_FILE).is_file():
            raise UserError(f"the folder {path} holds no {RUN_FILE}")
        path = path / RUN_FILE
    try:
        with open_regular(path) as file:
            head = file.read(64)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if fault := no_weights(head):
        mend = "fetch it with `git lfs pull`" if "LFS" in fault else "its download went wrong"
        raise UserError(f"{path} {fault}: {mend}")
    return path


def _fetched(source: str) -> Path:
    """The local copy of weights named by the index, by a URL or by a hub id; else ``source`` as a path."""
    row = next((row for row in known_weights() if row.name == source), None)
    if row and row.url:
        try:
            return fetch(row.url, sha256=row.sha256)
        except UserError:
            if row.also is None:
                raise
            return fetch(row.also, sha256=row.sha256)
    if row:
        raise UserError(
            f"{source} has no direct download (published: {row.published}): fetch it by hand and give the file's path"
        )
    if is_remote(source):
        return fetch(source)
    return as_path(source)


def read_state(path: Path, part: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU, out of their containers and without wrappers' prefixes.

    Raises UserError for a file that is broken, holds more than tensors, would take far more memory than it is large,
    or holds no state dict (named ``part``).
    """
    with open_regular(path) as file:
        head = file.read(9)
    with readable(path):
        if path.suffix == ".safetensors" or head[8:] == b"{":  # a length of eight bytes, then JSON
            content: Any = _load_safetensors(path)
        else:
            _check_stored(path)
            content = _load(path)
    return unwrap(content, str(path), part)


def digest_of(state: Mapping[str, Tensor]) -> str:
    """The SHA-256 of tensors, their names, types and shapes, in whatever order."""
    whole = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def signed(about: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a file says of itself, with a digest of that and of its tensors."""
    text = json.dumps(about, sort_keys=True)
    return {**about, "sha256": hashlib.sha256(f"{text} {digest_of(state)}".encode()).hexdigest()}


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    """Raises UserError where a digest that ``save_weights`` put into the file says that it has changed since."""
    with safe_open(path, framework="pt") as file:
        text, state = (file.metadata() or {}).get(ABOUT), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    try:
        about = json.loads(text or "null")
    except (ValueError, RecursionError):  # whoever wants to know what it says tells
        return state
    if isinstance(about, dict) and "sha256" in about:
        said = about.pop("sha256")
        if signed(about, state)["sha256"] != said:
            raise UserError(
                f"{path} is damaged: it does not hold what was written into it. Copy it again, or remove it and give "
                "the command that wrote it again (who changes it on purpose leaves out its sha256)"
            )
    return state


def _load(path: Path) -> Any:
    """What a PyTorch file holds. One thread at a time: what is allowed in a file is known to torch as a whole."""
    allowed = torch.serialization.safe_globals([(Ignored, name) for name in IGNORED])
    with _ONE_AT_A_TIME, warnings.catch_warnings(), allowed:
        warnings.simplefilter("ignore")  # of pickle protocols: what cannot be read raises
        return torch.load(path, map_location="cpu", weights_only=True)


def _check_stored(path: Path) -> None:
    """Raises UserError for an archive that unpacks to far more than it is: PyTorch compresses no tensor."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > path.stat().st_size + UNPACKED_BYTES:
        raise UserError(
            f"{path} is refused: it is compressed, as no weights are, and unpacks to {unpacked / 1e9:.1f} GB"
        )


def unwrap(content: object, what: str, part: str | None = None) -> dict[str, Tensor]:
    """The state dict in a checkpoint ``what``, out of its containers and without wrappers' prefixes.

    Raises UserError if there is none, or none named ``part``.
    """
    state = plain_names(innermost(content, what, part), what)
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise UserError(f"{what} is no state dict: {name!r} is of type {type(tensor).__name__}, not a tensor")
        if tensor.is_quantized or tensor.is_meta or tensor.layout != torch.strided:
            kind = "quantized" if tensor.is_quantized else tensor.layout
            raise UserError(f"{what} is no state dict: {name!r} is a {kind} tensor on {tensor.device}")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes() + EXPANDED_BYTES:
            raise UserError(
                f"{what} is refused: {name!r} {tuple(tensor.shape)} is more than is stored of it: save its clone()"
            )
    return from_transformers(state)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns whatever a reader says of a broken file into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # readers raise a dozen types for broken bytes, and none is our fault
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        if foreign:
            raise UserError(
                f"{path} is refused: it holds {foreign[1]}, not only tensors, and could run code"
            ) from error
        plain = isinstance(error, SafetensorError | RuntimeError)
        reason = first_line(error).split(". ")[0] if plain and str(error) else "no weights format known here"
        raise UserError(f"{path} cannot be read, it is cut short or another kind of file ({reason})") from error
