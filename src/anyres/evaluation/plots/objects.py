"""Objects drawn on pictures: boxes with class and score, and outlines; truth beside answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from anyres.config import printable
from anyres.evaluation.detections import Detections, Truth
from anyres.evaluation.plots.class_maps import palette
from anyres.evaluation.plots.sheet import image_of, png_of, rgb, sheet
from anyres.flow import Rle

SIDE = 330  # pixels of a panel's longer side
LONGEST = 24  # letters of a label
MOST_WORDS = 20  # objects of a picture: beyond, words would hide what they are of


def overlay(picture: UInt8[Tensor, "c h w"], found: Detections, classes: Sequence[str]) -> UInt8[Tensor, "3 h w"]:
    """The picture with a box and mask for each detection, the best on top; class, where there are several, and score in
    percent, unless there are more than MOST_WORDS."""
    words = [
        f"{_name(classes, c)} {100 * score:.0f}".strip()
        for c, score in zip(found.classes.tolist(), found.scores.tolist(), strict=True)
    ]
    return _drawn(picture, found.boxes, found.classes, words, found.masks, classes)


def overlay_png(picture: UInt8[Tensor, "c h w"], found: Detections, classes: Sequence[str]) -> bytes:
    """``overlay`` as the content of a PNG."""
    return png_of(image_of(overlay(picture, found, classes)))


def truth_over(picture: UInt8[Tensor, "c h w"], truth: Truth, classes: Sequence[str]) -> UInt8[Tensor, "3 h w"]:
    """The same of what is there."""
    words = [
        f"{_name(classes, c)}{' (crowd)' if crowd else ''}".strip()
        for c, crowd in zip(truth.classes.tolist(), truth.crowd.tolist(), strict=True)
    ]
    return _drawn(picture, truth.boxes, truth.classes, words, truth.masks, classes)


def truth_and_answer(rows: Sequence[tuple[Tensor, Truth, Detections]], classes: Sequence[str]) -> bytes:
    """A PNG: for each (picture, truth, answer) the picture with the truth over it, beside it with the answer over it.

    A picture, uint8 (c, h, w), may be smaller or larger than that of the truth, in whose pixels the boxes are.
    """
    panels = []
    for picture, truth, found in rows:
        of_size = truth.of_size
        scale = SIDE / max(of_size)
        size = [max(1, round(scale * side)) for side in of_size]
        small = _resized(picture, size)
        grown = np.array([size[1] / of_size.width, size[0] / of_size.height] * 2, np.float32)
        there = Truth(truth.boxes * grown, truth.classes, truth.crowd, truth.areas, truth.masks, of_size)
        said = Detections(found.boxes * grown, found.scores, found.classes, found.masks)
        panels.append([image_of(truth_over(small, there, classes)), image_of(overlay(small, said, classes))])
    return sheet(panels, SIDE)


def _drawn(
    picture: UInt8[Tensor, "c h w"],
    boxes: Float32[np.ndarray, "n 4"],
    kinds: Int64[np.ndarray, " n"],
    words: Sequence[str],
    masks: Sequence[Rle] | None,
    classes: Sequence[str],
) -> UInt8[Tensor, "3 h w"]:
    """Masks, boxes, then words, the first object's on top."""
    from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

    made: Tensor = rgb(picture).cpu().contiguous()
    if not len(boxes):
        return made
    height, width = made.shape[-2:]
    every = palette(len(classes))
    order = range(len(boxes) - 1, -1, -1)
    for i in order if masks is not None else ():  # one by one: torchvision blackens where masks overlap
        flat = torch.from_numpy(np.ascontiguousarray(masks[i].mask()))[None] if masks else torch.zeros(0)
        drawn = _resized(flat, [height, width], "nearest-exact").bool()
        made = draw_segmentation_masks(made, drawn, alpha=0.45, colors=[every[kinds[i]]])
    edge = np.array([width - 1, height - 1] * 2, np.float32)
    places = boxes.clip(0, edge)
    thick = max(1, min(height, width) // 220)
    colors = [every[kinds[i]] for i in order]
    made = draw_bounding_boxes(made, torch.from_numpy(places[list(order)]), colors=colors, width=thick)
    told = range(len(boxes)) if len(boxes) <= MOST_WORDS else ()
    labels = [(words[i], every[kinds[i]], places[i]) for i in told if words[i]]
    return torch.from_numpy(_labelled(image_of(made), labels)).permute(2, 0, 1)  # (3, h, w)


def _labelled(
    image: Image.Image, labels: Sequence[tuple[str, tuple[int, int, int], Float32[np.ndarray, " 4"]]]
) -> UInt8[np.ndarray, "h w 3"]:
    """Words above their boxes, where there is room, else below or within; not those that would cover earlier ones."""
    font = ImageFont.truetype(_font(), min(28, max(9, min(image.size) // 26)))
    pen = ImageDraw.Draw(image)
    taken: list[tuple[float, float, float, float]] = []
    for words, color, box in labels:
        x1, y1, _, y2 = box.tolist()
        left, top, right, bottom = pen.textbbox((0, 0), _cut(words), font=font)
        wide, high = right - left + 4, bottom - top + 4
        x = max(0.0, min(x1, image.width - wide))
        for y in (y1 - high, y2 + 1, y1 + 1):
            place = (float(x), float(y), float(x + wide), float(y + high))
            if y >= 0 and place[3] <= image.height and not any(_meet(place, other) for other in taken):
                taken.append(place)
                pen.rectangle(place, fill=color)
                pen.text((x + 2 - left, y + 2 - top), _cut(words), fill=_ink(color), font=font)
                break
    return np.array(image)


def _name(classes: Sequence[str], c: int) -> str:
    """Nothing where all objects are of one class."""
    return classes[c] if len(classes) > 1 else ""


def _meet(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _resized(pixels: UInt8[Tensor, "c _ _"], size: list[int], how: str = "bilinear") -> UInt8[Tensor, "c h w"]:
    """A picture, or with ``nearest-exact`` a mask, at another size."""
    from torchvision.transforms.v2.functional import InterpolationMode, resize

    made: Tensor = resize(pixels, size, InterpolationMode(how)) if list(pixels.shape[-2:]) != size else pixels
    return made


def _ink(color: tuple[int, int, int]) -> str:
    """Black or white, whichever is read better on a color."""
    red, green, blue = color
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


def _cut(words: str) -> str:
    text = printable(words)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _font() -> str:
    """A font with most letters, which comes with matplotlib."""
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
