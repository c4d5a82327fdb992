"""Weights into models and out of them: strict about what is in a file, all or nothing.

``anyres.models.state_files`` reads. This writes safetensors, atomically, with a description beside the tensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from anyres.config import UserError
from anyres.models.contract import Loadable, Network, count_classes
from anyres.models.identify_checkpoint import identify_checkpoint
from anyres.models.index import first_weights
from anyres.models.registry import aliases
from anyres.models.state_files import ABOUT, read_state, readable, signed, weights_file
from anyres.storage import atomic_write, parse_json

PRETRAINED = "pretrained"
"""What ``load_weights`` calls the weights that a model's own library or paper publishes."""


@dataclass(frozen=True)
class LoadedWeights:
    """What ``load_weights`` did; printed, a sentence."""

    source: str  # what was read: a file, or `pretrained` of a model
    new_classifier: bool  # the model kept its own classifier, which is to be trained
    adapted: tuple[str, ...]  # keys whose tensors were resampled or adapted to the model's shapes

    def __str__(self) -> str:
        head = "the model's own classifier, not yet trained" if self.new_classifier else "all of it"
        more = f"; adapted to the model's size: {', '.join(self.adapted)}" if self.adapted else ""
        return f"loaded {self.source}: {head}{more}"


def load_weights(
    model: Loadable,
    source: str | Path,
    *,
    replace_head: bool | Literal["if_needed"] = False,
    part: str | None = None,
) -> LoadedWeights:
    """Loads published or own weights into ``model``; returns what was done (see LoadedWeights).

    ``source``: a .pth, .pt or .safetensors file; a run folder, which holds model.safetensors; a set of the index such
    as ``"deit3_small.384"`` (`anyres models NAME` lists them); a URL; a Hugging Face hub id such as
    ``"owner/name@revision"``; or ``"pretrained"``: the first set of the index, or what timm or torchvision publish for
    a model of theirs. Position tables and mixing matrices are resampled to the model's grid, and the first convolution
    is adapted to the model's input channels as timm does: for one channel summed, for others repeated and scaled.
    Every key must be there with its shape, and no other; ``replace_head`` leaves the source's classifier aside and
    keeps the model's own, for another set of classes (``"if_needed"``: where it does not fit). ``part`` says which
    state dict of a training checkpoint is meant, such as ``"model_ema"`` or ``"student"``; by default the first of
    ``wrappings.CONTAINERS``.
    Raises UserError, one line, for weights that cannot be had, read, or made to fit; the model is then unchanged.
    """
    own = model.state_dict()
    if any(tensor.is_meta for tensor in own.values()):
        raise UserError("the model has no storage (device meta): give it some, model.to_empty(device='cpu')")
    what, content = _read(model, source, part)
    try:
        state = _adapt_channels(model, model.convert_state_dict(dict(content)))
        heads, theirs = head_keys(model, own), head_keys(model, state)
        if replace_head == "if_needed":
            replace_head = {k: state[k].shape for k in theirs} != {k: own[k].shape for k in heads}
        if replace_head:
            state = {key: tensor for key, tensor in state.items() if key not in theirs}
            state |= {key: own[key] for key in heads}
        _check_fit(state, own, heads | head_keys(model, state), model.pretrained_cfg["classifier"])
    except UserError as error:
        raise UserError(f"{what} does not fit this model: {error}{_likeness(model, content)}") from error
    if wrong := next((key for key, tensor in state.items() if not _is_sound(tensor)), None):
        raise UserError(f"{what} is of no use: {wrong!r} holds numbers that are not finite")
    model.load_state_dict(state)
    adapted = (key for key in state if key in content and key not in heads and content[key].shape != state[key].shape)
    return LoadedWeights(what, new_classifier=bool(replace_head) and bool(heads), adapted=tuple(adapted))


def _is_sound(tensor: Tensor) -> bool:
    """Whether no number of it is NaN or infinite; in one pass without a copy, as a sum shows either."""
    if not tensor.is_floating_point() or bool(tensor.sum(dtype=torch.float64).isfinite()):
        return True
    return bool(tensor.isfinite().all())


def _read(model: Loadable, source: str | Path, part: str | None) -> tuple[str, Mapping[str, Tensor]]:
    """What a message calls the weights, and their tensors."""
    if source == PRETRAINED and not Path(source).exists():
        state = model.pretrained_state()
        if state is not None:
            return f"{PRETRAINED} of {model.called}", state
        source = first_weights(model.called)
    path = weights_file(source)
    return str(path), read_state(path, part)


