"""Weights in and out of files: safe to read, strict about what is in them, all or nothing.

Reads PyTorch files (tensors only, nothing that could run code) and safetensors, flat or wrapped as the official
repositories wrap them. Writes safetensors, atomically, with a description beside the tensors.
"""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from anyres.config import UserError
from anyres.models.contract import Backbone
from anyres.models.fetch import fetch, is_remote
from anyres.models.identify_checkpoint import recognise
from anyres.models.index import known_weights
from anyres.models.zoo import ALIASES, FAMILIES

CONTAINERS = ("model", "state_dict", "model_ema", "state_dict_ema", "teacher", "student", "module")
"""Keys under which training scripts keep a state dict; the first one present is taken."""
PREFIXES = ("module.", "_orig_mod.", "backbone.")
"""What wrappers put before every name."""
RUN_FILE = "model.safetensors"


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


def load_weights(
    model: Backbone,
    source: str | Path,
    *,
    replace_head: bool | Literal["if_needed"] = False,
    part: str | None = None,
) -> bool:
    """Loads published or own weights into ``model``; returns whether the model kept its own classifier.

    ``source``: a .pth, .pt or .safetensors file; a run folder, which holds model.safetensors; a set of the index such
    as ``"deit3_small.384"`` (`anyres models NAME` lists them); a URL; or a Hugging Face hub id such as
    ``"owner/name@revision"``. Position tables and mixing matrices are carried to the model's grid. Every key must be
    there with its shape, and no other; ``replace_head`` leaves the source's classifier aside and keeps the model's own,
    for another set of classes (``"if_needed"``: where it does not fit). ``part`` says which state dict of a training
    checkpoint is meant, such as ``"model_ema"`` or ``"student"``; by default the first of CONTAINERS.
    Raises UserError, one line, for weights that cannot be had, read, or made to fit; the model is then unchanged.
    """
    own = model.state_dict()
    if any(tensor.is_meta for tensor in own.values()):
        raise UserError("the model has no storage (device meta): give it some, model.to_empty(device='cpu')")
    path = weights_file(source)
    content = read_state(path, part)
    try:
        state = model.adapt_state(dict(content))
        heads, theirs = head_keys(model, own), head_keys(model, state)
        if replace_head == "if_needed":
            replace_head = {k: state[k].shape for k in theirs} != {k: own[k].shape for k in heads}
        if replace_head:
            state = {key: tensor for key, tensor in state.items() if key not in theirs}
            state |= {key: own[key] for key in heads}
        _check_fit(state, own, heads | head_keys(model, state))
    except UserError as error:
        raise UserError(f"{path} does not fit this model: {error}{_likeness(model, content)}") from error
    model.load_state_dict(state)
    return replace_head


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
    """The file that ``source`` means: itself, model.safetensors in a folder, or what is fetched (see load_weights).

    Raises UserError if it is missing, empty, or plainly no weights (a web page, a Git LFS pointer).
    """
    path = Path(source).expanduser()
    if not path.exists() and isinstance(source, str):
        path = _fetched(source)
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
    return Path(source).expanduser()


