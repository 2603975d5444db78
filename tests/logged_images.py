"""Loaded by the workers of tests/test_cluster.py: every image that is decoded is written down, and takes its time."""

import os
import time

from histoclip_lib.data.images import ImageFiles

read = getattr(ImageFiles, "unlogged", ImageFiles.image)  # Dask loads this file more than once


def image(self, index):
    with open(os.environ["IMAGE_LOG"], "a") as log:
        log.write(f"{os.getpid()} {self.image_paths[index].name}\n")
    time.sleep(float(os.environ["IMAGE_SECONDS"]))
    return read(self, index)


ImageFiles.image, ImageFiles.unlogged = image, read
