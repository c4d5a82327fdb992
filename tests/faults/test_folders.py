"""Folders of images as they should not be: changed under a run, unreadable, linked in circles, named in two forms.

Also test sets that are no training sets: a class is missing, there is only one, there is only a folder ``test``.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anyres.data.sources import Source, open_source


def fill(root: Path, names: str, count: int = 4) -> Path:
    """``root/NAME/0.png`` ... for every word of ``names``."""
    for place, name in enumerate(names.split()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.full((16, 16, 3), 40 * place + i, dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def swapped(source: Source) -> Source:
    first, second, *rest = source.records
    return replace(source, records=(second, first, *rest))


def relabelled(source: Source) -> Source:
    first, *rest = source.records
    return replace(source, records=(replace(first, target=1), *rest))


def renamed(source: Source) -> Source:
    first, *rest = source.records
    return replace(source, records=(replace(first, name=f"{first.name} "), *rest))


@pytest.mark.parametrize("change", [swapped, relabelled, renamed])
def test_the_fingerprint_tells_changed_images(tmp_path: Path, change: Callable[[Source], Source]) -> None:
    source = open_source(str(fill(tmp_path / "a", "ant bee")), "train")
    assert change(source).fingerprint() != source.fingerprint()


def test_the_fingerprint_tells_classes_apart_and_no_places(tmp_path: Path) -> None:
    before = open_source(str(fill(tmp_path / "a", "ant café")), "train").fingerprint()
    (tmp_path / "a").rename(tmp_path / "b")
    assert open_source(f"{tmp_path}/b/", "train").fingerprint() == before
    (tmp_path / "b/café").rename(tmp_path / "b" / unicodedata.normalize("NFD", "café"))
    assert open_source(str(tmp_path / "b"), "train").fingerprint() == before
    (tmp_path / "b/ant").rename(tmp_path / "b/zebra")
    assert open_source(str(tmp_path / "b"), "train").fingerprint() != before
