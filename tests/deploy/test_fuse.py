"""A folded model is the same function at any size, with fewer operations, and cannot be trained."""

import pytest
import torch

from anyres.config import UserError
from anyres.deploy.fuse import fuse
from tests.models.zoo import SMALL, build, image, stirred


@pytest.mark.parametrize("family", SMALL)
@torch.no_grad()
def test_is_the_same_function(family: str) -> None:
    model = stirred(build(family))
    folded = fuse(model)
    for size in ((64, 64, 1), (64, 64, 3), (97, 70, 2), (30, 130, 1), (1, 1, 1)):
        expected = model(image(*size))
        assert (folded(image(*size)) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_refuses() -> None:
    folded = fuse(build("deit").eval())
    with pytest.raises(UserError, match="train the model that it was made of"):
        folded.train()
    with pytest.raises(UserError, match="folded already"):
        fuse(folded)
    with pytest.raises(UserError, match="a Linear cannot be folded"):
        fuse(torch.nn.Linear(2, 2))
