"""Images of one channel, two, four and more: read as they are, viewed, normalized, and refused in one line."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.loading import records_of

from anyres.config import UserError
from anyres.data.augment import check_channels
from anyres.data.augment_config import AugmentConfig
from anyres.data.cache import DecodedImages
from anyres.data.channels import channels_of
from anyres.data.color import blur, grayscale
from anyres.data.decode import Unreadable, decode
from anyres.data.erasing import erase
from anyres.data.loader import LoaderOptions, Steps, eval_batches, train_batches
from anyres.data.mix import normalize
from anyres.data.normalization import normalization
from anyres.data.sources import open_source
from anyres.data.targets import LabelReader
from anyres.data.views import eval_view, make_views
from anyres.data.views_config import ViewsConfig
from anyres.flow import Record, Size
from anyres.recipe import build_recipe, dump_recipe

RNG = np.random.default_rng(0)
COLOR = Image.fromarray(RNG.integers(0, 256, (9, 7, 3), np.uint8)).resize((70, 50), Image.Resampling.BICUBIC)


def as_png(image: Image.Image, kind: str = "PNG", **options: object) -> Record:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return Record(out.getvalue(), 0, "a")


def as_npy(values: np.ndarray) -> Record:
    out = io.BytesIO()
    np.save(out, values)
    return Record(out.getvalue(), 0, "a")


def pixels(record: Record, channels: int, short_side: int | None = None) -> np.ndarray:
    image = decode(record, short_side, channels=channels).image
    assert image.permute(1, 2, 0).is_contiguous()
    return image.permute(1, 2, 0).numpy()


def test_gray_stays_one_channel() -> None:
    gray = COLOR.convert("L")
    for kind in ("PNG", "JPEG"):
        record = as_png(gray, kind)
        alone, three = decode(record, channels=1), decode(record)
        assert alone.note is None
        assert three.note == "grey converted to RGB"
        assert torch.equal(alone.image.expand(3, -1, -1), three.image)
    sixteen = Image.fromarray(np.array([[0, 257, 65535]], np.uint16))
    assert pixels(as_png(sixteen), 1).ravel().tolist() == [0, 1, 255]
    assert np.array_equal(pixels(as_png(COLOR), 1)[..., 0], np.asarray(gray))
    assert decode(as_png(COLOR), channels=1).note == "RGB converted to gray"
    assert decode(as_png(gray.convert("1")), channels=1).note == "black and white converted to gray"
    assert np.array_equal(
        pixels(as_png(gray), 1, 25)[..., 0], np.asarray(gray.resize((35, 25), Image.Resampling.BICUBIC))
    )


@pytest.mark.parametrize(("mode", "channels"), [("RGBA", 4), ("LA", 2)])
def test_alpha_is_a_channel_where_it_is_asked_for(mode: str, channels: int) -> None:
    image = COLOR.convert(mode)
    alpha = Image.fromarray(RNG.integers(0, 256, (50, 70), np.uint8))
    image.putalpha(alpha)
    record = as_png(image)
    assert np.array_equal(pixels(record, channels), np.asarray(image))
    assert decode(record, channels=channels).note is None
    kept = decode(record, 25, channels=channels)
    bands = [np.asarray(band.resize((35, 25), Image.Resampling.BICUBIC)) for band in image.split()]
    assert np.array_equal(kept.image.numpy(), np.stack(bands))  # each by itself: alpha does not weigh the others
    assert kept.geometry is not None
    assert tuple(kept.geometry.source) == (50, 70)
    opaque = decode(as_png(COLOR), channels=channels)
    assert (opaque.image[-1] == 255).all()
    assert opaque.note == f"RGB converted to {mode}, opaque"


def test_arrays_and_tiff_files_of_many_bands(tmp_path: Path) -> None:
    values = RNG.integers(0, 256, (40, 30, 6), np.uint8)
    for record in (as_npy(values), as_npy(values.transpose(2, 0, 1))):
        assert np.array_equal(pixels(record, 6), values)
        assert pixels(record, 6, 15).shape == (20, 15, 6)
    assert np.array_equal(pixels(as_npy(values[..., 0]), 1)[..., 0], values[..., 0])
    assert np.array_equal(pixels(as_npy(values[..., 0]), 3), np.repeat(values[..., :1], 3, 2))
    assert pixels(as_npy(np.array([[0, 257, 65535]], np.uint16)), 1).ravel().tolist() == [0, 1, 255]
    assert pixels(as_npy(np.array([[0.0, 0.5, 1.0]])), 1).ravel().tolist() == [0, 128, 255]
    tifffile = pytest.importorskip("tifffile")
    for count, planar in ((4, "contig"), (5, "contig"), (5, "separate")):
        bands = RNG.integers(0, 256, (40, 30, count), np.uint8)
        stored = bands if planar == "contig" else bands.transpose(2, 0, 1)
        tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", planarconfig=planar)
        record = Record(tmp_path / "a.tif", 0, "a")
        assert channels_of([record]) == (count, None)
        assert np.array_equal(pixels(record, count), bands)


@pytest.mark.parametrize(
    ("values", "channels", "line"),
    [
        (np.zeros((40, 30, 6), np.uint8), 3, "it has 6 channels, and data.channels=3"),
        (np.zeros((4,), np.uint8), 1, r"an array of uint8 \(4,\) is no picture"),
        (np.zeros((40, 30, 6), complex), 6, "is no picture"),
        (np.zeros((90, 90, 80), np.uint8), 3, "more than 64 channels"),
        (np.full((2, 2), np.nan), 1, "array values that are not finite"),
        (np.array([{}], object), 1, "allow_pickle"),
    ],
)
def test_arrays_that_are_no_pictures(values: np.ndarray, channels: int, line: str) -> None:
    with pytest.raises(Unreadable, match=line) as caught:
        decode(as_npy(values), channels=channels)
    assert "\n" not in str(caught.value)


def test_a_picture_has_not_five_channels() -> None:
    with pytest.raises(Unreadable, match=r"it has 3 channels, and data\.channels=5"):
        decode(as_png(COLOR), channels=5)


def test_the_files_say_how_many_channels_there_are() -> None:
    gray, color, alpha = as_png(COLOR.convert("L")), as_png(COLOR), as_png(COLOR.convert("RGBA"))
    broken = Record(b"no image", 0, "b")
    assert channels_of([gray] * 100) == (1, None)
    assert channels_of([color, as_png(COLOR, "JPEG"), as_png(COLOR.convert("CMYK"), "JPEG")]) == (3, None)
    assert channels_of([alpha, broken]) == (4, None)
    assert channels_of([as_npy(np.zeros((9, 9, 7)))]) == (7, None)
    assert channels_of([broken]) == (3, None)
    assert channels_of([gray, color]) == (3, "images have 1 and 3 channels: all are read with 3 (data.channels)")
    assert channels_of([gray, color], 4) == (4, None)


def test_mean_and_deviation() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert normalization(mean, std, 3) == (mean, std)
    assert normalization((0.5,), (0.2,), 4) == ((0.5,) * 4, (0.2,) * 4)
    assert normalization((0.5,) * 3, (0.2,) * 3, 1) == ((0.5,), (0.2,))  # as timm's ViTs have them
    (one,), (deviation,) = normalization(mean, std, 1)
    assert (one, deviation) == (pytest.approx(0.449), pytest.approx(0.226))
    with pytest.raises(UserError, match=r"data\.mean has 3 values, .* with 4 channels: give one value, or 4"):
        normalization((0.1, 0.2, 0.3), std, 4)
    recipe = build_recipe({"model": {"name": "restv2_nano"}, "data": {"channels": 1, "mean": [0.5], "std": [0.2]}}, "r")
    assert (recipe.data.channels, recipe.data.mean) == (1, (0.5,))
    assert "channels: 1" in dump_recipe(recipe)
    for wrong in ({"channels": 0}, {"channels": 2, "std": [0.1, 0.2, 0.1]}, {"mean": []}):
        with pytest.raises(UserError, match=r"r: .*data\."):
            build_recipe({"model": {"name": "restv2_nano"}, "data": wrong}, "r")


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
@pytest.mark.parametrize("workers", [0, 1])
def test_from_files_to_a_normalized_batch(tmp_path: Path, channels: int, workers: int) -> None:
    for i in range(6):
        folder = tmp_path / "ab"[i % 2]
        folder.mkdir(exist_ok=True)
        np.save(folder / f"{i}.npy", RNG.integers(0, 256, (40, 50, channels), np.uint8))
    source = open_source(str(tmp_path), "trainval")
    count, _ = channels_of(source.records)
    assert count == channels
    how = AugmentConfig(blur=0.5, solarize=0.5, **({"rand_augment": "rand-m9-mstd0.5"} if channels == 1 else {}))
    check_channels(how, channels)
    images = DecodedImages(source, 30, channels=count, progress=False)
    views, steps = ViewsConfig(sizes=(32, 20), share=workers == 1), Steps(3, 0, 0, 4)
    options = LoaderOptions(workers, reuse=True)
    mean, std = normalization((0.5,), (0.25,), channels)
    for batch in train_batches(images, source.records, LabelReader(), how, views, steps, options=options):
        assert [tuple(view.shape) for view in batch.views] == [(3, channels, 32, 32), (3, channels, 20, 20)]
        made = erase(normalize(batch, mean, std, torch.device("cpu")), 1.0, 0, 0)
        assert made.views[0].dtype == torch.float32
    (batch,) = eval_batches(images, source.records, LabelReader(), Size(36, 36), options=LoaderOptions(workers))
    expected = eval_view(decode(source.records[2], channels=channels).image, Size(36, 36))
    assert torch.equal(batch.views[0][2], expected)  # 36 / 0.875 px are more than are kept
    assert len(records_of(batch.targets.of(0))) == 6


def test_a_gray_view_is_what_a_gray_picture_of_three_channels_is() -> None:
    """Crops, flips, blur, solarizing, 3-Augment, jitter of brightness and contrast, and RandAugment."""
    gray = torch.from_numpy(np.asarray(COLOR.convert("L")).copy())[None]
    three = gray.expand(3, -1, -1)
    assert torch.equal(grayscale(gray), gray)
    for how in (
        AugmentConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale=0.3, solarize=0.3),
        AugmentConfig(three_augment=True, crop="simple"),
        AugmentConfig(rand_augment="rand-m9-mstd0.5-inc1"),
    ):
        check_channels(how, 1)
        for i in range(20):
            (alone,), (all_three,) = (make_views(x, how, ViewsConfig(sizes=(24,)), 0, 0, i) for x in (gray, three))
            assert alone.shape == (1, 24, 24)
            error = (grayscale(all_three)[:1].int() - alone.int()).abs()
            assert error.max() <= 5  # jitter rounds the three channels of the one by themselves


def test_blur_is_of_each_channel() -> None:
    four = torch.from_numpy(RNG.integers(0, 256, (4, 20, 30), np.uint8))
    torch.manual_seed(3)
    done = blur(four)
    torch.manual_seed(3)
    assert torch.equal(done[:3], blur(four[:3].permute(1, 2, 0).contiguous().permute(2, 0, 1)))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"rand_augment": "rand-m9"}, "rand_augment"),
        ({"three_augment": True}, "three_augment"),
        ({"grayscale": 0.1}, "grayscale"),
        ({"hue": 0.1}, "brightness, contrast, saturation and hue"),
    ],
)
def test_what_knows_red_green_and_blue_is_refused_for_other_channels(options: dict[str, object], name: str) -> None:
    how = AugmentConfig(**options)
    for channels in (1, 3):
        check_channels(how, channels)
    for channels in (2, 4, 13):
        with pytest.raises(
            UserError, match=f"augment: {name} is for images of 1 or 3 channels, and these have {channels}"
        ):
            check_channels(how, channels)
