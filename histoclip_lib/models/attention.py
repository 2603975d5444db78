"""Where a head finds its evidence, and the maps that it has to beat."""

from __future__ import annotations

import numpy as np
import torch
from skimage.transform import resize
from torch.nn import functional

from histoclip_lib.features.reader import FeatureReader, undo_view
from histoclip_lib.models.cmm import CMM
from histoclip_lib.models.training import EVALUATION_BATCH


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


TRAINED = "trained"
MAP_LABELS = {
    TRAINED: "Trained head",
    "untrained": "Head before training",
    "similarity": "Text similarity",
    "centre": "Centre prior",
    "uniform": "Uniform",
}
CENTRE_SIGMA = 0.25  # of the side of the patch


def maps_to_compare(head: CMM, reader: FeatureReader, rows: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Return the attention of a trained head, and beside it the maps that it has to beat.

    Parameters
    ----------
    head : CMM
        Trained on patch tokens.
    reader : FeatureReader
        Tokens of the B patches in V views.
    rows : ndarray of int, shape (n,)
        Which patches.
    seed : int
        With which the training began; the untrained head has the same initial weights.

    Returns
    -------
    dict of str to ndarray of shape (n, N, g, g), float32
        In the order of MAP_LABELS, each map summing to 1. `trained`: `attention.attention_maps`. `untrained`: the same
        of the head as it was before its training. `similarity`: `similarity_maps`. `centre`: a Gaussian around the
        centre, its deviation CENTRE_SIGMA of the side. `uniform`: the same everywhere.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        untrained = CMM(head.class_embeddings.cpu(), **head.options)
    untrained.load_state_dict({name: value.cpu() for name, value in head.named_buffers()}, strict=False)
    trained = attention_maps(head, reader, rows)
    side = trained.shape[-1]
    offsets = (np.arange(side) + 0.5) / side - 0.5
    along = np.exp(-0.5 * (offsets / CENTRE_SIGMA) ** 2)
    centre = np.outer(along, along) / along.sum() ** 2
    return {
        TRAINED: trained,
        "untrained": attention_maps(untrained, reader, rows),
        "similarity": similarity_maps(head.class_embeddings, reader, rows),
        "centre": np.broadcast_to(centre.astype(np.float32), trained.shape),
        "uniform": np.full_like(trained, 1 / side**2),
    }


@torch.inference_mode()
def similarity_maps(class_embeddings: torch.Tensor, reader: FeatureReader, rows: np.ndarray) -> np.ndarray:
    """Return the cosine of each patch token with each class embedding, without any training.

    Parameters
    ----------
    class_embeddings : tensor of shape (N, d)
        The class matrix of eq. (2), unit rows.
    reader, rows
        As for `maps_to_compare`.

    Returns
    -------
    ndarray of shape (n, N, g, g), float32
        The mean over the views, each turned back; then each map less its minimum, divided by its sum. Uniform where
        all tokens are equally similar.
    """
    classes = class_embeddings.to(reader.device, torch.float32)
    maps = []
    for start in range(0, len(rows), EVALUATION_BATCH):
        batch = rows[start : start + EVALUATION_BATCH]
        turned = []
        for view in range(reader.n_views):
            cosines = functional.normalize(reader.take(batch, view).float(), dim=-1) @ classes.T
            side = round(cosines.shape[1] ** 0.5)
            turned.append(undo_view(cosines.transpose(1, 2).unflatten(2, (side, side)), view))
        cosines = torch.stack(turned).mean(dim=0)
        above = cosines - cosines.amin(dim=(2, 3), keepdim=True) + torch.finfo(torch.float32).tiny
        maps.append((above / above.sum(dim=(2, 3), keepdim=True)).cpu().numpy())
    return np.concatenate(maps)
