"""The files of an encoder: in a local folder, in the cache of the Hugging Face hub, or fetched from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from histoclip_lib.common.errors import HistoCLIPError, bullet_list

if TYPE_CHECKING:
    from histoclip_lib.clip.registry import EncoderEntry

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
TRANSFORMERS_FILES = (  # of a model as transformers saves it, for `EncoderEntry.files`
    "config.json",
    "model.safetensors|pytorch_model.bin",
    "preprocessor_config.json|processor_config.json",
    "tokenizer.json|vocab.json|spiece.model",
)


def cached_file(repository: str, name: str) -> Path | None:
    """Return a file of a hub's repository in the local cache, or None; no network is asked."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(repository, name)
    except ValueError:  # no name of a repository
        return None
    return Path(found) if isinstance(found, str) else None


def fetched_file(repository: str, names: str) -> tuple[Path | None, str]:
    """Return a file of a hub's repository, from the cache or fetched, or None and why it cannot be had.

    Parameters
    ----------
    repository : str
        `OWNER/NAME`.
    names : str
        A name, or several joined by `|`: the first that the repository has.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    reason = ""
    for name in names.split("|"):
        if (cached := cached_file(repository, name)) is not None:
            return cached, ""
    for name in names.split("|"):
        try:
            return Path(hf_hub_download(repository, name)), ""
        except LocalEntryNotFoundError:
            reason = "the hub cannot be reached"
        except EntryNotFoundError:
            reason = reason or f"{repository} has no {name}"
        except Exception as error:  # whatever the hub client raises, the file is not available
            reason = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')[:200]}"
    return None, reason


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
    is_file = given is not None and given.is_file()
    folder = given.parent if is_file else given
    found = {}
    for names in entry.files:
        places = [given] if is_file and names.split("|")[0].endswith(WEIGHTS) else []
        for name in names.split("|"):
            if folder is not None:
                places.append(folder / name)
            if folder is None or is_file:
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
        As for `files_at_hand`; nothing is fetched into a folder that `pretrained` names.

    Raises
    ------
    HistoCLIPError
        If a file can neither be found nor fetched; the message names the files and what can be done.
    """
    found, reasons = files_at_hand(entry, pretrained), []
    if entry.hub and (not pretrained or Path(pretrained).is_file()):
        for names in entry.files:
            if names not in found:
                file, reason = fetched_file(entry.hub, names)
                reasons += [reason] if file is None else []
                found |= {} if file is None else {names: file}
    if missing := [names.replace("|", " or ") for names in entry.files if names not in found]:
        looked_in = pretrained or (f"the cache of the hub for {entry.hub}" if entry.hub else "no place")
        reason = f" {reasons[0]}." if reasons else ""
        raise HistoCLIPError(
            f"backbone {entry.name}: {len(missing)} of its files cannot be had.{reason} Looked in {looked_in} "
            f"for:\n{bullet_list(missing)}\n{remedy(entry)}"
        )
    return [found[names] for names in entry.files]


def remedy(entry: EncoderEntry) -> str:
    """Say how the files of an encoder can be had."""
    gate = ""
    if not entry.hub:
        return "Set `pretrained` to the file, or to its folder."
    if entry.gated:
        gate = f"Accept the terms on the page of {entry.hub} on the hub and log in with `hf auth login`. "
    return f"{gate}Run once with network access, or set `pretrained` to a folder with the files."
