"""Encoding on many processes or machines: one task for each shard, and the shards in a shared folder its only state."""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from histoclip_lib.clip.encoder import CLIP, load_clip
from histoclip_lib.clip.registry import LOCAL
from histoclip_lib.common.cache import cache_dir
from histoclip_lib.common.errors import HistoCLIPError, bullet_list
from histoclip_lib.common.executors import n_cores, require_software, run_tasks, software
from histoclip_lib.common.files import require_space, resolve, sweep, write_text
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.data.registry import dataset_parameters, load_dataset, load_dataset_from
from histoclip_lib.features.encode import Resized, encode_and_write, features_folder, make_writable, shard_key
from histoclip_lib.features.store import ARRAYS, Damaged, indices_of, locked, n_shards, open_shard

IDENTITY = ".cache-id"  # a file by which a worker knows that its cache folder is the client's
DECODERS = 8  # threads that decode beside a GPU
# Parameters that load_clip takes, in its order.
ENCODER_NAMES = ("backbone", "pretrained", "device", "precision", "compiled", "tokens", "token_grid", "match_mpp")


@dataclass(frozen=True)
class EncodingJob:
    """What a worker must know to encode any shard: parameters of the run, and where the features go.

    Attributes
    ----------
    data : tuple of (str, object)
        Arguments of `load_dataset`; paths are absolute.
    encoder : tuple
        Arguments of `load_clip`.
    views, encode_batch_size : int
        As `encode_dataset` takes them.
    listing : str
        Digest of the names of the patches: every machine must see the same data.
    cache, identity : str
        The cache folder, absolute, and the text by which it is known.
    software : tuple of (str, str)
        The versions that a worker must have.
    """

    data: tuple[tuple[str, object], ...]
    encoder: tuple
    views: int
    encode_batch_size: int
    listing: str
    cache: str
    identity: str
    software: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class EncodedShard:
    """What a task says of its shard.

    Attributes
    ----------
    number, path
        Which shard, and its file name without a suffix.
    encoded : int
        How many patches were encoded now; 0 where the shard was there.
    damage : str
        What was wrong with the one that was there; empty if nothing was.
    """

    number: int
    path: str
    encoded: int
    damage: str


def encode_shards_on(
    executor: Executor,
    values: dict[str, object],
    report: Callable[[int, int, EncodedShard], None] = lambda done, total, shard: None,
) -> list[EncodedShard]:
    """Encode what the cache lacks of a run's features, one task for each shard.

    Afterwards `encode_dataset` finds everything in the cache, bit for bit as if it had encoded it itself on such
    machines. The cache folder is at the same path on all of them. A shard that is there is checked by its worker and
    not encoded again. This process reads the list of patches, and neither an image nor the encoder.

    Parameters
    ----------
    executor : Executor
        As `open_executor` returns it.
    values : dict of str to object
        The parameters of the run.
    report : callable
        Called with the number of shards that are done, of all, and the `EncodedShard` that was finished last.

    Returns
    -------
    list of EncodedShard
        One for each shard, in order.

    Raises
    ------
    HistoCLIPError
        If the data or a parameter cannot be used, a worker cannot see the cache folder or has other versions, a task
        fails, or workers or scheduler are lost. Finished shards are kept; the next call encodes the others.
    """
    cache = cache_dir().absolute()
    patches = load_dataset_from(values)
    job, total, finished = encoding_job(values, patches, cache), n_shards(len(patches)), []

    def count(_: int, shard: EncodedShard) -> None:
        if not finished:
            _prepare(shard, len(patches))
        finished.append(shard)
        report(len(finished), total, shard)

    try:
        run_tasks(executor, encode_shard, ((job, number) for number in shard_order(total)), count)
    except HistoCLIPError as error:
        raise HistoCLIPError(
            f"encoding {patches.name}: {error}\n{len(finished)} of {total} shards are finished and kept in {job.cache}."
            " Run the same command again: it encodes the others."
        ) from error
    if damages := [shard.damage for shard in finished if shard.damage]:
        warnings.warn(
            f"{len(damages)} of {total} shards of the feature cache were damaged; their patches were encoded again:\n"
            f"{bullet_list(damages)}",
            stacklevel=2,
        )
    return sorted(finished, key=lambda shard: shard.number)


def shard_order(total: int) -> list[int]:
    """Return the numbers of all shards, shuffled.

    Two runs that want the same shards then meet at one only now and then. In one common order the second would wait for
    the first at every shard, and encode none.
    """
    return random.SystemRandom().sample(range(total), total)


