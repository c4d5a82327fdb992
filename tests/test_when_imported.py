"""A hook runs once, after its module was imported, and leaves the module as it would be without it."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from anyres.imports import when_imported


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with a package and a module in it; both are forgotten afterwards."""
    (tmp_path / "outer_x").mkdir()
    (tmp_path / "outer_x/__init__.py").write_text("")
    (tmp_path / "outer_x/inner.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    finders = list(sys.meta_path)
    yield tmp_path
    sys.meta_path[:] = finders
    for name in ("outer_x", "outer_x.inner", "late_x"):
        sys.modules.pop(name, None)


def test_the_hook_sees_a_loaded_module_once(packages: Path) -> None:
    seen: list[int] = []
    when_imported("outer_x.inner", lambda module: seen.append(module.value))
    when_imported("outer_x.inner", lambda module: seen.append(10 * module.value))
    assert not seen
    assert "outer_x.inner" not in sys.modules
    module = importlib.import_module("outer_x.inner")
    assert sorted(seen) == [1, 10]
    importlib.import_module("outer_x.inner")
    importlib.reload(module)
    assert len(seen) == 2
    assert module.__spec__ is not None
    assert module.__spec__.loader is module.__loader__
    assert type(module.__loader__).__name__ == "SourceFileLoader"


def test_an_imported_module_is_seen_at_once() -> None:
    seen: list[ModuleType] = []
    when_imported("pytest", seen.append)
    assert seen == [pytest]


def test_a_module_that_comes_later_is_still_seen(packages: Path) -> None:
    seen: list[ModuleType] = []
    when_imported("late_x", seen.append)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("late_x")
    (packages / "late_x.py").write_text("")
    importlib.invalidate_caches()
    assert [importlib.import_module("late_x")] == seen
