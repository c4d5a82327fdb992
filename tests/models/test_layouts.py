"""Every official layout of a file loads, to the logits of the official code; so do timm's files of the same models."""

import argparse
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from anyres.config import UserError
from anyres.models import create_model
from anyres.models.weights import load_weights
from tests import golden
from tests.golden import fill
from tests.models.zoo import SMALL, build, image, stirred

State = dict[str, Tensor]
SMALLEST = {
    "rest_v1": "rest_lite",
    "rest_v2": "restv2_tiny",
    "resformer": "resformer_tiny_patch16",
    "deit": "deit_tiny_patch16_224",
    "deit_distilled": "deit_tiny_distilled_patch16_224",
    "deit3": "deit_tiny_patch16_LS",
    "threethings": "deit_small_patch16_18x2_LS",
    "hmlp": "deit_tiny_patch16_LS+hMLP",
    "cait": "cait_XXS24_224",
    "resmlp": "resmlp_12",
    "patchconvnet": "S60",
    "patchconvnet_multi": "S60_multi",
    "dino": "vit_tiny_p16",
}


def official(name: str) -> State:
    """The state dict of the official code under the synthetic weights: its own keys, not ours."""
    return {
        key: torch.from_numpy(fill.value(key, shape)) if dtype == "f32" else torch.zeros(shape, dtype=torch.int64)
        for key, (shape, dtype) in golden.keys(name).items()
    }


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: tensor for key, tensor in state.items()}


def other(state: State) -> State:
    """What must not be taken."""
    return {key: tensor + 1 for key, tensor in state.items()}


ARGS = argparse.Namespace(lr=np.float64(5e-4), output_dir=Path("runs"), seed=np.int64(0), aa=None, betas=(0.9, 0.95))
DINO_HEAD = {
    "head.mlp.0.weight": torch.ones(4, 192),
    "head.mlp.0.bias": torch.ones(4),
    "head.last_layer.weight_g": torch.ones(3, 1),
    "head.last_layer.weight_v": torch.ones(3, 4),
}
LAYOUTS: dict[str, Callable[[State], object]] = {
    "flat": OrderedDict,
    "model": lambda s: {"model": s},
    "state_dict": lambda s: {"state_dict": s, "epoch": 1},
    "model module.": lambda s: {"model": prefixed(s, "module.")},
    "module.": lambda s: prefixed(s, "module."),
    "training": lambda s: {
        "model": s,
        "model_ema": other(s),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.95)}]},
        "scaler": {"scale": 65536.0},
        "epoch": 299,
        "max_accuracy": np.float32(82.3),
        "args": ARGS,
    },
    "dino": lambda s: {
        "student": prefixed(other(s) | DINO_HEAD, "module.backbone."),
        "teacher": prefixed(s, "backbone.") | DINO_HEAD,
        "dino_loss": {"center": torch.zeros(1, 3)},
        "args": ARGS,
    },
    "dino module.": lambda s: {
        "student": {},
        "teacher": prefixed(prefixed(s, "backbone.") | DINO_HEAD, "module."),
    },
}
CASES = [
    *((family, layout) for family in ("rest_v1", "rest_v2") for layout in ("flat", "model", "state_dict", "training")),
    *((family, "model") for family in ("deit", "deit_distilled", "deit3", "threethings", "hmlp")),
    *((family, "training") for family in ("resformer", "deit", "deit3", "resmlp")),
    ("resformer", "model"),
    ("cait", "model module."),
    ("resmlp", "flat"),
    *(("patchconvnet", layout) for layout in ("flat", "model", "module.")),
    ("patchconvnet_multi", "model module."),
    *(("dino", layout) for layout in ("flat", "dino", "dino module.")),
]


