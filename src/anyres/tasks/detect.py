"""Objects on a picture: boxes, classes and, where the model has a mask head, outlines; scored by COCO's AP."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from anyres.config import UserError, nearest, override
from anyres.data.annotations.targets import ObjectReader, OwnObjectReader
from anyres.data.sources import Source, Wanted
from anyres.evaluation.classes import Names
from anyres.evaluation.coco import CocoScores, score_detections, write_class_table
from anyres.evaluation.confusion import write_confusions
from anyres.evaluation.detections import Detections, coco_document, compressed, detections_of
from anyres.evaluation.evaluator import EvalSettings, Evaluator, ImageScores
from anyres.evaluation.joined import merged
from anyres.evaluation.measured import BOX_METRICS
from anyres.evaluation.page import SampleAnswer, Section
from anyres.flow import Batch, Geometry, Instances, Metric, Objects, Record, Size, SizeResult, TargetReader, ViewObjects
from anyres.models.contract import Backbone, Network
from anyres.models.dense.detector_config import CONFIGS, WITH_MASKS, DetectorConfig
from anyres.models.pyramids.bottom_up import bottom_up_of
from anyres.storage import check_types
from anyres.tasks.image import ImageTask
from anyres.tasks.task import Answer, AnswerOptions, Configs, Output, Parts, Reference, Shown
from anyres.training.objectives import Objective, ObjectiveConfig
from anyres.training.objectives.named import Named

SURE = 0.5
"""Objects with this score or a better one are told and drawn, where nobody says another."""
LOSSES = {
    "loss_objectness": "objectness",
    "loss_rpn_box_reg": "proposals",
    "loss_classifier": "classes",
    "loss_box_reg": "boxes",
    "loss_mask": "masks",
    "classification": "classes",
    "bbox_regression": "boxes",
}
"""What the log calls torchvision's losses."""


@dataclass(frozen=True)
class CocoAP:
    """COCO's AP of boxes, and of ``masks`` where the model answers them, of so many classes."""

    classes: int
    masks: bool

    def run(self, model: nn.Module, batches: Iterable[Batch], how: EvalSettings) -> CocoScores:
        """See ``evaluation.coco.score_detections``."""
        return score_detections(model, batches, how, self.classes, masks=self.masks)


class Learner(nn.Module):
    """A detector that is shown what is to be found, and answers with what its mistakes cost: scalars by name."""

    def __init__(self, model: nn.Module, masks: bool) -> None:
        super().__init__()
        self.model, self.masks = model, masks

    def forward(self, x: Float[Tensor, "b c h w"], objects: Sequence[ViewObjects]) -> dict[str, Tensor]:
        targets = [{"boxes": each.boxes, "labels": each.labels} for each in objects]
        if self.masks:
            targets = [
                target if each.masks is None else {**target, "masks": each.masks}
                for target, each in zip(targets, objects, strict=True)
            ]
        losses = self.model(x, targets)
        assert isinstance(losses, dict)
        return {LOSSES[name]: loss for name, loss in losses.items()}


