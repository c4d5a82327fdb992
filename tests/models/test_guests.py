"""Our backbones in other libraries: what docs/dense.md says works does, and what it says fails does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import anyres  # noqa: F401  (registers our names with timm)

NAME = "restv2_nano"
EVEN, ODD = (64, 64), (97, 163)


def ask(model: nn.Module, size: tuple[int, int]) -> Any:
    with torch.no_grad():
        return model.eval()(torch.randn(1, 3, *size))


def config(indices: list[int]) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.TimmBackboneConfig(backbone=NAME, use_pretrained_backbone=False, out_indices=indices)


def upernet() -> tuple[nn.Module, Callable[[Any], Tensor]]:
    backbone = config([0, 1, 2, 3])
    from transformers import UperNetConfig, UperNetForSemanticSegmentation

    options = UperNetConfig(
        backbone_config=backbone, hidden_size=32, auxiliary_in_channels=128, auxiliary_channels=16, num_labels=5
    )
    return UperNetForSemanticSegmentation(options), lambda out: out.logits[:, 0]


def mask2former() -> tuple[nn.Module, Callable[[Any], Tensor]]:
    backbone = config([0, 1, 2, 3])
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    options = Mask2FormerConfig(
        backbone_config=backbone, num_labels=5, encoder_layers=1, decoder_layers=2, num_queries=4
    )
    return Mask2FormerForUniversalSegmentation(options), lambda out: out.masks_queries_logits[:, 0]


def detr() -> tuple[nn.Module, Callable[[Any], Tensor]]:
    backbone = config([3])
    from transformers import DetrConfig, DetrForObjectDetection

    options = DetrConfig(backbone_config=backbone, num_labels=5, encoder_layers=1, decoder_layers=1, num_queries=4)
    return DetrForObjectDetection(options), lambda out: out.pred_boxes


def rt_detr() -> tuple[nn.Module, Callable[[Any], Tensor]]:
    backbone = config([1, 2, 3])
    from transformers import RTDetrConfig, RTDetrForObjectDetection

    options = RTDetrConfig(
        backbone_config=backbone, encoder_in_channels=[64, 128, 256], num_labels=5, decoder_layers=1, num_queries=4
    )
    return RTDetrForObjectDetection(options), lambda out: out.pred_boxes


@pytest.mark.filterwarnings("default")  # of transformers' own
@pytest.mark.parametrize("make", [upernet, mask2former, detr, rt_detr])
def test_transformers(make: Callable[[], tuple[nn.Module, Callable[[Any], Tensor]]]) -> None:
    model, read = make()
    shape = read(ask(model, EVEN)).shape
    if make is rt_detr:
        with pytest.raises(RuntimeError, match="Expected size 8 but got size 7"):
            ask(model, ODD)
        return
    odd = read(ask(model, ODD)).shape
    expected = {upernet: (1, *ODD), mask2former: (1, 25, 41), detr: tuple(shape)}[make]
    assert tuple(odd) == expected


def test_segmentation_models_pytorch_takes_multiples_of_32_alone() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = smp.UPerNet(f"tu-{NAME}", encoder_weights=None, decoder_channels=16, classes=5)
    assert ask(model, (64, 96)).shape == (1, 5, 64, 96)
    with pytest.raises(RuntimeError, match="divisible by 32"):
        ask(model, ODD)
