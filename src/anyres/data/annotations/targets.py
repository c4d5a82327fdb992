"""What the loader gives a detector or a segmenter to learn: objects and class maps that follow every view.

A view says where its pixels come from (``flow.Geometry``), which is a function of (seed, epoch, index, view). What is
drawn on the picture goes the same way: cut, turned over, resized and distorted with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from anyres.config import UserError
from anyres.data.annotations.masks import class_map
from anyres.data.annotations.shapes import filled
from anyres.data.geometry import map_boxes, map_mask, map_points
from anyres.flow import (
    IGNORED,
    Geometry,
    Instances,
    MapFile,
    Maps,
    Objects,
    OwnMaps,
    OwnObjects,
    Polygons,
    Record,
    Rle,
    Shape,
    Size,
    ViewObjects,
)

_CUT = 0.01  # pixels of a view by which a box has to reach beyond it to count as cut


@dataclass(frozen=True)
class ObjectReader:
    """The objects of an image in each of its views.

    ``masks``: each object's mask too; one without an outline is then left out. ``crowds``: those that stand for several
    objects are kept, as evaluation wants them. ``least``: pixels of the view; what is left of a box that is shorter on
    a side is left out. ``mirrored``: the class that each becomes in a view that is mirrored left to right (lungs: right
    for left); (): none changes.
    """

    masks: bool = False
    crowds: bool = False
    least: float = 1.0
    mirrored: tuple[int, ...] = ()

    def read(self, record: Record) -> Objects:
        """What is drawn on the picture."""
        assert isinstance(record.target, Objects)
        return record.target

    def view(self, target: Objects, geometry: Geometry) -> ViewObjects:
        """What of it is in one view. Raises UserError where the picture has another size than its annotations say.

        A box that the view cuts is the one around what is left of the object, where it has an outline.
        """
        _check_size(target.of_size, geometry)
        wanted = [
            i
            for i, (shape, crowd) in enumerate(zip(target.shapes, target.crowd.tolist(), strict=True))
            if (self.crowds or not crowd) and not (self.masks and shape is None)
        ]
        boxes, is_cut = _boxes_in_view(torch.from_numpy(target.boxes[wanted]), geometry)
        kept: list[int] = []
        masks: list[Tensor] = []
        for place, i in enumerate(wanted):
            shape = target.shapes[i]
            mask = mask_in_view(shape, geometry) if shape is not None and (self.masks or is_cut[place]) else None
            if mask is not None and is_cut[place]:
                boxes[place] = _around(mask)
            sides = boxes[place, 2:] - boxes[place, :2]
            if float(sides.min()) >= self.least and (mask is None or bool(mask.any())):
                kept.append(place)
                if mask is not None:
                    masks.append(mask)
        chosen = [wanted[place] for place in kept]
        labels = torch.from_numpy(target.classes[chosen])
        if self.mirrored and geometry.flip:
            labels = torch.tensor(self.mirrored, dtype=torch.int64)[labels]
        none = torch.zeros((0, *geometry.size), dtype=torch.uint8)
        made = (torch.stack(masks) if masks else none) if self.masks else None
        return ViewObjects(boxes[kept], labels, made, torch.from_numpy(target.crowd[chosen]))

    def collate(self, targets: Sequence[Sequence[ViewObjects]]) -> Instances:
        """``targets[image][view]`` -> the batch's."""
        return Instances(tuple(zip(*targets, strict=True)))


@dataclass(frozen=True)
class MapReader:
    """The class of each pixel of an image in each of its views; 255 where the view shows nothing of the image.

    ``classes``: how many there are. ``mirrored``: as of ``ObjectReader``.
    """

    classes: int
    mirrored: tuple[int, ...] = ()

    def read(self, record: Record) -> UInt8[Tensor, "h w"]:
        """The map of the upright picture. Raises UserError for a value that is no class."""
        assert isinstance(record.target, MapFile)
        return torch.from_numpy(np.ascontiguousarray(class_map(record.target, self.classes)))

    def view(self, target: UInt8[Tensor, "h w"], geometry: Geometry) -> UInt8[Tensor, "H W"]:
        """The map of one view: each pixel has the class at its center. Raises UserError as ``ObjectReader.view``."""
        _check_size(Size(*target.shape), geometry)
        made = map_mask(target, geometry, IGNORED)
        if self.mirrored and geometry.flip:
            table = torch.arange(256, dtype=torch.uint8)
            table[: self.classes] = torch.tensor(self.mirrored, dtype=torch.uint8)
            made = table[made.long()]
        return made

    def collate(self, targets: Sequence[Sequence[UInt8[Tensor, "_ _"]]]) -> Maps:
        """``targets[image][view]`` -> the batch's."""
        return Maps(tuple(torch.stack(list(view)) for view in zip(*targets, strict=True)))