def encoding_job(values: dict[str, object], patches: PatchDataset, cache: Path) -> EncodingJob:
    """Return what the workers must know, with paths that mean the same in every folder.

    Raises
    ------
    HistoCLIPError
        If the backbone is a relative path, or the cache cannot be written.
    """
    backbone = str(values["backbone"])
    if backbone.startswith(LOCAL) and not Path(backbone.removeprefix(LOCAL)).is_absolute():
        raise HistoCLIPError(f"backbone: {backbone} is relative; workers run in other folders. Write the whole path.")
    data, encoder = dataset_parameters(values), {name: values[name] for name in ENCODER_NAMES}
    if data["data_dir"]:
        data["data_dir"] = str(resolve(str(data["data_dir"])).absolute())
    if encoder["pretrained"] and Path(str(encoder["pretrained"])).is_file():
        encoder["pretrained"] = str(Path(str(encoder["pretrained"])).absolute())
    make_writable(cache)
    return EncodingJob(
        data=tuple(data.items()),
        encoder=tuple(encoder.values()),
        views=int(values["views"]),
        encode_batch_size=int(values["encode_batch_size"]),
        listing=_listing(patches),
        cache=str(cache),
        identity=_identity(cache),
        software=tuple(software().items()),
    )


def encode_shard(job: EncodingJob, number: int) -> EncodedShard:
    """Encode one shard, unless it is there or another process is at it: the task that a worker runs.

    Parameters
    ----------
    job : EncodingJob
        As `encoding_job` returns it. Each worker loads its data set and encoder once.
    number : int
        Which shard.

    Raises
    ------
    HistoCLIPError
        If the worker's versions or its cache folder are not the client's, or whatever encoding finds wrong.
    """
    _require_client(job)
    dataset, clip, folder = _load(job)
    indices, path = indices_of(number, len(dataset)), folder / shard_key(dataset, number, clip.match_mpp)
    encoded, damage = 0, ""
    try:
        there = open_shard(path, len(indices), job.views) is not None
    except Damaged as error:
        there, damage = False, str(error)
    if not there:
        batches = _read_batches(clip, dataset, indices, job.encode_batch_size)
        encoded = encode_and_write(clip, dataset, number, path, batches, job.views, len(indices))
    return EncodedShard(number, str(path), encoded, damage)


def _read_batches(clip: CLIP, dataset: PatchDataset, indices: range, batch_size: int) -> Iterator[torch.Tensor]:
    """Yield batches in the encoder's size, decoded in threads while others are encoded."""
    n_threads = min(DECODERS, n_cores()) if clip.device.type == "cuda" else torch.get_num_threads()
    with ThreadPoolExecutor(n_threads) as pool:
        images = pool.map(Resized(dataset, clip).__getitem__, indices)
        for start in range(0, len(indices), batch_size):
            yield torch.stack([next(images)[1] for _ in indices[start : start + batch_size]])


def _require_client(job: EncodingJob) -> None:
    """Check that this worker has the client's versions and sees its cache folder."""
    require_software(dict(job.software))
    try:
        found = (Path(job.cache) / IDENTITY).read_text(encoding="utf-8")
    except OSError as error:
        found = error.strerror or str(error)
    if found != job.identity:
        raise HistoCLIPError(
            f"{socket.gethostname()}: the cache folder {job.cache} is not the client's ({IDENTITY} there: {found}). "
            "Mount one folder at the same path on all machines, and set HISTOCLIP_CACHE to it where the run starts."
        )


def _identity(cache: Path) -> str:
    """Return the text by which a cache folder is known; the first to ask makes it up."""
    file = cache / IDENTITY
    with locked(file):
        if not file.is_file():
            write_text(file, secrets.token_hex(8))
    return file.read_text(encoding="utf-8")


def _listing(patches: PatchDataset) -> str:
    digest = hashlib.sha256()
    for file in patches.files:
        digest.update(file.encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()[:32]


def _prepare(first: EncodedShard, n_patches: int) -> None:
    """Look at the folder that the first task has found: remove what killed processes left, and see that all fits."""
    path = Path(first.path)
    sweep(path.parent)
    size = sum(path.with_suffix(f".{name}.npy").stat().st_size for name in ARRAYS)
    present = sum(entry.name.endswith(".json") for entry in os.scandir(path.parent))
    left = max(0, n_shards(n_patches) - present) / n_shards(n_patches)
    require_space(path.parent, round(left * n_patches * size / len(indices_of(first.number, n_patches))))


_LOADING = threading.Lock()  # the threads of one worker load nothing twice


def _load(job: EncodingJob) -> tuple[PatchDataset, CLIP, Path]:
    """Return the patches, the encoder and the folder of the features."""
    with _LOADING:
        os.environ["HISTOCLIP_CACHE"] = job.cache  # painted patches and counted nuclei are shared too
        return _dataset_of(job.listing, job.data), *_encoder_of(job.cache, job.views, job.encoder)


@lru_cache(maxsize=2)
def _dataset_of(listing: str, data: tuple[tuple[str, object], ...]) -> PatchDataset:
    arguments = dict(data)
    patches = load_dataset(**arguments)
    if _listing(patches) != listing:
        raise HistoCLIPError(
            f"{socket.gethostname()}: the data set {arguments['dataset']} {arguments['data_dir']} has other patches "
            "here than where the run was started. Mount one folder at the same path on all machines."
        )
    return patches


@lru_cache(maxsize=2)
def _encoder_of(cache: str, views: int, arguments: tuple) -> tuple[CLIP, Path]:
    clip = load_clip(*arguments)
    return clip, features_folder(clip, views, Path(cache))
