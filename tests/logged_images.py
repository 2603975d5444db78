"""Loaded by the workers of local_cluster.py: decoded images are written down, and workers stop where a test says so."""

import os
import time
from pathlib import Path

from histoclip_lib.data.images import ImageFiles

SIZE, MIDDLE = 256, 40  # patches of a shard, and the one at which a worker is held
LOG, HOLD = (Path(os.environ[name]) for name in ("IMAGE_LOG", "IMAGE_HOLD"))
read = getattr(ImageFiles, "unlogged", ImageFiles.image)  # Dask loads this file more than once


def image(self, index):
    with LOG.open("a") as log:
        log.write(f"{os.getpid()} {self.image_paths[index].name}\n")
    while index % SIZE == MIDDLE and HOLD.exists():
        time.sleep(0.01)
    return read(self, index)


ImageFiles.image, ImageFiles.unlogged = image, read
