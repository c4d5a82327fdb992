"""Names: the light table equals the family files, mistakes are answered with the nearest names."""

import subprocess
import sys
from importlib import import_module

import pytest
import torch

from anyres.config import UserError
from anyres.models import create_model, list_models, variant
from anyres.models.index import known_weights
from anyres.models.zoo import ALIASES, MODEL_STATS, OURS


@pytest.mark.parametrize("family", MODEL_STATS)
def test_table_equals_the_family_file(family: str) -> None:
    assert set(import_module(f"anyres.models.{family}").VARIANTS) == set(MODEL_STATS[family])


def test_listing() -> None:
    names = list_models()
    assert names == sorted(names)
    assert len(names) == len(set(names)) == sum(len(models) for models in MODEL_STATS.values())
    assert list_models("restv2_[st]*") == ["restv2_small", "restv2_tiny"]
    assert list_models("resmlp_s*") == ["resmlp_12", "resmlp_24", "resmlp_36"]
    assert list_models("patchconvnet_s60*") == ["S60", "S60_multi"]
    assert list_models("nothing*") == []
    assert set(ALIASES.values()) <= set(names)
    assert not set(ALIASES) & set(names)
    assert {row.model for row in known_weights()} - {"timm:regnety_160"} <= set(names) - OURS  # DeiT's teacher


def test_listing_loads_no_torch() -> None:
    code = "import sys, anyres.models as m; assert m.list_models(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", [*list_models(), *ALIASES])
def test_variant_and_model_agree(name: str) -> None:
    about = variant(name)
    with torch.device("meta"):
        model = create_model(name)
    assert about.name == ALIASES.get(name, name) == model.pretrained_cfg["architecture"]
    assert about.ours == name.endswith("_nano")
    assert (name in ALIASES) == (name in about.aliases)
    assert model.config == about.config
    assert model.pretrained_cfg == about.preprocessing | {"architecture": about.name}


def test_published_numbers() -> None:
    assert variant("resformer_small").weights[0].top1[224] == 82.16
    assert variant("resformer_tiny").weights[0].top1[640] == 71.65
    assert [row.top1 for row in variant("restv2_tiny").weights] == [{224: 82.3}, {384: 83.7}]
    assert {76.6, 77.8} <= {row.top1.get(224) for row in variant("resmlp_s12").weights}
    assert variant("resformer_tiny_patch16").aliases == ("resformer_tiny",)


def test_mistakes_are_one_line() -> None:
    with pytest.raises(UserError, match=r"no model 'resformer_tinny'; did you mean 'resformer_tiny'"):
        create_model("resformer_tinny")
    with pytest.raises(UserError, match="no model 'zzz'"):
        variant("zzz")
    with pytest.raises(UserError, match=r"resmlp_nano has no option 'drop_pth'; did you mean 'drop_path'"):
        create_model("resmlp_nano", drop_pth=0.1)


def test_options_reach_the_model() -> None:
    model = create_model("resformer_nano", 3, patch_size=14, in_chans=1, depth=2)
    assert model(torch.randn(1, 1, 30, 28)).shape == (1, 3)
    assert model.feature_info[0]["reduction"] == 14
    rectangle = create_model("resmlp_nano", 3, img_size=[32, 64])  # a list, as JSON and YAML have it
    assert rectangle.config.grid == (4, 8)
