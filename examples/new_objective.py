"""An objective of your own: the task's loss at every view, and a second term that keeps features short.

python examples/new_objective.py train restv2_nano objective.name=short_features --data photos --out runs/short
"""

from collections.abc import Callable, Iterator

from torch import Tensor

import anyres
from anyres.flow import Batch
from anyres.training.objectives import ObjectiveParts, StudentOutput, Term


@anyres.register_objective("short_features")
def short_features(student: Callable[[Tensor], StudentOutput], batch: Batch, parts: ObjectiveParts) -> Iterator[Term]:
    """``objective.options={weight: 0.01}`` says how much the second term counts."""
    weight = float(parts.config.options.get("weight", 0.01))
    for i, view in enumerate(batch.views):  # largest first; what a view yields is back-propagated before the next one
        output = student(view)
        name, loss = parts.loss(output.logits.float(), batch.targets.of(i))
        size = view.shape[-1]
        yield Term(f"{name}/{size}", loss / len(batch.views))
        yield Term(f"length/{size}", weight * output.feature.float().square().mean() / len(batch.views))


if __name__ == "__main__":
    from anyres.cli import main

    main()
