"""Detectors and segmenters: the published counts, any size, losses, files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models import group_parameters
from torch import Tensor, nn

import anyres
from anyres.config import UserError
from anyres.models.dense.detector import Detector
from anyres.models.dense.feature_pyramid import FixedStrideAnchors
from anyres.models.dense.segmenter import Segmenter, enlarge, pixel_loss

PUBLISHED = {
    "detect/mask_rcnn_rest_small": (33_318_628, 33.3),  # the README's 31.2 is a mistake, its older 33.3 is right
    "detect/mask_rcnn_rest_base": (49_833_300, 49.8),
    "detect/mask_rcnn_restv2_tiny": (49_941_024, 49.9),
    "detect/mask_rcnn_restv2_small": (60_712_224, 60.7),
    "detect/mask_rcnn_restv2_base": (75_471_456, 75.5),
    "detect/retinanet_rest_small": (23_401_064, 23.4),
    "detect/retinanet_rest_base": (40_497_304, 40.5),
    "segment/upernet_restv2_tiny": (62_088_284, 62.1),
    "segment/upernet_restv2_small": (72_859_484, 72.9),
    "segment/upernet_restv2_base": (87_618_716, 87.6),
    "segment/upernet_resformer_small": (51_712_556, 51.7),
    "segment/upernet_resformer_base": (119_804_204, 119.8),
    "segment/upernet_deit_small": (52_094_636, 52.1),
    "segment/upernet_deit_base": (120_576_044, 120.6),
    "detect/vitdet_resformer_small": (45_576_304, 45.6),
    "detect/vitdet_resformer_base": (115_341_040, 115.3),
}
"""Parameters by the arithmetic of detectron2 and mmsegmentation, and in millions as the papers print them."""
BACKGROUND = 4_357
"""Of torchvision's R-CNNs: a score's four boxes and a mask for the background."""
SMALL: dict[str, dict[str, Any]] = {
    "detect/mask_rcnn_rest_lite": {"backbone": {"dims": (16, 32, 64, 128), "depths": (1, 1, 1, 1)}},
    "detect/faster_rcnn_restv2_nano": {},
    "detect/retinanet_restv2_nano": {},
    "detect/vitdet_resformer_nano": {},
    "detect/mask_rcnn_timm:convnext_atto": {},
    "segment/upernet_restv2_nano": {},
    "segment/upernet_resformer_nano": {},
    "segment/upernet_timm:convnext_atto": {},
}
NARROW = {
    "detect": {"width": 32, "hidden": 64, "norm": "group", "taught": 32},
    "segment": {"width": 32, "auxiliary_width": 16},
}
SIZES = [(97, 163), (225, 225), (33, 64)]


def small(name: str, **options: Any) -> Detector | Segmenter:
    torch.manual_seed(0)
    narrow = dict(NARROW[name.partition("/")[0]])
    if "vitdet" in name:
        narrow.pop("norm")
    return anyres.create_task_model(name, 3, **(narrow | SMALL.get(name, {}) | options))


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_has_the_published_number_of_parameters(name: str) -> None:
    exact, published = PUBLISHED[name]
    with torch.device("meta"):
        model = anyres.create_task_model(name)
    assert count(model) - exact == (BACKGROUND if "rcnn" in name or "vitdet" in name else 0)
    assert round(exact / 1e6, 1) == published
    assert abs(count(model) / exact - 1) < 1e-3


def objects(height: int, width: int, masks: bool = True) -> dict[str, Tensor]:
    boxes = torch.tensor([[2.0, 3.0, width / 2, height / 2], [8.0, 8.0, 30.0, 31.0]])
    drawn = torch.zeros(2, height, width, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(drawn, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    return {"boxes": boxes, "labels": torch.tensor([0, 2]), **({"masks": drawn} if masks else {})}


def nothing(height: int, width: int) -> dict[str, Tensor]:
    return {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, height, width, dtype=torch.uint8),
    }


@pytest.mark.parametrize("name", [name for name in SMALL if name.startswith("detect")])
def test_detectors_at_odd_sizes(name: str) -> None:
    model = small(name, min_score=0.0)
    images = [torch.randn(3, *size) for size in ((97, 163), (33, 64))]
    losses = model(images, [objects(97, 163), nothing(33, 64)])
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    unused = {key for key, p in model.named_parameters() if p.grad is None}
    assert not {key for key in unused if "bottom_up.norm" not in key and "bottom_up.head" not in key}
    model.eval()
    with torch.no_grad():
        for height, width in SIZES:
            (found,) = model(torch.randn(1, 3, height, width))
            boxes = found["boxes"]
            assert len(boxes) == len(found["labels"]) == len(found["scores"]) > 0
            assert boxes.min() >= 0
            assert (boxes[:, 2:] <= torch.tensor([width, height])).all()
            assert set(found["labels"].tolist()) <= {0, 1, 2}
            if "masks" in found:
                assert found["masks"].shape == (len(boxes), 1, height, width)


@pytest.mark.parametrize("name", [name for name in SMALL if name.startswith("segment")])
def test_segmenters_at_odd_sizes(name: str) -> None:
    model = small(name)
    maps = torch.randint(0, 3, (2, 97, 163))
    maps[:, :5] = 255
    losses = model(torch.randn(2, 3, 97, 163), maps)
    assert set(losses) == {"decode", "auxiliary"}
    sum(losses.values()).backward()
    assert all(p.grad is not None for key, p in model.named_parameters() if not key.startswith("backbone.head"))
    model.eval()
    with torch.no_grad():
        for size in SIZES:
            logits = model(torch.randn(1, 3, *size))
            assert logits.shape == (1, 3, *size)
            assert logits.isfinite().all()


def test_anchors_lie_at_multiples_of_the_stride_where_grids_round_up() -> None:
    model = small("detect/faster_rcnn_restv2_nano")
    generator = model.get_submodule("rpn.anchor_generator")
    assert isinstance(generator, FixedStrideAnchors)
    assert generator.strides == (4, 8, 16, 32, 64)
    maps = [torch.zeros(1, 1, -(-225 // stride), -(-225 // stride)) for stride in (4, 8, 16, 32, 64)]
    images, _ = model.get_submodule("transform")([torch.zeros(3, 225, 225)], None)
    (anchors,) = generator(images, maps)
    coarse = anchors[-3 * 8 * 8 - 3 * 4 * 4 : -3 * 4 * 4]  # three ratios at 8x8 positions of stride 32
    centers = (coarse[:, :2] + coarse[:, 2:]) / 2
    assert centers.unique(dim=0).shape == (64, 2)
    assert centers.max() == 224  # torchvision's own: 196
    pool = model.get_submodule("roi_heads.box_roi_pool")
    assert pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]


def test_a_box_found_and_a_box_taught_have_the_same_label() -> None:
    for name in ("detect/faster_rcnn_restv2_nano", "detect/retinanet_restv2_nano"):
        transform = small(name).get_submodule("transform")
        _, taught = transform([torch.zeros(3, 40, 40)], [objects(40, 40)])
        (found,) = transform.postprocess([{"labels": taught[0]["labels"].clone()}], [(40, 40)], [(40, 40)])
        assert found["labels"].tolist() == [0, 2]
        assert taught[0]["labels"].tolist() == ([0, 2] if "retinanet" in name else [1, 3])


@torch.no_grad()
def test_an_image_gives_the_same_alone_and_beside_a_larger_one() -> None:
    """Padding is seen by the backbone as zeros; the answer is the small image's own size."""
    model = small("detect/mask_rcnn_timm:convnext_atto", min_score=0.0, detections=5).eval()
    image = torch.randn(3, 64, 64)
    (alone,) = model([image])
    beside, _ = model([image, torch.randn(3, 64, 96)])
    assert beside["masks"].shape[-2:] == alone["masks"].shape[-2:] == (64, 64)
    assert beside["boxes"].max() <= 64


