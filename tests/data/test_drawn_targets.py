"""Boxes, outlines and class maps follow every view of their picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline
from PIL import Image

from anyres.config import UserError
from anyres.data.annotations.shapes import filled
from anyres.data.annotations.targets import MapReader, ObjectReader, mask_in_view
from anyres.data.augment import preserve_rng_state
from anyres.data.augment_config import AugmentConfig
from anyres.data.decode import Decoded, decode
from anyres.data.geometry import View, whole
from anyres.data.loader import LoaderOptions, Rank, Steps, train_batches
from anyres.data.shared_batch import pack, unpack
from anyres.data.views import draw_views
from anyres.data.views_config import ViewsConfig
from anyres.flow import IGNORED, Instances, MapFile, Maps, Objects, Polygons, Record, Rle, Size, Targets

SIZE = Size(60, 80)
CORNERS = ((10, 12, 40, 50), (30, 5, 78, 20))
VIEWS = ViewsConfig(sizes=("56x48", "32"))


def rectangle(box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 1
    return mask


def outline(box: tuple[int, int, int, int]) -> Polygons:
    x1, y1, x2, y2 = box
    return Polygons((np.float32([[x1, y1], [x2, y1], [x2, y2], [x1, y2]]),))


def objects(*shapes: object, crowd: tuple[bool, ...] = (False, False)) -> Objects:
    return Objects(
        np.float32(CORNERS), np.asarray([0, 1]), shapes or (None, None), np.asarray(crowd), SIZE
    )  # fmt: skip


def views_of(seed: int, crop: str = "inception") -> list[View]:
    """Views of a picture in which the first rectangle is bright."""
    pixels = torch.from_numpy(rectangle(CORNERS[0]) * 255)[None].repeat(3, 1, 1)
    how = AugmentConfig(crop_scale=(0.3, 1.0), flip=0.5) if crop == "inception" else AugmentConfig(crop=crop, flip=0.5)
    with preserve_rng_state():
        return list(draw_views(whole(pixels), how, VIEWS, seed, 0, 0))


@pytest.mark.parametrize("crop", ["inception", "padded"])
def test_boxes_and_masks_are_where_their_pixels_are(crop: str) -> None:
    both = objects(outline(CORNERS[0]), Rle.of(rectangle(CORNERS[1])))
    seen = 0
    for seed in range(12):
        for view in views_of(seed, crop):
            made = ObjectReader(masks=True).view(both, view.geometry)
            assert made.masks is not None
            first = (made.labels == 0).nonzero()[:, 0].tolist()
            bright = view.pixels[0] > 127
            if not first:
                assert bright.sum() <= 60
                continue
            seen += 1
            mask, box = made.masks[first[0]] > 0, made.boxes[first[0]]
            around = int((box[2] - box[0] + box[3] - box[1]).item())
            assert (mask ^ bright).sum() <= 2 * around + 4  # the pixels along the edge, where resizing blurs
            rows, columns = mask.nonzero().T
            corners = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert (box - torch.tensor([float(c) for c in corners])).abs().max() <= 1.0
            assert box.min() >= 0
            assert box[2] <= view.geometry.size.width
            assert box[3] <= view.geometry.size.height
    assert seen >= 10


def test_polygons_and_runs_of_one_object_are_the_same_in_a_view() -> None:
    for seed in range(6):
        for view in views_of(seed):
            drawn, coded = (
                mask_in_view(shape, view.geometry) for shape in (outline(CORNERS[0]), Rle.of(rectangle(CORNERS[0])))
            )
            ties = 2 * max(view.geometry.size)  # centers on an edge itself, which flipping takes to its other side
            assert (drawn != coded).sum() <= ties
            assert (drawn == coded).float().mean() > 0.95


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-5, 25), st.floats(-5, 25)), min_size=3, max_size=8, unique=True),
    st.integers(1, 20),
    st.integers(1, 20),
)
def test_a_polygon_is_filled_where_centers_lie_inside(points: list[tuple[float, float]], h: int, w: int) -> None:
    """Against Matplotlib, for outlines that do not cross themselves: corners in turn around their middle."""
    corners = np.float32(points)
    middle = corners.mean(0)
    corners = corners[np.argsort(np.arctan2(*(corners - middle).T), kind="stable")] + np.float32(0.013)
    made = filled([corners], Size(h, w))
    ys, xs = np.mgrid[:h, :w] + 0.5
    centers = np.stack([xs.ravel(), ys.ravel()], 1)
    inner, outer = (Outline(corners).contains_points(centers, radius=r).reshape(h, w) for r in (-1e-3, 1e-3))
    sure = inner == outer  # matplotlib takes the sign of the radius by the outline's direction
    assert (made[sure] == inner[sure]).all()


def test_what_is_cut_has_the_box_of_what_is_left() -> None:
    """An outline like an L of which only the foot is in the view: the box is around the foot."""
    corner = np.float32([[10, 10], [20, 10], [20, 40], [50, 40], [50, 50], [10, 50]])
    target = Objects(
        np.float32([[10, 10, 50, 50]]), np.asarray([0]), (Polygons((corner,)),), np.asarray([False]), SIZE
    )  # fmt: skip
    geometry = views_of(0)[0].geometry
    kept = type(geometry)(SIZE, (0.0, 30.0, 60.0, 40.0), Size(60, 40))
    made = ObjectReader().view(target, kept)
    assert made.boxes.tolist() == [[0, 40, 20, 50]]
    assert made.masks is None
    bare = Objects(target.boxes, target.classes, (None,), target.crowd, SIZE)
    assert ObjectReader().view(bare, kept).boxes.tolist() == [[0, 10, 20, 50]]
    assert len(ObjectReader(masks=True).view(bare, kept).boxes) == 0
    assert ObjectReader(masks=True).view(bare, kept).masks.shape == (0, 60, 40)  # type: ignore[union-attr]
    beside = type(geometry)(SIZE, (0.0, 60.0, 60.0, 20.0), Size(60, 20))
    assert len(ObjectReader().view(target, beside).boxes) == 0
    assert ObjectReader(least=15.0).view(target, kept).boxes.shape == (0, 4)


def test_crowds_sides_and_sizes() -> None:
    view = next(view for seed in range(20) for view in views_of(seed) if view.geometry.flip)
    full = type(view.geometry)(SIZE, (0.0, 0.0, 60.0, 80.0), SIZE, flip=True)
    both = objects(crowd=(False, True))
    assert ObjectReader().view(both, full).labels.tolist() == [0]
    evaluated = ObjectReader(crowds=True, mirrored=(1, 0)).view(both, full)
    assert evaluated.labels.tolist() == [1, 0]
    assert evaluated.crowd.tolist() == [False, True]
    assert evaluated.boxes[0].tolist() == [40, 12, 70, 50]
    with pytest.raises(UserError, match="a picture is 10x12 px, and what is drawn on it is of 60x80: was it replaced"):
        ObjectReader().view(both, type(full)(Size(10, 12), (0.0, 0.0, 10.0, 12.0), Size(10, 12)))


def png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def test_maps_follow_their_view_and_are_ignored_beyond_the_picture() -> None:
    record = Record(b"", MapFile(png(rectangle(CORNERS[0])), SIZE, "a map"), "1")
    reader = MapReader(2)
    values = reader.read(record)
    beyond = 0
    for seed in range(8):
        for view in views_of(seed, "padded"):
            made = reader.view(values, view.geometry)
            assert made.shape == view.pixels.shape[1:]
            beyond += int((made == IGNORED).sum())
            differing = (made == 1) ^ (view.pixels[0] > 127)
            assert differing[made != IGNORED].sum() <= 200
    assert beyond > 0
    flipped = type(view.geometry)(SIZE, (0.0, 0.0, 60.0, 80.0), SIZE, flip=True)
    swapped = MapReader(2, mirrored=(1, 0)).view(values, flipped)
    assert (swapped == 1 - reader.view(values, flipped)).all()


class Pictures:
    """Six pictures in memory."""

    cached, channels = True, 3

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> Decoded:
        pixels = np.repeat(rectangle(CORNERS[0])[..., None] * np.uint8(40 * i + 15), 3, 2)
        return decode(Record(png(pixels), -1, str(i)))

    full = __getitem__

    def drawn(self, i: int, draw: object) -> Decoded:
        return self[i]


@pytest.mark.parametrize("kind", ["objects", "maps"])
def test_a_batch_is_a_function_of_its_step(kind: str) -> None:
    reader: ObjectReader | MapReader = MapReader(2)
    target: Objects | MapFile = MapFile(png(rectangle(CORNERS[0])), SIZE, "a map")
    if kind == "objects":
        reader, target = ObjectReader(masks=True), objects(outline(CORNERS[0]), outline(CORNERS[1]))
    records = [Record(b"", target, str(i)) for i in range(6)]

    def batches(start: int) -> list[Targets]:
        steps, how = Steps(3, 5, start, 4), AugmentConfig(crop_scale=(0.5, 1.0))
        options = LoaderOptions(0)
        return [b.targets for b in train_batches(Pictures(), records, reader, how, VIEWS, steps, Rank(), options)]

    every, later = batches(0), batches(2)
    assert isinstance(every[0], Targets)
    assert len(every) == 4
    assert len(every[0]) == 3
    for one, other in zip(every[2:], later, strict=True):
        assert plain(one) == plain(other)
    assert plain(every[0]) != plain(every[1])
    sent = unpack(pack(every[0]))
    assert plain(sent) == plain(every[0])
    assert plain(every[0].to(torch.device("cpu")).window(slice(1, 2)).part(slice(0, 2))) == [plain(every[0])[1][:2]]
    assert len(every[0].of(1)) == 3


def plain(targets: object) -> list[list[object]]:
    """Numbers by view and image."""
    if isinstance(targets, Maps):
        return [[image.tolist() for image in view] for view in targets.value]
    assert isinstance(targets, Instances)
    return [
        [(i.boxes.tolist(), i.labels.tolist(), i.masks.tolist() if i.masks is not None else None) for i in view]
        for view in targets.value
    ]
