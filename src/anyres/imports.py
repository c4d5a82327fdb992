"""A function that runs once a module has been imported, and does not import it.

``wrapt.when_imported`` does this too; importing wrapt alone took a quarter of the command line's start.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

Hook = Callable[[ModuleType], None]


def when_imported(name: str, hook: Hook) -> None:
    """Call ``hook`` with the module ``name``: at once where it is imported already, else right after its import."""
    if (module := sys.modules.get(name)) is not None:
        hook(module)
    else:
        sys.meta_path.insert(0, _Finder(name, hook))


class _Finder(MetaPathFinder):
    """Lets the other finders find its module, and has the hook run after it was loaded."""

    def __init__(self, name: str, hook: Hook) -> None:
        self.name, self.hook = name, hook

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        """The module's spec; None for any other's."""
        if fullname != self.name or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            sys.meta_path.insert(0, self)  # it may be found another time
        else:
            spec.loader = _Loader(spec.loader, self.hook)
        return spec


class _Loader(Loader):
    """Loads by another loader, which the module then has as its own, and runs the hook."""

    def __init__(self, loader: Loader, hook: Hook) -> None:
        self.loader, self.hook = loader, hook

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.hook(module)
