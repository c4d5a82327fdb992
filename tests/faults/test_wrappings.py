"""Weights load whatever wraps them: Lightning, a loop of one's own, AveragedModel, compile, FSDP, transformers.

Situations: a prefix that all names share, parts within names, losses and metrics beside the network, containers with
unknown names, ViT and DeiT as transformers keeps them in files and in its modules.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anyres.config import UserError
from anyres.models import create_model
from anyres.models.contract import Backbone
from anyres.models.state_files import unwrap
from anyres.models.weights import load_weights

State = dict[str, Tensor]


def named(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + key: tensor for key, tensor in state.items()}


def within(part: str) -> Callable[[State], State]:
    return lambda state: {re.sub(r"^(blocks\.\d+)\.", rf"\1.{part}.", key): tensor for key, tensor in state.items()}


EXTRA = {"criterion.pos_weight": torch.ones(3), "train_accuracy.total": torch.tensor(3)}
LAYOUTS: dict[str, Callable[[State], object]] = {
    "Lightning": lambda s: {"state_dict": named("model.")(s), "epoch": 1, "callbacks": {}, "loops": {"a": {}}},
    "Lightning's other name": lambda s: {"state_dict": named("net.")(s)},
    "a name of one's own": named("classifier_network."),
    "Lightning with losses and metrics": lambda s: {"state_dict": named("model.")(s) | EXTRA},
    "Lightning with an average": lambda s: {"state_dict": named("model.")(s) | named("ema_model.")(s) | EXTRA},
    "compiled in Lightning": lambda s: {"state_dict": named("model._orig_mod.")(s)},
    "a loop of one's own": lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {}}, "epoch": 1},
    "a container of another name": lambda s: {"my_weights": s, "optimizer": {"state": {}, "param_groups": []}},
    "an average": lambda s: named("module.")(s) | {"n_averaged": torch.tensor(3)},
    "an average in a container": lambda s: {"ema": named("module.module.")(s) | {"n_averaged": torch.tensor(3)}},
    "compiled blocks": within("_orig_mod"),
    "FSDP and checkpointing": within("_fsdp_wrapped_module._checkpoint_wrapped_module"),
    "twice": lambda s: {"model": named("module.model.")(s)},
}


def build(name: str = "resmlp_nano", seed: int = 0, classes: int = 3) -> Backbone:
    torch.manual_seed(seed)
    return create_model(name, num_classes=classes).eval()


def same(model: Backbone, source: State) -> bool:
    return all(torch.equal(tensor, source[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_wrapping_is_undone(layout: str, tmp_path: Path) -> None:
    source, model = build(seed=1).state_dict(), build(seed=2)
    torch.save(LAYOUTS[layout](source), tmp_path / "a.ckpt")
    load_weights(model, tmp_path / "a.ckpt")
    assert same(model, source)


def test_what_is_no_wrapping_stays() -> None:
    """Names of one module only, numbered blocks, a head by itself."""
    one = torch.ones(1)
    for names in (
        ["blocks.0.norm.weight", "blocks.1.norm.weight"],
        ["head.weight", "head.bias"],
        ["features.conv.weight", "features.norm.weight", "classifier.weight"],
    ):
        assert list(unwrap(dict.fromkeys(names, one), "x")) == names


def test_several_state_dicts_are_named() -> None:
    one = {"a.weight": torch.ones(1)}
    with pytest.raises(UserError, match="several state dicts \\('generator', 'critic'\\): name one by part"):
        unwrap({"generator": one, "critic": one}, "x")
    assert list(unwrap({"generator": one, "critic": {"b": torch.ones(1)}}, "x", part="critic")) == ["b"]


def transformers_file(state: State, prefix: str) -> State:
    """As ``save_pretrained`` writes ViT (``vit.``) and DeiT (``deit.``)."""
    pairs = (
        (r"^(cls_token)$", rf"{prefix}embeddings.\1"),
        (r"^dist_token$", f"{prefix}embeddings.distillation_token"),
        (r"^pos_embed$", f"{prefix}embeddings.position_embeddings"),
        (r"^patch_embed\.proj\.", f"{prefix}embeddings.patch_embeddings.projection."),
        (r"^blocks\.", f"{prefix}encoder.layer."),
        (r"\.attn\.proj\.", ".attention.output.dense."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
        (r"\.norm1\.", ".layernorm_before."),
        (r"\.norm2\.", ".layernorm_after."),
        (r"^norm\.", f"{prefix}layernorm."),
        (r"^head\.", "cls_classifier." if prefix == "deit." else "classifier."),
        (r"^head_dist\.", "distillation_classifier."),
    )
    found: State = {}
    for key, tensor in state.items():
        name = key
        for pattern, theirs in pairs:
            name = re.sub(pattern, theirs, name)
        if ".attn.qkv." in name:
            for part, chunk in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                found[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = chunk.clone()
        else:
            found[name] = tensor
    return found


def transformers_module(state: State, prefix: str) -> State:
    """As version 5 names them within its modules."""
    pairs = (
        (r"encoder\.layer\.", "layers."),
        (r"attention\.attention\.(q|k|v)\w+\.", r"attention.\1_proj."),
        (r"attention\.output\.dense\.", "attention.o_proj."),
        (r"intermediate\.dense\.", "mlp.fc1."),
        (r"(\d)\.output\.dense\.", r"\1.mlp.fc2."),
    )
    found: State = {}
    for key, tensor in transformers_file(state, prefix).items():
        name = key
        for pattern, theirs in pairs:
            name = re.sub(pattern, theirs, name)
        found[name] = tensor
    return found


@pytest.mark.parametrize("layout", [transformers_file, transformers_module])
@pytest.mark.parametrize(
    ("name", "prefix", "classes"),
    [
        ("deit_tiny_patch16_224", "vit.", 3),
        ("deit_tiny_distilled_patch16_224", "deit.", 3),
        ("vit_tiny", "", 0),
    ],
)
def test_transformers_vit_and_deit_load(
    name: str, prefix: str, classes: int, layout: Callable[[State, str], State], tmp_path: Path
) -> None:
    source, model = build(name, 1, classes).state_dict(), build(name, 2, classes)
    theirs = layout(source, prefix)
    if not prefix:
        theirs |= {"pooler.dense.weight": torch.ones(2, 2), "pooler.dense.bias": torch.ones(2)}
    assert not theirs.keys() & source.keys() - {"head.weight"}
    torch.save(theirs, tmp_path / "pytorch_model.bin")
    load_weights(model, tmp_path / "pytorch_model.bin")
    assert same(model, source)
