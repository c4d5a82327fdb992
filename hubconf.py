"""torch.hub's door: every name of ``anyres.list_models()``, official or tidy, is an entry point.

torch.hub.load("path/to/anyres", "restv2_tiny", source="local")
torch.hub.load("path/to/anyres", "S60", source="local", pretrained=True, num_classes=1000)
"""

import sys
from importlib.util import find_spec as _find_spec
from pathlib import Path as _Path

dependencies = [
    *("torch", "torchvision", "timm", "jaxtyping", "safetensors", "yaml"),
    *("huggingface_hub", "httpx2", "filelock", "platformdirs", "rich"),  # to fetch weights
]


def _entry_point(name: str) -> object:
    def entry_point(*args: object, **options: object) -> object:
        import anyres

        return anyres.create_model(name, *args, **options)

    entry_point.__name__ = name
    entry_point.__doc__ = f"anyres.create_model({name!r}, num_classes=None, *, pretrained=False, **options)"
    return entry_point


if all(map(_find_spec, dependencies)):  # else torch.hub says which is missing
    _source = str(_Path(__file__).parent / "src")
    if _source not in sys.path:
        sys.path.insert(0, _source)  # a checkout need not be installed
    from anyres.models.registry import model_names as _model_names

    globals().update({name: _entry_point(name) for name in _model_names()})
