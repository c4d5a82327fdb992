"""Boxes, points and masks follow a view: where they say a rectangle is, there are its pixels."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from tests.data.loading import records_of
from torch import Tensor
from torchvision import tv_tensors

from anyres.data.augment import preserve_rng_state
from anyres.data.augment_config import AugmentConfig
from anyres.data.decode import Decoded, _Reduced, _seen, decode
from anyres.data.geometry import composed, inverted, map_boxes, map_mask, map_points, matrix, whole
from anyres.data.loader import LoaderOptions, Rank, Steps, eval_batches, train_batches
from anyres.data.randaugment import _MOVES, Drawn, rand_augment
from anyres.data.targets import LabelReader
from anyres.data.views import draw_views, eval_geometry, eval_view
from anyres.data.views_config import ViewsConfig
from anyres.flow import Geometry, Labels, Record, Size


def painted(h: int, w: int, box: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """A dark image with a bright rectangle at (x0, y0, x1, y1), and the rectangle's mask."""
    image = torch.full((3, h, w), 20, dtype=torch.uint8)
    mask = torch.zeros(h, w, dtype=torch.uint8)
    x0, y0, x1, y1 = box
    image[:, y0:y1, x0:x1], mask[y0:y1, x0:x1] = 230, 1
    return image, mask


def check(pixels: Tensor, geometry: Geometry, box: tuple[int, int, int, int], mask: Tensor) -> None:
    """The bright pixels are those of the mapped mask, and the mapped box is around them, but for a pixel's edge."""
    assert tuple(geometry.source) == tuple(mask.shape)
    assert tuple(geometry.size) == tuple(pixels.shape[-2:])
    shown = map_mask(torch.ones_like(mask), geometry)  # 0 where padding or a distortion shows nothing of the image
    bright = (pixels[0] > 125) & (shown > 0)
    mapped = map_mask(mask, geometry) > 0
    scale = max(abs(matrix(geometry)[0][0]), abs(matrix(geometry)[1][1]), 1.0)
    edge = 1.6 + 0.75 * scale  # half a pixel of the larger of image and view, and the filter's width
    around = map_boxes(tv_tensors.BoundingBoxes([box], format="XYXY", canvas_size=tuple(mask.shape)), geometry)
    assert around.canvas_size == tuple(geometry.size)
    x0, y0, x1, y1 = around[0].tolist()
    assert bright.logical_xor(mapped).sum() <= edge * (x1 - x0 + y1 - y0 + 4)  # along half of the border at most
    rows, columns = bright.nonzero().T if bright.any() else (torch.empty(0), torch.empty(0))
    if len(rows):
        assert x0 - edge <= columns.min() and columns.max() + 1 <= x1 + edge  # noqa: PT018
        assert y0 - edge <= rows.min() and rows.max() + 1 <= y1 + edge  # noqa: PT018
    if geometry.affine is None and mapped.sum() > 60 * edge**2:  # the box is tight where nothing is turned or sheared
        rows, columns = mapped.nonzero().T
        assert abs(x0 - columns.min()) <= edge
        assert abs(x1 - columns.max() - 1) <= edge
        assert abs(y0 - rows.min()) <= edge
        assert abs(y1 - rows.max() - 1) <= edge


BOXES = st.tuples(st.floats(0, 0.6), st.floats(0, 0.6), st.floats(0.2, 0.4), st.floats(0.2, 0.4))


