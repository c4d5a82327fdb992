"""Pyramids: equal to the official detection and segmentation backbones, at any size, out of any kind of file."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import anyres
from anyres.config import UserError
from anyres.models.pyramids.bottom_up import BottomUp, create_bottom_up
from anyres.ops.residual import StochasticDepth
from tests.golden import fill

GOLDEN = Path(__file__).parents[1] / "golden" / "downstream"
META: dict[str, Any] = json.loads((GOLDEN / "meta.json").read_text())["backbones"]
WITH_KEYS = [name for name, about in META.items() if "keys" in about]
STYLES = {"det": "detection", "seg": "segmentation"}
SMALL_REST = {"dims": (16, 32, 64, 128), "depths": (1, 1, 1, 1)}
SMALL_VIT = {"dim": 32, "depth": 4, "heads": 2, "patch_size": 16, "img_size": 32}
ODD = (97, 163)


def official(name: str) -> BottomUp:
    """The pyramid that a golden name, such as ``det/rest_small.retinanet``, is of."""
    style, _, rest = name.partition("/")
    model, _, task = rest.partition(".")
    stages = (2, 3, 4) if task == "retinanet" else (1, 2, 3, 4)
    return anyres.create_bottom_up(model, style=STYLES[style], stages=stages)


@cache
def expected() -> dict[str, Tensor]:
    with np.load(GOLDEN / "features.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def small(name: str = "restv2_nano", **options: Any) -> BottomUp:
    torch.manual_seed(0)
    return create_bottom_up(name, **(SMALL_REST if name.startswith("rest_") else {}), **options).eval()


@pytest.mark.parametrize("name", [*WITH_KEYS, "det/rest_lite.mask_rcnn", "det/restv2_large.mask_rcnn"])
def test_is_the_official_backbone_by_keys_and_counts(name: str) -> None:
    about = META[name]
    with torch.device("meta"):
        model = official(name)
    state = model.state_dict()
    assert sum(p.numel() for p in model.parameters()) == about["parameters"]
    assert len(state) == about["tensors"]
    if "keys" in about:
        assert {key: list(tensor.shape) for key, tensor in state.items()} == about["keys"]
    assert {key: model.get_submodule(key).eps for key in about["output_norms"]} == about["output_norms"]
    last = [module for module in model.modules() if isinstance(module, StochasticDepth)][-1]
    assert last.drop_prob == pytest.approx(about["last_drop_path"])


@pytest.mark.parametrize(
    ("name", "size", "tolerance"),
    [
        ("det/rest_small.mask_rcnn", "256x320", 1e-3),
        ("det/rest_small.retinanet", "224x224", 1e-3),
        ("det/restv2_tiny.mask_rcnn", "256x320", 5e-5),
        ("seg/restv2_tiny.upernet", "224x224", 5e-5),
    ],
)
@torch.no_grad()
def test_gives_the_official_maps(name: str, size: str, tolerance: float) -> None:
    with torch.device("meta"):
        model = official(name)
    fill.fill(model.to_empty(device="cpu").eval())
    height, width = map(int, size.split("x"))
    maps = model(fill.images(2, height, width))
    assert {f"{size}/{stage}": list(found.shape) for stage, found in maps.items()} == {
        place: shape for place, shape in META[name]["outputs"].items() if place.startswith(size)
    }
    for stage, found in maps.items():
        torch.testing.assert_close(
            found[:, 1::4, ::3, 1::3], expected()[f"{name}/{size}/{stage}"], rtol=0, atol=tolerance
        )


PYRAMIDS: dict[str, dict[str, Any]] = {
    "rest_lite": SMALL_REST,
    "restv2_nano": {},
    "resformer_nano": {},
    "deit_tiny_patch16_224": SMALL_VIT,
    "deit_tiny_patch16_LS": SMALL_VIT,
    "cait_XXS24_224": SMALL_VIT,
    "S60": {"dim": 32, "depth": 4},
    "resmlp_nano": {"any_size": True},
    "timm:convnext_atto": {},
    "timm:test_vit": {},
}


@pytest.mark.parametrize("style", ["detection", "segmentation"])
@pytest.mark.parametrize("name", PYRAMIDS)
def test_every_backbone_at_odd_sizes(name: str, style: str) -> None:
    torch.manual_seed(0)
    model = create_bottom_up(name, style=style, **PYRAMIDS[name])
    assert list(model.strides.values()) == [4, 8, 16, 32]
    for height, width in (ODD, (33, 64)):
        maps = model(torch.randn(2, 3, height, width))
        for (stage, found), stride in zip(maps.items(), (4, 8, 16, 32), strict=True):
            rows, columns = -(-height // stride), -(-width // stride)
            assert found.shape == (2, model.channels[stage], rows, columns), stage
            assert found.isfinite().all()
    sum(found.sum() for found in maps.values()).backward()
    without = {key for key, p in model.named_parameters() if p.grad is None}
    assert not {key for key in without if not key.startswith(("norm", "head"))}, "a parameter that nothing uses"
    assert all(name in dict(model.named_parameters()) for name in model.no_weight_decay())


def test_strides_of_other_patches() -> None:
    with torch.device("meta"):
        by_patch = {
            patch: create_bottom_up("resformer_nano", patch_size=patch, neck="resized") for patch in (8, 14, 32)
        }
    assert [list(model.strides.values()) for model in by_patch.values()] == [
        [4, 8, 16, 32],
        [3.5, 7, 14, 28],
        [4, 8, 16, 32],
    ]


@torch.no_grad()
def test_a_resized_pyramid_has_no_parameter_and_a_learned_one_ends_in_one() -> None:
    x = torch.randn(1, 3, 64, 96)
    trunk = anyres.create_model("resformer_nano", 0).eval()
    for neck, more in (("resized", 0), ("learned", 4)):
        model = create_bottom_up("resformer_nano", neck=neck).eval()
        assert model.state_dict().keys() >= trunk.state_dict().keys()
        assert (len(model.state_dict()) == len(trunk.state_dict())) == (more == 0)
        model.load_state_dict(trunk.state_dict(), strict=False)
        last = trunk.patch_tokens(trunk.forward_features(x)).mT.reshape(1, -1, 8, 12)
        torch.testing.assert_close(
            model(x)["stage2"] if neck == "learned" else model(x)["stage4"],
            (last if neck == "learned" else torch.nn.functional.max_pool2d(last, 4)),
        )


@torch.no_grad()
def test_norms_between_stages_change_what_follows_and_norms_aside_do_not() -> None:
    x = torch.randn(1, 3, 64, 64)
    for name, changes in (("rest_lite", True), ("restv2_nano", False)):
        every, some = small(name), small(name, stages=(2, 3, 4))
        for key, parameter in every.named_parameters():
            if key.startswith("norm"):
                parameter.copy_(torch.rand_like(parameter) + 0.5)
        some.load_state_dict({key: value for key, value in every.state_dict().items() if key in some.state_dict()})
        assert (not torch.equal(every(x)["stage4"], some(x)["stage4"])) == changes


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_tiny_patch16_LS", "cait_XXS24_224", "resformer_nano"])
@torch.no_grad()
def test_windows_as_large_as_the_grid_change_nothing_and_small_ones_see_no_other(name: str) -> None:
    options = {"patch_size": 8} | ({} if name == "resformer_nano" else SMALL_VIT | {"patch_size": 8})
    x = torch.randn(2, 3, 61, 86)  # 8 x 11 tokens: windows of 3 leave 2 rows and 2 columns
    everywhere, large = (small(name, window=window, neck="resized", **options) for window in (0, 11))
    small_ones = small(name, window=3, global_every=100, neck="resized", **options)
    with torch.no_grad():
        for p, q, r in zip(everywhere.parameters(), large.parameters(), small_ones.parameters(), strict=True):
            q.copy_(p.normal_(std=0.1))
            r.copy_(p)
    torch.testing.assert_close(large(x), everywhere(x))
    if name == "cait_XXS24_224":  # without special tokens, which look at every window
        changed = x.clone()
        changed[:, :, 32:] += 1
        difference = (small_ones(changed)["stage2"] - small_ones(x)["stage2"]).abs().amax((0, 1, 3))
        assert (difference[:3] == 0).all()
        assert (difference[3:] > 0).all()


WRAPPED = {
    "as it is": lambda state: state,
    "detectron2": lambda state: {
        "model": {f"backbone.bottom_up.{key}": value for key, value in state.items()}
        | {"backbone.fpn_lateral2.weight": torch.zeros(1), "roi_heads.box_head.fc1.weight": torch.zeros(1)},
        "iteration": 3,
    },
    "mmsegmentation": lambda state: {
        "meta": {"epoch": 1},
        "state_dict": {f"backbone.{key}": value for key, value in state.items()}
        | {"decode_head.conv_seg.weight": torch.zeros(1), "auxiliary_head.conv_seg.weight": torch.zeros(1)},
    },
}


@pytest.mark.parametrize("wrapping", WRAPPED)
@pytest.mark.parametrize(("name", "style"), [("rest_lite", "detection"), ("restv2_nano", "segmentation")])
def test_official_files_load_with_their_norms(tmp_path: Path, name: str, style: str, wrapping: str) -> None:
    source, model = small(name, style=style), small(name, style=style)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_()
    torch.save(WRAPPED[wrapping](source.state_dict()), tmp_path / "file.pth")
    anyres.load_weights(model, tmp_path / "file.pth")
    for key, value in model.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key


def test_detection_and_segmentation_read_each_others_norms(tmp_path: Path) -> None:
    source = small(style="segmentation")
    torch.nn.init.normal_(source.get_submodule("norm_3").weight)
    torch.save(source.state_dict(), tmp_path / "file.pth")
    model = small(stages=(3, 4))
    anyres.load_weights(model, tmp_path / "file.pth")
    assert torch.equal(model.get_submodule("norm_3.0").weight, source.get_submodule("norm_3").weight)


@pytest.mark.parametrize("name", ["rest_lite", "restv2_nano", "resformer_nano", "timm:convnext_atto"])
def test_a_classifiers_file_leaves_new_norms_at_one(tmp_path: Path, name: str) -> None:
    classifier = anyres.create_model(name, 7, **(SMALL_REST if name == "rest_lite" else {}))
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.normal_()
    torch.save(classifier.state_dict(), tmp_path / "file.pth")
    model = small(name)
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    anyres.load_weights(model, tmp_path / "file.pth")
    state, theirs = model.state_dict(), classifier.state_dict()
    for key in state:
        assert torch.equal(state[key], fresh[key] if key in model.added else theirs[key]), key
    assert {"rest_lite": 6, "restv2_nano": 8, "timm:convnext_atto": 0, "resformer_nano": 2}[name] == len(model.added)
    if name == "rest_lite":
        assert not torch.equal(state["norm.weight"], torch.ones(128)), "the classifier's norm is stage 4's"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: create_bottom_up("restv2_nano", stages=(1, 5)), "stages must be some of 1, 2, 3 and 4"),
        (lambda: create_bottom_up("restv2_nano", neck="learned"), "it takes no neck"),
        (lambda: create_bottom_up("restv2_nano", window=7), "cannot attend in windows"),
        (lambda: create_bottom_up("torchvision:resnet18"), "take a model of timm's"),
        (lambda: create_bottom_up("timm:levit_128s"), "leave stage 1 out"),
        (lambda: create_bottom_up("restv2_nan"), "did you mean 'restv2_nano'"),
    ],
)
def test_mistakes_are_one_line(call: Any, says: str) -> None:
    with pytest.raises(UserError, match=says) as raised:
        call()
    assert "\n" not in str(raised.value)


@torch.no_grad()
def test_a_foreign_model_of_one_size_says_so_in_one_line() -> None:
    model = create_bottom_up("timm:gmixer_12_224", neck="resized").eval()
    assert model(torch.zeros(1, 3, 224, 224))["stage4"].shape == (1, 384, 7, 7)
    with pytest.raises(UserError, match="takes images of one size only, 224 px, not 64 px"):
        model(torch.zeros(1, 3, 64, 64))


def test_a_file_of_another_pyramid_is_refused(tmp_path: Path) -> None:
    torch.save(small("rest_lite").state_dict(), tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"2 unexpected \(norm1"):  # it changed all later stages
        anyres.load_weights(small("rest_lite", stages=(2, 3, 4)), tmp_path / "file.pth")
