"""A task of your own: predict one number for each image; its mean absolute error is the headline.

    python examples/new_task.py train restv2_nano task=number --data numbers.csv --out runs/numbers
    python examples/new_task.py curve runs/numbers --sizes 32:64:16
    python examples/new_task.py predict runs/numbers photo.jpg

``numbers.csv`` has the columns path,label, the label being the number.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

import anyres
from anyres.evaluation.evaluator import EvalSettings, ImageValues, collect
from anyres.flow import Batch, Metric, Record
from anyres.tasks import Answer, AnswerOptions, Reference


class AbsoluteError:
    def run(self, model: nn.Module, batches: Iterable[Batch], how: EvalSettings) -> ImageValues:
        index, error = collect(model, batches, how, lambda output, target: ((output[:, 0] - target).abs(),))
        return ImageValues("mae", index, error)


@anyres.register_task
@dataclass(frozen=True)
class Number(anyres.ImageTask):
    name: ClassVar[str] = "number"
    wanted: ClassVar[Any] = "text"  # labels as they are written
    metrics: ClassVar[Sequence[Metric]] = (Metric("mae", "MAE", unit="", higher_is_better=False),)

    def read(self, record: Record) -> float:
        try:
            return float(str(record.target))
        except ValueError:
            raise anyres.UserError(f"{record.name}: the label {record.target!r} is no number") from None

    def loss(self, output: Tensor, target: Tensor) -> tuple[str, Tensor]:
        return "l1", F.l1_loss(output[:, 0], target)

    def evaluators(self, model: nn.Module, reference: Reference | None) -> Sequence[AbsoluteError]:
        return (AbsoluteError(),)

    def answer(self, output: Tensor, options: AnswerOptions) -> Answer:
        return Answer({"number": f"{float(output[0]):.3g}"}, {"number": float(output[0])})


if __name__ == "__main__":
    from anyres.cli import main

    main()
