"""Small real image files for tests: shapes in colours, learnable, different in every file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def draw(kind: int, seed: int, side: int = 72) -> Image.Image:
    """One picture of class ``kind`` (0 disc, 1 square, 2 stripes) on a noisy ground."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 90, (side, side + seed % 3 * 8, 3), dtype=np.uint8))
    pen, ink = ImageDraw.Draw(image), tuple(int(v) for v in rng.integers(150, 255, 3))
    x, y = (int(v) for v in rng.integers(4, side // 3, 2))
    box = (x, y, x + side // 2, y + side // 2)
    if kind == 0:
        pen.ellipse(box, fill=ink)
    elif kind == 1:
        pen.rectangle(box, fill=ink)
    else:
        for line in range(0, side, 10):
            pen.line((0, line, side, line), fill=ink, width=4)
    return image


def make_folder(root: Path, per_class: int = 16) -> Path:
    """``root/{disc,square,stripes}/NN.jpg``; returns ``root``."""
    for kind, name in enumerate(("disc", "square", "stripes")):
        folder = root / name
        folder.mkdir(parents=True)
        for i in range(per_class):
            draw(kind, 100 * kind + i).save(folder / f"{i:02d}.jpg", quality=92)
    return root
