"""`histoclip cache`: what it lists, and what it removes."""

import json
import os
import time


def put_shard(folder, name, dataset="made", patches=3, days=0.0):
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("pooled", "tokens"):
        (folder / f"{name}.{kind}.npy").write_bytes(b"x" * 2**20)
    about = {"backbone": "b[red]", "pretrained": "", "dataset": dataset, "pooled": [patches, 8, 4], "bytes": 2**21}
    marker = folder / f"{name}.json"
    marker.write_text(json.dumps(about))
    then = time.time() - days * 86400
    os.utime(marker, (then, then))


def test_each_data_set_is_listed_with_its_size_and_age(invoke, tmp_path):
    folder = tmp_path / "cache" / "features" / "encoder"
    put_shard(folder, "a", patches=256)
    put_shard(folder, "b", patches=4)
    put_shard(folder, "c", "other", days=5.2)
    result = invoke("cache")
    assert result.stdout.splitlines()[0] == str(tmp_path / "cache")
    lines = [line.split() for line in result.stdout.splitlines()[2:]]
    assert ["features,", "b[red]", "made", "today", "8", "260", "4"] in lines
    assert ["features,", "b[red]", "other", "5", "days", "ago", "8", "3", "2"] in lines


def test_image_towers_are_listed_and_removed_too(invoke, tmp_path):
    tower = tmp_path / "cache" / "onnx" / "tower.onnx"
    tower.parent.mkdir(parents=True)
    tower.write_bytes(b"x" * 2**21)
    assert "tower.onnx" in invoke("cache").stdout
    assert "removed" in invoke("cache", "--prune", "0").stdout
    assert not tower.exists()


def test_an_empty_cache_is_reported_as_such(invoke):
    result = invoke("cache")
    assert result.exit_code == 0
    assert "is empty" in result.stdout


def test_prune_removes_unused_features_and_nothing_else(invoke, tmp_path):
    folder = tmp_path / "cache" / "features" / "encoder"
    put_shard(folder, "new", days=2)
    put_shard(folder, "old", "other", days=20)
    (folder / "half.pooled.npy").write_bytes(b"being written")
    kept = {"new.json", "new.pooled.npy", "new.tokens.npy", "half.pooled.npy"}
    assert "removed" in invoke("cache", "--prune", "10").stdout
    assert {path.name for path in folder.iterdir()} == kept
    invoke("cache", "--prune", "0")
    assert {path.name for path in folder.iterdir()} == {"half.pooled.npy"}
    assert invoke("cache", "--prune", "-1").exit_code == 2
