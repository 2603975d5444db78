"""The cache folder: features, exported image towers, painted data, nucleus counts; all of it can be made again."""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from histoclip_lib.common.files import sweep, temporary_beside

DAY = 24 * 3600.0  # seconds
TOWERS, PAINTED, COUNTS, UNFINISHED = "exported image tower", "painted data set", "nucleus counts", "unfinished shards"


def cache_dir() -> Path:
    """Return the folder named by the environment variable HISTOCLIP_CACHE, else the user's cache folder."""
    return Path(os.environ.get("HISTOCLIP_CACHE") or platformdirs.user_cache_dir("histoclip"))


@dataclass(frozen=True)
class CachedFeatures:
    """The features of one data set from one encoder with one number of views."""

    backbone: str
    pretrained: str
    dataset: str
    views: int
    patches: int
    size: int  # bytes
    idle: float  # days since they were last used
    markers: list[Path]  # the `.json` files of the shards; a shard without one does not count

    def remove(self) -> None:
        """Delete them, each marker before its arrays."""
        for marker in self.markers:
            marker.unlink(missing_ok=True)
            for file in [*marker.parent.glob(f"{marker.stem}.*.npy"), marker.with_suffix(".lock")]:
                file.unlink(missing_ok=True)
        for folder in {marker.parent for marker in self.markers}:
            with suppress(OSError):  # there are others
                folder.rmdir()


@dataclass(frozen=True)
class CachedItem:
    """Anything in the cache that is not features."""

    kind: str  # TOWERS, PAINTED, COUNTS, or UNFINISHED: arrays that never got a marker and have not changed for a day
    name: str  # of the file or folder
    size: int  # bytes
    idle: float  # days since it was last used
    paths: list[Path]  # its files, or its folder

    def remove(self) -> None:
        """Delete it; a folder is renamed first, so that nobody finds half of it."""
        for path in self.paths:
            with suppress(FileNotFoundError):
                if path.is_dir():
                    shutil.rmtree(path.rename(temporary_beside(path, ".partial")))
                else:
                    path.unlink()


def cached_features(cache: Path) -> list[CachedFeatures]:
    """Return what the feature cache holds, the largest first."""
    shards: dict[tuple, list[tuple[Path, int, int, float]]] = {}
    for marker in sorted((cache / "features").glob("*/*.json")):
        try:
            about = json.loads(marker.read_text(encoding="utf-8"))
            patches, views, *_ = about["pooled"]
            key = (marker.parent, about["backbone"], about["pretrained"], about["dataset"], views)
            shards.setdefault(key, []).append((marker, int(patches), int(about["bytes"]), marker.stat().st_mtime))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # being written or removed by another process
    entries = [
        CachedFeatures(
            *(backbone, pretrained, dataset, views),
            patches=sum(patches for _, patches, _, _ in found),
            size=sum(size for _, _, size, _ in found),
            idle=_days_since(max(used for *_, used in found)),
            markers=[marker for marker, *_ in found],
        )
        for (_, backbone, pretrained, dataset, views), found in shards.items()
    ]
    return sorted(entries, key=lambda entry: -entry.size)


def cached_items(cache: Path) -> list[CachedItem]:
    """Return what else the cache holds, the largest first."""
    found = [
        *((TOWERS, [path]) for path in cache.glob("onnx/[!.]*.onnx")),
        *((PAINTED, [path]) for path in cache.glob("synthetic/[!.]*") if path.is_dir()),
        *((COUNTS, [path]) for path in cache.glob("pannuke/[!.]*.csv")),
        *((UNFINISHED, _without_marker(folder)) for folder in cache.glob("features/*")),
    ]
    items = []
    for kind, paths in found:
        files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
        with suppress(OSError):  # removed by another process
            size = sum(file.stat().st_size for file in files if file.is_file())
            idle = _days_since(max(path.stat().st_mtime for path in paths)) if paths else 0.0
            if paths and (kind != UNFINISHED or idle >= 1):
                items.append(CachedItem(kind, paths[0].name, size, idle, paths))
    return sorted(items, key=lambda item: -item.size)


def sweep_cache(cache: Path) -> list[Path]:
    """Remove what killed processes left anywhere in the cache, as `files.sweep` does; return what was removed."""
    folders = [cache, *(cache / name for name in ("onnx", "synthetic", "pannuke")), *cache.glob("features/*")]
    return [path for folder in folders for path in sweep(folder)]


def _without_marker(folder: Path) -> list[Path]:
    """Return the arrays and locks of unfinished shards."""
    files = [*folder.glob("[!.]*.npy"), *folder.glob("[!.]*.lock")]
    return [file for file in files if not (folder / f"{file.name.split('.')[0]}.json").exists()]


def _days_since(moment: float) -> float:
    """Return days since a time; 0 for one that this machine's clock has not reached."""
    return max(0.0, time.time() - moment) / DAY
