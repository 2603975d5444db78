"""What a run would take, known without loading its encoder: passes, bytes, and whether its weights are at hand."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from histoclip_lib.clip.registry import LOCAL, EncoderEntry, encoder_entry
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.files import free_bytes

BYTES_POOLED, BYTES_TOKEN = 4, 2  # of a number: float32 and float16


@dataclass(frozen=True)
class Availability:
    """Whether an encoder can be had on this machine.

    Attributes
    ----------
    place : str or None
        Where its files lie; None where they do not.
    missing : tuple of str
        The files that are not here, as far as they are known by name.
    reason : str
        Why it cannot be had; empty where it can, be it that a run fetches it.
    """

    place: str | None = None
    missing: tuple[str, ...] = ()
    reason: str = ""


def find_encoder(backbone: str, pretrained: str = "") -> Availability:
    """Say whether an encoder can be had here, without loading it.

    Where files are missing and the hub may be asked, it is asked whether it would give them; HF_HUB_OFFLINE forbids it.

    Parameters
    ----------
    backbone, pretrained : str
        As `load_clip` takes them.
    """
    entry = encoder_entry(backbone, pretrained)
    try:
        entry.check(backbone, pretrained)
    except HistoCLIPError as error:
        return Availability(reason=str(error))
    if place := entry.weights_at_hand(backbone, pretrained):
        return Availability(place)
    from histoclip_lib.clip.weights import files_at_hand, remedy

    missing: tuple[str, ...] = ()
    if entry.files:
        found = files_at_hand(entry, pretrained)
        missing = tuple(names.replace("|", " or ") for names in entry.files if names not in found)
    if pretrained and (entry.files or os.path.sep in pretrained):
        return Availability(None, missing, f"{pretrained} (`pretrained`) lacks them.")
    if backbone.startswith(LOCAL):
        return Availability(None, missing, f"{backbone.removeprefix(LOCAL)} holds no weights.")
    if entry.files and not entry.hub:
        return Availability(None, missing, f"No hub has them. {remedy(entry)}")
    return Availability(None, missing, _why_not(entry, entry.hub or _repository(backbone, pretrained)))


def _repository(backbone: str, pretrained: str) -> str:
    """Return the repository of the hub that holds the weights of one of open_clip's models; empty where none does."""
    if backbone.startswith("hf-hub:"):
        return backbone.removeprefix("hf-hub:")
    import open_clip

    return open_clip.get_pretrained_cfg(backbone, pretrained).get("hf_hub", "").rpartition("/")[0]


def _why_not(entry: EncoderEntry, repository: str) -> str:
    """Ask the hub whether it gives the files of a repository; return why not, an empty text where it does."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    gate = f"hf-hub:{repository} gives its files to accounts that have accepted its terms"
    if not repository:
        return "The address of its weights is not asked before a run; it takes network access."
    if constants.HF_HUB_OFFLINE:
        return f"HF_HUB_OFFLINE is set, so nothing is fetched.{f' {gate}.' if entry.gated else ''}"
    try:
        huggingface_hub.auth_check(repository)
    except GatedRepoError:
        return f"{gate}, and this one has not. Accept them, then run `hf auth login`."
    except RepositoryNotFoundError:
        return f"hf-hub:{repository} does not exist, or is private."
    except Exception as error:  # no network, a proxy, a certificate: all mean that the hub cannot be asked
        return f"The hub cannot be reached ({type(error).__name__}).{f' {gate}.' if entry.gated else ''}"
    return ""


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
    if shape is not None and values.get("tokens") == "none":
        shape = (1, shape[1])
    elif shape is not None and values.get("token_grid"):
        shape = (min(shape[0], int(values["token_grid"]) ** 2), shape[1])
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
    if backbone.startswith(LOCAL) and not Path(backbone.removeprefix(LOCAL)).is_dir():
        raise HistoCLIPError(f"backbone: the folder {backbone.removeprefix(LOCAL)!r} does not exist.")
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
