"""Where HistoCLIP keeps what it can make again: features, exported trunks and the synthetic data set."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import platformdirs

DAY = 24 * 3600.0  # seconds


def cache_dir() -> Path:
    """Return the folder named by the environment variable HISTOCLIP_CACHE, else the user's cache folder."""
    return Path(os.environ.get("HISTOCLIP_CACHE") or platformdirs.user_cache_dir("histoclip"))


@dataclass(frozen=True)
class CachedFeatures:
    """The features of one data set from one encoder with one number of views.

    Attributes
    ----------
    backbone, pretrained, dataset : str
        As in the parameter file.
    views, patches : int
        Their numbers.
    size : int
        Bytes.
    idle : float
        Days since they were last used.
    markers : list of Path
        The `.json` files of the shards; a shard without one does not count.
    """

    backbone: str
    pretrained: str
    dataset: str
    views: int
    patches: int
    size: int
    idle: float
    markers: list[Path]

    def remove(self) -> None:
        """Delete them, each marker before its arrays."""
        for marker in self.markers:
            marker.unlink(missing_ok=True)
            for array in marker.parent.glob(f"{marker.stem}.*.npy"):
                array.unlink(missing_ok=True)


def cached_features(cache: Path) -> list[CachedFeatures]:
    """Return what the feature cache holds, the largest first."""
    shards: dict[tuple, list[tuple[Path, int, int]]] = {}
    for marker in sorted((cache / "features").glob("*/*.json")):
        try:
            about = json.loads(marker.read_text(encoding="utf-8"))
            patches, views, *_ = about["pooled"]
            key = (marker.parent, about["backbone"], about["pretrained"], about["dataset"], views)
            shards.setdefault(key, []).append((marker, patches, about["bytes"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # being written or removed by another process
    now = time.time()
    entries = [
        CachedFeatures(
            *(backbone, pretrained, dataset, views),
            patches=sum(patches for _, patches, _ in found),
            size=sum(size for _, _, size in found),
            idle=max(0.0, now - max(marker.stat().st_mtime for marker, _, _ in found)) / DAY,
            markers=[marker for marker, _, _ in found],
        )
        for (_, backbone, pretrained, dataset, views), found in shards.items()
    ]
    return sorted(entries, key=lambda entry: -entry.size)
