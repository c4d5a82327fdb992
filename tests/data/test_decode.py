from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anyres.data.decode import Decoded, Unreadable, decode
from anyres.flow import Record


def read(path: Path, short_side: int | None = None) -> Decoded:
    done = decode(Record(path, 0, path.name), short_side)
    assert done.image.permute(1, 2, 0).is_contiguous()  # as decoders write it
    assert done.name == path.name
    return done


def reason(path: Path) -> str:
    with pytest.raises(Unreadable) as caught:
        read(path)
    assert caught.value.name == path.name
    assert "\n" not in str(caught.value)
    return caught.value.reason


def test_rgb_is_itself_and_bytes_are_as_good_as_a_path(paint) -> None:
    path = paint("a.png", (7, 5))
    done = read(path)
    assert done.note is None
    with Image.open(path) as opened:
        assert torch.equal(done.image, torch.from_numpy(np.array(opened)).permute(2, 0, 1))
    assert torch.equal(decode(Record(path.read_bytes(), 0, "row 0")).image, done.image)


def test_truncated_renamed_missing_and_empty_files(paint, tmp_path: Path) -> None:
    path = paint("cut.jpg", (200, 200))
    path.write_bytes(path.read_bytes()[:-400])
    assert "image file is truncated" in reason(path)
    for name, text in (("text.jpg", b"I am no image"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(text)
        assert reason(tmp_path / name) == "no JPEG, PNG, WebP, TIFF or other picture"
    assert reason(tmp_path / "absent.jpg") == "No such file or directory"
    half = paint("half.png", (60, 60))
    half.write_bytes(half.read_bytes()[:200])
    assert reason(half)


def test_postscript_is_not_run(paint) -> None:
    path = paint("a.eps", (8, 8))
    assert reason(path.rename(path.with_suffix(".jpg"))) == "no JPEG, PNG, WebP, TIFF or other picture"


def test_a_bomb_is_refused_and_a_large_image_does_not_warn(paint, monkeypatch: pytest.MonkeyPatch) -> None:
    path = paint("a.png", (40, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    assert "too large to be safe" in reason(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # a warning, which pytest makes an error
    assert read(path).image.shape == (3, 30, 40)


def test_unreadable_survives_a_process() -> None:
    error = pickle.loads(pickle.dumps(Unreadable("a.jpg", "cut")))
    assert (error.name, error.reason, str(error)) == ("a.jpg", "cut", "a.jpg: cut")


@pytest.mark.parametrize(
    ("mode", "ending", "note"),
    [
        ("CMYK", "jpg", "CMYK converted to RGB"),
        ("CMYK", "tif", "CMYK converted to RGB"),
        ("L", "png", "grey converted to RGB"),
        ("1", "png", "black and white converted to RGB"),
        ("P", "png", "palette converted to RGB"),
        ("LAB", "tif", "LAB converted to RGB"),
        ("LA", "png", "LA with alpha laid on white"),
        ("YCbCr", "tif", "YCbCr converted to RGB"),
    ],
)
def test_modes(paint, tmp_path: Path, mode: str, ending: str, note: str) -> None:
    with Image.open(paint("source.png", (32, 24))) as opened:
        rgb = opened.copy()
    path = tmp_path / f"a.{ending}"
    if mode == "LAB":
        lab = Image.merge("LAB", [Image.new("L", (32, 24), v) for v in (255, 128, 128)])
        lab.save(path)
        assert read(path).image.float().mean() > 240  # L* = 100, a* = b* = 0 (held as 128): white
    else:
        rgb.convert(mode).save(path)
        error = read(path).image.float() - torch.from_numpy(np.array(rgb)).permute(2, 0, 1).float()
        assert error.abs().mean() < {"1": 130, "L": 90, "LA": 90, "P": 20}.get(mode, 12)
    assert read(path).note == note


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:8, :8] = 255  # a white corner, top left as the camera stored it
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    done = read(path)
    h, w = done.image.shape[-2:]
    assert (h, w) == ((24, 40) if orientation < 5 else (40, 24))
    bright = done.image.float().mean(0)
    where = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[orientation]
    y, x = (-4 if end else 3 for end in where)
    assert bright[y, x] > 200
    assert bright.mean() < 60
    word = "mirrored" if orientation in (2, 4) else "rotated"
    assert done.note == (None if orientation == 1 else f"{word} by its EXIF orientation {orientation}")


def test_broken_exif_does_not_lose_the_image(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (9, 9)).save(path, exif=b"Exif\0\0garbage garbage")
    assert read(path).image.shape == (3, 9, 9)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 1000, 30000, 65535]], np.uint16)
    for ending in ("png", "tif"):
        path = tmp_path / f"a.{ending}"
        Image.fromarray(values).save(path)
        done = read(path)
        assert done.image[0, 0].tolist() == [0, 1, 4, 117, 255]
        assert done.note == "16-bit grey scaled to 8 bit"
    (tmp_path / "a.pgm").write_bytes(b"P5 5 1 65535\n" + values.astype(">u2").tobytes())
    assert read(tmp_path / "a.pgm").image[2, 0].tolist() == [0, 1, 4, 117, 255]


@pytest.mark.parametrize(
    ("values", "pixels", "note"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255], "float grey scaled from 0..1 to 8 bit"),
        (np.array([[0.0, 10.0, 200.0]], np.float32), [0, 10, 200], "float grey taken as 8 bit"),
        (np.array([[-2.0, 0.0, 2.0]], np.float32), [0, 128, 255], "float grey stretched from -2..2 to 8 bit"),
        (np.array([[-2, 0, 2]], np.int32), [0, 128, 255], "32-bit grey stretched from -2..2 to 8 bit"),
        (np.array([[0, 9, 255]], np.int32), [0, 9, 255], "32-bit grey taken as 8 bit"),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255], "16-bit grey scaled to 8 bit"),
        (np.array([[0, 50000, 100000]], np.int32), [0, 128, 255], "32-bit grey stretched from 0..100000 to 8 bit"),
        (np.full((1, 3), -7.0, np.float32), [0, 0, 0], "float grey stretched from -7..-7 to 8 bit"),
    ],
)
def test_other_grey(tmp_path: Path, values: np.ndarray, pixels: list[int], note: str) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    done = read(tmp_path / "a.tif")
    assert (done.image[1, 0].tolist(), done.note) == (pixels, note)