@dataclass(frozen=True)
class OwnMapReader:
    """The class of each pixel of a picture at the picture's own size, to score answers by; see ``MapReader``.

    ``classes``: how many there are.
    """

    classes: int

    def read(self, record: Record) -> UInt8[Tensor, "h w"]:
        """The map of the upright picture. Raises UserError for a value that is no class."""
        return MapReader(self.classes).read(record)

    def view(self, target: UInt8[Tensor, "h w"], geometry: Geometry) -> tuple[UInt8[Tensor, "h w"], Geometry]:
        """The map as it is, and the view's geometry. Raises UserError where the picture has another size than its
        map."""
        _check_size(Size(*target.shape), geometry)
        return target, geometry

    def collate(self, targets: Sequence[Sequence[tuple[UInt8[Tensor, "_ _"], Geometry]]]) -> OwnMaps:
        """``targets[image][view]`` -> the batch's."""
        maps, seen = zip(*(views[0] for views in targets), strict=True)
        return OwnMaps(maps, seen)


@dataclass(frozen=True)
class OwnObjectReader:
    """The objects of a picture in the picture's own pixels, to score answers by, crowds too."""

    def read(self, record: Record) -> Objects:
        """What is drawn on the picture."""
        assert isinstance(record.target, Objects)
        return record.target

    def view(self, target: Objects, geometry: Geometry) -> tuple[Objects, Geometry]:
        """The objects as they are, and the view's geometry. Raises UserError where the picture has another size than
        its annotations say."""
        _check_size(target.of_size, geometry)
        return target, geometry

    def collate(self, targets: Sequence[Sequence[tuple[Objects, Geometry]]]) -> OwnObjects:
        """``targets[image][view]`` -> the batch's."""
        return OwnObjects(tuple(views[0] for views in targets))


def _check_size(said: Size, geometry: Geometry) -> None:
    if said != geometry.source:
        raise UserError(
            f"a picture is {geometry.source} px, and what is drawn on it is of {said}: was it replaced since it was "
            "read? run `anyres check` on the data"
        )


def _boxes_in_view(boxes: Float32[Tensor, "n 4"], geometry: Geometry) -> tuple[Float32[Tensor, "n 4"], list[bool]]:
    """Boxes of the picture -> of the view, cut to it, and whether that took something away."""
    from torchvision import tv_tensors

    given = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=tuple(geometry.source))
    whole = map_boxes(given, geometry, clamp=False).as_subclass(Tensor)
    height, width = geometry.size
    inside = torch.minimum(whole.clamp(min=0), torch.tensor([width, height, width, height], dtype=whole.dtype))
    return inside, ((whole - inside).abs().amax(1) > _CUT).tolist() if len(boxes) else []


def mask_in_view(shape: Shape, geometry: Geometry) -> UInt8[Tensor, "H W"]:
    """The pixels of a view whose centers lie within an outline, as 0 and 1."""
    if isinstance(shape, Polygons):
        parts = [map_points(torch.from_numpy(part).double(), geometry).numpy() for part in shape.parts]
        return torch.from_numpy(filled(parts, geometry.size))
    if isinstance(shape, Rle):
        return map_mask(torch.from_numpy(np.ascontiguousarray(shape.mask())), geometry)
    return torch.zeros(tuple(geometry.size), dtype=torch.uint8)


def _around(mask: UInt8[Tensor, "H W"]) -> Float32[Tensor, " 4"]:
    """The box around a mask; of none, one without area."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    if not len(rows):
        return torch.zeros(4)
    corners = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    return torch.tensor([float(corner) for corner in corners])