@torch.no_grad()
def assert_golden(family: str, name: str, path: Path) -> None:
    built, options = golden.built(name)
    model = create_model(built, **options, pretrained=path).eval()
    expected = golden.arrays(f"logits_{family.removesuffix('_multi')}")[name][:1]
    tolerance = {"resmlp": 2e-6 * expected.abs().max().item(), "rest_v1": 2e-4}.get(family, 1e-5)
    torch.testing.assert_close(model(fill.images(2, 224, 224)[:1]), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_official_layouts_give_the_official_logits(family: str, layout: str, tmp_path: Path) -> None:
    name = SMALLEST[family]
    torch.save(LAYOUTS[layout](official(name)), tmp_path / "weights.pth")
    assert_golden(family, name, tmp_path / "weights.pth")


@pytest.mark.parametrize("family", ["rest_v1", "cait", "resmlp", "patchconvnet"])
def test_safetensors_give_the_official_logits(family: str, tmp_path: Path) -> None:
    save_file(official(SMALLEST[family]), tmp_path / "model.safetensors")
    assert_golden(family, SMALLEST[family], tmp_path)


def test_another_part_is_taken_when_asked(tmp_path: Path) -> None:
    state = official("vit_tiny_p16")
    torch.save(LAYOUTS["training"](state), tmp_path / "a.pth")
    torch.save(LAYOUTS["dino"](state), tmp_path / "b.pth")
    for file, part in (("a.pth", "model_ema"), ("b.pth", "student")):
        model = create_model("vit_tiny")
        load_weights(model, tmp_path / file, part=part)
        torch.testing.assert_close(model.state_dict(), other(state), rtol=0, atol=0)
    with pytest.raises(UserError, match=r"no state dict 'model' but student, teacher, dino_loss, args"):
        load_weights(model, tmp_path / "b.pth", part="model")


TIMM = {
    "deit_tiny_patch16_224": "deit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224": "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224": "deit_small_patch16_LS",
    "cait_xxs24_224": "cait_XXS24_224",
    "resmlp_12_224": "resmlp_12",
    "vit_tiny_patch16_224": "vit_tiny",
}


@pytest.mark.parametrize("theirs", TIMM)
@torch.no_grad()
def test_timms_files_give_timms_logits(theirs: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    classes = {"num_classes": 0} if theirs.startswith("vit") else {}
    peer = stirred(timm.create_model(theirs, **classes))
    assert type(peer).__module__.startswith("timm.")
    torch.save({"state_dict": peer.state_dict(), "arch": theirs}, tmp_path / "timm.pth")
    model, x = create_model(TIMM[theirs], pretrained=tmp_path / "timm.pth").eval(), image(224, 224, 1)
    expected = peer(x)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=2e-5 * expected.abs().max().item())


# --- what may differ between a file and a model --------------------------------------------------------------------

WITH_TABLES = ["deit", "deit_distilled", "deit3", "threethings", "cait", "dino", "resmlp"]


@pytest.mark.parametrize("family", WITH_TABLES)
@pytest.mark.parametrize(("of", "into"), [(64, 96), (96, 64), (64, (48, 96)), (64, (40, 20))])
@torch.no_grad()
def test_tables_are_carried_to_the_models_grid(family: str, of: int, into: Any, tmp_path: Path) -> None:
    """A model built at another size and loaded equals the file's model, which resamples on the fly."""
    source = stirred(build(family, img_size=of))
    torch.save({"model": source.state_dict()}, tmp_path / "a.pth")
    model = build(family, img_size=into, seed=1).eval()
    load_weights(model, tmp_path / "a.pth")
    x = image(*((into, into) if isinstance(into, int) else into))
    torch.testing.assert_close(model(x), source(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", WITH_TABLES)
def test_a_rectangles_table_is_not_guessed(family: str, tmp_path: Path) -> None:
    torch.save(build(family, img_size=(48, 96)).state_dict(), tmp_path / "a.pth")
    with pytest.raises(UserError, match="no square"):
        load_weights(build(family), tmp_path / "a.pth")
    load_weights(build(family, img_size=(48, 96), seed=1), tmp_path / "a.pth")


@pytest.mark.parametrize("family", SMALL)
def test_a_head_is_replaced_only_when_asked(family: str, tmp_path: Path) -> None:
    source, model = build(family, classes=9), build(family, seed=1)
    torch.save(source.state_dict(), tmp_path / "nine.pth")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=r"has 9 classes, the model 5: build the model with num_classes=9") as caught:
        load_weights(model, tmp_path / "nine.pth")
    assert "looks like" not in str(caught.value)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    load_weights(model, tmp_path / "nine.pth", replace_head=True)
    names = model.pretrained_cfg["classifier"]
    names = (names,) if isinstance(names, str) else names
    for key, tensor in model.state_dict().items():
        expected = before if key.split(".")[0] in names else source.state_dict()
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=0)
    load_weights(build(family, classes=9), tmp_path / "nine.pth", replace_head=True)


@pytest.mark.parametrize("family", SMALL)
def test_a_file_without_head(family: str, tmp_path: Path) -> None:
    source = build(family, classes=0)
    torch.save(source.state_dict(), tmp_path / "none.pth")
    model = build(family, seed=1)
    with pytest.raises(UserError, match=r"has no classes, the model 5: .* num_classes=0, or give replace_head"):
        load_weights(model, tmp_path / "none.pth")
    load_weights(model, tmp_path / "none.pth", replace_head=True)
    load_weights(build(family, classes=0, seed=1), tmp_path / "none.pth")
    torch.save(build(family).state_dict(), tmp_path / "five.pth")
    with pytest.raises(UserError, match=r"has 5 classes, the model none"):
        load_weights(source, tmp_path / "five.pth")
    load_weights(source, tmp_path / "five.pth", replace_head=True)


@pytest.mark.parametrize("family", SMALL)
def test_other_channels_are_named(family: str, tmp_path: Path) -> None:
    torch.save(build(family, in_chans=1).state_dict(), tmp_path / "grey.pth")
    with pytest.raises(UserError, match=rf"1 of another shape \({build(family).pretrained_cfg['first_conv']}.weight "):
        load_weights(build(family), tmp_path / "grey.pth")


@pytest.mark.parametrize("family", SMALL)
def test_odd_tensors_are_one_line_and_change_nothing(family: str, tmp_path: Path) -> None:
    """Whatever stands under a known name: without dimensions, empty, of another rank or type."""
    model = build(family)
    state = model.state_dict()
    before = {key: tensor.clone() for key, tensor in state.items()}
    first_of_kind = {key.rpartition(".")[2] + str(tensor.ndim): key for key, tensor in reversed(state.items())}
    odd = [torch.ones(()), torch.ones(0), torch.ones(1, 1, 1), torch.ones(2, 5, 7), torch.ones(3, 0, 4)]
    for key in {*first_of_kind.values(), *(key for key in state if "attn.weight" in key)}:
        shape = state[key].shape
        for tensor in (*odd, torch.ones(2, *shape[1:]) if shape else odd[0], torch.ones(shape, dtype=torch.int8)):
            if tensor.shape == shape and not state[key].is_floating_point():
                continue
            torch.save(state | {key: tensor}, tmp_path / "odd.pth")
            with pytest.raises(UserError) as caught:
                load_weights(model, tmp_path / "odd.pth")
            assert "\n" not in str(caught.value)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
