"""A small trained run, and what `anyres export` makes of it: once for all tests of files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jaxtyping
import pytest

import anyres
from anyres.deploy.export.subject import Subject
from anyres.runs.export import subject_of
from tests.command import anyres as command
from tests.pictures import make_folder

OPTIONS = {"dim": 32, "depth": 1, "heads": 1, "patch_size": 8, "img_size": 48}
TINY = (*(f"model.{key}={value}" for key, value in OPTIONS.items()), "train.precision=fp32")


class Files(NamedTuple):
    run: Path
    data: Path
    onnx: Path
    subject: Subject
    said: str


@contextmanager
def unchecked() -> Iterator[None]:
    """The types that are checked under test refuse a size that is free."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="module")
def unchecked_types() -> Iterator[None]:
    with unchecked():
        yield


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    root = tmp_path_factory.mktemp("export")
    data, run, place = make_folder(root / "shapes", per_class=4), root / "run", root / "out" / "model.onnx"
    values = (*TINY, "views.sizes=[48,32]", "data.batch_size=4", "train.epochs=1", "evaluate.sizes=[32,48]")
    trained = command("train", "deit_tiny_patch16_224", "--data", data, "--out", run, *values)
    assert trained.code == 0, trained.err
    with unchecked():
        answer = command("export", run, "--out", place, "--sizes", "40x32")
    assert answer.code == 0, answer.err
    return Files(run, data, place, subject_of(anyres.load(run)), answer.out)