def test_grey_that_is_not_finite_is_unreadable(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, np.nan]], np.float32)).save(tmp_path / "a.tif")
    assert reason(tmp_path / "a.tif") == "grey values that are not finite"


def test_alpha_is_laid_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((1, 2, 4), np.uint8)
    rgba[0, 1] = (10, 20, 30, 255)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    done = read(tmp_path / "a.png")
    assert done.image[:, 0].T.tolist() == [[255, 255, 255], [10, 20, 30]]
    assert done.note == "RGBA with alpha laid on white"
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=b"\x00\xff")
    done = read(tmp_path / "p.png")
    assert done.image[:, 0].T.tolist() == [[255, 255, 255], [10, 20, 30]]
    assert done.note == "P with alpha laid on white"


def test_of_several_frames_the_first(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "green", "blue")]
    for ending, kind in (("gif", "animated GIF"), ("png", "animated PNG"), ("tif", "multi-page TIFF")):
        path = tmp_path / f"a.{ending}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        done = read(path)
        assert done.image[:, 0, 0].tolist() == [255, 0, 0]
        assert (done.note or "").startswith(f"{kind}: first of 3 frames")


def test_one_pixel_and_short_side(paint) -> None:
    assert read(paint("one.png", (1, 1)), 224).image.shape == (3, 1, 1)
    wide = paint("wide.png", (90, 60))
    assert read(wide, 30).image.shape == (3, 30, 45)
    assert read(wide, 60).image.shape == (3, 60, 90)
    assert read(wide, 600).image.shape == (3, 60, 90)
    assert read(paint("line.png", (1, 90)), 1).image.shape == (3, 90, 1)


def test_a_single_pixel_is_told(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (200, 30, 30)).save(tmp_path / "a.png")
    done = read(tmp_path / "a.png", 8)
    assert done.image.flatten().tolist() == [200, 30, 30]
    assert done.note == "a single pixel: enlarged to every view"


def test_a_jpeg_is_pillows_bit_for_bit(tmp_path: Path) -> None:
    """Colour JPEGs are decoded by torchvision, all others, and those of which something is to be told, by Pillow."""
    small = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    image = Image.fromarray(small).resize((203, 131), Image.Resampling.BICUBIC)
    options = [{"quality": q, "subsampling": s} for q in (40, 90) for s in (0, 1, 2)]
    for extra in (*options, {"progressive": True}, {"quality": 90, "restart_marker_blocks": 4}, {"keep_rgb": True}):
        path = tmp_path / "a.jpg"
        image.save(path, **extra)
        with Image.open(path) as opened:
            assert torch.equal(read(path).image, torch.from_numpy(np.array(opened)).permute(2, 0, 1))


def test_a_damaged_jpeg_is_read_or_refused_as_pillow_does(paint) -> None:
    whole = paint("a.jpg", (120, 90), quality=90).read_bytes()
    rng = np.random.default_rng(1)
    outcomes = set()
    for i in range(60):
        data = bytearray(whole)
        for place in rng.integers(640, len(data), 3 if i % 2 else 0):
            data[place] = rng.integers(256)
        data = data[: len(data) if i % 2 else int(rng.integers(2, len(data)))]
        try:
            expected = np.array(Image.open(io.BytesIO(data)))
        except OSError:
            expected = None
        try:
            got = decode(Record(bytes(data), 0, "a")).image
        except Unreadable:
            got = None
        assert (got is None) == (expected is None)
        assert got is None or torch.equal(got, torch.from_numpy(expected).permute(2, 0, 1))
        outcomes.add(got is None)
    assert outcomes == {True, False}
