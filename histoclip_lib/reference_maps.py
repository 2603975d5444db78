"""What attention has to beat: maps that know nothing of the patch, or nothing of the labels."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from histoclip_lib.attention import attention_maps
from histoclip_lib.cmm import CMM
from histoclip_lib.feature_reader import FeatureReader
from histoclip_lib.training import EVALUATION_BATCH
from histoclip_lib.views import undo_view

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
