"""The stem and the first blocks can be frozen, counted alike in every family."""

from __future__ import annotations

import pytest
import torch

from anyres.config import UserError
from anyres.models import create_model
from anyres.models.trainable import freeze


@pytest.mark.parametrize(
    ("name", "blocks", "first", "last"),
    [
        ("resmlp_12", 11, "blocks.11.", "blocks.10."),
        ("resformer_tiny", 2, "blocks.2.", "blocks.1."),
        ("restv2_tiny", 3, "stage2.1.", "stage2.0."),
    ],
)
def test_the_stem_and_the_first_blocks_are_frozen(name: str, blocks: int, first: str, last: str) -> None:
    """``last`` is the last one frozen, ``first`` the first one trained."""
    with torch.device("meta"):
        model = create_model(name, 3)
    freeze(model, "all", blocks)
    trained = {key: parameter.requires_grad for key, parameter in model.named_parameters()}
    assert {trained[key] for key in trained if key.startswith(last)} == {False}
    assert {trained[key] for key in trained if key.startswith((first, "head."))} == {True}
    assert not trained[next(iter(dict(model.named_parameters())))], "the stem"
    with pytest.raises(UserError, match=r"train\.freeze_blocks=99: .* has \d+ blocks"):
        freeze(model, "all", 99)
