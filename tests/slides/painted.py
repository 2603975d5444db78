"""Pictures of tissue on glass, slides made of them, and a model that is a colour meter."""

from dataclasses import dataclass, field

import numpy as np
import tifffile
from PIL import Image

GLASS, PINK, PURPLE = (243, 242, 244), (214, 130, 178), (120, 70, 150)


def picture(width=900, height=700):
    """Glass with a pink and a purple rectangle, and noise by which a shift of one pixel shows."""
    pixels = np.full((height, width, 3), GLASS, np.int16)
    pixels[height // 7 : -height // 7, width // 8 : width // 2] = PINK
    pixels[height // 7 : -height // 7, width // 2 : -width // 4] = PURPLE
    return (pixels + np.random.default_rng(0).integers(-9, 10, pixels.shape)).clip(0, 255).astype(np.uint8)


def halved(pixels):
    """Return every second pixel of the mean of 2 x 2."""
    height, width = (side // 2 * 2 for side in pixels.shape[:2])
    return pixels[:height, :width].reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3)).astype(np.uint8)


def write_slide(path, levels, mpp=0.5, **options):
    """Write a pyramidal TIFF in tiles, the smaller levels in SubIFDs."""
    options = {"tile": (128, 128), "photometric": "rgb", "compression": "deflate", **options}
    if mpp:
        options |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as writer:
        writer.write(levels[0], subifds=len(levels) - 1, **options)
        for level in levels[1:]:
            writer.write(level, subfiletype=1, **options)
    return path


@dataclass
class Said:
    probabilities: np.ndarray
    ood: np.ndarray
    attention: np.ndarray | None


@dataclass
class ColourMeter:
    """Probabilities are the mean green and blue, the attention is a grid of the green; it remembers its batches."""

    classes: list = field(default_factory=lambda: ["dark", "blue"])
    thresholds: np.ndarray = field(default_factory=lambda: np.array([0.5, 0.65]))
    patch_px: int = 64
    mpp: float = 1.0
    pixels: int = 56
    ood_threshold: float = 0.9
    identity: str = "colour meter"
    attentive: bool = True
    seen: list = field(default_factory=list)
    views: list = field(default_factory=list)

    def predict_tensor(self, images, views=1):
        pixels = images.numpy().astype(np.float32) / 255
        self.seen.append(len(pixels))
        self.views.append(views)
        means = pixels.mean(axis=(2, 3))
        grid = pixels[:, 1].reshape(-1, 7, 8, 7, 8).mean(axis=(2, 4)) if self.attentive else None
        attention = None if grid is None else np.stack([grid, 1 - grid], axis=1).astype(np.float16)
        return Said(np.stack([1 - means[:, 1], means[:, 2]], axis=1), means[:, 0], attention)


def save_image(path, pixels):
    Image.fromarray(pixels).save(path)
    return path
