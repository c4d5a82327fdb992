"""torch.hub: every name from a checkout, installed or not, and what is missing by its name."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import anyres
from anyres.config import UserError
from anyres.models.zoo import ALIASES

CHECKOUT = Path(__file__).parents[1]


def load(name: str, *args: Any, **options: Any) -> Any:
    return torch.hub.load(str(CHECKOUT), name, *args, source="local", **options)


def hubconf() -> Any:
    """The module as torch.hub imports it."""
    return torch.hub._import_module("hubconf", str(CHECKOUT / "hubconf.py"))


@pytest.mark.parametrize("name", [*anyres.list_models(), "deit3_small", "patchconvnet_s60", "vit_small"])
def test_every_name(name: str) -> None:
    with torch.device("meta"):
        model = load(name)
    assert model.pretrained_cfg["architecture"] == ALIASES.get(name, name)


def test_nothing_else_is_listed() -> None:
    """As torch.hub.list and torch.hub.help read it."""
    module = hubconf()
    listed = [name for name in dir(module) if callable(getattr(module, name)) and not name.startswith("_")]
    assert sorted(listed) == sorted([*anyres.list_models(), *ALIASES])
    assert module.S60.__name__ == "S60"
    assert "create_model('S60'" in module.S60.__doc__
    before = list(sys.path)
    hubconf()
    assert sys.path == before


def test_options(tmp_path: Path) -> None:
    model = load("restv2_nano", 7, in_chans=1, drop_path=0.1).eval()
    assert model(torch.zeros(1, 1, 50, 70)).shape == (1, 7)
    torch.save({"model": model.state_dict()}, tmp_path / "a.pth")
    again = load("restv2_nano", pretrained=tmp_path / "a.pth", num_classes=7, in_chans=1).eval()
    torch.testing.assert_close(again(torch.ones(1, 1, 50, 70)), model(torch.ones(1, 1, 50, 70)))
    other = load("restv2_nano", pretrained=tmp_path / "a.pth", num_classes=3, in_chans=1, replace_head=True)
    assert other.num_classes == 3
    assert load("resmlp_nano", img_size=(32, 64)).config.grid == (4, 8)
    with pytest.raises(UserError, match="resmlp_nano has no option 'img_sise'; did you mean 'img_size'"):
        load("resmlp_nano", img_sise=32)
    with pytest.raises(UserError, match=r"no weights of restv2_nano were published"):
        load("restv2_nano", pretrained=True)
    with pytest.raises(RuntimeError, match="Cannot find callable restv2_tinny in hubconf"):
        load("restv2_tinny")


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """In a fresh process that does not see the installed anyres."""
    hide = "import os, sys; sys.path[:] = [p for p in sys.path if not os.path.isdir(p + '/anyres')]\n"
    hide += "import importlib.util; assert importlib.util.find_spec('anyres') is None\n"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", hide + code]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)


def checkout(folder: Path) -> Path:
    """A copy, as torch.hub makes one."""
    shutil.copytree(CHECKOUT / "src", folder / "copy/src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CHECKOUT / "hubconf.py", folder / "copy/hubconf.py")
    return folder / "copy"


def test_a_checkout_that_is_not_installed(tmp_path: Path) -> None:
    place = checkout(tmp_path)
    code = f"""
import torch
model = torch.hub.load({str(place)!r}, "restv2_nano", source="local", num_classes=3).eval()
import anyres, timm
print(anyres.__file__, tuple(model(torch.zeros(1, 3, 40, 50)).shape), timm.is_model("S60"))
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(" ", 1) == [str(place / "src/anyres/__init__.py"), "(1, 3) True\n"]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    place = checkout(tmp_path)
    code = f"""
import sys, torch
for missing in (["safetensors"], ["timm", "jaxtyping"], ["yaml"]):
    sys.modules |= dict.fromkeys(missing)  # None: as if it were not there
    try:
        torch.hub.load({str(place)!r}, "restv2_nano", source="local")
    except RuntimeError as error:
        print(error)
    for name in missing:
        del sys.modules[name]
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert told == [f"Missing dependencies: {names}" for names in ("safetensors", "timm, jaxtyping", "yaml")]
