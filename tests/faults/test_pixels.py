"""Pictures that Pillow reads as something else, or refuses though they are sound: 16-bit planes, white as zero, more
bands than four, unsigned 32 bits, long texts; and pictures larger than the view that is made of them."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, PngImagePlugin

from anyres.config import UserError
from anyres.data import decode as decoding
from anyres.data.cache import DecodedImages
from anyres.data.channels import count_channels
from anyres.data.decode import Decoded, Unreadable, decode
from anyres.data.sources import Source
from anyres.flow import Record
from anyres.runs import predict

RAMP = np.linspace(0, 65535, 40 * 30).reshape(40, 30).astype(np.uint16)
COLOR = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=2)  # (h, w, 3)


def read(path: Path, **options: int) -> Decoded:
    return decode(Record(path, 0, path.name), **options)


def alike(image: torch.Tensor, values: np.ndarray) -> bool:
    """Within a gray level of ``values`` (h, w, c) in 0..255."""
    return bool((image.permute(1, 2, 0).float() - torch.from_numpy(values.astype(np.float32))).abs().max() <= 1)


@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_sixteen_bit_color_is_the_same_however_it_lies(tmp_path: Path, planes: str) -> None:
    values = COLOR if planes == "contig" else COLOR.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", planarconfig=planes)
    done = read(tmp_path / "a.tif")
    assert alike(done.image, COLOR / 257)
    assert "16-bit" in (done.note or "")


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_where_zero_is_white_it_stays_white(tmp_path: Path, kind: type) -> None:
    values = (RAMP // (257 if kind is np.uint8 else 1)).astype(kind)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
    done = read(tmp_path / "a.tif")
    assert alike(done.image, 255 - np.repeat(RAMP[:, :, None] / 257, 3, axis=2))
    assert kind is np.uint8 or "0 is white: inverted" in (done.note or "")
    assert alike(read(tmp_path / "a.tif", channels=1).image, 255 - RAMP[:, :, None] / 257)


@pytest.mark.parametrize("bands", [5, 6, 13])
def test_of_many_bands_none_is_left_out(tmp_path: Path, bands: int) -> None:
    values = np.random.default_rng(0).integers(0, 256, (40, 30, bands), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=[0] * (bands - 3))
    assert count_channels(Record(tmp_path / "a.tif", 0, "a.tif")) == bands
    assert alike(read(tmp_path / "a.tif", channels=bands).image, values)
    with pytest.raises(Unreadable, match=f"it has {bands} channels, and data.channels=3"):
        read(tmp_path / "a.tif")


@pytest.mark.parametrize("values", [RAMP.astype(np.uint32) * 65537, (RAMP / 65535).astype(np.float64)])
def test_deep_numbers_keep_their_order(tmp_path: Path, values: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values)
    assert alike(read(tmp_path / "a.tif").image, np.repeat(RAMP[:, :, None] / 257, 3, axis=2))


def test_sixteen_bits_of_which_eight_are_used_are_told(tmp_path: Path) -> None:
    for name, values in (("gray", RAMP // 257), ("color", COLOR // 257)):
        tifffile.imwrite(tmp_path / f"{name}.tif", values, photometric="rgb" if name == "color" else "minisblack")
        note = read(tmp_path / f"{name}.tif").note or ""
        assert "nearly black" in note, note
    np.save(tmp_path / "a.npy", RAMP // 257)
    assert "the brightest is 255 of 65535: nearly black" in (read(tmp_path / "a.npy").note or "")
    tifffile.imwrite(tmp_path / "bright.tif", RAMP)
    assert "black" not in (read(tmp_path / "bright.tif").note or "")


def png(change: Callable[[bytes], bytes] = bytes, **text: str) -> bytes:
    info, out = PngImagePlugin.PngInfo(), io.BytesIO()
    for key, value in text.items():
        info.add_text(key, value, zip=True)
    Image.fromarray((COLOR // 257).astype(np.uint8)).save(out, "PNG", pnginfo=info)
    return change(out.getvalue())


def damaged_profile(data: bytes) -> bytes:
    profile = b"iCCPx\0\0" + zlib.compress(b"no profile" * 200_000)
    chunk = (len(profile) - 4).to_bytes(4, "big") + profile + zlib.crc32(profile).to_bytes(4, "big")
    return data[:33] + chunk + data[33:]


def test_a_sound_picture_is_read_whatever_lies_beside_its_pixels() -> None:
    plain = decode(Record(png(), 0, "a.png"))
    texts = png(workflow="y" * 3_000_000)
    wrong_sum = png(a="b").replace(b"zTXta\0", b"zTXtb\0")
    for data in (texts, wrong_sum, png(damaged_profile)):
        done = decode(Record(data, 0, "a.png"))
        assert torch.equal(done.image, plain.image)
        assert "what lies beside its pixels is left out" in (done.note or "")
    with pytest.raises(Unreadable):
        decode(Record(texts[:-200], 0, "cut.png"))
    with pytest.raises(Unreadable):  # of the pixels themselves a wrong sum is damage
        decode(Record(png().replace(b"IDATx", b"IDATy"), 0, "a.png"))


def test_an_array_is_as_large_as_its_file(tmp_path: Path) -> None:
    for shape in ((10**6, 10**6), (2**31, 3)):
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
        (tmp_path / "a.npy").write_bytes(head.getvalue() + bytes(100))
        for source in (tmp_path / "a.npy", (tmp_path / "a.npy").read_bytes()):
            with pytest.raises(Unreadable, match="its head tells of an array"):
                decode(Record(source, 0, "a.npy"))


def test_pages_are_not_counted_to_the_last(tmp_path: Path) -> None:
    page = Image.new("L", (4, 4))
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page] * 150)
    assert "multi-page TIFF: first of 100 or more frames" in (read(tmp_path / "a.tif").note or "")


@pytest.mark.parametrize(
    ("ending", "mode"), [("jpg", "RGB"), ("png", "RGB"), ("png", "L"), ("png", "P"), ("png", "RGBA")]
)
def test_a_large_picture_is_shrunk_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, mode: str
) -> None:
    monkeypatch.setattr(decoding, "LARGE", 100 * 100)
    path = tmp_path / f"a.{ending}"
    picture = Image.linear_gradient("L").resize((400, 240))
    (picture.convert("RGB").quantize() if mode == "P" else picture.convert(mode)).save(path)
    whole, small = read(path), read(path, view_side=15)
    assert (whole.image.shape, small.image.shape) == ((3, 240, 400), (3, 60, 100))
    assert small.geometry is not None
    assert small.geometry.source == (240, 400)
    down = torch.nn.functional.interpolate(whole.image[None].float(), size=(60, 100), mode="area")[0]
    assert (small.image.float() - down).abs().max() <= 3
    assert read(path, view_side=100).image.shape == whole.image.shape


def test_training_shrinks_large_pictures_and_evaluation_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "LARGE", 100 * 100)
    Image.new("RGB", (400, 240)).save(tmp_path / "a.png")
    source = Source("a", ("a",), (Record(tmp_path / "a.png", 0, "a.png"),), (), "train")
    assert DecodedImages(source, view_side=15, progress=False)[0].image.shape == (3, 60, 100)
    assert DecodedImages(source, progress=False)[0].image.shape == (3, 240, 400)


def test_predictions_keep_no_more_pictures_than_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "BYTES_AT_A_TIME", 2000)
    alive: list[int] = []

    def pictures():
        for i in range(10):
            alive.append(i)
            yield torch.zeros(3, 16, 16, dtype=torch.uint8)

    for some in predict.chunks(pictures()):
        assert len(alive) <= 3
        alive.clear()
        assert 1 <= len(some) <= 3


def test_too_few_descriptors_are_no_unreadable_picture(tmp_path: Path) -> None:
    class Short:
        def read(self) -> bytes:
            raise OSError(24, "Too many open files", "a.png")

    with pytest.raises(UserError, match=r"a\.png: Too many open files: raise `ulimit -n`"):
        decode(Record(Short(), 0, "a.png"))
