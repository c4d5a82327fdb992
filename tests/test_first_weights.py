"""A training says whether it starts from weights, and `--weights auto` takes the best."""

from __future__ import annotations

import pytest

from anyres.config import UserError
from anyres.recipe import load_recipe
from anyres.runs.first_weights import best_weights, from_scratch
from tests.conftest import TinyRun


def test_from_scratch_is_said_with_what_is_known(tiny_run: TinyRun) -> None:
    assert "no weights are loaded: training starts from scratch (none are known for restv2_nano" in tiny_run.said
    told = from_scratch(load_recipe("deit3_small"))
    assert "deit3_small.384" in told
    assert "--weights NAME, or auto" in told
    assert "--weights pretrained" in from_scratch(load_recipe("timm:resnet18"))


def test_auto_takes_the_most_accurate() -> None:
    assert best_weights("deit3_small") == "deit3_small.384_21k"
    assert best_weights("timm:resnet18") == "pretrained"
    with pytest.raises(UserError, match="none are known for restv2_nano that can be fetched: leave it out"):
        best_weights("restv2_nano")