def read_state(path: Path, part: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU, out of their containers and without wrappers' prefixes.

    Raises UserError for a file that is broken, holds more than tensors, or holds no state dict (named ``part``).
    """
    with path.open("rb") as file:
        head = file.read(9)
    with _readable(path):
        if path.suffix == ".safetensors" or head[8:] == b"{":  # a length of eight bytes, then JSON
            content: Any = load_file(path)
        else:
            allowed = torch.serialization.safe_globals([(Ignored, name) for name in IGNORED])
            with warnings.catch_warnings(), allowed:
                warnings.simplefilter("ignore")  # of pickle protocols: what cannot be read raises
                content = torch.load(path, map_location="cpu", weights_only=True)
    return unwrap(content, str(path), part)


def unwrap(content: object, what: str, part: str | None = None) -> dict[str, Tensor]:
    """The state dict in a checkpoint ``what``, out of its containers and without wrappers' prefixes.

    Raises UserError if there is none, or none named ``part``.
    """
    state: dict[str, Tensor] = {}
    for key, tensor in _innermost(content, what, part).items():
        name = str(key)
        while name.startswith(PREFIXES):
            name = name.split(".", 1)[1]
        if not isinstance(tensor, Tensor):
            raise UserError(f"{what} is no state dict: {name!r} is of type {type(tensor).__name__}, not a tensor")
        if tensor.is_meta or tensor.layout != torch.strided:
            raise UserError(f"{what} is no state dict: {name!r} is a {tensor.layout} tensor on {tensor.device}")
        if name in state:
            raise UserError(f"{what} holds {name!r} twice, under two prefixes ({', '.join(PREFIXES)})")
        state[name] = tensor
    return state


def _innermost(content: object, what: str, part: str | None) -> dict[Any, Any]:
    """Containers are opened until none is left; ``part`` is the outermost."""
    if part is not None:
        if not isinstance(content, dict) or not isinstance(content.get(part), dict):
            held = ", ".join(map(str, [*content][:5])) if isinstance(content, dict) else type(content).__name__
            raise UserError(f"{what} holds no state dict {part!r} but {held}")
        content = content[part]
    for _ in range(3):  # nobody nests deeper, and a file could hold itself
        if isinstance(content, dict):
            content = next((content[key] for key in CONTAINERS if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not content:
        raise UserError(
            f"{what} holds no state dict but {'nothing' if isinstance(content, dict) else type(content).__name__}"
        )
    return content


def head_keys(model: Backbone, state: Mapping[str, Tensor]) -> set[str]:
    """The keys of ``state`` that depend on the number of classes."""
    names = model.pretrained_cfg["classifier"]
    names = (names,) if isinstance(names, str) else names
    return {key for key in state if key in names or key.startswith(tuple(f"{name}." for name in names))}


def _check_fit(state: Mapping[str, Tensor], own: Mapping[str, Tensor], heads: set[str]) -> None:
    """Raises UserError unless ``state`` has exactly the keys and shapes of ``own``, the model's.

    If nothing but the number of classes differs, by the keys of ``heads``, it says what to do.
    """

    def classes(tensors: Mapping[str, Tensor]) -> int:
        return sum(tensor.numel() for key, tensor in tensors.items() if re.fullmatch(r"head\.(\d+\.)?bias", key))

    theirs, ours = classes(state), classes(own)
    if theirs != ours and not faults(state, own, leave=heads):
        raise UserError(
            f"it has {theirs or 'no'} classes, the model {ours or 'none'}: build the model with num_classes={theirs},"
            " or give replace_head to keep its own head"
        )
    if wrong := faults(state, own):
        raise UserError(wrong)


def faults(state: Mapping[str, Tensor], own: Mapping[str, Tensor], leave: Collection[str] = ()) -> str:
    """What is wrong with ``state``, apart from the keys in ``leave``; empty if nothing is."""
    shapes = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if key in state and key not in leave and state[key].shape != own[key].shape
    ]
    types = [
        f"{key} {state[key].dtype}"
        for key in own
        if key in state and own[key].is_floating_point() and not state[key].is_floating_point()
    ]
    lists = [
        _listed("missing", [key for key in own if key not in state and key not in leave]),
        _listed("unexpected", [key for key in state if key not in own and key not in leave]),
        _listed("of another shape", shapes),
        _listed("of another type", types),
    ]
    return "; ".join(each for each in lists if each)


def _likeness(model: Backbone, state: Mapping[str, Tensor]) -> str:
    """``"; the file looks like restv2_tiny"`` if it looks more like another model than like ``model``."""
    found = recognise(state)
    if not found:
        shared = len(state.keys() & model.state_dict().keys())
        return "" if shared > len(state) / 2 else "; the file looks like no model known here"
    best, own = next(iter(found)), model.pretrained_cfg.get("architecture", "")
    if found.get(ALIASES.get(own, own)) == found[best]:
        return ""
    plain = best in FAMILIES["dino"] or (best in FAMILIES["deit"] and "distilled" not in best)
    return f"; the file looks like {best}" + (", as any plain ViT of its size does" if plain else "")


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
