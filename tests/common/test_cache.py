"""The cache: what it holds, how long that has been idle, and removing it without leaving halves."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from histoclip_lib.common import cache as cache_module
from histoclip_lib.common.cache import (
    COUNTS,
    DAY,
    PAINTED,
    TOWERS,
    UNFINISHED,
    cached_features,
    cached_items,
    sweep_cache,
)
from histoclip_lib.common.files import temporary_beside
from histoclip_lib.features.store import locked, write_shard


def put_features(cache, name="a", days=0.0, dataset="made"):
    path = cache / "features" / "encoder" / name
    pooled, tokens = np.zeros((3, 2, 4), np.float32), np.zeros((3, 2, 5, 4), np.float16)
    write_shard(path, pooled, tokens, {"backbone": "b", "pretrained": "", "dataset": dataset})
    return age(path.with_suffix(".json"), days)


def put(path, size=100, days=0.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return age(path, days)


def age(path, days):
    then = time.time() - days * DAY
    os.utime(path, (then, then))
    return path


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_an_empty_or_missing_cache_holds_nothing(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert cached_features(folder) == cached_items(folder) == sweep_cache(folder) == []


def test_features_are_counted_by_data_set(tmp_path):
    put_features(tmp_path, "a", days=3)
    put_features(tmp_path, "b", days=2)
    put_features(tmp_path, "c", dataset="other")
    made, other = sorted(cached_features(tmp_path), key=lambda entry: entry.dataset)
    assert (made.views, made.patches, made.size) == (2, 6, 2 * (96 + 240))
    assert made.idle == pytest.approx(2, abs=0.01)
    made.remove()
    assert {name.split("/")[-1].split(".")[0] for name in files_in(tmp_path)} == {"c"}
    other.remove()
    assert not (tmp_path / "features" / "encoder").exists()
    other.remove()  # by another process meanwhile


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pooled": 3}', '{"pooled": [1, 2], "bytes": "x"}', "\x00"])
def test_a_garbled_marker_is_skipped(tmp_path, text):
    put_features(tmp_path, "a")
    put_features(tmp_path, "b").write_text(text)
    [entry] = cached_features(tmp_path)
    assert entry.patches == 3


def test_a_marker_removed_during_listing_is_skipped(tmp_path, monkeypatch):
    put_features(tmp_path, "a")
    gone = put_features(tmp_path, "b")
    loads = json.loads

    def remove_then(text):
        gone.unlink(missing_ok=True)
        return loads(text)

    monkeypatch.setattr(cache_module.json, "loads", remove_then)
    assert [entry.patches for entry in cached_features(tmp_path)] == [3]


def test_everything_else_is_listed_the_largest_first(tmp_path):
    put(tmp_path / "onnx" / "abc.onnx", 300, days=2)
    put(tmp_path / "synthetic" / "def" / "labels.csv", 50)
    put(tmp_path / "synthetic" / "def" / "images" / "1.png", 70)
    age(tmp_path / "synthetic" / "def", 5)
    put(tmp_path / "pannuke" / "counts-1.csv", 20, days=1)
    put(tmp_path / "features" / "encoder" / "half.pooled.npy", 10, days=1.5)
    put(tmp_path / "features" / "encoder" / "half.lock", 0, days=1.5)
    put_features(tmp_path)
    put(tmp_path / "unrelated" / "file", 999)
    found = cached_items(tmp_path)
    assert [(item.kind, item.name, item.size, round(item.idle, 2)) for item in found] == [
        (TOWERS, "abc.onnx", 300, 2),
        (PAINTED, "def", 120, 5),
        (COUNTS, "counts-1.csv", 20, 1),
        (UNFINISHED, "half.pooled.npy", 10, 1.5),
    ]
    for item in found:
        item.remove()
        item.remove()
    assert cached_items(tmp_path) == []
    assert len(files_in(tmp_path)) == 4  # the features and what is not ours
    assert len(cached_features(tmp_path)) == 1


def test_a_shard_that_may_still_be_written_is_not_listed(tmp_path):
    put(tmp_path / "features" / "encoder" / "half.pooled.npy", days=0.9)
    assert cached_items(tmp_path) == []


def test_removing_a_data_set_never_shows_half_of_it(tmp_path, monkeypatch):
    put(tmp_path / "synthetic" / "def" / "labels.csv")

    def stop(path, *arguments, **options):
        raise KeyboardInterrupt

    [item] = cached_items(tmp_path)
    monkeypatch.setattr("shutil.rmtree", stop)
    with pytest.raises(KeyboardInterrupt):
        item.remove()
    assert cached_items(tmp_path) == []
    [left] = (tmp_path / "synthetic").iterdir()
    assert left.name.startswith(".def.") and left.name.endswith(".partial")


def test_sweep_cache_reaches_every_folder(tmp_path):
    command = [sys.executable, "-c", "import os; print(os.getpid())"]
    dead = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    left = []
    for name, ending in (
        ("features/encoder/a.npy", ".tmp.npy"),
        ("onnx/a.onnx", ".tmp.onnx"),
        ("pannuke/a.csv", ".tmp"),
        ("a", ".tmp"),
    ):
        ours = temporary_beside(tmp_path / name, ending)
        left.append(put(ours.with_name(ours.name.replace(f".{os.getpid()}.", f".{dead}."))))
    ours = temporary_beside(tmp_path / "synthetic" / "a", ".partial")
    painting = put(ours.with_name(ours.name.replace(f".{os.getpid()}.", f".{dead}.")) / "images" / "1.png")
    kept = put(temporary_beside(tmp_path / "synthetic" / "a", ".partial") / "labels.csv")
    assert sorted(sweep_cache(tmp_path)) == sorted([*left, painting.parents[1]])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [kept]


def test_times_in_the_future_count_as_just_used(tmp_path):
    for days in (-1, -10_000):
        marker = put_features(tmp_path, days=days)
        put(tmp_path / "onnx" / "abc.onnx", days=days)
        assert cached_features(tmp_path)[0].idle == cached_items(tmp_path)[0].idle == 0
        marker.touch()  # as when the features are used
        assert 0 <= cached_features(tmp_path)[0].idle < 0.01


def test_idle_time_is_never_negative(tmp_path, monkeypatch):
    put_features(tmp_path)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 5 * DAY)
    assert cached_features(tmp_path)[0].idle == 0


def test_a_lock_in_use_does_not_keep_features_from_being_removed(tmp_path):
    marker = put_features(tmp_path)
    with locked(marker.with_suffix("")):
        cached_features(tmp_path)[0].remove()
    assert files_in(tmp_path) == []
    assert Path(tmp_path / "features").is_dir()
