"""Where HistoCLIP keeps what it can make again: features and the synthetic data set."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """Return the folder named by the environment variable HISTOCLIP_CACHE, else the user's cache folder."""
    return Path(os.environ.get("HISTOCLIP_CACHE") or platformdirs.user_cache_dir("histoclip"))
