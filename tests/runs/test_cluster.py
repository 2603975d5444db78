"""Encoding on a real scheduler and real worker processes of this machine, and what happens when they are killed."""

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from local_cluster import DEADLINE, SIZE, Cluster, wait_for
from PIL import Image
from tiny_clip import save_local_dir, tiny_model

from histoclip_lib.clip.encoder import load_clip
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.executors import open_executor
from histoclip_lib.data.registry import load_dataset_from
from histoclip_lib.features import remote as remote_encoding
from histoclip_lib.features.encode import encode_dataset
from histoclip_lib.features.remote import ENCODER_NAMES, encode_shards_on

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*has no workers yet")]

N_SHARDS = 5
N_PATCHES = (N_SHARDS - 1) * SIZE + 50  # the last shard is short
VIEWS, BATCH = 1, 100


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    """The parameters of a run: small noise images and a small random CLIP."""
    root = tmp_path_factory.mktemp("data")
    pixels = np.random.default_rng(0)
    files = [f"{index:05d}.png" for index in range(N_PATCHES)]
    for file in files:
        Image.fromarray(pixels.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / file, compress_level=0)
    pd.DataFrame({"file": files, "a": np.arange(N_PATCHES) % 2}).to_csv(root / "labels.csv", index=False)
    backbone = save_local_dir(tmp_path_factory.mktemp("clip"), tiny_model(), size=32)
    return {
        **{"dataset": "folder", "data_dir": str(root), "split": "random"},
        **{"n_patches": 600, "mask_coverage": 0.01, "min_nuclei": 1},
        **{"backbone": backbone, "pretrained": "", "device": "cpu", "precision": "fp32", "compiled": False},
        **{"tokens": "all", "token_grid": 0, "match_mpp": False, "mpp": 0.0},
        **{"views": VIEWS, "encode_batch_size": BATCH},
    }


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HISTOCLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def clusters(tmp_path_factory):
    """Two clusters that the tests share: each asks for the workers that it needs."""
    pytest.importorskip("distributed")
    both = [Cluster(tmp_path_factory.mktemp("cluster")) for _ in range(2)]
    yield both
    for each in both:
        each.stop()


def locally(values, cache):
    clip = load_clip(*(values[name] for name in ENCODER_NAMES))
    patches = load_dataset_from(values)
    features = encode_dataset(clip, patches, VIEWS, BATCH, workers=0, cache=cache, progress=False)
    return features.encoded, np.concatenate(features.pooled.pieces), np.concatenate(features.tokens.pieces)


@pytest.fixture(scope="module")
def expected(values, tmp_path_factory):
    return locally(values, tmp_path_factory.mktemp("local"))


def assert_all_there(values, cache, expected):
    """Nothing is left to encode, every bit is that of the local encode, and no other file lies about."""
    encoded, pooled, tokens = locally(values, cache)
    assert encoded == 0
    np.testing.assert_array_equal(pooled, expected[1])
    np.testing.assert_array_equal(tokens, expected[2])
    files = [path for path in (cache / "features").rglob("*") if path.is_file()]
    assert len(files) == 3 * N_SHARDS


def in_thread(work):
    """Start `work`; return a function that waits for it and gives its result, an error as it is."""
    results = []

    def run():
        try:
            results.append(work())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result():
        thread.join(DEADLINE)
        assert results, "it never ended"
        return results[0]

    return result


def encode_on(cluster, values, report=lambda *_: None):
    with open_executor(scheduler=cluster.address) as executor:
        return encode_shards_on(executor, values, report)


def test_two_clients_of_two_workers_encode_each_shard_once_and_the_same_bit_for_bit(values, cache, clusters, expected):
    running, seen = clusters[0].ready(2), []
    other = in_thread(lambda: encode_on(running, values))
    shards = encode_on(running, values, lambda done, total, shard: seen.append((done, total)))
    assert [shard.number for shard in shards] == [shard.number for shard in other()] == list(range(N_SHARDS))
    assert seen == [(done, N_SHARDS) for done in range(1, N_SHARDS + 1)]
    assert Counter(shard for _, shard in running.decoded()) == {0: SIZE, 1: SIZE, 2: SIZE, 3: SIZE, 4: 50}
    assert_all_there(values, cache, expected)
    # and once more: nothing is decoded, a damaged shard is found by a worker
    path = Path(shards[2].path).with_suffix(".tokens.npy")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.warns(UserWarning, match=r"(?s)1 of 5 shards of the feature cache were damaged.*tokens\.npy"):
        again = encode_on(running, values)
    assert [shard.encoded for shard in again] == [0, 0, SIZE, 0, 0]
    assert_all_there(values, cache, expected)


def test_clients_of_two_schedulers_encode_each_shard_once(values, cache, clusters, expected, monkeypatch):
    orders = [list(range(N_SHARDS)), list(reversed(range(N_SHARDS)))]  # both have something to do
    monkeypatch.setattr(remote_encoding, "shard_order", lambda total: orders.pop())
    for each in clusters:
        each.ready(1).hold.touch()
    results = [in_thread(lambda each=each: encode_on(each, values)) for each in clusters]
    for each in clusters:
        wait_for(each.decoded)
    for each in clusters:
        each.hold.unlink()
    both = [shard for result in results for shard in result()]
    assert len(both) == 2 * N_SHARDS
    assert sum(shard.encoded for shard in both) == N_PATCHES
    assert_all_there(values, cache, expected)


def test_a_worker_that_is_killed_in_a_shard_is_replaced_by_the_other_and_by_one_that_comes_late(
    values, cache, clusters, expected
):
    running = clusters[0].ready(2)
    running.hold.touch()
    shards = in_thread(lambda: encode_on(running, values))
    wait_for(lambda: len(set(running.decoded())) == 2)
    victim, shard = running.decoded()[-1]
    next(worker for worker in running.workers if worker.pid == victim).kill()
    running.start_worker()
    late = running.workers[-1].pid
    wait_for(lambda: late in dict(running.decoded()))
    running.hold.unlink()
    assert [each.number for each in shards()] == list(range(N_SHARDS))
    decoded = running.decoded()
    assert {process for process, _ in decoded} == {worker.pid for worker in running.workers}
    counts = Counter(number for _, number in decoded)
    whole = {number: 50 if number == 4 else SIZE for number in range(N_SHARDS)}
    assert whole[shard] < counts.pop(shard) <= 2 * whole.pop(shard)  # begun by the one that died, and again by another
    assert counts == whole
    assert_all_there(values, cache, expected)


def test_when_the_scheduler_is_killed_finished_shards_are_kept_and_the_next_run_encodes_the_others(
    values, cache, clusters, expected
):
    running = clusters[1].ready(1)
    first = in_thread(lambda: encode_on(running, values))
    wait_for(lambda: len(list(cache.glob("features/*/*.json"))) >= 2)
    running.hold.touch()
    running.scheduler.kill()
    error = first()
    assert isinstance(error, HistoCLIPError)
    assert "encoding folder: the scheduler is gone" in str(error)
    assert f"of {N_SHARDS} shards are finished and kept in {cache}. Run the same command again" in str(error)
    for worker in running.workers:  # they end by themselves, in their own time
        worker.kill()
        worker.wait()
    running.hold.unlink()
    kept = len(list(cache.glob("features/*/*.json")))
    running.address = running.start_scheduler(port=int(running.address.split(":")[-1]))
    again = encode_on(running.ready(1), values)
    assert 2 <= kept < N_SHARDS
    assert sum(shard.encoded > 0 for shard in again) == N_SHARDS - kept
    assert_all_there(values, cache, expected)