@torch.no_grad()
def test_the_decoder_is_upernet_as_mmsegmentation_writes_it() -> None:
    """The library's decoder against its slow twin, at a size whose grids are odd."""
    model = small("segment/upernet_restv2_nano").eval()
    decoder = model.decode_head.decoder
    maps = list(model.backbone(torch.randn(2, 3, 97, 163)).values())

    def to(x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)

    sizes = zip((1, 2, 3, 6), decoder.psp.blocks, strict=True)
    pooled = [to(block[1](F.adaptive_avg_pool2d(maps[3], n)), maps[3]) for n, block in sizes]
    levels = [decoder.psp.out_conv(torch.cat([maps[3], *pooled], dim=1))]
    for found, lateral in zip(reversed(maps[:3]), decoder.fpn_lateral_blocks, strict=True):
        x = lateral.conv_norm_relu(found)
        levels.append(x + to(levels[-1], x))
    levels[1:] = [conv(x) for conv, x in zip(decoder.fpn_conv_blocks, levels[1:], strict=True)]
    fused = decoder.fusion_block(torch.cat([to(x, maps[0]) for x in reversed(levels)], dim=1))
    torch.testing.assert_close(decoder([None, None, *maps]), fused)
    assert len(decoder.feature_norms) == 0, "the pyramid has normalised its maps"
    assert len(small("segment/upernet_timm:convnext_atto").decode_head.decoder.feature_norms) == 4


def test_pixels_are_enlarged_by_the_stride() -> None:
    places = torch.arange(25.0).expand(1, 1, 25, 25)
    wide = enlarge(places, 4.0, (97, 97))
    assert wide.shape == (1, 1, 97, 97)
    torch.testing.assert_close(wide[0, 0, 50, 2:90], (torch.arange(2.0, 90) - 1.5) / 4)


