"""Whole pictures as views: nothing is cut off, and boxes lead back to where they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyres.config import UserError
from anyres.data.annotations.targets import MapReader, ObjectReader
from anyres.data.fit import boxes_back, fit_view, keep_size, shown_size
from anyres.data.geometry import whole
from anyres.flow import IGNORED, Geometry, Objects, Size

SIDES = st.integers(3, 90)


def test_the_view_of_a_picture_by_its_short_side() -> None:
    assert keep_size(Size(480, 640), 240) == Size(240, 320)
    assert keep_size(Size(480, 640), 800, longest=1000) == Size(750, 1000)
    assert keep_size(Size(480, 642), 240, multiple=32) == Size(256, 352)
    assert keep_size(Size(1, 2000), 1) == Size(1, 2000)
    assert keep_size(Size(1, 2000), 8, longest=100) == Size(1, 100)
    with pytest.raises(UserError, match="side 0, longest None and multiple 1 must be 1 or more"):
        keep_size(Size(3, 3), 0)


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.data())
def test_boxes_lead_back(h: int, w: int, height: int, width: int, data: st.DataObject) -> None:
    x1, y1 = data.draw(st.integers(0, w - 1)), data.draw(st.integers(0, h - 1))
    x2, y2 = data.draw(st.integers(x1 + 1, w)), data.draw(st.integers(y1 + 1, h))
    image = torch.full((3, h, w), 200, dtype=torch.uint8)
    view = fit_view(whole(image), Size(height, width))
    shown = shown_size(view.geometry)
    assert tuple(view.pixels.shape[1:]) == (height, width)
    assert (view.pixels[:, : shown.height, : shown.width] == 200).all()
    assert int((view.pixels > 0).sum()) == 3 * shown.height * shown.width
    assert shown.height == height or shown.width == width  # as large as fits
    box = np.float32([[x1, y1, x2, y2]])
    drawn = Objects(box, np.asarray([0]), (None,), np.asarray([False]), Size(h, w))
    made = ObjectReader(least=0.0).view(drawn, view.geometry)
    assert made.boxes.min() >= 0
    assert made.boxes[0, 2] <= shown.width + 1e-3
    assert made.boxes[0, 3] <= shown.height + 1e-3
    torch.testing.assert_close(boxes_back(made.boxes, view.geometry), torch.from_numpy(box), atol=1e-3, rtol=1e-4)


def test_boxes_of_a_mirrored_crop_lead_back() -> None:
    geometry = Geometry(Size(40, 60), (10.0, 20.0, 20.0, 30.0), Size(40, 90), flip=True)
    drawn = Objects(np.float32([[25, 12, 40, 28]]), np.asarray([0]), (None,), np.asarray([False]), Size(40, 60))
    made = ObjectReader().view(drawn, geometry)
    assert made.boxes.tolist() == [[30, 4, 75, 36]]
    assert boxes_back(made.boxes, geometry).tolist() == [[25, 12, 40, 28]]


def test_what_is_beyond_the_picture_is_ignored() -> None:
    view = fit_view(whole(torch.zeros(3, 10, 20, dtype=torch.uint8)), Size(20, 20))
    made = MapReader(2).view(torch.ones(10, 20, dtype=torch.uint8), view.geometry)
    assert (made[:10] == 1).all()
    assert (made[10:] == IGNORED).all()
