"""A class for each pixel: mean intersection over union, at every picture's own size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from anyres.config import UserError, override
from anyres.data.annotations.targets import MapReader, OwnMapReader
from anyres.data.sources import Source, Wanted
from anyres.evaluation.classes import Names
from anyres.evaluation.evaluator import EvalSettings, Evaluator, ImageScores
from anyres.evaluation.joined import averaged, shown_part
from anyres.evaluation.measured import MIOU, PIXEL_ACCURACY
from anyres.evaluation.miou import MapScores, classes_at, score_maps, write_class_table
from anyres.evaluation.page import PageTable, SampleAnswer, Section
from anyres.flow import Batch, Geometry, Maps, Metric, Record, Size, TargetReader
from anyres.models.contract import Backbone
from anyres.models.dense.segmenter import Segmenter, SegmenterConfig
from anyres.models.pyramids.bottom_up import bottom_up_of
from anyres.storage import check_types
from anyres.tasks.image import ImageTask
from anyres.tasks.task import Answer, AnswerOptions, Configs, Parts, Reference, Shown
from anyres.training.objectives import Objective, ObjectiveConfig
from anyres.training.objectives.named import Named

DRAWN = 6  # pictures of which the report shows truth beside answer, those answered worst
NBSP = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class MeanIoU:
    """mIoU, and the share of pixels that are right, of so many classes."""

    classes: int

    def run(self, model: nn.Module, batches: Iterable[Batch], how: EvalSettings) -> MapScores:
        """See ``evaluation.miou.score_maps``."""
        return score_maps(model, batches, how, self.classes)


class EveryHead(nn.Module):
    """A segmenter that answers with all its heads, as training wants it."""

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Float[Tensor, "b c h w"]) -> dict[str, Tensor]:
        return self.model.answers(x)


@dataclass(frozen=True)
class Segment(ImageTask):
    """A class for each pixel, by UPerNet on the recipe's backbone; ``head`` in a recipe is its ``SegmenterConfig``.

    ``mirrored``: the class that each becomes in a view that is mirrored left to right, as the left lung the right one.
    """

    name: ClassVar[str] = "segment"
    metrics: ClassVar[Sequence[Metric]] = (MIOU, PIXEL_ACCURACY)
    wanted: ClassVar[Wanted] = "maps"

    mirrored: tuple[int, ...] = ()

    @property
    def reader(self) -> MapReader:
        """What reads maps for training."""
        return MapReader(len(self.classes), self.mirrored)

    def read(self, record: Record) -> UInt8[Tensor, "h w"]:
        """The map of the picture. Raises UserError for a value that is no class."""
        return self.reader.read(record)

    def view(self, target: UInt8[Tensor, "h w"], geometry: Geometry) -> UInt8[Tensor, "_ _"]:
        """The map of a view."""
        return self.reader.view(target, geometry)

    def collate(self, targets: Sequence[Sequence[UInt8[Tensor, "_ _"]]]) -> Maps:
        """The maps of a batch, view by view."""
        return self.reader.collate(targets)

    def scoring(self) -> TargetReader:
        """Answers are scored at the picture's own size."""
        return OwnMapReader(len(self.classes))

    def learning_from(self, source: Source) -> Segment:
        """With the classes that change sides in a mirrored view."""
        return replace(self, mirrored=source.mirrored)

    def fit(self, source: Source, names: Names) -> Source:
        """The source as it is. Raises UserError where its classes are not the model's, in their order."""
        if source.classes != self.classes:
            theirs, ours = (", ".join(some[:8]) for some in (source.classes, self.classes))
            raise UserError(
                f"maps of {source.name} have the classes {theirs}, and the model knows {ours}, in this order"
            )
        return source

    def settle(self, configs: Configs) -> ObjectiveConfig:
        """The objective as it is. Raises UserError for what has no meaning for maps."""
        given = super().settle(configs)
        if given.chosen != "supervised" or given.consistency != "none":
            raise UserError(
                "task=segment has a loss of its own: set objective.consistency=none, leave out objective.name, or "
                "begin with the recipe segment/lungs"
            )
        self.check_trainable(configs)
        head_of(configs.head, 1)
        return given

    def build(self, backbone: Callable[[int], nn.Module], head: Mapping[str, Any]) -> Segmenter:
        """UPerNet on the recipe's backbone."""
        trunk = backbone(0)
        assert isinstance(trunk, Backbone)
        called = trunk.called
        made = Segmenter(bottom_up_of(trunk, "segmentation"), head_of(head, len(self.classes)))
        made.pretrained_cfg["architecture"] = f"segment/upernet_{called}"
        return made

    def begun(self, network: nn.Module) -> nn.Module:
        """The backbone: heads are drawn anew."""
        assert isinstance(network, Segmenter)
        return network.bottom_up

    def loss(self, output: Tensor, target: Any) -> tuple[str, Tensor]:
        """Raises UserError: an objective of another package knows logits of whole pictures alone."""
        raise UserError("task=segment has several heads and a loss for each: leave out objective.name")

    def objective(self, parts: Parts) -> Objective:
        """Cross-entropy of the pixels that count, of the decoder and, in its weight, of the auxiliary head."""
        model = parts.model
        assert isinstance(model, Segmenter)
        return Named(model, EveryHead(model), model.losses)

    def evaluators(self, model: nn.Module, reference: Reference | None) -> Sequence[Evaluator]:
        """mIoU."""
        return (MeanIoU(len(self.classes)),)

    def describe(self, source: Source) -> Iterable[str]:
        """Which classes change sides in a mirrored view."""
        for i, other in enumerate(source.mirrored):
            if other > i:
                yield f"mirrored views: {self.classes[i]} and {self.classes[other]} change places"

    def summary(self, scores: ImageScores, size: Size) -> list[str]:
        """The classes found worst."""
        rows = _own(scores).worst(self.classes)
        told = ", ".join(f"{row.name} IoU {100 * row.iou:.1f} %" for row in rows)
        return [f"worst classes at {size} px: {told}"]

    def write_tables(self, by_size: Mapping[Size, ImageScores], title: str, folder: Path) -> list[Path]:
        """``per_class.csv``."""
        return [write_class_table({size: _own(scores) for size, scores in by_size.items()}, self.classes, folder)]

    def sections(self, scores: ImageScores, size: Size, shown: Shown) -> list[Section]:
        """Each class's figures, and truth beside answer of the pictures answered worst."""
        own = _own(scores)
        rows = [
            (row.name, f"{row.pixels:,}", *(f"{100 * x:.1f}" for x in (row.iou, row.precision, row.recall)))
            for row in own.worst(self.classes, 20)
        ]
        columns = ("class", "pixels", f"IoU{NBSP}%", f"precision{NBSP}%", f"recall{NBSP}%")
        table = PageTable("The classes, the worst first", columns, rows)
        lead = "Pixels of all pictures together, each picture at its own size."
        sections = [Section(f"Class by class, at {size} px", lead, (table,), anchor="classes")]
        if own.maps:
            from anyres.evaluation.plots.class_maps import beside

            worst = np.argsort([own.of_picture(place) for place in range(own.n)], kind="stable")[:DRAWN].tolist()
            panels = [self._panels(shown, int(own.index[place]), own.maps[place]) for place in worst]
            sheet = beside(panels, self.classes)
            lead = (
                f"The {len(worst)} pictures answered worst: picture, truth, answer. Their mIoU, from the left and the "
                f"top: {', '.join(f'{100 * own.of_picture(place):.1f}' for place in worst)} %."
            )
            alt = "Pictures with the true classes over them, and beside them with those answered."
            sections.append(
                Section(f"Truth and answer, at {size} px", lead, (), (sheet, sheet), alt, anchor="pictures")
            )
        return sections

    def sample(self, scores: ImageScores, place: int, model: str, size: Size) -> SampleAnswer:
        """The picture's own mIoU."""
        return SampleAnswer(model, size, f"mIoU {100 * _own(scores).of_picture(place):.1f}{NBSP}%")

    def truth(self, source: Source, index: int) -> str:
        """The classes that the picture's map has."""
        there = set(np.unique(self.read(source.records[index]).numpy()).tolist())
        return ", ".join(name for i, name in enumerate(self.classes) if i in there) or "nothing"

    def answer(self, output: Float[Tensor, "k rows columns"], options: AnswerOptions) -> Answer:
        """The share of each class, largest first, and the map to be drawn."""
        shown = output if options.geometry is None else shown_part(output, options.geometry)[0]
        size = options.of_size or Size(*shown.shape[-2:])
        found = classes_at(shown, size).cpu()
        shares = torch.bincount(found.flatten().long(), minlength=len(self.classes)).double() / found.numel()
        best = [i for i in shares.argsort(descending=True, stable=True).tolist() if shares[i] > 0][: options.top]
        cells = {f"{rank}.": f"{self.classes[i]} {100 * float(shares[i]):.1f} %" for rank, i in enumerate(best, 1)}
        values = {"classes": [{"name": self.classes[i], "share": float(shares[i])} for i in best]}
        return Answer(cells, values, lambda picture: _drawn(picture, found, self.classes))

    def joined(self, parts: Iterable[tuple[Any, Geometry]], options: AnswerOptions) -> Answer:
        """Of logits that are averaged where parts overlap."""
        return self.answer(averaged(parts), options)

    def _panels(self, shown: Shown, index: int, answer: UInt8[np.ndarray, "_ _"]) -> tuple[Tensor, Tensor, Tensor]:
        """Picture, truth and answer, all of the picture's pixels as they are kept."""
        from torchvision.transforms.v2.functional import InterpolationMode, resize

        pixels = shown.pixels(index)
        sides = list(pixels.shape[-2:])
        maps = (self.read(shown.source.records[index]), torch.from_numpy(answer))
        truth, said = (resize(each[None], sides, InterpolationMode.NEAREST_EXACT)[0] for each in maps)
        return pixels, truth, said


def head_of(head: Mapping[str, Any], classes: int) -> SegmenterConfig:
    """A recipe's ``head`` as the configuration of UPerNet. Raises UserError for an unknown option or a wrong value."""
    if "num_classes" in head:
        raise UserError("head.num_classes is decided by the maps: leave it out")
    kinds = get_type_hints(SegmenterConfig)
    try:
        check_types(head, kinds)
    except ValueError as error:
        raise UserError(f"head.{error}") from None
    values = {key: float(value) if kinds.get(key) is float else value for key, value in head.items()}
    return override(SegmenterConfig(), {**values, "num_classes": classes}, "head")


def _drawn(picture: Tensor, found: Tensor, classes: Sequence[str]) -> dict[str, bytes]:
    from anyres.evaluation.plots.class_maps import index_png, overlay_png

    return {"overlay.png": overlay_png(picture, found, classes), "classes.png": index_png(found, classes)}


def _own(scores: ImageScores) -> MapScores:
    assert isinstance(scores, MapScores)
    return scores
