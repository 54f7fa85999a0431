"""Where things that can be made again are kept."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """FUSION_TINTING_CACHE, or `fusion_tinting` in the user's cache folder (XDG_CACHE_HOME)."""
    if named := os.environ.get("FUSION_TINTING_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fusion_tinting"
