from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
from jaxtyping import install_import_hook

install_import_hook("anyres", "beartype.beartype")
# As many threads as PyTorch takes by itself, but said: a run does not measure whether fewer are faster.
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))


LONGEST = ("test_demo.py", "test_toolchain.py", "test_elastic.py", "test_timing.py", "test_deploy_verbs.py")
"""Files with tests of half a minute and more: begun first, so that no worker waits for another at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True, scope="session")
def _short_timings() -> Iterator[None]:
    """A report's timings, of which no test asks how exact they are, take a tenth of their half a second."""
    with mock.patch("anyres.runs.opened.TIMED_S", 0.05):
        yield


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """What a test sets, as ``anyres --offline`` does, is unset after it."""
    with mock.patch.dict(os.environ):
        yield


class TinyRun(NamedTuple):
    """A finished run of two epochs, the folder of images it was trained on, and its command."""

    folder: Path
    data: Path
    command: tuple[str, ...]
    said: str


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    from tests.command import anyres
    from tests.pictures import make_folder

    root = tmp_path_factory.mktemp("tiny")
    data, out = make_folder(root / "shapes", per_class=14), root / "runs" / "first"
    values = ("views.sizes=[48, 32]", "data.batch_size=8", "train.epochs=2", "evaluate.sizes=[32, 48]")
    command = ("train", "restv2_nano", "--data", str(data), "--out", str(out), *values)
    answer = anyres(*command)
    assert answer.code == 0, answer.err
    return TinyRun(out, data, command, answer.err)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; closed after each module, since its event loop stays in this thread until then."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = Path(os.environ.get("ANYRES_CHROMIUM", "/usr/bin/chromium"))
    if not chromium.exists():
        pytest.skip(f"no browser at {chromium}")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    with playwright.sync_playwright() as tool:
        opened = tool.chromium.launch(executable_path=str(chromium), args=flags)
        yield opened
        opened.close()
