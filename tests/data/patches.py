"""Small data sets and images, written for tests."""

import io

import numpy as np
from PIL import Image

from histoclip_lib.data.base import PatchDataset
from histoclip_lib.data.images import ImageFiles

TWO_CLASSES = np.array([0, 1, 2] + [255] * 253, dtype=np.uint8)  # mask values of a data set with two classes


class Arrays:
    """Patches in memory."""

    def __init__(self, images, masks=None):
        self.images, self.masks = images, masks

    def image(self, index):
        return self.images[index]

    def mask(self, index):
        return self.masks[index]

    def digest(self, index):
        return str(index)


def blank(height=40, width=40):
    return np.zeros((height, width, 3), dtype=np.uint8)


def make(labels, files=None, source=None, **more):
    labels = np.array(labels)
    files = files or [f"{index}.png" for index in range(len(labels))]
    return PatchDataset("made", ["tumor", "stroma"][: labels.shape[1]], files, labels, source, **more)


def from_files(paths, masks=()):
    return make(
        [[1, 0]] * len(paths),
        [path.name for path in paths],
        ImageFiles(list(paths), list(masks), TWO_CLASSES),
        has_masks=bool(masks),
    )


def encoded(form, size=(48, 48)):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()