def test_ignored_pixels_count_for_nothing() -> None:
    logits, maps = torch.randn(1, 3, 4, 4), torch.full((1, 4, 4), 255)
    assert pixel_loss(logits, maps) == 0
    maps[0, 0, 0] = 1
    torch.testing.assert_close(pixel_loss(logits, maps), -logits[0, :, 0, 0].log_softmax(0)[1])


def test_group_norm_everywhere_learns_from_one_image() -> None:
    model = small("segment/upernet_resformer_nano", norm="group")
    assert not [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert model(torch.randn(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.int64))["decode"].isfinite()


@pytest.mark.parametrize("name", ["detect/mask_rcnn_rest_lite", "segment/upernet_restv2_nano"])
def test_whole_models_and_backbones_go_through_files(name: str, tmp_path: Path) -> None:
    source, other = small(name), small(name)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_()
    torch.save(source.state_dict(), tmp_path / "whole.pth")
    anyres.load_weights(other, tmp_path / "whole.pth")
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in source.state_dict().items())
    fewer = small(name)
    anyres.load_weights(fewer.bottom_up, tmp_path / "whole.pth")
    assert all(
        torch.equal(value, fewer.bottom_up.state_dict()[key]) for key, value in source.bottom_up.state_dict().items()
    )
    assert source.no_weight_decay() <= {key for key, _ in source.named_parameters()}


@pytest.mark.parametrize("name", SMALL)
def test_layers_of_the_backbone_learn_slower_than_the_heads(name: str) -> None:
    with torch.device("meta"):
        model = small(name)
        trunk = anyres.create_model(model.bottom_up.called, 0, **SMALL[name].get("backbone", {}))
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    alone = group_parameters(trunk, trunk.group_matcher(), reverse=True)
    prefix = "backbone.bottom_up." if name.startswith("detect") else "backbone."
    shared = {key: layers[prefix + key] for key in alone if prefix + key in layers}
    last = max(layers.values())
    assert len(shared) > 20
    assert all(layer in (alone[key], last) for key, layer in shared.items())
    assert min(shared.values()) == 0
    assert all(layer == last for key, layer in layers.items() if not key.startswith(prefix))
    assert sum(layer < last for layer in layers.values()) > 20


def test_what_upernet_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(UserError, match=r"UPerNet needs segmentation_models_pytorch.*'anyres\[tasks\]'"):
        small("segment/upernet_restv2_nano")


def test_other_classes_keep_their_own_head(tmp_path: Path) -> None:
    source = small("segment/upernet_restv2_nano")
    torch.save(source.state_dict(), tmp_path / "whole.pth")
    model = anyres.create_task_model("segment/upernet_restv2_nano", 7, width=32, auxiliary_width=16)
    with pytest.raises(UserError, match="it has 3 classes, the model 7"):
        anyres.load_weights(model, tmp_path / "whole.pth")
    anyres.load_weights(model, tmp_path / "whole.pth", replace_head=True)
    assert torch.equal(model.state_dict()["backbone.norm_1.weight"], source.state_dict()["backbone.norm_1.weight"])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: anyres.create_task_model("restv2_tiny"), "begins with detect/ or segment/"),
        (lambda: anyres.create_task_model("detect/upernet_restv2_tiny"), "names none of mask_rcnn"),
        (
            lambda: anyres.create_task_model("detect/mask_rcnn_restv2_tin"),
            "did you mean 'detect/mask_rcnn_restv2_tiny'",
        ),
        (lambda: small("detect/vitdet_restv2_nano"), "vitdet is for plain ViTs"),
        (lambda: small("detect/retinanet_restv2_nano", wdith=3), "did you mean 'width'"),
        (lambda: small("detect/retinanet_restv2_nano", anchors=(8, 16)), "anchors are five sides"),
        (lambda: small("detect/retinanet_restv2_nano")([torch.zeros(3, 64, 64)]), "in training needs targets"),
        (
            lambda: small("detect/retinanet_restv2_nano").eval()([torch.zeros(3, 64, 31)]),
            "32 px and more a side, not 64x31",
        ),
        (lambda: small("segment/upernet_restv2_nano").eval()(torch.zeros(1, 3, 31, 64)), "32 px and more"),
        (
            lambda: small("segment/upernet_restv2_nano")(torch.zeros(1, 3, 64, 64), torch.zeros(1, 64, 64).long()),
            "give it two images or more",
        ),
    ],
)
def test_mistakes_are_one_line(call: Any, says: str) -> None:
    with pytest.raises(UserError, match=says) as raised:
        call()
    assert "\n" not in str(raised.value)
