"""Shards: read by rows, and never with another byte than was written."""

import errno
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.features import store as shards
from histoclip_lib.features.store import (
    Damaged,
    Shards,
    indices_of,
    locked,
    n_shards,
    open_shard,
    shard_of,
    write_shard,
)

SUFFIXES = (".pooled.npy", ".tokens.npy", ".json")
ABOUT = {"backbone": "made", "pretrained": "", "dataset": "made"}
N_ROWS, N_VIEWS = 3, 2
POOLED = np.random.default_rng(0).normal(size=(N_ROWS, N_VIEWS, 4)).astype(np.float32)
TOKENS = np.random.default_rng(1).normal(size=(N_ROWS, N_VIEWS, 5, 4)).astype(np.float16)


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "features" / "0123abcd"
    write_shard(path, POOLED, TOKENS, ABOUT)
    return path


def opened(path):
    return open_shard(path, N_ROWS, N_VIEWS)


def assert_whole(path):
    found = opened(path)
    np.testing.assert_array_equal(found.pooled, POOLED)
    np.testing.assert_array_equal(found.tokens, TOKENS)


# Rows


@pytest.mark.parametrize("n_rows", [1, 255, 256, 257, 512, 1000])
def test_every_row_lies_in_one_shard(n_rows):
    rows = [row for number in range(n_shards(n_rows)) for row in indices_of(number, n_rows)]
    assert rows == list(range(n_rows))
    assert all(row in indices_of(shard_of(row), n_rows) for row in rows)


@given(st.data())
def test_take_is_plain_indexing(data):
    size = shards.SHARD_SIZE
    n_rows, n_views = data.draw(st.integers(1, 3 * size)), data.draw(st.integers(1, 3))
    array = np.arange(n_rows * n_views * 2).reshape(n_rows, n_views, 2)
    whole = Shards([array[start : start + size] for start in range(0, n_rows, size)])
    rows = np.array(data.draw(st.lists(st.integers(0, n_rows - 1), max_size=20)), dtype=int)
    one_view = st.integers(0, n_views - 1)
    views = data.draw(st.one_of(one_view, st.lists(one_view, min_size=len(rows), max_size=len(rows)).map(np.array)))
    views = views.astype(int) if isinstance(views, np.ndarray) else views
    np.testing.assert_array_equal(whole.take(rows, views), array[rows, views])
    assert whole.shape == array.shape
    assert whole.nbytes == array.nbytes


# Files


def test_what_was_written_is_read_as_memory_maps(shard):
    assert_whole(shard)
    assert all(isinstance(array, np.memmap) for array in (opened(shard).pooled, opened(shard).tokens))
    assert {path.name for path in shard.parent.iterdir()} == {shard.name + suffix for suffix in SUFFIXES}


def test_the_marker_says_what_the_shard_holds(shard):
    content = json.loads(shard.with_suffix(".json").read_text())
    assert content.items() >= ABOUT.items()
    assert content["bytes"] == POOLED.nbytes + TOKENS.nbytes
    assert (content["pooled"], content["tokens"]) == ([3, 2, 4], [3, 2, 5, 4])
    assert content["files"]["pooled"][0] == shard.with_suffix(".pooled.npy").stat().st_size


def test_no_marker_no_shard(shard, tmp_path):
    shard.with_suffix(".json").unlink()
    assert opened(shard) is None
    assert opened(tmp_path / "nowhere" / "else") is None


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_one_byte_changed_anywhere_is_noticed(shard, suffix):
    """Every byte of every file; white space of the marker may become other white space, which says the same."""
    path = shard.with_suffix(suffix)
    whole, same = path.read_bytes(), json.loads(shard.with_suffix(".json").read_text())
    for position in range(len(whole)):
        for flip in (1, 0x20, 0x80, 0xFF):
            changed = bytearray(whole)
            changed[position] ^= flip
            path.write_bytes(changed)
            try:
                found = opened(shard)
            except Damaged as damage:
                assert str(path) in str(damage) or suffix == ".json"
                continue
            assert suffix == ".json"
            assert json.loads(bytes(changed)) == same
            assert found is not None
    path.write_bytes(whole)
    assert_whole(shard)


