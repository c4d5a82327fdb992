"""Weights in and out of files: safe to read, strict about what is in them, all or nothing.

Reads PyTorch files (tensors only, nothing that could run code) and safetensors, flat or wrapped as the official
repositories wrap them. Writes safetensors, atomically, with a description beside the tensors.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from anyres.config import UserError
from anyres.models.contract import Backbone

CONTAINERS = ("model", "state_dict", "model_ema", "state_dict_ema", "teacher", "student", "module")
"""Keys under which training scripts keep a state dict; the first one present is taken."""
PREFIXES = ("module.", "_orig_mod.", "backbone.")
"""What wrappers put before every name."""
RUN_FILE = "model.safetensors"


def load_weights(model: Backbone, source: str | Path, *, replace_head: bool = False) -> None:
    """Loads a .pth, .pt or .safetensors file, or a run folder holding model.safetensors, into ``model``.

    ResMLP's mixing matrices are carried to the model's grid. Every key must be there with its shape, and no other;
    ``replace_head`` leaves the file's classifier aside and keeps the model's own, for another set of classes.
    Raises UserError, one line, for a file that cannot be read or does not fit; the model is then unchanged.
    """
    path = weights_file(source)
    state = read_state(path)
    try:
        state = model.adapt_state(state)
    except UserError as error:
        raise UserError(f"{path} does not fit this model: {error}") from error
    own = model.state_dict()
    if replace_head:
        state = {key: tensor for key, tensor in state.items() if not key.startswith("head.")}
        state |= {key: tensor for key, tensor in own.items() if key.startswith("head.")}
    _check_fit(path, state, own)
    model.load_state_dict(state)


def save_weights(source: nn.Module | Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]) -> None:
    """Writes a model's or a state dict's tensors as safetensors, whole or not at all.

    ``metadata`` is text by key; under ``"anyres"`` goes what rebuilds the model, as JSON: name, options, classes.
    The file is written beside its place, flushed to disk and renamed. Raises UserError if it cannot be written.
    """
    state = source.state_dict() if isinstance(source, nn.Module) else source
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    path = Path(path)
    try:
        with _replacing(path) as temporary:
            save_file(tensors, temporary, metadata=dict(metadata))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def read_metadata(source: str | Path) -> dict[str, str]:
    """The text that ``save_weights`` put beside the tensors of a safetensors file or run folder; {} if there is none.

    Raises UserError if it is no safetensors file.
    """
    path = weights_file(source)
    with _readable(path), safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def weights_file(source: str | Path) -> Path:
    """The file that ``source`` means: itself, or model.safetensors in a folder.

    Raises UserError if it is missing, empty, or plainly no weights (a web page, a Git LFS pointer).
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / RUN_FILE).is_file():
            raise UserError(f"the folder {path} holds no {RUN_FILE}")
        path = path / RUN_FILE
    try:
        with path.open("rb") as file:
            head = file.read(64).lstrip()
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if not head:
        raise UserError(f"{path} is empty")
    if head.startswith(b"<"):
        raise UserError(f"{path} is a web page, not weights: its download went wrong")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer, not weights: fetch it with `git lfs pull`")
    return path


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU, out of their containers and without wrappers' prefixes.

    Raises UserError for a file that is broken, holds more than tensors, or holds no state dict.
    """
    with _readable(path):
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
                warnings.simplefilter("ignore")  # of pickle protocols: what cannot be read raises
                content = torch.load(path, map_location="cpu", weights_only=True)
    state: dict[str, Tensor] = {}
    for key, tensor in _unwrap(path, content).items():
        name = str(key)
        while name.startswith(PREFIXES):
            name = name.split(".", 1)[1]
        if not isinstance(tensor, Tensor):
            raise UserError(f"{path} is no state dict: {name!r} is of type {type(tensor).__name__}, not a tensor")
        state[name] = tensor
    return state


def _unwrap(path: Path, content: object) -> dict[Any, Any]:
    """The innermost state dict: containers are opened until none is left."""
    while isinstance(content, dict):
        inner = next((content[key] for key in CONTAINERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds no state dict but {'nothing' if not content else type(content).__name__}")
    return content


def _check_fit(path: Path, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raises UserError unless ``state`` has exactly the keys and shapes of ``own``."""
    theirs, ours = state.get("head.bias"), own.get("head.bias")
    if theirs is not None and (ours is None or theirs.shape != ours.shape):
        raise UserError(
            f"{path} has {theirs.numel()} classes, the model {0 if ours is None else ours.numel()}:"
            " give the model as many, or replace the head (replace_head)"
        )
    shapes = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    faults = [
        _listed("missing", [key for key in own if key not in state]),
        _listed("unexpected", [key for key in state if key not in own]),
        _listed("of another shape", shapes),
    ]
    if any(faults):
        raise UserError(f"{path} does not fit this model: " + "; ".join(fault for fault in faults if fault))


def _listed(what: str, keys: Sequence[str]) -> str:
    """``"3 missing (a, b, ...)"``, or nothing if there is none."""
    if not keys:
        return ""
    return f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"


@contextmanager
def _readable(path: Path) -> Iterator[None]:
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
        reason = str(error).splitlines()[0].split(". ")[0] if plain and str(error) else "no weights format known here"
        raise UserError(f"{path} cannot be read, it is cut short or another kind of file ({reason})") from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file in the same folder, which takes the place of ``path`` if the body succeeds."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
