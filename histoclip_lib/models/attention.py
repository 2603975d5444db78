"""Attention maps of a head, and the reference maps that it must beat."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # figures import this module for its labels, and need no torch
    import torch

    from histoclip_lib.features.reader import FeatureReader
    from histoclip_lib.models.cmm import CMM

TRAINED = "trained"
MAP_LABELS = {
    TRAINED: "Trained head",
    "untrained": "Head before training",
    "similarity": "Text similarity",
    "centre": "Centre prior",
    "uniform": "Uniform",
}
CENTRE_SIGMA = 0.25  # of the side of the patch
BATCH = 512  # patches at once
TINY = np.finfo(np.float32).tiny  # where there is no evidence, every cell has this much: a uniform map


def attention_maps(head: CMM, reader: FeatureReader, index: np.ndarray) -> np.ndarray:
    """Return the evidence for each class: attention weighted by its gradient, averaged over heads and views.

    An attention weight says what was read, not whether it raised or lowered the logit. Weight times gradient of the
    class's logit, negative values set to 0, keeps what raised it (Chefer et al. 2021, eq. 5).

    Parameters
    ----------
    head : CMM
        Trained on patch tokens.
    reader : FeatureReader
        Tokens of the B patches in V views; each view's map is turned back before the average.
    index : ndarray of int, shape (n,)
        Which patches.

    Returns
    -------
    ndarray of shape (n, N, g, g), float32
        Sums to 1 over the g x g grid, uniform where there is no evidence for the class; row by row from the top left.

    Examples
    --------
    >>> from histoclip_lib import CMM, attention_maps, encode_dataset, load_clip, load_dataset
    >>> patches, clip = load_dataset("synthetic", n_patches=8), load_clip(device="cpu")
    >>> features = encode_dataset(clip, patches, progress=False)
    >>> head = CMM(clip.encode_text(patches.classes).numpy(), heads=4)
    >>> from histoclip_lib.features import FeatureReader
    >>> attention_maps(head, FeatureReader(features.tokens, clip.device), np.arange(3)).shape
    (3, 4, 7, 7)
    """
    head.to(reader.device).eval()
    return _upright_mean(lambda tokens: evidence(head, tokens)[0], reader, index)


def _upright_mean(
    maps_of: Callable[[torch.Tensor], torch.Tensor], reader: FeatureReader, index: np.ndarray
) -> np.ndarray:
    """Return the mean over the views of maps (n, N, g, g), each view's turned back; `maps_of` gives (n, N, L)."""
    import torch

    from histoclip_lib.features.reader import undo_view

    means = []
    for start in range(0, len(index), BATCH):
        batch, upright = index[start : start + BATCH], []
        for view in range(reader.n_views):
            flat = maps_of(reader.take(batch, view))
            side = round(flat.shape[-1] ** 0.5)
            upright.append(undo_view(flat.unflatten(-1, (side, side)), view))
        means.append(torch.stack(upright).mean(dim=0).cpu().numpy())
    return np.concatenate(means)


