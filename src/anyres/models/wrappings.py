"""State dicts out of what training scripts and libraries wrap around them: containers, prefixes, other names.

Known are the official repositories', PyTorch's own (DataParallel, compile, FSDP, AveragedModel), Lightning's, loops of
one's own, and the layouts in which transformers keeps ViT and DeiT. One rule for prefixes: one that all names share is
a wrapper's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from anyres.config import UserError

CONTAINERS = (
    *("model", "state_dict", "model_state_dict", "model_ema", "state_dict_ema", "teacher", "student", "module"),
    *("model_state", "ema_state_dict", "ema_model", "ema", "net", "network", "weights", "params"),
)
"""Keys under which training scripts keep a state dict; the first one present is taken."""
PREFIXES = ("module.", "backbone.")
"""What wrappers put before names, and not before all."""
WITHIN = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
"""Parts that PyTorch's wrappers put anywhere into a name."""
NETWORKS = ("model", "net", "network")
"""What a LightningModule calls its network; beside it lie losses and metrics."""
DEEPEST = 3  # nobody nests containers deeper, and a file could hold itself


def innermost(content: object, what: str, part: str | None) -> dict[Any, Any]:
    """The state dict of a checkpoint: containers are opened until none is left; ``part`` is the outermost.

    Where no known name is there, the only dictionary of tensors is meant. Raises UserError if there is none, or
    several.
    """
    if part is not None:
        if not isinstance(content, dict) or not isinstance(content.get(part), dict):
            held = ", ".join(map(str, [*content][:5])) if isinstance(content, dict) else type(content).__name__
            raise UserError(f"{what} holds no state dict {part!r} but {held}")
        content = content[part]
    for _ in range(DEEPEST):
        if isinstance(content, dict):
            content = next((content[key] for key in CONTAINERS if isinstance(content.get(key), dict)), content)
    if isinstance(content, dict) and not any(isinstance(value, Tensor) for value in content.values()):
        inner = [key for key, value in content.items() if isinstance(value, dict) and _is_state(value)]
        if len(inner) > 1:
            raise UserError(f"{what} holds several state dicts ({', '.join(map(repr, inner[:5]))}): name one by part")
        content = content[inner[0]] if inner else content
    if not isinstance(content, dict) or not content:
        raise UserError(
            f"{what} holds no state dict but {'nothing' if isinstance(content, dict) else type(content).__name__}"
        )
    return content


def _is_state(content: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in content.values())


def plain_names(state: Mapping[Any, Any], what: str) -> dict[str, Any]:
    """The same under the names that the model itself gives. Raises UserError for two that become one."""
    names = {key: _own(str(key)) for key in state}
    if "n_averaged" in state and any(str(key).startswith("module.") for key in state):
        del names["n_averaged"]  # how often AveragedModel was updated
    while wrapper := _shared(list(names.values())):
        names = {key: _own(name.removeprefix(wrapper)) for key, name in names.items()}
    network = _network(list(names.values()))
    if network:
        names = {key: _own(name.removeprefix(network)) for key, name in names.items() if name.startswith(network)}
    found: dict[str, Any] = {}
    for key, name in names.items():
        if name in found:
            raise UserError(f"{what} holds {name!r} twice, under two prefixes ({', '.join((*PREFIXES, *WITHIN))})")
        found[name] = state[key]
    return found


def _own(name: str) -> str:
    """A name without what wrappers put before or into it."""
    name = ".".join(part for part in name.split(".") if part not in WITHIN)
    while name.startswith(PREFIXES):
        name = name.split(".", 1)[1]
    return name


def _shared(names: list[str]) -> str:
    """The first part of all names, with its dot, if that is a wrapper's: it holds modules of several names; else ""."""
    first = names[0].partition(".")[0] + "." if names else ""
    rests = [name.removeprefix(first) for name in names if name.startswith(first)]
    modules = {rest.partition(".")[0] for rest in rests if "." in rest}
    if len(rests) < len(names) or len(modules) < 2 or any(module.isdigit() for module in modules):
        return ""
    return first


def _network(names: list[str]) -> str:
    """The part under which a LightningModule keeps its network, where many names begin with it; else ""."""
    for part in NETWORKS:
        if 3 * sum(name.startswith(f"{part}.") for name in names) > len(names):
            return f"{part}."
    return ""


# --- transformers ---------------------------------------------------------------------------------------------------

_TRANSFORMERS = re.compile(r"(?:^|\.)embeddings\.patch_embeddings\.projection\.weight$")
_RENAMES = (
    (r"^(?:vit|deit|dino)\.", ""),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\.(?:attention\.(query|key|value)|(q|k|v)_proj)\.", r".attn.\1\2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(\d)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"^layernorm\.", "norm."),
    (r"^(?:cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
)
"""Names of transformers' ViT and DeiT, of files and of version 5's modules, in timm's words."""
_THREE = (("query", "key", "value"), ("q", "k", "v"))


def from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of transformers' ViT or DeiT under timm's names; any other as it is.

    Queries, keys and values become one matrix; the pooler, which no classifier uses, is left out.
    """
    if not any(_TRANSFORMERS.search(name) for name in state):
        return state
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = key
        for pattern, plain in _RENAMES:
            name = re.sub(pattern, plain, name)
        if not name.startswith("pooler."):
            found[name] = tensor
    for first, second, third in _THREE:
        for name in [name for name in found if re.search(rf"\.attn\.{first}\.\w+$", name)]:
            three = [name.replace(f".attn.{first}.", f".attn.{each}.") for each in (first, second, third)]
            if all(each in found for each in three):
                found[name.replace(f".attn.{first}.", ".attn.qkv.")] = torch.cat([found.pop(each) for each in three])
    return found
