"""Batches of cached features on the device where a head is trained or applied, and the eight views of a patch."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from histoclip_lib.features.store import Shards


def view_of(images: torch.Tensor, view: int) -> torch.Tensor:
    """Return one of the eight flips and rotations of square images (..., S, S); view 0 is the image itself."""
    turned = torch.rot90(images, view % 4, dims=(-2, -1)) if view % 4 else images
    return turned.flip(-1) if view >= 4 else turned


def undo_view(images: torch.Tensor, view: int) -> torch.Tensor:
    """Turn what was computed on a view, (..., S, S), back to where it lies in the image."""
    upright = images.flip(-1) if view >= 4 else images
    return torch.rot90(upright, -(view % 4), dims=(-2, -1))


READ_AHEAD = 2  # batches that are read from the disk while another is used


class FeatureReader:
    """Gives batches of features on a device: resident there when they fit, else read from the memory map.

    Parameters
    ----------
    features : Shards of shape (B, V, d) or (B, V, L, d)
        Pooled features or tokens.
    device : torch.device
        Where the batches go.
    resident_limit : int
        Bytes up to which the features are held on the device, in the precision in which they are cached. By default
        the part `1 / share` of the free memory.
    share : int
        More than 3 where several processes read at once.
    """

    def __init__(
        self, features: Shards, device: torch.device, resident_limit: int | None = None, share: int = 3
    ) -> None:
        self.features, self.device = features, device
        self.n_views = features.shape[1]
        limit = _free_memory(device) // share if resident_limit is None else resident_limit
        self.resident = None
        if features.nbytes <= limit:
            self.resident = torch.from_numpy(np.concatenate(features.pieces)).to(device)

    def take(self, rows: np.ndarray, views: np.ndarray | int = 0) -> torch.Tensor:
        """Return features (n, L, d) of some patches in one view each; pooled features come with L = 1."""
        if self.resident is None:
            batch = torch.from_numpy(self.features.take(rows, views))
            batch = (batch.pin_memory() if self.device.type == "cuda" else batch).to(self.device, non_blocking=True)
        else:
            views = torch.from_numpy(np.broadcast_to(views, rows.shape).copy()).to(self.device)
            batch = self.resident[torch.from_numpy(rows).to(self.device), views]
        return batch if batch.ndim == 3 else batch.unsqueeze(1)

    def batches(self, wanted: list[tuple[np.ndarray, np.ndarray]]) -> Iterator[torch.Tensor]:
        """Yield `take` of each pair of rows and views; what is not resident is read ahead while the last is used."""
        if self.resident is not None:
            yield from (self.take(*each) for each in wanted)
            return
        with ThreadPoolExecutor(1) as pool:
            ahead = deque(pool.submit(self.take, *each) for each in wanted[:READ_AHEAD])
            for each in wanted[READ_AHEAD:]:
                yield ahead.popleft().result()
                ahead.append(pool.submit(self.take, *each))
            for batch in ahead:
                yield batch.result()


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    for pages in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"):  # macOS tells all pages, not those that are free
        if pages in getattr(os, "sysconf_names", {}):
            return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
    return 2**32  # Windows tells none
