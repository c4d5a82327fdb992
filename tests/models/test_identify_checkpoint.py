"""Which model a file is of: every model's own file, files that are not whole, other people's models, and quickly."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import Tensor

from anyres.config import UserError
from anyres.models import create_model, identify_checkpoint, list_models
from anyres.models.weights import load_weights
from tests.models.test_layouts import SMALLEST, TIMM, official
from tests.models.zoo import build

State = dict[str, Tensor]


def named(state: State) -> list[str]:
    return list(identify_checkpoint.identify_checkpoint(state))


def on_meta(name: str, classes: int | None = None, **options: object) -> State:
    with torch.device("meta"):
        return create_model(name, classes, **options).state_dict()


@pytest.mark.parametrize("name", list_models())
def test_every_model_is_recognised(name: str) -> None:
    state = identify_checkpoint._on_meta(name).state_dict()
    found = identify_checkpoint.identify_checkpoint(state)
    assert next(iter(found)) == name
    assert found[name] == 1


@pytest.mark.parametrize("family", SMALLEST)
def test_official_files_are_recognised(family: str) -> None:
    if family != "hmlp":  # an option, not a model
        assert named(official(SMALLEST[family]))[0] == {"vit_tiny_p16": "vit_tiny"}.get(
            SMALLEST[family], SMALLEST[family]
        )


@pytest.mark.parametrize("theirs", TIMM)
def test_timms_files_are_recognised(theirs: str) -> None:
    with torch.device("meta"):
        state = timm.create_model(theirs, num_classes=0 if theirs.startswith("vit") else 1000).state_dict()
    assert named(state)[0] == TIMM[theirs]


@pytest.mark.parametrize(
    "name", ["rest_lite", "restv2_tiny", "cait_S24", "S60_multi", "deit_tiny_distilled_patch16_224"]
)
def test_files_that_are_not_whole_or_of_other_classes(name: str) -> None:
    whole = on_meta(name)
    assert named(on_meta(name, 10))[0] == name
    assert named(on_meta(name, 21841) if "multi" not in name else whole)[0] == name
    assert named(on_meta(name, 0))[0] == name.removesuffix("_multi")  # without heads the same
    assert named(whole | {"extra": torch.ones(1)})[0] == name
    assert named(dict(list(whole.items())[:-5]))[0] == name
    assert named({"head.weight": whole.get("head.weight", torch.ones(2, 2))}) == []
    assert named({}) == []
    assert named({key: torch.ones(3) for key in whole}) == []


def test_other_grids() -> None:
    assert named(on_meta("deit_base", img_size=384))[0] == "deit_base_patch16_384"
    assert named(on_meta("cait_S24", img_size=1024))[0].startswith("cait_S24")
    assert named(on_meta("resmlp_12", img_size=512))[0] == "resmlp_12"


def said(model: str, state: State, folder: Path) -> str:
    """What comes after the list of faults, if anything."""
    torch.save({key: torch.zeros(tensor.shape) for key, tensor in state.items()}, folder / "a.pth")
    with pytest.raises(UserError) as caught:
        load_weights(create_model(model), folder / "a.pth")
    return str(caught.value).partition("; the file looks like ")[2]


def test_messages_are_true(tmp_path: Path) -> None:
    with torch.device("meta"):
        resnet, vit = torchvision.models.resnet50().state_dict(), timm.create_model("vit_tiny_patch16_224").state_dict()
    assert said("restv2_nano", resnet, tmp_path) == "no model known here"
    plain = "deit_tiny_patch16_224 or vit_tiny"
    assert said("restv2_nano", vit, tmp_path) == plain
    assert said("deit3_tiny", vit, tmp_path) == plain
    assert said("deit_tiny_distilled", vit, tmp_path) == plain
    assert said("deit_tiny", on_meta("deit_tiny_distilled"), tmp_path) == "deit_tiny_distilled_patch16_224"
    assert said("rest_lite", on_meta("restv2_nano", 3), tmp_path) == "restv2_nano"
    # Its own file, but for one thing: nothing to say.
    assert said("deit_tiny", on_meta("deit_tiny") | {"extra": torch.ones(1)}, tmp_path) == ""
    assert said("deit_tiny", on_meta("vit_tiny"), tmp_path) == ""
    assert said("vit_tiny", on_meta("deit_tiny"), tmp_path) == ""
    assert said("S60", dict(list(on_meta("S60").items())[:500]), tmp_path) == ""
    small = build("dino").state_dict()
    assert said("vit_tiny", small, tmp_path) == ""


@pytest.mark.parametrize("name", ["deit_base", "cait_S24_224", "S60", "deit_small_patch16_18x2_LS", "rest_large"])
def test_few_models_are_built_to_compare(name: str) -> None:
    """The message then comes within 1.5 s."""
    state = on_meta(name)
    identify_checkpoint._on_meta.cache_clear()
    identify_checkpoint.identify_checkpoint(state)
    assert identify_checkpoint._on_meta.cache_info().misses <= 8
