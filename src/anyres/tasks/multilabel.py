"""Any number of classes for each image: mean average precision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor, nn

from anyres.config import UserError
from anyres.data.sources import Labelling, Source
from anyres.evaluation.evaluator import EvalSettings, Evaluator, ImageScores
from anyres.evaluation.measured import F1, LOSS, MEAN_AP
from anyres.evaluation.multilabel import LabelScores, score_labels, write_label_table
from anyres.evaluation.page import PageTable, SampleAnswer, Section
from anyres.flow import Batch, Metric, Record, Size
from anyres.tasks.labels import LabelTask
from anyres.tasks.task import Answer, AnswerOptions, Configs, Reference, Shown
from anyres.training.objective_config import LabelLoss
from anyres.training.objectives import ObjectiveConfig


class MeanAveragePrecision:
    """mAP, F1 at 0.5, and binary cross-entropy."""

    def run(self, model: nn.Module, batches: Iterable[Batch], how: EvalSettings) -> LabelScores:
        """See ``evaluation.multilabel.score_labels``."""
        return score_labels(model, batches, how)


@dataclass(frozen=True)
class MultiLabel(LabelTask):
    """Every class is decided by itself."""

    name: ClassVar[str] = "multilabel"
    metrics: ClassVar[Sequence[Metric]] = (MEAN_AP, F1, LOSS)
    labelling: ClassVar[Labelling] = "several"
    activation: ClassVar[Literal["softmax", "sigmoid", "none"]] = "sigmoid"
    takes_threshold: ClassVar[bool] = True

    label: LabelLoss = "soft_bce"

    def read(self, record: Record) -> Bool[np.ndarray, " k"]:
        """Which classes the image has."""
        assert isinstance(record.target, tuple)
        hot = np.zeros(len(self.classes), dtype=bool)
        hot[list(record.target)] = True
        return hot

    def settle(self, configs: Configs) -> ObjectiveConfig:
        """``soft_bce`` where no loss is chosen. Raises UserError for what is for one class an image."""
        given = configs.objective
        one = "is for one class an image, and these images have several labels: set"
        if given.loss == "ce":
            raise UserError(f"objective.loss=ce {one} objective.loss=soft_bce")
        if given.distillation.kind != "none":
            kind = given.distillation.kind
            raise UserError(f"objective.distillation.kind={kind} {one} objective.distillation.kind=none")
        if given.consistency == "soft":
            raise UserError(f"objective.consistency=soft {one} objective.consistency=smooth_l1")
        return super().settle(configs)

    def evaluators(self, model: nn.Module, reference: Reference | None) -> Sequence[Evaluator]:
        """mAP."""
        return (MeanAveragePrecision(),)

    def describe(self, source: Source) -> Iterable[str]:
        """How such images are learnt and scored."""
        yield (
            f"images have several labels: every class is decided by itself (objective.loss={self.label}) and mAP is "
            "scored"
        )

    def summary(self, scores: ImageScores, size: Size) -> list[str]:
        """F1, and the classes ranked worst."""
        own = _own(scores)
        lines = [f"F1 at {size} px: {100 * own.f1:.1f} %, of decisions at probability 0.5"]
        rows = own.worst(self.classes)
        worst = ", ".join(f"{r.name} {100 * r.average_precision:.1f} % of {r.n}" for r in rows)
        return [*lines, f"worst classes at {size} px, by average precision: {worst}"] if worst else lines

    def write_tables(self, by_size: Mapping[Size, ImageScores], title: str, folder: Path) -> list[Path]:
        """``per_class.csv``: nothing is taken for one other class, so there is no confusion matrix."""
        return [write_label_table({size: _own(scores) for size, scores in by_size.items()}, self.classes, folder)]

    def sections(self, scores: ImageScores, size: Size, shown: Shown) -> list[Section]:
        """The classes ranked worst."""
        shares = ("average precision", "F1", "precision", "recall")
        columns = ("class", *(f"{name}\N{NO-BREAK SPACE}%" for name in shares))
        rows = [
            (r.name, *(f"{100 * value:.1f}" for value in (r.average_precision, r.f1, r.precision, r.recall)), str(r.n))
            for r in _own(scores).worst(self.classes, 8)
        ]
        lead = "The classes ranked worst, by average precision; the rest is of decisions at a probability of 0.5."
        table = PageTable("The classes ranked worst", (*columns, "images"), rows)
        return [Section(f"Class by class, at {size} px", lead, (table,), anchor="classes")]

    def sample(self, scores: ImageScores, place: int, model: str, size: Size) -> SampleAnswer:
        """All classes above a probability of 0.5, and how likely they are together."""
        own = _own(scores)
        names = ", ".join(self.classes[c] for c in own.predicted[place].nonzero()[0]) or "nothing"
        right = bool((own.predicted[place] == own.target[place]).all())
        return SampleAnswer(model, size, names, f"{100 * own.sure(place):.0f}\N{NO-BREAK SPACE}%", right)

    def answer(self, output: Float[Tensor, " k"], options: AnswerOptions) -> Answer:
        """Every class above the threshold, the likeliest first."""
        least = 0.5 if options.threshold is None else options.threshold
        order = output.argsort(descending=True, stable=True).tolist()
        found = [(self.classes[i], float(output[i])) for i in order if output[i] > least]
        text = ", ".join(f"{name} {100 * p:.1f} %" for name, p in found) or "nothing"
        return Answer({"labels": text}, {"labels": [{"name": name, "probability": p} for name, p in found]})

    def about(self) -> dict[str, Any]:
        """Task and classes; the flag is what earlier versions read."""
        return {"task": self.name, "classes": self.classes, "multi_label": True}


def _own(scores: ImageScores) -> LabelScores:
    assert isinstance(scores, LabelScores)
    return scores
