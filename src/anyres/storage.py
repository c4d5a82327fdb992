"""Where fetched things are kept, and whether anything may be fetched. A leaf."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """The folder for what is fetched once: $ANYRES_CACHE if set, else the user's cache folder of this platform."""
    import platformdirs

    return Path(os.environ.get("ANYRES_CACHE") or platformdirs.user_cache_dir("anyres")).expanduser()


def offline() -> bool:
    """Whether the user forbids the network: ANYRES_OFFLINE or HF_HUB_OFFLINE says 1, true, yes or on."""
    said = (os.environ.get(name, "").lower() for name in ("ANYRES_OFFLINE", "HF_HUB_OFFLINE"))
    return any(word in ("1", "true", "yes", "on") for word in said)
