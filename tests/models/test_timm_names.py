"""Our models under timm's roof: names, options, weights and features; and a start that imports nothing."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

import anyres  # noqa: F401  registers
from anyres.config import UserError
from anyres.models import create_model, list_models, variant
from anyres.models import create_model as own_create_model
from anyres.models.index import known_weights
from anyres.models.zoo import ALIASES
from tests.models.test_layouts import SMALLEST, assert_golden, official, prefixed
from tests.models.zoo import SMALL, image, stirred

OURS = [name for name in (*list_models(), *ALIASES) if timm.model_entrypoint(name).__module__.startswith("anyres.")]


def run(code: str) -> str:
    environment = os.environ | {"PYTHONWARNINGS": "error::UserWarning"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


ASK = """
import torch
model = timm.create_model("restv2_nano", features_only=True, out_indices=(0, 1, 2, 3)).eval()
with torch.no_grad():
    maps = model(torch.zeros(1, 3, 97, 163))
assert [tuple(m.shape[2:]) for m in maps] == [(25, 41), (13, 21), (7, 11), (4, 6)], maps
assert model.feature_info.reduction() == [4, 8, 16, 32]
"""


def test_anyres_may_come_first() -> None:
    run("import anyres, timm" + ASK)


def test_timm_may_come_first_and_its_names_are_left_alone() -> None:
    code = """
import timm
names = timm.list_models(include_tags=True) + timm.list_models()
def told():
    return {n: (timm.model_entrypoint(n.partition(".")[0]), timm.get_pretrained_cfg(n)) for n in names}
