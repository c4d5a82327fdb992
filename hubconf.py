"""torch.hub's door: every name of ``anyres.list_models()``, official or tidy, is an entry point.

torch.hub.load("path/to/anyres", "restv2_tiny", source="local")
torch.hub.load("path/to/anyres", "S60", source="local", pretrained=True, num_classes=1000)
"""

import sys
from collections.abc import Callable
from pathlib import Path

dependencies = ["torch", "torchvision", "timm", "jaxtyping", "safetensors", "huggingface_hub", "yaml"]

sys.path.insert(0, str(Path(__file__).parent / "src"))  # a checkout need not be installed

import anyres as _anyres  # noqa: E402
from anyres.models.zoo import ALIASES as _ALIASES  # noqa: E402


def _entry_point(_name: str) -> Callable[..., object]:
    def entry_point(*args: object, **options: object) -> object:
        return _anyres.create_model(_name, *args, **options)

    entry_point.__name__ = _name
    entry_point.__doc__ = f"anyres.create_model({_name!r}, num_classes=None, *, pretrained=False, **options)"
    return entry_point


globals().update({name: _entry_point(name) for name in (*_anyres.list_models(), *_ALIASES)})
