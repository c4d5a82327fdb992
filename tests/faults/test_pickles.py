"""Nothing in a file of weights runs, and no file takes far more than it is large.

Situations: a pickle that would run a program, planted wherever weights can come from; compressed archives, tensors
larger than what is stored of them, quantized ones, numbers that are not finite; loading in many threads; a named pipe.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from anyres.config import UserError
from anyres.models import create_model
from anyres.models.contract import Backbone
from anyres.models.external_torchvision import _weights
from anyres.models.fetch import _place
from anyres.models.weights import load_weights
from anyres.runs.opened import load

BURNT = "burnt"


class Evil:
    """Pickles as a call that makes a folder."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (BURNT,)


def evil_files(folder: Path) -> list[Path]:
    """The same in the forms that torch reads: an archive, the old form, a bare pickle."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in ("new.pth", "old.pth", "bare.pth")]
    torch.save({"model": Evil()}, paths[0])
    torch.save({"model": Evil()}, paths[1], _use_new_zipfile_serialization=False)
    paths[2].write_bytes(pickle.dumps({"model": Evil()}))
    return paths


def put(content: bytes, url: str) -> Path:
    """As if it had been fetched from ``url``."""
    file = _place(url).file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def test_a_pickle_runs_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, folder in (("ANYRES_CACHE", "cache"), ("TORCH_HOME", "torch"), ("HF_HOME", "hf")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("ANYRES_OFFLINE", "1")
    known = _weights("resnet18")
    model, foreign = create_model("resmlp_nano", 3), create_model("torchvision:resnet18", 1000)
    for path in evil_files(tmp_path / "given"):
        content = path.read_bytes()
        run = tmp_path / "run"
        run.mkdir(exist_ok=True)
        (run / "model.safetensors").write_bytes(content)
        (tmp_path / "x.safetensors").write_bytes(content)
        cached = put(content, "https://example.org/weights.pth")
        planted = tmp_path / "torch/hub/checkpoints" / known.url.rpartition("/")[2]
        planted.parent.mkdir(parents=True, exist_ok=True)
        planted.write_bytes(content)
        put(content, known.url)
        for source in (path, run, tmp_path / "x.safetensors", "https://example.org/weights.pth"):
            with pytest.raises(UserError, match=r"is refused: it holds \w+\.mkdir|cannot be read"):
                load_weights(model, source)
        with pytest.raises(UserError, match="is not the file wanted: its SHA-256"):
            load_weights(foreign, "pretrained")
        with pytest.raises(UserError):
            load("resmlp_nano", str(path))
        cached.unlink()
        cached.with_name(cached.name + ".json").unlink()
        assert not Path(BURNT).exists()
    torch.load(tmp_path / "given/new.pth", weights_only=False)
    assert Path(BURNT).exists(), "the pickles were harmless"


def build() -> Backbone:
    torch.manual_seed(0)
    return create_model("resmlp_nano", num_classes=3)


def test_a_file_takes_no_more_than_it_is_large(tmp_path: Path) -> None:
    model, packed = build(), tmp_path / "packed.pth"
    torch.save({"head.weight": torch.zeros(2**25)}, tmp_path / "whole.pth")  # 128 MiB
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as small:
        for name in whole.namelist():
            small.writestr(name, whole.read(name))
    assert packed.stat().st_size < 2**20
    with pytest.raises(UserError, match="is compressed"):
        load_weights(model, packed)
    torch.save({"head.weight": torch.zeros(1).expand(10**5, 10**5)}, tmp_path / "wide.pth")
    with pytest.raises(UserError, match="is more than is stored"):
        load_weights(model, tmp_path / "wide.pth")


def test_other_tensors_and_numbers_that_are_none_are_named(tmp_path: Path) -> None:
    model, path = build(), tmp_path / "x.pth"
    state = model.state_dict()
    with warnings.catch_warnings(action="ignore"):  # deprecated, and files of such tensors remain
        small = torch.quantize_per_tensor(state["head.weight"], 0.1, 0, torch.qint8)
    torch.save(state | {"head.weight": small}, path)
    with pytest.raises(UserError, match=r"'head\.weight' is a quantized tensor"):
        load_weights(model, path)
    for value in (float("nan"), float("inf"), float("-inf")):
        spoilt = {key: tensor.clone() for key, tensor in state.items()}
        spoilt["blocks.0.norm1.alpha"][0] = value
        torch.save(spoilt, path)
        with pytest.raises(UserError, match=r"'blocks\.0\.norm1\.alpha' holds numbers that are not finite"):
            load_weights(model, path)
    spoilt = {key: tensor.clone() for key, tensor in state.items()}
    spoilt["head.weight"][0] = float("nan")
    torch.save(spoilt, path)
    load_weights(model, path, replace_head=True)  # that part of it is not used


def test_weights_load_in_many_threads(tmp_path: Path) -> None:
    """What is allowed beside tensors is known to torch as a whole: one thread must not take it from another."""
    torch.save({"model": build().state_dict(), "args": argparse.Namespace(lr=0.1)}, tmp_path / "x.pth")
    models = [create_model("resmlp_nano", num_classes=3) for _ in range(8)]

    def read(i: int) -> bool:
        return load_weights(models[i % 8], tmp_path / "x.pth").new_classifier

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, range(80))) == [False] * 80


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    for path, kind in ((tmp_path / "pipe.pth", "named pipe"), (Path("/dev/zero"), "a device")):
        with pytest.raises(UserError, match=kind):
            load_weights(build(), path)
    for name in ("x" * 10_000, "a\0b", "~nosuchuser/x.pth"):
        with pytest.raises(UserError):
            load_weights(build(), name)


def test_the_whole_digest_of_the_index_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYRES_CACHE", str(tmp_path))
    monkeypatch.setenv("ANYRES_OFFLINE", "1")
    digest = hashlib.sha256(b"weights").hexdigest()
    url = f"https://example.org/w-{digest}.pth"
    put(b"other", url)
    with pytest.raises(UserError, match="is not the file wanted"):
        load_weights(build(), url)
