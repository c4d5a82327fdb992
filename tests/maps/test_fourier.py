"""Spectra of maps: against a direct computation over all images at once, and the verb's files."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anyres import fourier, load
from anyres.maps.fourier import EPS, Fourier, diagonal, log_amplitude
from tests.command import anyres
from tests.models.zoo import SMALL, build, image, stirred
from tests.pictures import make_folder


def test_amplitudes_are_those_of_the_paper_s_formula() -> None:
    """Written out with NumPy: log |FFT|, shifted, the mean over images and channels, the diagonal less its start."""
    maps = image(14, 14, batch=5)
    spectrum = np.log(np.abs(np.fft.fft2(maps.double().numpy())) + EPS)
    shifted = np.roll(spectrum, (7, 7), axis=(2, 3)).mean((0, 1))
    expected = np.diag(shifted)[7:]
    streamed = log_amplitude(maps[:2]) + log_amplitude(maps[2:])
    assert np.allclose(diagonal(streamed / 5).numpy(), expected - expected[0], atol=1e-4)


def test_lengths_of_the_diagonal() -> None:
    for side, length in ((56, 28), (28, 14), (14, 7), (7, 4), (1, 1)):
        assert len(diagonal(torch.zeros(side, side).double())) == length
    wide = torch.arange(24.0).double().reshape(4, 6)  # the center is (2, 3), the corner (3, 5)
    assert diagonal(wide).tolist() == [0, 23 - 15]


@pytest.mark.parametrize("family", SMALL)
def test_every_family_streams_and_its_numbers_stay(family: str) -> None:
    model = stirred(build(family)).double()  # logarithms of next to nothing magnify rounding
    x = image(64, 96, batch=3).double()
    whole, parts = Fourier(model), Fourier(model)
    whole.see(x)
    for one in x:
        parts.see(one[None])
    for a, b in zip(whole.spectra(), parts.spectra(), strict=True):
        assert a.images == b.images == 3
        assert a.values == pytest.approx(b.values, abs=1e-6)
        assert a.values[0] == 0
    kinds = {spectrum.part for spectrum in whole.spectra()}
    more = {"resformer": {"local", "sum"}, "restv2": {"upsample", "sum"}}.get(family, set())
    averaged = family in ("resmlp", "cait", "patchconvnet", "patchconvnet_multi")
    assert kinds == {"features"} | (set() if averaged else {"attention"} | more)


def test_the_sum_of_restv2_is_what_its_projection_is_given() -> None:
    """So that the three kinds of maps are those of the paper: attention, upsampling, both."""
    model, x = stirred(build("restv2")), image(64, 64, batch=2)
    block = model.get_submodule("stage2.0")
    given = []
    handle = block.attn.proj.register_forward_hook(lambda _, inputs, __: given.append(inputs[0]))  # type: ignore[union-attr]
    with torch.no_grad():
        model(x)
    handle.remove()
    analysis = Fourier(model)
    analysis.see(x)
    maps = given[0].transpose(1, 2).reshape(2, -1, 8, 8)
    expected = diagonal(log_amplitude(maps) / 2)
    (found,) = [s for s in analysis.spectra() if s.part == "sum" and s.module == "stage2.0"]
    assert found.values == pytest.approx(expected.tolist(), abs=1e-4)


def test_the_verb_writes_a_table_and_a_picture(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "shapes", per_class=2)
    (data / "disc" / "bad.jpg").write_bytes(b"no image")
    words = ("fourier", "restv2_nano", "--weights", "none", "--data", data, "--size", "64x96")
    answer = anyres(*words, "--images", 4, "--out", tmp_path / "out")
    assert answer.code == 0, answer.err
    assert "bad.jpg" in answer.err
    assert f"restv2_nano at 64x96 px, 3 images: written to {tmp_path / 'out' / 'fourier.csv'}" in answer.out
    with (tmp_path / "out" / "fourier.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["part"] for row in rows} == {"features", "attention", "upsample", "sum"}
    assert {row["images"] for row in rows} == {"3"}
    first = [row for row in rows if row["part"] == "features" and row["layer"] == "0"]
    assert [(row["rows"], row["columns"]) for row in first] == [("16", "24")] * 8
    assert [float(row["frequency"]) for row in first] == pytest.approx([i / 7 for i in range(8)], abs=1e-5)
    with Image.open(tmp_path / "out" / "fourier.png") as picture:
        assert picture.width > picture.height
    trained = load("restv2_nano", weights="none")
    spectra = fourier(trained, data=data, size="64x96", images=4)
    assert [(s.part, str(s.layer), s.module) for s in spectra] == list(
        dict.fromkeys((row["part"], row["layer"], row["module"]) for row in rows)
    )
    assert [float(row["log_amplitude"]) for row in first] == pytest.approx(spectra[0].values, abs=1e-4)


def test_a_set_without_a_readable_image_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "bad.jpg").write_bytes(b"no image")
    answer = anyres("fourier", "resmlp_nano", "--weights", "none", "--data", tmp_path, "--out", tmp_path / "out")
    assert answer.code == 2
    assert answer.err.splitlines()[-1].startswith("error: no image can be read, as a/bad.jpg: unreadable")
