"""Large pictures answered in tiles: by models as they are initialized, which say something everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import anyres
from anyres.config import UserError
from anyres.evaluation.joined import parts_of
from anyres.flow import Size
from anyres.recipe import load_recipe
from anyres.runs.opened import TrainedModel, build_model
from anyres.runs.predict import plain_output
from anyres.tasks import AnswerOptions, task_class
from tests.command import refused

CLASSES = ("block", "disc")
SMALL = ("model.dims=[16,32,64,64]", "model.depths=[1,1,1,1]", "head.width=32", "train.precision=fp32")
DETECTOR = ("head.hidden=64", "head.mask_convs=1", "head.anchors=[12,24,48,96,192]", "head.proposals=30")


def untrained(name: str, values: Sequence[str], side: int) -> TrainedModel:
    recipe = load_recipe(name, [*SMALL, *values, f"views.sizes=[{side}]", "objective.views_per_step=null"])
    task = replace(task_class(recipe.task)(classes=CLASSES))
    model = build_model(recipe, task).eval()
    names = tuple((each,) for each in CLASSES)
    return TrainedModel(name, None, "none", recipe, names, model, torch.device("cpu"), task)


def picture(height: int, width: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 255, (3, height, width), dtype=np.uint8))


def test_objects_of_tiles_lie_in_the_whole_picture() -> None:
    model = untrained("detect/lungs", DETECTOR, 64)
    image = picture(100, 150)
    with torch.no_grad():
        plain, tiled = (
            anyres.predict(model, [image], threshold=0.05, tile=tile)[0].values["objects"] for tile in (None, 150)
        )
        small = anyres.predict(model, [image], threshold=0.05, tile=64)[0].values
    assert len(plain) > 3
    assert tiled == plain  # one tile is the picture
    assert (small["height"], small["width"]) == (100, 150)
    boxes = np.array([found["box"] for found in small["objects"]])
    assert boxes.min() >= 0
    assert (boxes.max(0) <= [150, 100, 150, 100]).all()
    assert boxes[:, 0].max() > 90  # of the second tile
    assert all(found["mask"]["size"] == [100, 150] for found in small["objects"])
    scores = [found["score"] for found in small["objects"]]
    assert scores == sorted(scores, reverse=True)


def test_logits_of_tiles_are_averaged_at_the_size_of_the_picture() -> None:
    model = untrained("segment/lungs", ("head.auxiliary_width=16",), 48)
    image = picture(40, 70)
    total, times = torch.zeros(2, 40, 70), torch.zeros(40, 70)
    for top, left, height, width in parts_of(Size(40, 70), 40):
        part = image[:, top : top + height, left : left + width]
        logits = plain_output(model, part, Size(48, 48))
        assert isinstance(logits, Tensor)
        resized = torch.nn.functional.interpolate(logits[None], (height, width), mode="bilinear")[0]
        total[:, top : top + height, left : left + width] += resized
        times[top : top + height, left : left + width] += 1
    assert times.max() == 2
    shares = torch.bincount((total / times).argmax(0).flatten(), minlength=2) / (40 * 70)
    answer = anyres.predict(model, [image], tile=40)[0]
    assert {each["name"]: each["share"] for each in answer.values["classes"]} == pytest.approx(
        {name: float(share) for name, share in zip(CLASSES, shares, strict=True) if share}, abs=1e-3
    )
    whole = anyres.predict(model, [image])[0]
    assert anyres.predict(model, [image], tile=70)[0].values == whole.values


def test_answers_for_whole_images_have_no_tiles() -> None:
    model = untrained("segment/lungs", ("head.auxiliary_width=16",), 48)
    with pytest.raises(UserError, match="leave out --cascade and --backend"):
        anyres.predict(model, [picture(40, 70)], tile=32, backend="eager")
    with pytest.raises(UserError, match="answers for whole images, which are not cut: leave out --tile"):
        task_class("classify")(classes=CLASSES).joined([], AnswerOptions())
    assert "--tile" in refused("predict", "restv2_nano", "x.png", "--tile", "3")