before, pretrained, modules = told(), timm.list_pretrained(), set(timm.list_modules())
import anyres
assert told() == before
assert set(pretrained) <= set(timm.list_pretrained())
assert set(timm.list_modules()) - modules == {"timm_names"}
assert not set(timm.list_models(module="timm_names")) & set(names)
import anyres.models.timm_names as ours
count = len(timm.list_models())
ours.register()
assert len(timm.list_models()) == count
assert len(names) > 2000
"""
    run(code + ASK)


@torch.no_grad()
def test_four_maps_at_any_size() -> None:
    model = timm.create_model("restv2_tiny", features_only=True, out_indices=(0, 1, 2, 3)).eval()
    shapes = [(1, 96, 25, 41), (1, 192, 13, 21), (1, 384, 7, 11), (1, 768, 4, 6)]
    assert [m.shape for m in model(image(97, 163, 1))] == shapes
    assert model.feature_info.channels() == [96, 192, 384, 768]
    assert model.feature_info.reduction() == [4, 8, 16, 32]


def test_every_name_is_there() -> None:
    ours = [name for name in (*list_models(), *ALIASES) if timm.is_model(name)]
    assert ours == [*list_models(), *ALIASES]
    theirs = set(ours) - set(OURS)
    assert {"deit_tiny_patch16_224", "deit_base_distilled_patch16_384"} <= theirs
    assert all(name.startswith(("deit_", "cait_")) for name in theirs)  # the same models
    assert timm.list_models("restv2*") == sorted(list_models("restv2_*"))


@pytest.mark.parametrize("name", OURS)
def test_timm_builds_every_name(name: str) -> None:
    with torch.device("meta"):
        model, own = timm.create_model(name), create_model(name)
    assert {k: t.shape for k, t in model.state_dict().items()} == {k: t.shape for k, t in own.state_dict().items()}
    config = resolve_model_data_config(model)
    rows = known_weights(variant(name).name)
    assert model.pretrained_cfg["architecture"] == name
    assert model.pretrained_cfg["num_classes"] == model.num_classes == own.num_classes
    assert config["input_size"] == own.pretrained_cfg["input_size"]
    assert model.pretrained_cfg["first_conv"] == own.pretrained_cfg["first_conv"]
    assert model.pretrained_cfg["classifier"] == own.pretrained_cfg["classifier"]
    if not rows:
        return
    for row in rows:
        cfg = timm.get_pretrained_cfg(f"{name}.{row.name.partition('.')[2]}")
        assert (cfg.url, cfg.origin_url, cfg.license) == (row.url, row.published, row.licence)
        assert (cfg.input_size, cfg.crop_pct) == ((3, row.img_size, row.img_size), row.crop_pct)
        assert (cfg.interpolation, cfg.crop_mode, cfg.mean, cfg.std) == (
            row.interpolation,
            row.crop_mode,
            row.mean,
            row.std,
        )
    first = next((row for row in rows if row.url), rows[0])
    assert timm.get_pretrained_cfg(name).tag == first.name.partition(".")[2]
    assert config["crop_pct"] == first.crop_pct
    listed = {f"{name}.{row.name.partition('.')[2]}" for row in rows if row.url}
    assert set(timm.list_pretrained(f"{name}.*")) == listed


def small(name: str = "restv2_nano", **options: Any) -> nn.Module:
    return timm.create_model(name, **options)


def test_options_pass_through() -> None:
    model = small(in_chans=1, num_classes=7, drop_path_rate=0.2, global_pool="avg", drop_rate=0.0)
    assert model(torch.zeros(1, 1, 40, 50)).shape == (1, 7)
    assert (model.config.drop_path, model.config.in_chans, model.num_classes) == (0.2, 1, 7)
    assert small(num_classes=0)(image()).shape == (2, model.num_features)
    resmlp = small("resmlp_nano", img_size=(32, 64), num_classes=3)
    assert resmlp(image(32, 64)).shape == (2, 3)
    assert resmlp.config.grid == (4, 8)
    assert small("deit3_small.384").config.img_size == (384, 384)  # the tag's grid, as anyres.create_model
    assert small("deit3_small.384", img_size=224).config.img_size == 224
    assert small("S60.512_21k").pretrained_cfg["input_size"] == (3, 512, 512)
    assert small("dino_vits16", num_classes=5, global_pool="token")(image(32, 32)).shape == (2, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop_pth": 0.1}, "restv2_nano has no option 'drop_pth'; did you mean 'drop_path'"),
        ({"img_size": 224}, "restv2_nano has no option 'img_size'"),
        ({"drop_rate": 0.1}, "restv2_nano has no dropout"),
        ({"global_pool": "max"}, "one pooling, global_pool='avg'"),
        ({"global_pool": ""}, "one pooling"),
        ({"features_only": True, "out_indices": (0, 9)}, "index 9 is out of range"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        small(**options)(image())
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_intermediates() -> None:
    model = small("restv2_nano").eval()
    final, maps = model.forward_intermediates(image(97, 163))
    assert [m.shape[2:] for m in maps] == [(25, 41), (13, 21), (7, 11), (4, 6)]
    torch.testing.assert_close(final, model.forward_features(image(97, 163)))
    wrapped = small("S60", features_only=True, out_indices=(-3, -1)).eval()
    assert [m.shape for m in wrapped(image(40, 50))] == [(2, 384, 3, 4)] * 2
    assert [m.shape[2:] for m in small("vit_tiny", features_only=True).eval()(image(33, 50))] == [(3, 4)] * 4


# --- weights through timm ------------------------------------------------------------------------------------------


def saved(state: dict[str, Tensor], folder: Path, wrap: str = "model", prefix: str = "") -> str:
    torch.save({wrap: prefixed(state, prefix), "epoch": 3}, folder / "weights.pth")
    return str(folder / "weights.pth")


@pytest.mark.parametrize("family", SMALL)
@torch.no_grad()
def test_files_load(family: str, tmp_path: Path) -> None:
    """In a container, with a prefix; with the head, into other classes, for features, and after building."""
    name, options = SMALL[family].name, SMALL[family].options
    if name not in OURS:
        name, options = f"deit3_{'tiny' if family == 'hmlp' else 'small'}", options | {"heads": 2}
    state = stirred(create_model(name, **options)).state_dict()
    file = saved(state, tmp_path, "model", "module.")
    load = partial(timm.create_model, name, pretrained=True, pretrained_cfg_overlay={"file": file}, **options)
    model = load().eval()
    torch.testing.assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)
    names = model.pretrained_cfg["classifier"]
    names = (names,) if isinstance(names, str) else names
    other = load(num_classes=7).eval()
    assert other(image()).shape == (2, 7)
    for key in state:
        if key.split(".")[0] not in names:
            torch.testing.assert_close(other.state_dict()[key], state[key], rtol=0, atol=0)
    expected = model.forward_intermediates(image(50, 70), intermediates_only=True)
    torch.testing.assert_close(load(features_only=True).eval()(image(50, 70)), expected[:4])
    again = timm.create_model(name, checkpoint_path=file, **options)
    torch.testing.assert_close(dict(again.state_dict()), dict(state), rtol=0, atol=0)


def test_the_logits_are_the_official_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def through_timm(name: str, pretrained: Path, **options: Any) -> nn.Module:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(pretrained)}, **options)

    monkeypatch.setattr("tests.models.test_layouts.create_model", through_timm)
    for family, prefix in (("cait", "module."), ("patchconvnet", ""), ("rest_v2", ""), ("dino", "module.backbone.")):
        assert_golden(family, SMALLEST[family], Path(saved(official(SMALLEST[family]), tmp_path, prefix=prefix)))


def test_grids_and_channels_of_a_file(tmp_path: Path) -> None:
    source = stirred(own_create_model("vit_tiny", img_size=96))
    file = {"file": saved(source.state_dict(), tmp_path)}
    model = timm.create_model("vit_tiny", pretrained=True, pretrained_cfg_overlay=file, img_size=64).eval()
    torch.testing.assert_close(model(image(64, 64)), source(image(64, 64)), rtol=1e-4, atol=1e-5)
    grey = timm.create_model("vit_tiny", pretrained=True, pretrained_cfg_overlay=file, in_chans=1)
    torch.testing.assert_close(grey.patch_embed.proj.weight, source.patch_embed.proj.weight.sum(1, keepdim=True))


def test_files_that_do_not_fit_are_never_taken_in_silence(tmp_path: Path) -> None:
    file = saved(own_create_model("resmlp_nano").state_dict(), tmp_path)
    for options in ({}, {"num_classes": 7}, {"features_only": True}):
        with pytest.raises(UserError, match="the weights do not fit restv2_nano: 143 missing") as caught:
            timm.create_model("restv2_nano", pretrained=True, pretrained_cfg_overlay={"file": file}, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match="No pretrained weights exist for restv2_tiny"):
        timm.create_model("restv2_tiny", pretrained=True)


# --- segmentation_models_pytorch -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tu-restv2_tiny", "tu-rest_lite"])
@pytest.mark.parametrize("kind", [smp.Unet, smp.FPN])
@torch.no_grad()
def test_segmentation_models(name: str, kind: type[nn.Module]) -> None:
    model = kind(name, encoder_weights=None, classes=2).eval()
    assert model(image(64, 96)).shape == (2, 2, 64, 96)
    grey = kind(name, encoder_weights=None, in_channels=1).eval()
    assert grey(torch.zeros(1, 1, 64, 64)).shape == (1, 1, 64, 64)


@torch.no_grad()
def test_segmentation_models_with_one_stride() -> None:
    """Models of one stride are for its DPT; where a pyramid is needed, it says so, as of timm's own ViTs."""
    for name in ("tu-S60", "tu-vit_tiny_patch16_224"):
        with pytest.raises(ValueError, match="Unsupported model downsampling pattern"):
            smp.Unet(name, encoder_weights=None)
    model = smp.DPT("tu-resformer_tiny_patch16", encoder_weights=None, decoder_readout="ignore").eval()
    assert model(image(224, 224, 1)).shape == (1, 1, 224, 224)


# --- the start -----------------------------------------------------------------------------------------------------


def test_importing_anyres_imports_neither_torch_nor_timm() -> None:
    code = "import sys, anyres; print([m for m in ('torch', 'timm', 'numpy', 'yaml', 'rich') if m in sys.modules])"
    assert run(code).strip() == "[]"
    code = "import sys, time; t = time.process_time(); import anyres; print(time.process_time() - t)"
    assert min(float(run(code)) for _ in range(3)) < 0.3