def placed(h: int, w: int, box: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
    x, y, width, height = int(box[0] * w), int(box[1] * h), max(1, int(box[2] * w)), max(1, int(box[3] * h))
    return x, y, x + width, y + height


CROPS = (
    AugmentConfig(),
    AugmentConfig(flip=1.0, interpolation="bilinear"),
    AugmentConfig(crop="padded"),
    AugmentConfig(crop="simple", flip=0.7),
    AugmentConfig(flip_vertical=1.0),
    AugmentConfig(flip=0.5, flip_vertical=0.5, crop="padded"),
)


@settings(max_examples=120, deadline=None)
@given(st.integers(20, 120), st.integers(20, 120), BOXES, st.sampled_from(CROPS), st.booleans(), st.integers(0, 10**6))
def test_training_views(
    h: int, w: int, box: tuple[float, float, float, float], how: AugmentConfig, share: bool, seed: int
) -> None:
    at = placed(h, w, box)
    image, mask = painted(h, w, at)
    views = ViewsConfig(sizes=("56x48", "40", "24x30"), share=share)
    with preserve_rng_state():
        for view in draw_views(whole(image), how, views, seed, 0, 0):
            check(view.pixels, view.geometry, at, mask)


@settings(max_examples=120, deadline=None)
@given(
    st.integers(8, 200), st.integers(8, 200), BOXES, st.integers(8, 90), st.integers(8, 90),
    st.sampled_from((0.6, 0.875, 1.0)), st.booleans(),
)  # fmt: skip
def test_evaluation_views(
    h: int, w: int, box: tuple[float, float, float, float], height: int, width: int, crop: float, warp: bool
) -> None:
    at = placed(h, w, box)
    image, mask = painted(h, w, at)
    size = Size(height, width)
    check(eval_view(image, size, crop, warp), eval_geometry(whole(image).geometry, size, crop, warp), at, mask)


@pytest.mark.parametrize("shape", [(6, 300), (300, 6)])
def test_long_images_lose_their_ends_in_the_geometry_too(shape: tuple[int, int]) -> None:
    at = placed(*shape, (0.45, 0.0, 0.1, 1.0) if shape[1] > shape[0] else (0.0, 0.45, 1.0, 0.1))
    image, mask = painted(*shape, at)
    size = Size(30, 30)
    geometry = eval_geometry(whole(image).geometry, size)
    check(eval_view(image, size), geometry, at, mask)
    with preserve_rng_state():
        for seed in range(20):
            (view,) = draw_views(whole(image), CROPS[2], ViewsConfig(sizes=(30,)), seed, 0, 0)
            check(view.pixels, view.geometry, at, mask)


@pytest.mark.parametrize("name", list(_MOVES))
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [Size(64, 64), Size(50, 80)])
def test_every_geometric_operation(name: str, interpolation: str, size: Size, monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.data import auto_augment

    made: list[auto_augment.RandAugment] = []
    real = auto_augment.rand_augment_transform
    with monkeypatch.context() as patch:
        patch.setattr(auto_augment, "rand_augment_transform", lambda *given: made.append(real(*given)) or made[-1])
        rand_augment("rand-m9-inc1", size, interpolation)
    (op,) = (op for op in made[0].ops if op.name == name)
    op.prob = 1.0
    at = (20, 14, 44, 30)
    image, mask = painted(*size, at)
    for seed in range(8):
        random.seed(seed)
        drawn = op(Drawn(image.permute(1, 2, 0).contiguous().numpy()))
        assert drawn.affine is not None
        for twice in (False, True):
            if twice:  # with another before it
                first = next(op for op in made[0].ops if op.name == "Rotate").aug_fn
                before = Drawn(image.permute(1, 2, 0).contiguous().numpy())
                drawn = op(first(before, 25.0, resample=3, fillcolor=(0, 0, 0)))
            geometry = Geometry(size, (0.0, 0.0, float(size.height), float(size.width)), size, affine=drawn.affine)
            check(torch.from_numpy(drawn.pixels).permute(2, 0, 1), geometry, at, mask)


def test_randaugment_is_followed_through_a_whole_view() -> None:
    """Where it has moved pixels the geometry says so, in a smaller view that is made of a larger one too."""
    image, _ = painted(90, 70, (20, 30, 50, 60))
    how, views = AugmentConfig(rand_augment="rand-m9-mstd0.5-inc1"), ViewsConfig(sizes=(48, 24), share=True)
    moved = 0
    with preserve_rng_state():
        for seed in range(60):
            large, small = draw_views(whole(image), how, views, seed, 0, 0)
            moved += large.geometry.affine is not None
            points = torch.tensor([[3.0, 5.0], [60.0, 80.0]], dtype=torch.float64)
            torch.testing.assert_close(map_points(points, large.geometry) / 2, map_points(points, small.geometry))
    assert 10 < moved < 50


def test_what_undoes_a_map() -> None:
    affine = ((0.9, -0.3, 4.0), (0.2, 1.3, -7.0))
    (a, b, c), (d, e, f) = composed(inverted(affine), affine)
    assert np.allclose([a, b, c, d, e, f], [1, 0, 0, 0, 1, 0])


def test_formats_and_clamping() -> None:
    geometry = Geometry(Size(100, 200), (10.0, 20.0, 50.0, 100.0), Size(25, 50), flip=True)
    box = tv_tensors.BoundingBoxes([[30, 20, 40, 20]], format="XYWH", canvas_size=(100, 200))
    mapped = map_boxes(box, geometry)
    assert mapped.format == tv_tensors.BoundingBoxFormat.XYWH
    assert mapped.tolist() == [[25.0, 5.0, 20.0, 10.0]]
    outside = tv_tensors.BoundingBoxes([[0.0, 0.0, 15.0, 15.0]], format="XYXY", canvas_size=(100, 200))
    x0, y0, x1, y1 = map_boxes(outside, geometry)[0].tolist()
    assert (x1 - x0) * (y1 - y0) == 0
    assert map_boxes(outside, geometry, clamp=False).tolist() == [[52.5, -5.0, 60.0, 2.5]]
    mask = torch.arange(100)[:, None].expand(100, 200)
    assert map_mask(torch.stack([mask, mask + 1]), geometry).shape == (2, 25, 50)
    padded = Geometry(Size(10, 10), (-2.0, -2.0, 12.0, 12.0), Size(12, 12))
    assert map_mask(torch.ones(10, 10, dtype=torch.int64), padded, fill=255)[0].tolist() == [255] * 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("sides", [(None, None), (60, None), (None, 30), (45, 20)])
def test_boxes_are_in_pixels_of_the_upright_file(orientation: int, sides: tuple[int | None, int | None]) -> None:
    """Decoded at a fraction (which cuts off the last pixels), kept smaller, and turned by EXIF."""
    at = (61, 32, 141, 83)
    image, _ = painted(131, 203, at)
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(out, "JPEG", quality=95, subsampling=0, exif=exif.tobytes())
    upright = decode(Record(out.getvalue(), 0, "a")).image
    rows, columns = (upright[0] > 125).nonzero().T
    at = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    mask = (upright[0] > 125).to(torch.uint8)
    view = decode(Record(out.getvalue(), 0, "a"), *sides).view
    assert (view.geometry == whole(upright).geometry) == (sides == (None, None))
    check(view.pixels, view.geometry, at, mask)
    size = Size(40, 32)
    check(eval_view(view.pixels, size), eval_geometry(view.geometry, size), at, mask)
    with preserve_rng_state():
        for made in draw_views(view, AugmentConfig(), ViewsConfig(sizes=(40, 24)), 3, 0, 0):
            check(made.pixels, made.geometry, at, mask)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_what_a_reduced_file_loses_at_its_right_and_lower_edge(orientation: int) -> None:
    every = Image.fromarray(np.arange(13 * 22, dtype=np.int32).reshape(13, 22))
    kept = every.crop((0, 0, 16, 8))
    for image in (every, kept):
        image.getexif()[0x0112] = orientation
    upright, seen = (np.asarray(ImageOps.exif_transpose(image)) for image in (every, kept))
    reduced = _Reduced(blocks=(2, 1), cut=(6, 5), file=(22, 13))
    top, left, height, width = map(int, _seen(Size(1, 2), orientation, reduced).crop)
    assert _seen(Size(1, 2), orientation, reduced).source == upright.shape
    assert np.array_equal(upright[top : top + height, left : left + width], seen)


class Boxes:
    """A task's reader: the image's box, followed into each view."""

    def read(self, record: Record) -> Tensor:
        return torch.tensor([[4.0, 6.0, 4.0 + int(str(record.target)), 20.0]])

    def view(self, target: Tensor, geometry: Geometry) -> Tensor:
        boxes = tv_tensors.BoundingBoxes(target, format="XYXY", canvas_size=tuple(geometry.source))
        return map_boxes(boxes, geometry, clamp=False).as_subclass(Tensor)

    def collate(self, targets: list[tuple[Tensor, ...]]) -> Labels:
        return Labels(torch.stack([torch.stack(view) for view in zip(*targets, strict=True)]), per_view=True)


class Pictures:
    cached = True
    channels = 3

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> Decoded:
        return Decoded(painted(40, 50, (4, 6, 4 + 5 * (i + 1), 20))[0], None, f"p{i}")

    def full(self, i: int) -> Decoded:
        return self[i]

    def drawn(self, i: int, draw: object) -> Decoded:
        return self[i]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_carries_what_its_reader_makes_of_each_view(workers: int) -> None:
    records = records_of(5 * torch.arange(1, 7))
    views = ViewsConfig(sizes=(32, 16))
    for wanted in (False, True):
        options = LoaderOptions(workers, geometry=wanted, reuse=True)
        for batch in train_batches(
            Pictures(),
            records,
            Boxes(),
            AugmentConfig(crop_scale=(0.8, 1.0)),
            views,
            Steps(3, 0, 0, 4),
            Rank(),
            options,
        ):
            assert len(batch.geometry) == 3 * wanted
            assert batch.targets.of(1).shape == (3, 1, 4)
            for place, made in enumerate(batch.geometry):
                position = int(batch.index[place])
                at = (4, 6, 9 + 5 * position, 20)
                for v in range(2):
                    box = Boxes().view(Boxes().read(records[position]), made[v])
                    assert torch.equal(batch.targets.of(v)[place], box)
                    check(batch.views[v][place], made[v], at, painted(40, 50, at)[1])
        for batch in eval_batches(Pictures(), records, Boxes(), Size(20, 20), options=options):
            assert [len(made) for made in batch.geometry] == [1] * 6 * wanted


def test_labels_are_read_as_they_are() -> None:
    geometry = whole(torch.zeros(3, 4, 4, dtype=torch.uint8)).geometry
    one, several = LabelReader(), LabelReader(4)
    assert one.view(one.read(Record(b"", 3, "a")), geometry) == 3
    assert one.collate([(3, 3), (1, 1)]).of(0).tolist() == [3, 1]
    hot = several.collate([((0, 2),), ((),), ((3,),)]).of(0)
    assert hot.dtype == torch.bool
    assert hot.int().tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
