"""The field of view: what patches show and what an encoder was trained on, in micrometres, and how to match them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from histoclip_lib.clip.registry import EncoderEntry
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.html import as_typed

TOLERANCE = 1.25  # factor between two resolutions up to which they count as the same


def shorter_side(size: int | Sequence[int]) -> int:
    """Return the side of the image that an encoder takes, in pixels; the shorter one where they differ."""
    return size if isinstance(size, int) else min(size)


def nearest_mpp(mpp: float, trained: tuple[float, ...]) -> float:
    """Return that one of an encoder's resolutions which is nearest to another, by their ratio; all in µm per pixel."""
    return min(trained, key=lambda own: abs(np.log(own / mpp)))


def matched_side(side: int, mpp: float, trained: tuple[float, ...], image_size: int) -> int:
    """Return the side in pixels to which a patch is resized so that the encoder sees tissue as in its training.

    Parameters
    ----------
    side : int
        Of the patch, in pixels.
    mpp : float
        Of the patch, in µm per pixel.
    trained : tuple of float
        `EncoderEntry.mpp`; the nearest to what the encoder would see counts.
    image_size : int
        Side of the image that the encoder takes.

    Returns
    -------
    int
        At most `image_size`: a patch that shows more than the encoder's field stays whole, since a part of it may not
        carry its labels.
    """
    target = nearest_mpp(mpp * side / image_size, trained)
    return max(1, min(image_size, round(side * mpp / target)))


def match_field(image: np.ndarray, mpp: float, trained: tuple[float, ...], image_size: int) -> Image.Image:
    """Return the centre square of a patch at an encoder's resolution, mirrored at its edges up to the encoder's size.

    Parameters
    ----------
    image : ndarray of shape (H, W, 3), uint8
        A patch.
    mpp, trained, image_size
        As for `matched_side`.

    Returns
    -------
    PIL.Image.Image
        image_size x image_size pixels. The patch itself fills the centre.
    """
    side = min(image.shape[:2])
    top, left = ((length - side) // 2 for length in image.shape[:2])
    inner = matched_side(side, mpp, trained, image_size)
    square = Image.fromarray(image[top : top + side, left : left + side])
    resized = np.asarray(square.resize((inner, inner), Image.Resampling.BICUBIC))
    before = (image_size - inner) // 2
    around = (before, image_size - inner - before)
    return Image.fromarray(np.pad(resized, (around, around, (0, 0)), mode="symmetric"))


def require_matchable(backbone: str, trained: tuple[float, ...], patch_mpp: np.ndarray | None) -> None:
    """Raise an error where the resolution of patches or encoder is not known, so that they cannot be matched.

    Raises
    ------
    HistoCLIPError
        Naming which of the two is not known.
    """
    if not trained:
        raise HistoCLIPError(
            f"match_mpp: the resolution that {backbone} was trained at is not known. Set match_mpp: false."
        )
    if patch_mpp is None or np.isnan(patch_mpp).any():
        raise HistoCLIPError(
            "match_mpp: the micrometres per pixel of the patches are not known. Set `mpp`, or give labels.csv a column "
            "mpp."
        )


def field_note(
    entry: EncoderEntry, backbone: str, image_size: int, side: int, patch_mpp: np.ndarray | None, match: bool
) -> str:
    """Say in Markdown how what the encoder sees compares with what it was trained on.

    Parameters
    ----------
    entry, backbone
        The encoder, and the name that it goes by.
    image_size : int
        Side of the image that it takes, in pixels.
    side : int
        Of the patches, in pixels.
    patch_mpp : ndarray of shape (B,), or None
        Of the patches, in µm per pixel; NaN and None: not known.
    match : bool
        Whether patches are resampled to the encoder's resolution.
    """
    name = as_typed(backbone)
    if not entry.mpp:
        trained = f"{name} was trained at an unknown or mixed resolution"
    else:
        listed = " or ".join(f"{mpp:g}" for mpp in entry.mpp)
        patch_px = entry.patch_px or image_size
        trained = f"{name} was trained on patches of {patch_px} pixels at {listed} µm per pixel"
    known = patch_mpp is not None and not np.isnan(patch_mpp).all()
    if not known:
        return f"**Field of view.** {trained}; that of these patches is not known (`mpp` sets it)."
    mpp = float(np.nanmedian(patch_mpp))
    seen = mpp * side / image_size
    here = (
        f"These patches have {side} pixels at {mpp:.3g} µm, a field of {side * mpp:.0f} µm; at {image_size} pixels "
        f"that is {seen:.3g} µm per pixel"
    )
    if not entry.mpp:
        return f"**Field of view.** {trained}. {here}."
    target = nearest_mpp(seen, entry.mpp)
    ratio = max(seen / target, target / seen)
    if ratio <= TOLERANCE:
        return f"**Field of view.** {trained}. {here}, which is about the same."
    how = "smaller" if seen > target else "larger"
    apart = f"{here}: tissue appears {how} than in its training, by a factor of {ratio:.1f}"
    inner = matched_side(side, mpp, entry.mpp, image_size)
    if match and inner < image_size:
        return (
            f"**Field of view.** {trained}. {apart}. With `match_mpp` patches are resampled to {inner} pixels and "
            f"mirrored at their edges to {image_size}."
        )
    if inner < image_size:
        return f"**Field of view.** {trained}. {apart}. **`match_mpp: true` resamples them.**"
    return f"**Field of view.** {trained}. {apart}. Only a part of a patch would match, and it may lack a label."
