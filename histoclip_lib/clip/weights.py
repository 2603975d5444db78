"""The files of an encoder: in a local folder, in the cache of the Hugging Face hub, or fetched from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from histoclip_lib.common.errors import HistoCLIPError, bullet_list

if TYPE_CHECKING:
    from histoclip_lib.clip.registry import EncoderEntry

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def cached_file(repository: str, name: str) -> Path | None:
    """Return a file of a hub's repository in the local cache, or None; no network is asked."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(repository, name)
    except ValueError:  # no name of a repository
        return None
    return Path(found) if isinstance(found, str) else None


def files_at_hand(entry: EncoderEntry, pretrained: str = "") -> dict[str, Path]:
    """Return those files of an encoder that lie on this machine, by their entry in `entry.files`.

    Parameters
    ----------
    entry : EncoderEntry
        With `hub` and `files`.
    pretrained : str
        A folder with the files; or a file with the weights, the others being looked for beside it and then in the
        cache of the hub; or empty, for the cache of the hub.
    """
    given = Path(pretrained) if pretrained else None
    folder = given if given is None or given.is_dir() else given.parent
    found = {}
    for names in entry.files:
        places = []
        for name in names.split("|"):
            if given is not None and given.is_file() and name.endswith(WEIGHTS):
                places.append(given)
            if folder is not None:
                places.append(folder / name)
            if given is None or given.is_file():
                places.append(cached_file(entry.hub, name) if entry.hub else None)
        place = next((place for place in places if place is not None and place.is_file()), None)
        if place is not None:
            found[names] = place
    return found


def encoder_files(entry: EncoderEntry, pretrained: str = "") -> list[Path]:
    """Return the files of an encoder in the order of `entry.files`, fetching from the hub what is not here.

    Parameters
    ----------
    entry, pretrained
        As for `files_at_hand`.

    Raises
    ------
    HistoCLIPError
        If a file can neither be found nor fetched; the message names the files and what can be done.
    """
    found = files_at_hand(entry, pretrained)
    missing, reason = [names for names in entry.files if names not in found], ""
    if missing and not (pretrained and not Path(pretrained).is_file()):
        found, reason = _fetched(entry.hub, missing, found)
        missing = [names for names in entry.files if names not in found]
    if missing:
        where = f"{pretrained} (`pretrained`)" if pretrained else f"the cache of the hub for {entry.hub}"
        gated = f" Its files are given to accounts that have accepted the terms at https://huggingface.co/{entry.hub}"
        remedy = f"Set `pretrained` to a folder with these files, or run once with network access.{reason}"
        raise HistoCLIPError(
            f"backbone {entry.name}: the files cannot be had. Not found in {where}:\n"
            f"{bullet_list([names.replace('|', ' or ') for names in missing])}\n{remedy}"
            + (f"{gated}: accept them, then `hf auth login`." if entry.gated else "")
        )
    return [found[names] for names in entry.files]


def _fetched(hub: str, missing: list[str], found: dict[str, Path]) -> tuple[dict[str, Path], str]:
    """Return the files with those that the hub gave, and why others were not given."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    found, reason = dict(found), ""
    for names in missing if hub else ():
        for name in names.split("|"):
            try:
                found[names] = Path(hf_hub_download(hub, name))
                break
            except EntryNotFoundError:
                continue
            except Exception as error:  # the hub's client raises many kinds; each means that there is no file
                reason = f" Reason: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
                break
        if reason:
            break
    return found, reason
