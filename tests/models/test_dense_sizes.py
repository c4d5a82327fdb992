"""Detectors, segmenters and models of clips at sizes from one stride to 640 px: whole, oblong, with one pixel over."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import anyres
from anyres.models.dense.detector import Detector
from anyres.models.dense.segmenter import Segmenter
from anyres.models.video import VideoModel

LARGEST, OVER = 640, 1  # px
FRAMES = 2
NARROW: dict[str, dict[str, Any]] = {
    "detect": {"width": 16, "hidden": 32, "norm": "group", "proposals": 20, "taught": 16, "mask_convs": 1},
    "segment": {"width": 16, "auxiliary_width": 8, "norm": "group"},
    "video": {"frames": FRAMES},
}
STRIDES = {
    "detect/retinanet_restv2_nano": 32,
    "detect/faster_rcnn_rest_lite": 32,
    "detect/mask_rcnn_restv2_nano": 32,
    "segment/upernet_restv2_nano": 32,
    "segment/upernet_resformer_nano": 32,
    "video/timesformer_resformer_nano": 16,
}
"""Task models, and the smallest side that each takes."""
SLIM = {"rest_lite": {"dims": (16, 32, 64, 128), "depths": (1, 1, 1, 1)}}


def build(name: str) -> Detector | Segmenter | VideoModel:
    torch.manual_seed(0)
    task, _, rest = name.partition("/")
    shown = {"min_score": 0.0, "detections": 10} if task == "detect" else {}
    backbone = next((options for end, options in SLIM.items() if rest.endswith(end)), {})
    return anyres.create_task_model(name, 3, backbone=backbone, **NARROW[task], **shown)


@pytest.fixture(scope="module", params=STRIDES)
def named(request: pytest.FixtureRequest) -> tuple[str, Detector | Segmenter | VideoModel]:
    return request.param, build(request.param)


def picture(name: str, height: int, width: int, count: int = 1) -> Tensor:
    channels = 3 * FRAMES if name.startswith("video") else 3
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(height * width))


def sides(stride: int, most: int) -> st.SearchStrategy[int]:
    """Any, and often a multiple of the stride with a pixel over, or one that lacks."""
    multiples = st.integers(1, most // stride).map(lambda n: n * stride)
    near = st.tuples(multiples, st.sampled_from((-OVER, 0, OVER))).map(sum)
    return st.one_of(st.integers(stride, most), near).map(lambda side: min(max(side, stride), most))


def check_answer(model: Detector | Segmenter | VideoModel, x: Tensor) -> None:
    """Finite, in the pixels of the image, and of its size."""
    height, width = x.shape[-2:]
    said = model(x)
    if isinstance(said, Tensor):
        assert said.shape == ((1, 3) if isinstance(model, VideoModel) else (1, 3, height, width))
        assert said.isfinite().all()
        return
    (found,) = said
    boxes = found["boxes"]
    assert 0 < len(boxes) == len(found["labels"]) == len(found["scores"])
    assert all(value.isfinite().all() for value in found.values())
    assert boxes.min() >= 0
    assert (boxes[:, 2:] <= torch.tensor([width, height])).all()
    assert ("masks" in found) == model.has_masks
    assert not model.has_masks or found["masks"].shape == (len(boxes), 1, height, width)


@settings(max_examples=3, deadline=None, derandomize=True)
@given(data=st.data())
def test_every_size_is_answered(named: tuple[str, Detector | Segmenter | VideoModel], data: st.DataObject) -> None:
    name, model = named
    side = sides(STRIDES[name], LARGEST)
    with torch.inference_mode():
        check_answer(model.eval(), picture(name, data.draw(side), data.draw(side)))


def test_the_smallest_and_the_most_oblong_are_answered(named: tuple[str, Detector | Segmenter | VideoModel]) -> None:
    name, model = named
    least = STRIDES[name]
    with torch.inference_mode():
        for size in ((least, least), (least, LARGEST), (LARGEST - 31, least + OVER)):
            check_answer(model.eval(), picture(name, *size))


def loss_of(name: str, model: Detector | Segmenter | VideoModel, height: int, width: int) -> Tensor:
    """Of two pictures: what a task minimizes."""
    x = picture(name, height, width, count=2)
    if isinstance(model, VideoModel):
        return torch.nn.functional.cross_entropy(model(x), torch.tensor([0, 2]))
    if isinstance(model, Segmenter):
        losses = model(x, torch.randint(3, (2, height, width), generator=torch.Generator().manual_seed(0)))
    else:
        mask = torch.zeros(1, height, width, dtype=torch.uint8)
        mask[0, 4 : height - 2, 3 : width // 2] = 1
        there = {"boxes": torch.tensor([[3.0, 4.0, width // 2, height - 2.0]]), "labels": torch.tensor([1])}
        there |= {"masks": mask} if model.has_masks else {}
        losses = model(x, [there, {key: value[:0] for key, value in there.items()}])
    assert isinstance(losses, dict)
    return torch.stack(list(losses.values())).sum()


@settings(max_examples=2, deadline=None, derandomize=True)
@given(data=st.data())
def test_every_size_is_learnt_from(named: tuple[str, Detector | Segmenter | VideoModel], data: st.DataObject) -> None:
    name, model = named
    side = sides(STRIDES[name], 129)
    model.train().zero_grad()
    loss_of(name, model, data.draw(side), data.draw(side)).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) > 10
    assert all(gradient.isfinite().all() for gradient in gradients)