def _adapt_channels(model: Loadable, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with its first convolution for the model's number of input channels."""
    names, own = model.pretrained_cfg.get("first_conv") or (), model.state_dict()
    adapted = {}
    for name in (names,) if isinstance(names, str) else names:
        key = f"{name}.weight"
        theirs, ours = state.get(key), own.get(key)
        if theirs is None or ours is None or theirs.ndim != 4 or theirs.shape[1] == ours.shape[1]:
            continue
        if theirs.shape[1] == 3:  # else it is not of RGB images, and its shape tells what is wrong
            from timm.models import adapt_input_conv

            adapted[key] = adapt_input_conv(ours.shape[1], theirs)
    return state | adapted


def save_weights(source: nn.Module | Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]) -> None:
    """Writes a model's or a state dict's tensors as safetensors, whole or not at all.

    ``metadata`` is text by key; under ``"anyres"`` goes what rebuilds the model, as JSON: name, options, classes. A
    digest of all goes beside these, so that a damaged file is refused when it is read.
    Raises UserError if it cannot be written.
    """
    state = source.state_dict() if isinstance(source, nn.Module) else source
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    text, path = dict(metadata), Path(path)
    if ABOUT in text:
        text[ABOUT] = json.dumps(signed(json.loads(text[ABOUT]), tensors))
    try:
        with atomic_write(path) as draft:
            save_file(tensors, draft, metadata=text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def read_metadata(source: str | Path) -> dict[str, str]:
    """The text that ``save_weights`` put beside the tensors of a safetensors file or run folder; {} if there is none.

    Raises UserError if it is no safetensors file.
    """
    path = weights_file(source)
    with readable(path), safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def written_digest(source: str | Path) -> str:
    """The digest that a file of weights has of itself, as ``save_weights`` put it there; "" where it has none."""
    about = parse_json(read_metadata(source).get(ABOUT, "{}"), dict[str, Any])
    return str(about.get("sha256", ""))


def head_keys(model: Loadable, state: Mapping[str, Tensor]) -> set[str]:
    """The keys of ``state`` that depend on the number of classes."""
    names = model.pretrained_cfg["classifier"]
    names = (names,) if isinstance(names, str) else names
    return {key for key in state if key in names or key.startswith(tuple(f"{name}." for name in names))}


def reorder_head(model: Network, order: Sequence[int]) -> None:
    """Make output i of ``model``'s classifier what output ``order[i]`` was."""
    state, places = model.state_dict(), torch.tensor(list(order))
    layers = re.compile(r"(.+\.)(\d+)(\.[^.]+)")  # of a list of layers, one per class
    before = {key: state[key].clone() for key in head_keys(model, state)}
    for key, tensor in before.items():
        found = layers.fullmatch(key)
        if found and f"{found[1]}{len(order) - 1}{found[3]}" in before:
            state[key].copy_(before[f"{found[1]}{order[int(found[2])]}{found[3]}"])
        else:  # a row, or a token (1, k, c), for each class
            axis = 0 if tensor.shape[0] == len(order) else 1
            state[key].copy_(tensor.index_select(axis, places))


def _check_fit(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], heads: set[str], classifier: str | Sequence[str]
) -> None:
    """Raises UserError unless ``state`` has exactly the keys and shapes of ``own``, the model's.

    If nothing but the number of classes differs, by the keys of ``heads``, it says what to do.
    """
    theirs, ours = (count_classes(classifier, tensors) for tensors in (state, own))
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


def _likeness(model: Loadable, state: Mapping[str, Tensor]) -> str:
    """``"; the file looks like restv2_tiny"`` if it looks more like another model than like ``model``."""
    found = identify_checkpoint(state)
    if not found:
        shared = len(state.keys() & model.state_dict().keys())
        return "" if shared > len(state) / 2 else "; the file looks like no model known here"
    best = max(found.values())
    alike = [name for name, share in found.items() if share == best]
    own = model.pretrained_cfg.get("architecture", "")
    return "" if aliases().get(own, own) in alike else f"; the file looks like {' or '.join(alike[:2])}"


def _listed(what: str, keys: Sequence[str]) -> str:
    """``"3 missing (a, b, ...)"``, or nothing if there is none."""
    if not keys:
        return ""
    return f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
