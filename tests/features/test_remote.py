"""Encoding by tasks: the same bits as without them, and workers that do not see what the client sees."""

import errno
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_clip import save_local_dir, tiny_model

from histoclip_lib.clip.encoder import CLIP, load_clip
from histoclip_lib.common.cache import cache_dir
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.executors import open_executor
from histoclip_lib.data.registry import load_dataset_from
from histoclip_lib.features import remote as remote_encoding
from histoclip_lib.features import store as shards
from histoclip_lib.features.encode import encode_dataset
from histoclip_lib.features.remote import ENCODER_NAMES, encode_shard, encode_shards_on, encoding_job

N_PATCHES = 10


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_local_dir(tmp_path_factory.mktemp("clip"), tiny_model(), size=32)


@pytest.fixture
def values(tmp_path, backbone, write_folder, monkeypatch):
    monkeypatch.setenv("HISTOCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shards, "SHARD_SIZE", 4)
    data = write_folder(tmp_path / "data", {"a": [0, 1] * (N_PATCHES // 2)})
    return {
        **{"dataset": "folder", "data_dir": str(data), "split": "random"},
        **{"n_patches": 600, "mask_coverage": 0.01, "min_nuclei": 1},
        **{"backbone": backbone, "pretrained": "", "device": "cpu", "precision": "fp32", "compiled": False},
        **{"tokens": "all", "token_grid": 0, "match_mpp": False, "mpp": 0.0},
        **{"views": 2, "encode_batch_size": 3},
    }


@pytest.fixture
def threads():
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def passes(monkeypatch):
    counts, encode = [], CLIP.encode_images

    def counting(self, images):
        counts.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(CLIP, "encode_images", counting)
    return counts


def locally(values, cache=None):
    clip, patches = load_clip(*(values[n] for n in ENCODER_NAMES)), load_dataset_from(values)
    return encode_dataset(clip, patches, values["views"], values["encode_batch_size"], 0, cache, progress=False)


def job_of(values):
    return encoding_job(values, load_dataset_from(values), cache_dir())


def assert_same(values, tmp_path):
    found, expected = locally(values), locally(values, tmp_path / "fresh")
    assert (found.encoded, expected.encoded) == (0, N_PATCHES)
    for kind in ("pooled", "tokens"):
        for one, other in zip(getattr(found, kind).pieces, getattr(expected, kind).pieces, strict=True):
            np.testing.assert_array_equal(one, other)


def test_tasks_give_the_same_bits_and_the_second_time_encode_nothing(values, threads, tmp_path, passes):
    seen = []
    found = encode_shards_on(threads, values, lambda done, total, shard: seen.append((done, total, shard.number)))
    assert [(shard.number, shard.encoded) for shard in found] == [(0, 4), (1, 4), (2, 2)]
    assert [(done, total) for done, total, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert sorted(passes) == sorted([3, 1, 3, 1, 2] * 2)  # two views
    passes.clear()
    assert [shard.encoded for shard in encode_shards_on(threads, values)] == [0, 0, 0]
    assert passes == []
    assert_same(values, tmp_path)
    assert not [path for path in cache_dir().rglob("*.lock")]


def test_processes_give_the_same_bits(values, tmp_path, monkeypatch):
    monkeypatch.undo()  # the processes have shards of 256: there is one
    monkeypatch.setenv("HISTOCLIP_CACHE", str(tmp_path / "cache"))
    with open_executor(jobs=1) as pool:
        [shard] = encode_shards_on(pool, values)
    assert shard.encoded == N_PATCHES
    assert_same(values, tmp_path)


def test_a_damaged_shard_is_encoded_again_with_a_warning(values, threads, tmp_path):
    found = encode_shards_on(threads, values)
    path = Path(found[1].path).with_suffix(".pooled.npy")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"(?s)1 of 3 shards.*were damaged.*pooled\.npy is not as it was written"):
        again = encode_shards_on(threads, values)
    assert [shard.encoded for shard in again] == [0, 4, 0]
    assert_same(values, tmp_path)


def test_runs_at_the_same_time_encode_each_shard_once(values, passes):
    job, encoded = job_of(values), []

    def work():
        encoded.extend(encode_shard(job, number).encoded for number in range(3))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sum(encoded) == N_PATCHES
    assert sum(passes) == N_PATCHES * values["views"]


def test_paths_mean_the_same_in_every_folder(values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.pt").write_text("")
    job = job_of(values | {"data_dir": "data", "pretrained": "weights.pt"})
    assert dict(job.data)["data_dir"] == str(tmp_path / "data")
    assert job.encoder[1] == str(tmp_path / "weights.pt")
    assert job_of(values | {"pretrained": "openai"}).encoder[1] == "openai"
    assert Path(job.cache).is_absolute()
    with pytest.raises(HistoCLIPError, match="backbone: local-dir:model is relative"):
        job_of(values | {"backbone": "local-dir:model"})


def test_jobs_of_two_clients_are_equal_so_that_a_scheduler_does_them_once(values):
    assert job_of(values) == job_of(values)
    tokenize = pytest.importorskip("dask.base").tokenize
    assert tokenize(job_of(values)) == tokenize(job_of(values)) != tokenize(job_of(values | {"views": 1}))


@pytest.mark.parametrize("there", ["nothing", "another"])
def test_a_worker_with_another_cache_folder_is_named(values, tmp_path, there):
    job, elsewhere = job_of(values), tmp_path / "elsewhere"
    elsewhere.mkdir()
    if there == "another":
        (elsewhere / remote_encoding.IDENTITY).write_text("another")
    with pytest.raises(HistoCLIPError, match=rf"the cache folder {elsewhere} is not the client's"):
        encode_shard(replace(job, cache=str(elsewhere)), 0)


def test_a_worker_with_other_data_is_named(values, write_folder, tmp_path):
    other = write_folder(tmp_path / "other", {"a": [0, 1, 1]})
    with pytest.raises(HistoCLIPError, match=rf"the data set folder {other} has other patches here"):
        job = job_of(values)
        encode_shard(replace(job, data=tuple((dict(job.data) | {"data_dir": str(other)}).items())), 0)


def test_a_worker_that_has_loaded_the_data_sees_that_it_grew(values, write_folder, threads):
    encode_shards_on(threads, values)
    write_folder(Path(values["data_dir"]), {"a": [0, 1] * 6})
    assert [shard.number for shard in encode_shards_on(threads, values)] == [0, 1, 2]
    assert locally(values).encoded == 0


def test_a_worker_with_other_versions_is_named(values):
    job = job_of(values)
    with pytest.raises(HistoCLIPError, match=r"the software differs:\n  - torch"):
        encode_shard(replace(job, software=(("torch", "1.0"),)), 0)


def test_a_broken_image_is_named_and_what_is_finished_is_kept(values, threads):
    broken = Path(values["data_dir"]) / "009.png"
    content = broken.read_bytes()
    broken.write_bytes(content[:50])
    with pytest.raises(HistoCLIPError, match=r"(?s)encoding folder: .*009\.png.*of 3 shards are finished and kept in"):
        encode_shards_on(threads, values)
    broken.write_bytes(content)
    encode_shards_on(threads, values)
    assert locally(values).encoded == 0


@pytest.mark.parametrize("first", [0, 2])  # the last one is shorter
def test_all_must_fit_on_the_disk_when_the_first_is_there(values, threads, monkeypatch, first):
    monkeypatch.setattr("histoclip_lib.common.executors.AT_ONCE", 1)
    order = [first, *(number for number in range(3) if number != first)]
    monkeypatch.setattr("histoclip_lib.features.remote.shard_order", lambda total: order)
    free = 5 * 2 * (12 * 4 + 16 * 12 * 2)  # of five patches in two views; six or eight are left when the first is there
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, free))
    with pytest.raises(HistoCLIPError, match=r"(?s)No space left on device.*are to be written there.*HISTOCLIP_CACHE"):
        encode_shards_on(threads, values)
    assert len(list(cache_dir().glob("features/*/*.json"))) == 1


def test_a_cache_that_cannot_be_written_is_named(values, threads, monkeypatch):
    def refuse(self, *arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr("pathlib.Path.touch", refuse)
    with pytest.raises(HistoCLIPError, match="Read-only file system"):
        encode_shards_on(threads, values)


def test_patches_are_read_in_order_in_batches_of_the_shard(values):
    clip, patches = load_clip(*(values[n] for n in ENCODER_NAMES)), load_dataset_from(values)
    batches = list(remote_encoding._read_batches(clip, patches, range(4, 8), 3))
    assert [len(batch) for batch in batches] == [3, 1]
    expected = clip.resize(Image.fromarray(patches.image(7)))
    np.testing.assert_array_equal(batches[1][0], expected)
