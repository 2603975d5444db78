"""What the head looks at: maps of evidence over the patch."""

from __future__ import annotations

import numpy as np
import torch
from skimage.transform import resize

from histoclip_lib.cmm import CMM
from histoclip_lib.feature_reader import FeatureReader
from histoclip_lib.training import EVALUATION_BATCH
from histoclip_lib.views import undo_view


def attention_maps(head: CMM, reader: FeatureReader, rows: np.ndarray) -> np.ndarray:
    """Return where each class finds its evidence: attention weighted by its gradient, averaged over heads and views.

    An attention weight says what was read, not whether it spoke for or against the class. Weight times gradient of the
    class's logit, negative values cut off, keeps what spoke for it (Chefer et al. 2021, eq. 5).

    Parameters
    ----------
    head : CMM
        Trained on patch tokens.
    reader : FeatureReader
        Tokens of the B patches in V views; each view's map is turned back before the average.
    rows : ndarray of int, shape (n,)
        Which patches.

    Returns
    -------
    ndarray of shape (n, N, g, g), float32
        Sums to 1 over the g x g grid, uniform where nothing speaks for the class; row by row from the top left.
    """
    head.to(reader.device).eval()
    maps = []
    for start in range(0, len(rows), EVALUATION_BATCH):
        batch = rows[start : start + EVALUATION_BATCH]
        turned = [undo_view(_evidence(head, reader.take(batch, view)), view) for view in range(reader.n_views)]
        maps.append(torch.stack(turned).mean(dim=0).cpu().numpy())
    return np.concatenate(maps)


def _evidence(head: CMM, tokens: torch.Tensor) -> torch.Tensor:
    """Return the gradient-weighted attention of one view, shape (n, N, g, g), each map summing to 1."""
    logits, attention = head(tokens)
    # A class's logit depends on its own attention alone, so one backward pass serves all classes.
    (gradient,) = torch.autograd.grad(logits.sum(), attention)
    evidence = (attention * gradient).detach().clamp_min(0).mean(dim=1).float() + torch.finfo(torch.float32).tiny
    side = round(evidence.shape[-1] ** 0.5)
    return (evidence / evidence.sum(dim=-1, keepdim=True)).unflatten(-1, (side, side))


def square_crop(image: np.ndarray) -> np.ndarray:
    """Return the centre square of an image or mask (H, W, ...): the part that the encoder sees."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def enlarge(attention: np.ndarray, size: int) -> np.ndarray:
    """Return a map (g, g) at size x size pixels, bilinear between the centres of the cells."""
    return resize(attention, (size, size), order=1, mode="edge", anti_aliasing=False)
