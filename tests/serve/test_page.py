"""The page in a browser: drop a photo, turn the dial, see what Python says at each size; wide, narrow, by keyboard."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anyres.runs.opened import TrainedModel
from anyres.serve.app import make_app
from anyres.serve.model import ServedModel
from anyres.serve.server import listen
from tests.browser import drop, faults, guesses, map_at, open_page, shown, turn_to, wait_for
from tests.pictures import draw
from tests.serve.conftest import OPTIONS, encoded
from tests.serve.test_predict import expected

uvicorn = pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def address(served: ServedModel) -> Iterator[str]:
    """Of a server in another thread of this process."""
    options = replace(OPTIONS, port=0)
    listener = listen(options)
    server = uvicorn.Server(uvicorn.Config(make_app(served), log_config=None, access_log=False, ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(20)
    listener.close()


@pytest.mark.browser
@pytest.mark.parametrize(("width", "theme"), [(390, "dark"), (1280, "light")])
def test_drop_a_photo_and_turn_the_dial(
    browser: Any, address: str, trained: TrainedModel, photo: bytes, width: int, theme: str, tmp_path: Path
) -> None:
    tab, troubles, asked = open_page(browser, address, viewport={"width": width, "height": 900}, color_scheme=theme)
    tab.wait_for_selector("text=5 classes")
    assert tab.input_value("#dial") == "64", "the best size of the curve"
    drop(tab, photo, "JPEG")
    wait_for(tab, 1)
    assert set(shown(tab)) == {"32", "48", "64"}
    tab.focus("#dial")
    for _ in range(4):
        tab.keyboard.press("ArrowRight")
    wait_for(tab, 2)
    tab.keyboard.press("End")
    wait_for(tab, 3)
    found = shown(tab)
    assert set(found) == {"32", "48", "64", "96", "512"}
    for size, share in found.items() if width == 390 else ():  # once is enough
        python = expected(trained, photo, size)
        assert share == pytest.approx(max(python.values()), abs=1e-3), size
        name = tab.inner_text(f"#sizes [data-size='{size}'] .name")
        assert python[name] == max(python.values()), size
        assert " ms of the model" in tab.inner_text(f"#sizes [data-size='{size}'] .ms")
    assert tab.get_attribute("#sizes .best", "data-size") == "512", "also a size that had no card"
    rows = tab.query_selector_all("#guesses li")
    assert len(rows) == 5
    assert any("<b>odd</b>" in row.inner_text() for row in rows), "names are data"
    assert "top-1 75.0 %" in tab.inner_text("#sizes [data-size='64']")
    tab.click("#auto")
    wait_for(tab, 4)
    assert "the best size" in tab.inner_text("#how")
    assert map_at(tab, 64).startswith("Attention of the last layer: where it takes its information from, at 64 px")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert troubles == []
    assert faults(tab) == []
    assert all(url.startswith((address, "blob:", "data:")) for url in asked), asked
    tab.screenshot(path=os.environ.get("ANYRES_SHOTS", str(tmp_path)) + f"/serve-{width}.png", full_page=True)
    tab.context.close()


@pytest.mark.browser
def test_everything_is_reached_by_keyboard_and_has_a_name(browser: Any, address: str) -> None:
    tab, _, _ = open_page(browser, address)
    tab.wait_for_selector("text=5 classes")
    tab.set_input_files("#file", {"name": "note.txt", "mimeType": "text/plain", "buffer": b"no image"})
    tab.wait_for_selector("#trouble:not(:empty)")
    assert "cannot be read" in tab.inner_text("#trouble")
    reached = []
    for _ in range(3):
        tab.keyboard.press("Tab")
        reached.append(tab.evaluate("document.activeElement.id"))
    assert reached == ["file", "dial", "auto"]
    unnamed = tab.evaluate(
        """[...document.querySelectorAll('input, button')].filter((e) => e.offsetParent !== null)
           .filter((e) => !(e.textContent.trim() || e.labels?.length || e.ariaLabel)).map((e) => e.outerHTML)"""
    )
    assert unnamed == []
    tab.context.close()


@pytest.mark.browser
def test_five_sizes_are_pythons(browser: Any, address: str, trained: TrainedModel) -> None:
    tab, _, _ = open_page(browser, address)
    tab.wait_for_selector("text=5 classes")
    photo = encoded(draw(1, 7, 120), "PNG")
    drop(tab, photo)
    wait_for(tab, 1)
    for count, side in enumerate((32, 48, 64, 104, 152), 2):
        turn_to(tab, side, count)
        said, python = guesses(tab), expected(trained, photo, str(side))
        assert len(said) == 5
        for label, share in said.items():
            assert share == pytest.approx(python[trained.classes[label]], abs=1e-3), (side, label)
    tab.context.close()