def evidence(head: CMM, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return for tokens (n, L, d) the gradient-weighted attention (n, N, L), summing to 1, and the logits (n, N)."""
    import torch

    logits, attention = head(tokens)  # (n, N), (n, heads, N, L)
    # A class's logit depends on its own attention alone, so one backward pass serves all classes.
    (gradient,) = torch.autograd.grad(logits.sum(), attention)
    found = (attention * gradient).detach().clamp_min(0).mean(dim=1).float() + TINY
    return found / found.sum(dim=-1, keepdim=True), logits.detach()


def square_crop(image: np.ndarray) -> np.ndarray:
    """Return the centre square of an image or mask (H, W, ...): the part that the encoder sees."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def central_part(maps: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    """Return the central part of maps, where a patch fills only that of the encoder's image.

    Parameters
    ----------
    maps : ndarray of shape (n, N, g, g)
        Attention over the whole image.
    fraction : ndarray of shape (n,)
        Of the image's side, from 0 to 1.

    Returns
    -------
    ndarray of shape (n, N, g, g)
        Bilinear between the centres of the cells, each map summing to 1; the same maps where all fractions are 1.
    """
    from scipy.ndimage import map_coordinates

    if (fraction == 1).all():
        return maps
    side = maps.shape[-1]
    result = np.empty_like(maps)
    for own, found, part in zip(maps, result, fraction, strict=True):
        along = side / 2 + ((np.arange(side) + 0.5) / side - 0.5) * side * part - 0.5
        places = np.stack(np.meshgrid(along, along, indexing="ij"))
        for k, single in enumerate(own):
            found[k] = map_coordinates(single, places, order=1, mode="nearest")
    return result / result.sum(axis=(2, 3), keepdims=True)


def enlarge(attention: np.ndarray, size: int) -> np.ndarray:
    """Return a map (g, g) at size x size pixels, bilinear between the centres of the cells."""
    from skimage.transform import resize

    return resize(attention, (size, size), order=1, mode="edge", anti_aliasing=False)


def maps_to_compare(head: CMM, reader: FeatureReader, index: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Return the attention of a trained head, and the reference maps that it must beat.

    Parameters
    ----------
    head : CMM
        Trained on patch tokens.
    reader : FeatureReader
        Tokens of the B patches in V views.
    index : ndarray of int, shape (n,)
        Which patches.
    seed : int
        With which the training began; the untrained head has the same initial weights.

    Returns
    -------
    dict of str to ndarray of shape (n, N, g, g), float32
        In the order of MAP_LABELS, each map summing to 1. `trained`: `attention.attention_maps`. `untrained`: the same
        of the head as it was before its training. `similarity`: `similarity_maps`. `centre`: a Gaussian around the
        centre, its deviation CENTRE_SIGMA of the side. `uniform`: the same everywhere. There is no `similarity` where
        the classes have no embedding in the space of the tokens.
    """
    import torch

    from histoclip_lib.models.cmm import CMM, FIXED, LEARNED
    from histoclip_lib.models.training import random_queries

    kind = head.options.get("queries", FIXED)
    embeddings = head.class_embeddings.detach().cpu()
    if kind == LEARNED:  # where its training began
        embeddings = random_queries(*embeddings.shape, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        untrained = CMM(embeddings, **head.options)
    untrained.load_state_dict({name: value.cpu() for name, value in head.named_buffers()}, strict=False)
    trained = attention_maps(head, reader, index)
    side = trained.shape[-1]
    offsets = (np.arange(side) + 0.5) / side - 0.5
    along = np.exp(-0.5 * (offsets / CENTRE_SIGMA) ** 2)
    centre = np.outer(along, along) / along.sum() ** 2
    return {
        TRAINED: trained,
        "untrained": attention_maps(untrained, reader, index),
        **({"similarity": similarity_maps(head.class_embeddings, reader, index)} if kind == FIXED else {}),
        "centre": np.broadcast_to(centre.astype(np.float32), trained.shape),
        "uniform": np.full_like(trained, 1 / side**2),
    }


def similarity_maps(class_embeddings: torch.Tensor, reader: FeatureReader, index: np.ndarray) -> np.ndarray:
    """Return the cosine of each patch token with each class embedding, without any training.

    Parameters
    ----------
    class_embeddings : tensor of shape (N, d)
        The class matrix of eq. (2), unit vectors.
    reader, index
        As for `maps_to_compare`.

    Returns
    -------
    ndarray of shape (n, N, g, g), float32
        The mean over the views, each turned back; then each map less its minimum, divided by its sum. Uniform where
        all tokens are equally similar.
    """
    from torch.nn import functional

    classes = class_embeddings.to(reader.device).float()

    def cosines_of(tokens: torch.Tensor) -> torch.Tensor:
        return (functional.normalize(tokens.float(), dim=-1) @ classes.T).transpose(1, 2)

    cosines = _upright_mean(cosines_of, reader, index)
    above = cosines - cosines.min(axis=(2, 3), keepdims=True) + TINY
    return above / above.sum(axis=(2, 3), keepdims=True)
