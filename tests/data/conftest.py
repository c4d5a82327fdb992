"""Real image files, made by Pillow where the test wants them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

Paint = Callable[..., Path]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors gain nothing from a second thread, and on a busy machine wait long for it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def paint(tmp_path: Path) -> Paint:
    """``paint("cat/1.jpg", size=(w, h), seed=0)`` writes a smooth colourful picture below tmp_path."""

    def write(name: str, size: tuple[int, int] = (40, 30), seed: int = 0, **options: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path, **options)
        return path

    return write


@pytest.fixture
def folder(paint: Paint, tmp_path: Path) -> Path:
    """Two classes of ten pictures, one of them of another shape, in ``tmp_path/pets``."""
    for i in range(10):
        paint(f"pets/cat/{i}.png", (40 + i, 30), seed=i)
        paint(f"pets/dog/{i}.PNG", (36, 44 + i), seed=100 + i)
    return tmp_path / "pets"