@dataclass(frozen=True)
class Detect(ImageTask):
    """Boxes and masks by torchvision's heads on the recipe's backbone; ``head`` in a recipe is its ``DetectorConfig``.

    ``mirrored``: the class that each becomes in a view that is mirrored left to right, as the left lung the right one.
    ``outlined``: how many of the objects to learn have an outline, of how many. ``masks``: whether outlines are learnt.
    """

    name: ClassVar[str] = "detect"
    metrics: ClassVar[Sequence[Metric]] = BOX_METRICS
    wanted: ClassVar[Wanted] = "boxes"
    takes_threshold: ClassVar[bool] = True

    mirrored: tuple[int, ...] = ()
    outlined: tuple[int, int] = (0, 0)
    masks: bool = False

    @property
    def reader(self) -> ObjectReader:
        """What reads objects for training."""
        return ObjectReader(masks=self.masks, mirrored=self.mirrored)

    def read(self, record: Record) -> Objects:
        """What is drawn on the picture."""
        return self.reader.read(record)

    def view(self, target: Objects, geometry: Geometry) -> ViewObjects:
        """The objects in a view."""
        return self.reader.view(target, geometry)

    def collate(self, targets: Sequence[Sequence[ViewObjects]]) -> Instances:
        """The objects of a batch, view by view."""
        return self.reader.collate(targets)

    def scoring(self) -> TargetReader:
        """Answers are scored in the picture's own pixels."""
        return OwnObjectReader()

    def learning_from(self, source: Source) -> Detect:
        """With the classes that change sides in a mirrored view, and how many objects have an outline."""
        targets = [record.target for record in source.records if isinstance(record.target, Objects)]
        outlined = sum(shape is not None for target in targets for shape in target.shapes)
        return replace(self, mirrored=source.mirrored, outlined=(outlined, sum(map(len, targets))))

    def with_head(self, head: Mapping[str, Any]) -> Detect:
        """With outlines, where the head learns them. Raises UserError where the pictures have none."""
        kind = head_of(head, len(self.classes) or 1).kind
        masks, (outlined, objects) = kind in WITH_MASKS, self.outlined
        if masks and objects and not outlined:
            raise UserError(f"head.kind={kind} learns outlines, and there are boxes alone: set head.kind=faster_rcnn")
        if not objects:
            raise UserError("there is no object to learn in the training pictures: annotate some, or give other data")
        return replace(self, masks=masks)

    def fit(self, source: Source, names: Names) -> Source:
        """Objects with their classes counted as the model does, by name. Raises UserError for a class that it does not
        know."""
        if source.classes == self.classes:
            return source
        if strange := next((name for name in source.classes if name not in self.classes), None):
            raise UserError(
                f"{source.name} has objects of a class {strange!r}, which the model does not know"
                f"{nearest(strange, self.classes)}: leave these out, or rename the class"
            )
        table = np.array([self.classes.index(name) for name in source.classes], np.int64)
        records = tuple(_counted(record, table) for record in source.records)
        return replace(source, classes=self.classes, records=records, mirrored=self.mirrored)

    def settle(self, configs: Configs) -> ObjectiveConfig:
        """The objective as it is. Raises UserError for what has no meaning for objects."""
        given = super().settle(configs)
        if given.chosen != "supervised" or given.consistency != "none":
            raise UserError(
                "task=detect has losses of its own: set objective.consistency=none, leave out objective.name, or "
                "begin with the recipe detect/lungs"
            )
        self.check_trainable(configs)
        head_of(configs.head, 1)
        return given

    def build(self, backbone: Callable[[int], nn.Module], head: Mapping[str, Any]) -> Network:
        """The head's kind of detector on the recipe's backbone."""
        from anyres.models.dense.detector import Detector  # with torchvision's, which takes a second

        trunk = backbone(0)
        assert isinstance(trunk, Backbone)
        called, config = trunk.called, head_of(head, len(self.classes))
        stages = (2, 3, 4) if config.kind == "retinanet" else (1, 2, 3, 4)
        made = Detector(bottom_up_of(trunk, "detection", stages), config)
        made.pretrained_cfg["architecture"] = f"detect/{config.kind}_{called}"
        return made

    def begun(self, network: nn.Module) -> nn.Module:
        """The backbone: heads are drawn anew."""
        return network.get_submodule("backbone.bottom_up")

    def loss(self, output: Tensor, target: Any) -> tuple[str, Tensor]:
        """Raises UserError: an objective of another package knows logits of whole pictures alone."""
        raise UserError("task=detect has several heads and a loss for each: leave out objective.name")

    def objective(self, parts: Parts) -> Objective:
        """The sum of what each head loses, at every view."""
        return Named(parts.model, Learner(parts.model, self.masks))

    def can_score(self, source: Source) -> bool:
        """Whether any picture has an object, crowds not counted."""
        targets = (record.target for record in source.records)
        return any(isinstance(target, Objects) and not target.crowd.all() for target in targets)

    def evaluators(self, model: nn.Module, reference: Reference | None) -> Sequence[Evaluator]:
        """COCO's AP."""
        from anyres.models.dense.detector import Detector

        assert isinstance(model, Detector)
        return (CocoAP(len(self.classes), model.has_masks),)

    def describe(self, source: Source) -> Iterable[str]:
        """How many objects there are, which have no outline, and which classes change sides in a mirrored view."""
        outlined, objects = self.outlined
        empty = sum(isinstance(record.target, Objects) and not len(record.target) for record in source.records)
        yield f"{objects} objects on {len(source.records)} pictures, {empty} of them without any"
        if self.masks and outlined < objects:
            yield f"{objects - outlined} of {objects} objects have no outline and are not learnt: head.kind has masks"
        for i, other in enumerate(source.mirrored):
            if other > i:
                yield f"mirrored views: {self.classes[i]} and {self.classes[other]} change places"

    def summary(self, scores: ImageScores, size: Size) -> list[str]:
        """The classes found worst."""
        rows = _own(scores).worst(self.classes)
        told = ", ".join(f"{row.name} box AP {100 * row.box_ap:.1f} %" for row in rows)
        return [f"worst classes at {size} px: {told}"]

    def write_tables(self, by_size: Mapping[Size, ImageScores], title: str, folder: Path) -> list[Path]:
        """``per_class.csv`` and, with background, ``confusion.csv``."""
        from anyres.evaluation.box_confusion import box_confusion

        own = {size: _own(scores) for size, scores in by_size.items()}
        confused = {size: box_confusion(scores, self.classes) for size, scores in own.items()}
        return [write_class_table(own, self.classes, folder), write_confusions(confused, folder)]

    def curve_sections(self, points: Sequence[SizeResult]) -> list[Section]:
        """AP of small, medium and large objects against size."""
        from anyres.evaluation.detection_page import object_size_sections

        return object_size_sections(points)

    def sections(self, scores: ImageScores, size: Size, shown: Shown) -> list[Section]:
        """Each class's figures, precision against recall, what was taken for what, and truth beside answer."""
        from anyres.evaluation.detection_page import detection_sections

        return detection_sections(_own(scores), self.classes, size, shown.pixels)

    def sample(self, scores: ImageScores, place: int, model: str, size: Size) -> SampleAnswer:
        """How many objects of the picture were found, and what else."""
        facts = _own(scores).facts[place]
        text = f"{facts.right} of {facts.objects} found, {facts.found - facts.right} wrong"
        return SampleAnswer(model, size, text)

    def truth(self, source: Source, index: int) -> str:
        """The classes of the picture's objects, and how many of each."""
        counts = np.bincount(self.read(source.records[index]).classes, minlength=len(self.classes)).tolist()
        return ", ".join(f"{n} {name}" for n, name in zip(counts, self.classes, strict=True) if n) or "nothing"

    def answer(self, output: Output, options: AnswerOptions) -> Answer:
        """The objects whose score is ``SURE`` or the threshold, best first, in pixels of the picture."""
        assert isinstance(output, Mapping)
        assert options.geometry is not None
        seen = options.geometry
        return self.told(detections_of(output, seen), replace(options, of_size=seen.source))

    def joined(self, parts: Iterable[tuple[Any, Geometry]], options: AnswerOptions) -> Answer:
        """Of objects that are merged where parts overlap."""
        return self.told(merged((detections_of(output, geometry), geometry) for output, geometry in parts), options)

    def document(self, answered: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A COCO dataset, with a score in each annotation; ``images`` have what is told of each too."""
        return coco_document(answered, self.classes)

    def told(self, found: Detections, options: AnswerOptions) -> Answer:
        """Objects found on a picture -> what is said of them."""
        sure = found.above(SURE if options.threshold is None else options.threshold)
        cells = {"objects": str(len(sure))}
        objects: list[dict[str, Any]] = []
        for i, (box, score, label) in enumerate(
            zip(sure.boxes.tolist(), sure.scores.tolist(), sure.classes.tolist(), strict=True)
        ):
            name = self.classes[label]
            objects.append({"name": name, "score": score, "box": [round(x, 2) for x in box]})
            if sure.masks is not None:
                objects[-1]["mask"] = compressed(sure.masks[i])
            if i < options.top:
                cells[f"{i + 1}."] = f"{name} {100 * score:.1f} % at {' '.join(str(round(x)) for x in box)}"
        size = options.of_size
        assert size is not None
        values = {"width": size.width, "height": size.height, "objects": objects}
        return Answer(cells, values, lambda picture: _drawn(picture, sure, self.classes))


def head_of(head: Mapping[str, Any], classes: int) -> DetectorConfig:
    """A recipe's ``head`` as a detector's configuration. Raises UserError for an unknown option or a wrong value."""
    if "num_classes" in head:
        raise UserError("head.num_classes is decided by the annotations: leave it out")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in head.items()}
    kinds = get_type_hints(DetectorConfig)
    try:
        check_types(values, kinds)
    except ValueError as error:
        raise UserError(f"head.{error}") from None
    values = {key: float(value) if kinds.get(key) is float else value for key, value in values.items()}
    return override(CONFIGS[str(values.get("kind", "faster_rcnn"))], {**values, "num_classes": classes}, "head")


def _counted(record: Record, table: np.ndarray) -> Record:
    """The record with its objects' classes by ``table``."""
    target = record.target
    assert isinstance(target, Objects)
    return replace(record, target=replace(target, classes=table[target.classes]))


def _drawn(picture: Tensor, found: Detections, classes: Sequence[str]) -> dict[str, bytes]:
    from anyres.evaluation.plots.objects import overlay_png

    return {"overlay.png": overlay_png(picture, found, classes)}


def _own(scores: ImageScores) -> CocoScores:
    assert isinstance(scores, CocoScores)
    return scores