@given(data=st.data())
def test_several_bytes_changed_anywhere_are_noticed(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "shard"
    write_shard(path, POOLED, TOKENS, ABOUT)
    file = path.with_suffix(data.draw(st.sampled_from(SUFFIXES)))
    whole = file.read_bytes()
    start = data.draw(st.integers(0, len(whole) - 1))
    length = data.draw(st.integers(1, len(whole) - start))
    put = data.draw(st.binary(max_size=40))
    changed = whole[:start] + put + whole[start + length :]
    file.write_bytes(changed)
    try:
        found = open_shard(path, N_ROWS, N_VIEWS)
    except Damaged:
        return
    assert found is not None
    assert changed == whole or json.loads(changed) == json.loads(whole)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_cut_at_any_length_is_noticed(shard, suffix):
    path = shard.with_suffix(suffix)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(Damaged):
            opened(shard)
    path.write_bytes(whole + b"\0")
    with pytest.raises(Damaged):
        opened(shard)


@pytest.mark.parametrize("suffix", SUFFIXES[:2])
def test_a_missing_array_is_named(shard, suffix):
    shard.with_suffix(suffix).unlink()
    with pytest.raises(Damaged, match=rf"{suffix} cannot be read \(No such file"):
        opened(shard)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_file_that_cannot_be_read_is_named(shard, suffix, number, monkeypatch):
    """As with other permissions, a failing disk or a lost mount; root can read everything, so the error is put in."""

    def refuse(self, *arguments, **options):
        if self.name.endswith(suffix):
            raise OSError(number, os.strerror(number), str(self))
        return open(self, *arguments, **options)

    def read_bytes(self):
        with refuse(self, "rb") as file:
            return file.read()

    monkeypatch.setattr("pathlib.Path.open", refuse)
    monkeypatch.setattr("pathlib.Path.read_bytes", read_bytes)
    with pytest.raises(Damaged, match=rf"{suffix} cannot be read \({os.strerror(number)}"):
        opened(shard)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_of_others_is_named(shard, suffix):
    shard.with_suffix(suffix).chmod(0)
    with pytest.raises(Damaged, match="Permission denied"):
        opened(shard)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_folder_in_the_place_of_a_file_is_named(shard, suffix):
    shard.with_suffix(suffix).unlink()
    shard.with_suffix(suffix).mkdir()
    with pytest.raises(Damaged, match="cannot be read"):
        opened(shard)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '"text"',
        "{}",
        '{"checksum": 1}',
        '{"checksum": 1, "format": 2}',
        "\ud800",
        "[" * 9999,
    ],
)
def test_a_marker_with_other_content_is_garbled(shard, text):
    shard.with_suffix(".json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(Damaged, match=r"\.json is (garbled|not as it was written)"):
        opened(shard)


def test_a_marker_of_another_version_is_refused(shard, monkeypatch):
    for version in (shards.FORMAT - 1, shards.FORMAT + 1):
        with monkeypatch.context() as patch:
            patch.setattr(shards, "FORMAT", version)
            write_shard(shard, POOLED, TOKENS, ABOUT)
        with pytest.raises(Damaged, match=f"has format {version}, this version of HistoCLIP writes {shards.FORMAT}"):
            opened(shard)


@pytest.mark.parametrize(("n_rows", "n_views"), [(N_ROWS + 1, N_VIEWS), (N_ROWS, N_VIEWS + 1), (1, 1)])
def test_a_shard_of_another_shape_is_refused(shard, n_rows, n_views):
    with pytest.raises(Damaged, match="of shape"):
        open_shard(shard, n_rows, n_views)


def test_arrays_of_another_type_or_order_are_converted(shard):
    write_shard(shard, POOLED.astype(np.float64), np.asfortranarray(TOKENS.astype(np.float32)), ABOUT)
    assert_whole(shard)
    assert (opened(shard).pooled.dtype, opened(shard).tokens.dtype) == (np.float32, np.float16)


def test_the_files_are_numpy_s(shard):
    np.testing.assert_array_equal(np.load(shard.with_suffix(".pooled.npy")), POOLED)
    np.testing.assert_array_equal(np.load(shard.with_suffix(".tokens.npy")), TOKENS)


def test_many_threads_open_shards_at_once(shard):
    """Python's parser, which np.load uses, does not always survive this."""
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: opened(shard), range(1000)))
    assert all(np.array_equal(each.tokens, TOKENS) for each in found)


def test_arrays_of_two_writers_do_not_make_a_shard(shard, tmp_path):
    other = tmp_path / "other"
    write_shard(other, POOLED + 1, TOKENS, ABOUT)
    os.replace(other.with_suffix(".pooled.npy"), shard.with_suffix(".pooled.npy"))
    with pytest.raises(Damaged, match=r"pooled\.npy is not as it was written"):
        opened(shard)


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EMFILE])
def test_want_of_memory_maps_is_no_damage(shard, number, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(np, "memmap", refuse)
    with pytest.raises(HistoCLIPError, match=r"vm\.max_map_count"):
        opened(shard)


# Writing


def test_writing_again_repairs(shard):
    shard.with_suffix(".tokens.npy").write_bytes(b"half")
    write_shard(shard, POOLED, TOKENS, ABOUT)
    assert_whole(shard)


@pytest.mark.parametrize("stopped_at", SUFFIXES)
def test_a_writer_that_is_stopped_leaves_no_marker(shard, monkeypatch, stopped_at):
    replace = os.replace

    def stop(source, target):
        if str(target).endswith(stopped_at):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("os.replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_shard(shard, POOLED + 1, TOKENS, ABOUT)
    assert opened(shard) is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("at", [0, 200, 300])  # in the first array, and in the second
def test_a_full_disk_is_named_and_nothing_is_left(tmp_path, monkeypatch, number, at):
    summing = shards._Summing.write

    def fill(self, data):
        if self.length + len(data) > at:
            raise OSError(number, os.strerror(number))
        return summing(self, data)

    monkeypatch.setattr(shards._Summing, "write", fill)
    with pytest.raises(HistoCLIPError) as caught:
        write_shard(tmp_path / "shard", POOLED, TOKENS, ABOUT)
    assert f"{tmp_path}: cannot be written ({os.strerror(number)})" in str(caught.value)
    assert f"({POOLED.nbytes + TOKENS.nbytes:,} bytes) are to be written" in str(caught.value)
    assert "HISTOCLIP_CACHE" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# Locks


def test_two_holders_take_turns(tmp_path):
    path, inside, most = tmp_path / "new" / "shard", [], []

    def work():
        for _ in range(5):
            with locked(path):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.01)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 15
    assert list(path.parent.iterdir()) == []


def test_a_lock_that_is_not_given_back_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "LOCK_PATIENCE", 0.2)
    named = pytest.raises(HistoCLIPError, match=r"shard\.lock: another process has held")
    with locked(tmp_path / "shard"), named, locked(tmp_path / "shard"):
        pass


def test_a_failed_holder_leaves_no_lock(tmp_path):
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / "shard"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_lock_where_nothing_can_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HistoCLIPError, match="cannot be written"), locked(tmp_path / "file" / "shard"):
        pass
