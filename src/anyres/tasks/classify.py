"""One class for each image: top-1 accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from anyres.data.sources import Labelling
from anyres.evaluation.confusion import confusion, write_tables
from anyres.evaluation.evaluator import EvalSettings, Evaluator, ImageScores
from anyres.evaluation.measured import LOSS, TOP1, TOP5
from anyres.evaluation.metrics import Scores, score
from anyres.evaluation.page import PageTable, SampleAnswer, Section
from anyres.flow import Batch, Metric, Record, Size
from anyres.storage import write_bytes
from anyres.tasks.labels import LabelTask
from anyres.tasks.task import Answer, AnswerOptions, Reference, Shown


class TopK:
    """Top-1 and top-5 accuracy, and cross-entropy."""

    def run(self, model: nn.Module, batches: Iterable[Batch], how: EvalSettings) -> Scores:
        """See ``evaluation.metrics.score``."""
        return score(model, batches, how)


@dataclass(frozen=True)
class Classify(LabelTask):
    """One class for each image."""

    name: ClassVar[str] = "classify"
    metrics: ClassVar[Sequence[Metric]] = (TOP1, TOP5, LOSS)
    labelling: ClassVar[Labelling] = "one"
    activation: ClassVar[Literal["softmax", "sigmoid", "none"]] = "softmax"

    def read(self, record: Record) -> int:
        """The index of the image's class; -1 for no label."""
        assert isinstance(record.target, int)
        return record.target

    def evaluators(self, model: nn.Module, reference: Reference | None) -> Sequence[Evaluator]:
        """Top-1."""
        return (TopK(),)

    def summary(self, scores: ImageScores, size: Size) -> list[str]:
        """The worst classes and the most confused pairs."""
        mistakes = confusion(_own(scores), self.classes)
        worst, pairs = mistakes.worst(5), mistakes.confused(5)
        if not worst:
            return []
        classes = ", ".join(f"{one.name} {100 * one.accuracy:.1f} % of {one.n}" for one in worst)
        taken = ", ".join(f"{pair.count} {pair.truth} for {pair.taken_for}" for pair in pairs)
        return [f"worst classes at {size} px: {classes}", f"most often mistaken at {size} px: {taken}"]

    def write_tables(self, by_size: Mapping[Size, ImageScores], title: str, folder: Path) -> list[Path]:
        """``per_class.csv``, ``confusion.csv`` and, for few classes, ``confusion_SIZE.png``."""
        from anyres.evaluation.plots.heatmap import heat_map

        found = {size: confusion(_own(scores), self.classes) for size, scores in by_size.items()}
        written = write_tables(found, folder)
        for size, one in found.items():
            if picture := heat_map(one, f"{title} at {size} px"):
                path = folder / f"confusion_{size}.png"
                write_bytes(path, picture)
                written.append(path)
        return written

    def sections(self, scores: ImageScores, size: Size, shown: Shown) -> list[Section]:
        """The classes least often right, what is taken for what, and the confusion matrix."""
        from anyres.evaluation.plots.heatmap import heat_map

        mistakes = confusion(_own(scores), self.classes)
        light, dark = heat_map(mistakes), heat_map(mistakes, dark=True)
        worst, pairs = mistakes.worst(8), mistakes.confused(8)
        interval = "\N{NO-BREAK SPACE}%"
        tables = (
            PageTable(
                "The classes least often right",
                ("class", f"right{interval}", f"95{interval} interval", "images"),
                [
                    (c.name, f"{100 * c.accuracy:.1f}", f"{100 * c.low:.1f} \N{EN DASH} {100 * c.high:.1f}", str(c.n))
                    for c in worst
                ],
            ),
            PageTable(
                "What is most often taken for what",
                ("class", "taken for", "times", f"of its images{interval}"),
                [(p.truth, p.taken_for, str(p.count), f"{100 * p.share:.1f}") for p in pairs],
                words=(0, 1),
            ),
        )
        lead = "The classes least often right, and what is most often taken for what."
        return [
            Section(
                f"Class by class, at {size} px",
                lead if worst else "Every image was taken for what it is.",
                tables if worst else (),
                (light, dark) if light is not None and dark is not None else None,
                "Confusion matrix: a row for each class, colored where its images went.",
                anchor="classes",
            )
        ]

    def sample(self, scores: ImageScores, place: int, model: str, size: Size) -> SampleAnswer:
        """The likeliest class, and how likely."""
        own = _own(scores)
        text = self.classes[own.predicted[place]]
        sure = f"{100 * float(own.confidence[place]):.0f}\N{NO-BREAK SPACE}%"
        return SampleAnswer(model, size, text, sure, right=bool(own.correct[place]))

    def answer(self, output: Float[Tensor, " k"], options: AnswerOptions) -> Answer:
        """The likeliest classes with their probabilities."""
        best = output.topk(min(options.top, len(output)))
        found = [(self.classes[i], float(p)) for p, i in zip(best.values, best.indices.tolist(), strict=True)]
        cells = {f"{rank}.": f"{name} {100 * p:.1f} %" for rank, (name, p) in enumerate(found, 1)}
        return Answer(cells, {"classes": [{"name": name, "probability": p} for name, p in found]})


def _own(scores: ImageScores) -> Scores:
    assert isinstance(scores, Scores)
    return scores
