"""The exported page in a browser, without a server of ours: the answers at each size are Python's."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import anyres
from anyres.config import UserError
from anyres.deploy.export import npm_files
from anyres.deploy.export.npm_files import ONNXRUNTIME_WEB, NpmFiles
from anyres.deploy.export.web import PAGE, check_web, write_web
from anyres.deploy.export.write import write
from anyres.flow import Size
from anyres.models import create_model
from anyres.runs.opened import TrainedModel
from tests.browser import drop, faults, guesses, map_at, open_page, shown, static, turn_to, wait_for
from tests.command import refused
from tests.deploy.conftest import Files
from tests.models.zoo import stirred
from tests.pictures import draw

pytestmark = pytest.mark.usefixtures("unchecked_types")
SIDES = (32, 64, 104, 152, 224)


class Web(NamedTuple):
    folder: Path
    files: Files
    trained: TrainedModel


@pytest.fixture(scope="module")
def web(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Web:
    """The page beside the exported file."""
    folder = tmp_path_factory.mktemp("web")
    shutil.copy(files.onnx, folder / "model.onnx")
    try:
        runtime = check_web(files.subject)
    except UserError as error:
        if "not in the cache" not in str(error):
            raise
        pytest.skip(str(error))
    write_web(files.subject, folder / "model.onnx", runtime)
    return Web(folder, files, anyres.load(files.run))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    made = io.BytesIO()
    image.save(made, kind, **options)
    return made.getvalue()


def expected(web: Web, photo: bytes, side: int, tmp_path: Path) -> dict[int, float]:
    """What `anyres predict` says, by class."""
    path = tmp_path / "photo"
    path.write_bytes(photo)
    said = anyres.predict(web.trained, [path], size=side, top=5)[0].values["classes"]
    return {web.trained.classes.index(each["name"]): each["probability"] for each in said}


def test_the_folder_holds_all_that_a_browser_needs(web: Web, tmp_path: Path) -> None:
    model = stirred(create_model("resmlp_nano", 3, depth=1, any_size=True))
    subject = web.files.subject
    subject = replace(subject, referee=replace(subject.referee, model=model), sizes=(Size(24, 24),))
    written = write(subject, tmp_path / "page", "web")
    names = {each.name for each in (tmp_path / "page").iterdir()}
    assert names == {*PAGE, *ONNXRUNTIME_WEB.sha256, "about.json", "certificate.json", "model.onnx"}
    assert {each.name for each in written.files} == names
    told = json.loads((tmp_path / "page" / "certificate.json").read_text())
    assert set(told["files"]) == names - {"certificate.json"}
    facts = json.loads((tmp_path / "page" / "about.json").read_text())
    curve = {str(point.size): point.best.value for point in subject.curve}
    assert {each["size"]: each["quality"] for each in facts["sizes"]} == curve
    assert curve[facts["usual"]] == max(curve.values())


@pytest.mark.browser
@pytest.mark.parametrize(("width", "theme"), [(390, "dark"), (1280, "light")])
def test_five_sizes_are_pythons(browser: Any, web: Web, width: int, theme: str, tmp_path: Path) -> None:
    photo = encoded(draw(1, 7, 120))
    with static(web.folder) as address:
        tab, troubles, asked = open_page(
            browser, address, viewport={"width": width, "height": 900}, color_scheme=theme, device_scale_factor=1
        )
        tab.wait_for_selector("text=Answers here are the model's")
        drop(tab, photo)
        wait_for(tab, 1)
        assert set(shown(tab)) == {"32", "48"}, "the sizes of the curve"
        for count, side in enumerate(SIDES if width == 390 else (), 2):  # once is enough
            turn_to(tab, side, count)
            assert guesses(tab) == pytest.approx(expected(web, photo, side, tmp_path), abs=1e-3), side
        best = max(web.files.subject.curve, key=lambda point: point.best.value)
        assert f"top-1 {100 * best.best.value:.1f} %" in tab.inner_text(f"#sizes [data-size='{best.size}']")
        before = int(tab.get_attribute("#answer", "data-done"))
        tab.click("#auto")
        wait_for(tab, before + 1)
        assert tab.inner_text("#how").startswith(f"at {best.size} px (the best size")
        assert tab.input_value("#dial") == str(best.size), "the dial shows what was chosen"
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert faults(tab) == []
        tab.screenshot(path=os.environ.get("ANYRES_SHOTS", str(tmp_path)) + f"/web-{width}.png", full_page=True)
        assert troubles == []
        assert all(url.startswith((address, "blob:")) for url in asked), asked
        tab.context.close()


def falls(web: Web, photo: Image.Image, size: Size, windows: int) -> tuple[int, torch.Tensor]:
    """The likeliest class, and by how much its logarithm falls where each window is of the mean color."""
    referee, pixels = web.files.subject.referee, torch.from_numpy(np.array(photo))
    (before,) = referee.ask(pixels[None], size)
    best, found = int(before.argmax()), torch.zeros(windows, windows)
    rows, columns = ([math.floor(k * side / windows + 0.5) for k in range(windows + 1)] for side in pixels.shape[:2])
    for row, column in itertools.product(range(windows), range(windows)):
        covered = pixels.clone()
        window = covered[rows[row] : rows[row + 1], columns[column] : columns[column + 1]]
        window.copy_((255 * torch.tensor(referee.how.mean)).round().expand_as(window))
        found[row, column] = (before[best] / referee.ask(covered[None], size)[0, best]).log()
    return best, found


@pytest.mark.browser
def test_the_map_is_of_covered_windows(browser: Any, web: Web) -> None:
    """Brightest where the likeliest class falls most, as Python finds it with the same windows; on a picture of the
    mean color with a disc at its lower right."""
    mean = tuple(round(255 * share) for share in web.files.subject.referee.how.mean)
    size = Size.parse(json.loads((web.folder / "about.json").read_text())["usual"])
    photos = []
    for ink in ("white", "black", "red", "lime", "blue"):
        photo = Image.new("RGB", (126, 90), mean)
        ImageDraw.Draw(photo).ellipse((88, 62, 124, 88), fill=ink)
        photos.append((float(falls(web, photo, size, 8)[1].max()), photo))
    most, photo = max(photos, key=lambda each: each[0])
    assert most > 1e-4, "covering the disc says nothing"
    with static(web.folder) as address:
        tab, troubles, _ = open_page(browser, address)
        tab.wait_for_selector("text=Answers here are the model's")
        drop(tab, encoded(photo))
        said = map_at(tab, size.height)
        assert troubles == []
        tab.context.close()
    windows = re.search(r"\((\d+) x (\d+) positions\)", said)
    assert windows is not None, said
    assert 3 <= int(windows[1]) == int(windows[2]) <= 8
    best, fall = falls(web, photo, size, int(windows[1]))
    place = divmod(int(fall.argmax()), int(windows[1]))
    at = [min(2, 3 * (2 * each + 1) // (2 * int(windows[1]))) for each in place]
    where = f"brightest at the {('top', 'middle', 'bottom')[at[0]]} {('left', 'center', 'right')[at[1]]}"
    named = f"By how much {web.trained.classes[best]} falls where a window is covered, at {size} px; {where}"
    assert said == f"{named} {windows[0]}"


@pytest.mark.browser
def test_photos_are_read_as_python_reads_them(browser: Any, web: Web, tmp_path: Path) -> None:
    """Turned by EXIF, with a color profile, transparent, gray; and what is no image is one line."""
    image = draw(2, 11, 90)
    turned = image.getexif()
    turned[0x0112] = 6
    profile = _profile()
    clear = image.convert("RGBA")
    seen = np.where(np.arange(image.height)[:, None] < 40, 255, 0).repeat(image.width, 1)
    clear.putalpha(Image.fromarray(seen.astype(np.uint8)))
    photos = {
        "PNG turned": (encoded(image, exif=turned), "PNG", 1e-3),
        "JPEG turned": (encoded(image, "JPEG", quality=95, exif=turned), "JPEG", 0.02),  # decoders differ by a level
        "profile": (encoded(image, icc_profile=profile), "PNG", 1e-3),
        "clear": (encoded(clear), "PNG", 1e-3),
        "gray": (encoded(image.convert("L")), "PNG", 1e-3),
    }
    with static(web.folder) as address:
        tab, troubles, _ = open_page(browser, address)
        tab.wait_for_selector("text=Answers here are the model's")
        for count, (name, (photo, kind, within)) in enumerate(photos.items(), 1):
            drop(tab, photo, kind)
            wait_for(tab, count)
            side = int(tab.input_value("#dial"))
            assert guesses(tab) == pytest.approx(expected(web, photo, side, tmp_path), abs=within), name
        drop(tab, b"no image")
        tab.wait_for_selector("#trouble:not(:empty)")
        assert "cannot be read" in tab.inner_text("#trouble")
        drop(tab, photos["gray"][0])
        wait_for(tab, len(photos) + 1)
        assert tab.inner_text("#trouble") == ""
        assert troubles == []
        tab.context.close()


def _profile() -> bytes:
    """A color profile that is not the usual one: red and blue change places."""
    from PIL import ImageCms

    plain = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = plain.index(b"rXYZ"), plain.index(b"bXYZ")
    plain[red : red + 4], plain[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(plain)


@pytest.mark.browser
def test_a_page_that_answers_otherwise_says_so(browser: Any, web: Web, tmp_path: Path) -> None:
    for each in web.folder.iterdir():
        (tmp_path / each.name).symlink_to(each)
    facts = json.loads((tmp_path / "about.json").read_text())
    facts["check"][1]["probabilities"][0] += 0.01
    (tmp_path / "about.json").unlink()
    (tmp_path / "about.json").write_text(json.dumps(facts))
    with static(tmp_path) as address:
        tab, _, _ = open_page(browser, address)
        tab.wait_for_selector("#trouble:not(:empty)")
        assert "this browser answers otherwise than the model" in tab.inner_text("#trouble")
        tab.goto((web.folder / "index.html").as_uri())
        tab.wait_for_selector("text=python -m http.server")
        tab.context.close()


def test_what_no_page_shows_is_refused(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = web.files.subject
    with pytest.raises(UserError, match="names no classes"):
        check_web(replace(subject, referee=replace(subject.referee, activation="none")))
    how = replace(subject.referee.how, mean=(0.5,) * 4, std=(0.5,) * 4)
    with pytest.raises(UserError, match="reads 4 channels"):
        check_web(replace(subject, referee=replace(subject.referee, how=how)))
    monkeypatch.setattr("anyres.deploy.export.web.EXTERNAL_FROM", 1000)
    with pytest.raises(UserError, match="more weights than a browser holds"):
        check_web(subject)
    given = ("export", "resmlp_nano", "--to", "web", "--out")
    assert "--sizes makes fixed graphs" in refused(*given, tmp_path, "--sizes", 32)
    (tmp_path / "file").touch()
    assert "is a folder: name another place" in refused(*given, tmp_path / "file")


def test_the_runtime_is_what_was_expected_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYRES_CACHE", str(tmp_path))
    files = NpmFiles("some-package@1.0.0", 1, "dist", {"a.js": npm_files._hash(b"right")})
    files.cached.mkdir()
    (files.cached / "a.js").write_bytes(b"right")
    assert files.read() == {"a.js": b"right"}
    (files.cached / "a.js").write_bytes(b"wrong")
    monkeypatch.setenv("ANYRES_OFFLINE", "1")
    with pytest.raises(UserError, match=r"network is switched off: go online once, or copy a.js of some-package@1.0.0"):
        files.read()
    monkeypatch.delenv("ANYRES_OFFLINE")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="npm, which fetches it, is not here"):
        files.read()
    npm = tmp_path / "npm"  # that packs another file
    npm.write_text("#!/bin/sh\nmkdir -p package/dist; echo other > package/dist/a.js; tar czf p.tgz package\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(UserError, match=r"a.js of some-package@1.0.0 has another SHA-256"):
        files.read()
    npm.write_text("#!/bin/sh\necho 'no such package' >&2\nexit 1\n")
    with pytest.raises(UserError, match=r"cannot fetch some-package@1.0.0 \(no such package\)"):
        files.read()


def test_a_page_without_a_curve(web: Web, tmp_path: Path) -> None:
    subject = replace(web.files.subject, curve=())
    (tmp_path / "model.onnx").touch()
    write_web(subject, tmp_path / "model.onnx", {})
    facts = json.loads((tmp_path / "about.json").read_text())
    assert facts["usual"] == str(subject.sizes[0])
    assert facts["metric"] is None
    assert {each["quality"] for each in facts["sizes"]} == {None}
