"""The page, in a browser of this machine (the fixture ``browser``): what a person does with it, and sees."""

from __future__ import annotations

import base64
import functools
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

DROP = """([data, name, type]) => {
  const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
  const dropped = new DataTransfer();
  dropped.items.add(new File([bytes], name, { type }));
  for (const kind of ["dragenter", "dragover", "drop"])
    document.getElementById("drop").dispatchEvent(
      new DragEvent(kind, { dataTransfer: dropped, bubbles: true, cancelable: true }));
}"""
"""What a browser does where a file is dropped."""


def open_page(browser: Any, address: str, **options: Any) -> tuple[Any, list[str], set[str]]:
    """The page in a context of its own, what its console says, and what it asks for."""
    tab = browser.new_context(**options).new_page()
    troubles: list[str] = []
    asked: set[str] = set()
    tab.on("console", lambda message: troubles.append(message.text))
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.on("request", lambda request: asked.add(request.url))
    tab.goto(address, wait_until="load")
    return tab, troubles, asked


def drop(tab: Any, content: bytes, kind: str = "PNG") -> None:
    """Let a photo fall onto the page."""
    tab.evaluate(DROP, [base64.b64encode(content).decode(), f"photo.{kind.lower()}", f"image/{kind.lower()}"])


def wait_for(tab: Any, count: int) -> None:
    """Until so many questions are answered."""
    tab.wait_for_selector(f"#answer[data-done='{count}']", timeout=60_000)


def turn_to(tab: Any, side: int, count: int) -> None:
    """Turn the dial to ``side`` pixels, which is the question number ``count``."""
    tab.evaluate(
        "(side) => { const d = document.getElementById('dial'); d.value = side; d.dispatchEvent(new Event('input')); }",
        side,
    )
    wait_for(tab, count)


def shown(tab: Any) -> dict[str, float]:
    """By size, the largest probability that is shown."""
    return {
        card.get_attribute("data-size"): float(card.get_attribute("data-probability"))
        for card in tab.query_selector_all("#sizes .card")
    }


def guesses(tab: Any) -> dict[int, float]:
    """By class, the probabilities of the size that is shown above."""
    return {
        int(row.get_attribute("data-label")): float(row.get_attribute("data-probability"))
        for row in tab.query_selector_all("#guesses li")
    }


def map_at(tab: Any, side: int) -> str:
    """What is said of the map at ``side`` pixels, once it is drawn."""
    tab.wait_for_selector(f"#map[data-size='{side}'] #heat:not([hidden])", timeout=60_000)
    assert tab.evaluate("document.getElementById('heat').naturalWidth") > 0
    said: str = tab.get_attribute("#heat", "alt")
    assert said == tab.inner_text("#seen")
    return said


def faults(tab: Any) -> list[str]:
    """What axe finds to be serious or critical for people who see, hear or move otherwise."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    found = axe.Axe().run(tab).response["violations"]
    return [f"{each['id']}: {each['help']}" for each in found if each["impact"] in ("serious", "critical")]


@contextmanager
def static(folder: Path) -> Iterator[str]:
    """The address of a folder that Python's own server gives out, as `python -m http.server` does."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join(10)
