"""What a run would take, known without loading its encoder: passes, bytes, and whether its weights are at hand."""

from __future__ import annotations

from pathlib import Path

from histoclip_lib.clip.registry import encoder_entry
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.files import free_bytes

BYTES_POOLED, BYTES_TOKEN = 4, 2  # of a number: float32 and float16


def forecast(values: dict[str, object], n_patches: int, cache: Path, folder: Path) -> list[str]:
    """Say in lines of text what a run would take: passes of the encoder, space, weights.

    Parameters
    ----------
    values : dict of str to object
        As `params.read_params` returns them.
    n_patches : int
        Of the data set.
    cache, folder : Path
        Where features and pages go.

    Raises
    ------
    HistoCLIPError
        As `check_encoder` raises it.
    """
    backbone, pretrained, views = str(values["backbone"]), str(values["pretrained"]), int(values["views"])
    shape, entry = check_encoder(values), encoder_entry(backbone, pretrained)
    weights = entry.weights_at_hand(backbone, pretrained)
    lines = [f"weights   {weights or 'not on this machine: the run fetches them, which takes network access'}"]
    n_views = f"{n_patches} patches in {views} view{'s' if views > 1 else ''}"
    lines.append(f"encoder   {n_patches * views} passes at most ({n_views}); what is cached is not encoded again")
    if shape is None:
        lines.append(f"cache     {cache}, {_size(free_bytes(cache))} free; the need is known once the model is loaded")
    else:
        need, free = feature_bytes(n_patches, views, shape), free_bytes(cache)
        lines.append(
            f"cache     {_size(need)} at most ({shape[0]} tokens of width {shape[1]}); {cache}, {_size(free)} free"
        )
        if need >= free:
            lines.append("          TOO LITTLE if nothing is cached yet: lower views, or set HISTOCLIP_CACHE")
    return [*lines, f"reports   {folder}, {_size(free_bytes(folder))} free"]


def check_encoder(values: dict[str, object]) -> tuple[int, int] | None:
    """Check a run's encoder, and that the head fits it, without loading it; return L and d as far as they are known.

    Raises
    ------
    HistoCLIPError
        If there is no such encoder or no such weights, or `heads` does not divide the width.
    """
    backbone, pretrained, heads = str(values["backbone"]), str(values["pretrained"]), int(values["heads"])
    entry = encoder_entry(backbone, pretrained)
    entry.check(backbone, pretrained)
    shape = entry.token_shape(backbone, pretrained)
    if shape is not None and shape[1] % heads:
        fitting = ", ".join(str(n) for n in range(1, 17) if shape[1] % n == 0)
        raise HistoCLIPError(f"heads: {heads} does not divide {shape[1]}, the width of {backbone}. Use {fitting}.")
    return shape


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"


def feature_bytes(patches: int, views: int, shape: tuple[int, int]) -> int:
    """Return the bytes that the features of B patches in V views take in the cache.

    Parameters
    ----------
    patches, views : int
        B and V.
    shape : tuple of int
        The number of tokens L and their width d, as `token_shape` returns them.
    """
    length, width = shape
    return patches * views * width * (BYTES_POOLED + length * BYTES_TOKEN)
