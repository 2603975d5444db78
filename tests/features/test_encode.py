"""Features: encoded once, in every view, and never read from a shard that is stale or half written."""

import errno
import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import threading
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clip import tiny_clip

from histoclip_lib.clip.encoder import CLIP
from histoclip_lib.common import files
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.features import encode as features
from histoclip_lib.features import store as shards
from histoclip_lib.features.encode import encode_dataset
from histoclip_lib.features.reader import view_of
from histoclip_lib.features.store import open_features

SHARD_SIZE = 4


@dataclass(frozen=True)
class Pixels:
    """Patches that lie in memory."""

    images: np.ndarray

    def image(self, index):
        return self.images[index]

    def digest(self, index):
        return hashlib.sha256(self.images[index].tobytes()).hexdigest()


def patches(n=10, name="made", changed=None):
    images = np.random.default_rng(0).integers(0, 256, (n, 40, 40, 3), dtype=np.uint8)
    if changed is not None:
        images[changed] = 255 - images[changed]
    files = [f"{index}.png" for index in range(n)]
    return PatchDataset(name, ["a"], files, np.zeros((n, 1), np.uint8), Pixels(images))


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_SIZE", SHARD_SIZE)


@pytest.fixture
def passes(monkeypatch):
    """How many images went through the encoder in each call."""
    counts = []
    encode = CLIP.encode_images

    def counting(self, images):
        counts.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(CLIP, "encode_images", counting)
    return counts


@pytest.fixture
def encode(tmp_path):
    def run(clip, dataset, **options):
        options = {"workers": 0, "cache": tmp_path, "progress": False, "batch_size": 3} | options
        return encode_dataset(clip, dataset, **options)

    return run


def everything(shards):
    return np.concatenate(shards.pieces)


def stop_after(monkeypatch, calls):
    """Let the encoder fail as if the user had stopped the run."""
    encode, count = CLIP.encode_images, itertools.count()

    def failing(self, images):
        if next(count) == calls:
            raise KeyboardInterrupt
        return encode(self, images)

    monkeypatch.setattr(CLIP, "encode_images", failing)


# Encoding


@pytest.mark.parametrize("views", [0, 9, -1])
def test_number_of_views_is_checked(encode, clip, views):
    with pytest.raises(HistoCLIPError, match=f"views: {views} is out of range"):
        encode(clip, patches(), views=views)


@pytest.mark.parametrize("views", [1, 8])
def test_features_are_what_the_encoder_gives_for_each_view(encode, clip, views):
    dataset = patches()
    result = encode(clip, dataset, views=views)
    images = torch.stack([clip.resize(Image.fromarray(dataset.image(index))) for index in range(len(dataset))])
    assert result.pooled.shape == (10, views, 12)
    assert result.tokens.shape == (10, views, 16, 12)
    for view in range(views):
        pooled, tokens = clip.encode_images(view_of(images, view))
        np.testing.assert_allclose(everything(result.pooled)[:, view], pooled, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(everything(result.tokens)[:, view], tokens, rtol=2e-3, atol=1e-3)
    assert everything(result.pooled).dtype == np.float32
    assert everything(result.tokens).dtype == np.float16


def test_features_are_read_as_memory_maps(encode, clip):
    result = encode(clip, patches())
    assert [len(piece) for piece in result.pooled.pieces] == [4, 4, 2]
    assert all(isinstance(piece, np.memmap) for piece in result.pooled.pieces + result.tokens.pieces)


def test_what_is_in_the_result(encode, clip):
    result = encode(clip, patches(), views=2)
    assert (result.n_views, result.grid, result.encoded) == (2, 4, 10)
    assert result.of_kind("global") is result.pooled
    assert result.of_kind("patch") is result.tokens
    assert "10 patches in 2 views, 16 tokens of width 12" in result.about()
    assert (
        "20 encoded images (patches times views), of which 20 in this notebook. One view would take 1/2"
        in result.about()
    )
    one_view = encode(clip, patches())
    assert "in 1 view," in one_view.about()
    assert "would take" not in one_view.about()


def test_workers_keep_the_order(encode, clip, tmp_path):
    alone = encode(clip, patches(), cache=tmp_path / "alone")
    helped = encode(clip, patches(), cache=tmp_path / "helped", workers=2)
    np.testing.assert_array_equal(everything(alone.pooled), everything(helped.pooled))
    np.testing.assert_array_equal(everything(alone.tokens), everything(helped.tokens))


def test_a_worker_tells_of_a_broken_image_in_its_own_words(encode, clip):
    class Broken(Pixels):
        def image(self, index):
            raise HistoCLIPError("a.png: cannot be decoded.")

    dataset = patches(1)
    with pytest.raises(HistoCLIPError, match=r"^a.png: cannot be decoded.$"):
        encode(clip, replace(dataset, source=Broken(dataset.source.images)), workers=1)


def test_the_environment_names_the_cache(encode, clip, tmp_path, monkeypatch):
    monkeypatch.setenv("HISTOCLIP_CACHE", str(tmp_path / "named"))
    encode(clip, patches(2), cache=None)
    assert len(list((tmp_path / "named" / "features").rglob("*.json"))) == 1


@pytest.mark.parametrize("which", ["pooled", "tokens"])
def test_features_that_are_not_finite_are_refused_and_not_kept(encode, clip, tmp_path, monkeypatch, which):
    encode_images = CLIP.encode_images

    def overflowing(self, images):
        pooled, tokens = encode_images(self, images)
        return (pooled / 0, tokens) if which == "pooled" else (pooled, tokens * 1e6)

    monkeypatch.setattr(CLIP, "encode_images", overflowing)
    with pytest.raises(HistoCLIPError, match="backbone tiny-vit: features are not finite"):
        encode(clip, patches(2))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# The cache


def test_a_second_run_encodes_nothing(encode, clip, passes):
    first = encode(clip, patches(), views=2)
    assert sum(passes) == 20
    passes.clear()
    second = encode(clip, patches(), views=2)
    assert passes == []
    assert second.encoded == 0
    np.testing.assert_array_equal(everything(first.tokens), everything(second.tokens))


def test_a_changed_image_encodes_its_shard_alone(encode, clip, passes, tmp_path):
    encode(clip, patches())
    passes.clear()
    dataset = patches(changed=5)
    result = encode(clip, dataset)
    assert sum(passes) == result.encoded == SHARD_SIZE
    expected = encode(clip, dataset, cache=tmp_path / "fresh")
    np.testing.assert_array_equal(everything(result.pooled), everything(expected.pooled))


def test_more_patches_encode_the_last_shard_and_the_new_ones(encode, clip):
    encode(clip, patches(10))
    images = np.concatenate([patches(10).source.images, patches(3, changed=[0, 1, 2]).source.images])
    longer = replace(patches(13), source=Pixels(images))
    assert encode(clip, longer).encoded == 5


def test_other_weights_views_or_precision_encode_anew_and_the_first_stay(encode, clip, passes):
    encode(clip, patches())
    for other, views in (
        (tiny_clip(seed=1), 1),
        (tiny_clip(quick_gelu=True), 1),
        (replace(clip, amp_dtype=torch.bfloat16), 1),
        (clip, 2),
    ):
        passes.clear()
        assert encode(other, patches(), views=views).encoded == 10
        assert sum(passes) == 10 * views
    passes.clear()
    encode(clip, patches())
    assert passes == []


def test_the_same_pixels_under_another_name_are_found(encode, clip):
    encode(clip, patches(name="one"))
    assert encode(clip, patches(name="other"), batch_size=2).encoded == 0


def test_an_interrupted_run_goes_on_with_what_is_missing(encode, clip, tmp_path, monkeypatch):
    expected = everything(encode(clip, patches(12), cache=tmp_path / "fresh").pooled)
    with monkeypatch.context() as patch:
        stop_after(patch, calls=3)  # a shard of 4 is a batch of 3 and one of 1: the first shard is whole
        with pytest.raises(KeyboardInterrupt):
            encode(clip, patches(12), cache=tmp_path / "stopped")
    again = encode(clip, patches(12), cache=tmp_path / "stopped")
    assert again.encoded == 8
    np.testing.assert_array_equal(everything(again.pooled), expected)


@pytest.mark.parametrize("stopped_at", [".pooled.npy", ".tokens.npy", ".json"])
def test_a_half_written_shard_is_never_read(encode, clip, tmp_path, monkeypatch, stopped_at):
    dataset = patches(SHARD_SIZE)
    expected = encode(clip, dataset, cache=tmp_path / "fresh")
    real_replace = os.replace

    def stop(source, target):
        if str(target).endswith(stopped_at):
            raise KeyboardInterrupt
        real_replace(source, target)

    cache = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", stop)
        with pytest.raises(KeyboardInterrupt):
            encode(clip, dataset, cache=cache)
    left = [path for path in cache.rglob("*") if path.is_file()]
    assert all(path.suffix == ".npy" and not path.name.startswith(".") for path in left)
    for path in left:  # what the broken run left may be anything
        path.write_bytes(b"half")
    result = encode(clip, dataset, cache=cache)
    assert result.encoded == SHARD_SIZE
    np.testing.assert_array_equal(everything(result.pooled), everything(expected.pooled))
    np.testing.assert_array_equal(everything(result.tokens), everything(expected.tokens))


# Opening again without the encoder


def reopen(found, n_patches=10, views=1):
    return open_features(found.folder, found.names, n_patches, views)


def test_features_are_opened_again_from_their_names_without_reading_the_arrays(encode, clip, passes, monkeypatch):
    found = encode(clip, patches(), views=2)
    passes.clear()
    monkeypatch.setattr(shards, "_sum_of", lambda path: pytest.fail("an array was read"))
    again = reopen(found, views=2)
    assert (again.encoded, again.folder, again.names, passes) == (0, found.folder, found.names, [])
    np.testing.assert_array_equal(everything(again.pooled), everything(found.pooled))
    np.testing.assert_array_equal(everything(again.tokens), everything(found.tokens))


@pytest.mark.parametrize("damage", ["missing", "cut", "garbled marker"])
def test_shards_that_are_gone_or_cut_are_not_opened_again(encode, clip, damage):
    found = encode(clip, patches())
    path = found.folder / found.names[1]
    if damage == "missing":
        path.with_suffix(".json").unlink()
    else:
        file = path.with_suffix(".tokens.npy" if damage == "cut" else ".json")
        file.write_bytes(file.read_bytes()[:-1])
    with warnings.catch_warnings(), pytest.raises(HistoCLIPError, match=f"missing. Encode.*\n  - {found.names[1]}"):
        warnings.simplefilter("ignore")
        reopen(found)


@pytest.mark.parametrize(("n_patches", "views"), [(9, 1), (13, 1), (10, 2)])
def test_features_of_another_number_of_patches_or_views_are_not_opened(encode, clip, n_patches, views):
    found = encode(clip, patches())
    with warnings.catch_warnings(), pytest.raises(HistoCLIPError, match="Encode them again"):
        warnings.simplefilter("ignore")
        reopen(found, n_patches, views)


# Damage, want of room, and other processes


def shard_files(folder):
    return sorted(path for path in folder.rglob("*") if path.suffix in (".npy", ".json"))


@pytest.mark.parametrize("which", [0, 4, 8])  # three shards of three files: a marker, pooled features, tokens
@pytest.mark.parametrize("damage", ["changed", "cut", "empty", "gone"])
def test_a_damaged_shard_is_encoded_again_with_a_warning(encode, clip, tmp_path, which, damage):
    expected = encode(clip, patches())
    expected = everything(expected.pooled).copy(), everything(expected.tokens).copy()
    path = shard_files(tmp_path)[which]
    content = path.read_bytes()
    path.unlink()
    if damage == "changed":
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = encode(clip, patches())
    assert result.encoded == len(np.load(path.with_suffix("").with_suffix(".pooled.npy")))
    np.testing.assert_array_equal(everything(result.pooled), expected[0])
    np.testing.assert_array_equal(everything(result.tokens), expected[1])
    [text] = [str(warning.message) for warning in said] or [""]
    if not (path.suffix == ".json" and damage == "gone"):  # without a marker there is no shard that could be damaged
        assert "1 of 3 shards of the feature cache are damaged" in text
        assert str(path) in text
    assert encode(clip, patches()).encoded == 0


def test_nothing_is_encoded_where_its_features_find_no_room(encode, clip, tmp_path, monkeypatch, passes):
    needed = 10 * (12 * 4 + 16 * 12 * 2)
    for free, fits in ((needed - 1, False), (needed, True)):
        monkeypatch.setattr("shutil.disk_usage", lambda path, free=free: shutil._ntuple_diskusage(10**9, 0, free))
        if fits:
            assert encode(clip, patches()).encoded == 10
            break
        with pytest.raises(HistoCLIPError) as caught:
            encode(clip, patches())
        assert f"({needed:,} bytes) are to be written there" in str(caught.value)
        assert str(tmp_path) in str(caught.value)
        assert "HISTOCLIP_CACHE" in str(caught.value)
        assert passes == [3]  # the batch that showed the size
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_disk_that_fills_up_keeps_the_finished_shards(encode, clip, tmp_path, monkeypatch):
    expected = everything(encode(clip, patches(), cache=tmp_path / "fresh").pooled)
    write, count = shards._Summing.write, itertools.count()

    def fill(self, data):
        if next(count) >= 6:  # each array is a header and a block: the first shard fits
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(shards._Summing, "write", fill)
        with pytest.raises(HistoCLIPError, match="No space left on device"):
            encode(clip, patches(), cache=tmp_path / "full")
    assert len([path for path in (tmp_path / "full").rglob("*") if path.is_file()]) == 3
    again = encode(clip, patches(), cache=tmp_path / "full")
    assert again.encoded == 6
    np.testing.assert_array_equal(everything(again.pooled), expected)


def test_a_small_disk_that_fills_up_keeps_what_fits(encode, clip, tmp_path):
    """A real one, of seven pages; each file takes one, so that the third shard finds no room."""
    (disk := tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=28k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        with pytest.raises(
            HistoCLIPError, match=rf"{disk}.*cannot be written \(No space left on device\).*HISTOCLIP_CACHE"
        ):
            encode(clip, patches(), cache=disk)
        kept = [path for path in disk.rglob("*") if path.is_file()]
        assert sorted(path.suffix for path in kept) == [".json"] * 2 + [".npy"] * 4
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        again = encode(clip, patches(), cache=disk)
        assert again.encoded == 2
        expected = encode(clip, patches(), cache=tmp_path / "fresh")
        np.testing.assert_array_equal(everything(again.tokens), everything(expected.tokens))
        del again
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_cache_that_cannot_be_written_is_named_before_anything_is_encoded(
    encode, clip, tmp_path, monkeypatch, passes, number
):
    def refuse(self, *arguments, **options):
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr("pathlib.Path.touch", refuse)
    with pytest.raises(
        HistoCLIPError, match=rf"features.*cannot be written \({os.strerror(number)}\).*HISTOCLIP_CACHE"
    ):
        encode(clip, patches())
    assert passes == []


def test_a_file_in_the_place_of_the_cache_is_named(encode, clip, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HistoCLIPError, match="cannot be written"):
        encode(clip, patches(), cache=tmp_path / "file")


def test_a_cache_of_others_can_be_read(encode, clip, monkeypatch):
    expected = everything(encode(clip, patches()).pooled).copy()

    def refuse(self, *arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.touch", refuse)
    np.testing.assert_array_equal(everything(encode(clip, patches()).pooled), expected)


def test_too_little_memory_on_the_gpu_names_the_batch_size(encode, clip, tmp_path, monkeypatch):
    def refuse(self, images):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")

    monkeypatch.setattr(CLIP, "encode_images", refuse)
    with pytest.raises(HistoCLIPError, match=r"encode_batch_size: 4 images at once.*tiny-vit\)\. Set it to 2"):
        encode(clip, patches(), batch_size=64)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_shard_that_another_process_finished_meanwhile_is_not_encoded(encode, clip, tmp_path, monkeypatch, passes):
    """The other one finishes the second shard while this one encodes the first."""
    expected = everything(encode(clip, patches(), cache=tmp_path / "fresh").pooled)
    passes.clear()
    holding = shards.locked

    @contextmanager
    def overtaken(path):
        if not list(path.parent.glob("*.json")):
            with monkeypatch.context() as patch:
                patch.setattr(features, "locked", holding)
                encode(
                    clip,
                    replace(
                        patches(),
                        files=patches().files[4:8],
                        labels=patches().labels[4:8],
                        source=Pixels(patches().source.images[4:8]),
                    ),
                    cache=path.parents[2],
                )
        with holding(path):
            yield

    monkeypatch.setattr(features, "locked", overtaken)
    result = encode(clip, patches(), cache=tmp_path / "shared")
    assert result.encoded == 6
    assert sum(passes) == 10
    np.testing.assert_array_equal(everything(result.pooled), expected)


def test_two_encoders_at_once_encode_each_shard_once(clip, tmp_path, passes):
    dataset = patches(40)
    results = []

    def work():
        results.append(encode_dataset(clip, dataset, batch_size=3, workers=0, cache=tmp_path, progress=False))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(passes) == sum(result.encoded for result in results) == 40
    assert len({everything(result.tokens).tobytes() for result in results}) == 1


def test_temporary_files_of_killed_processes_are_removed_when_encoding_starts(encode, clip, tmp_path):
    encode(clip, patches(4))
    folder = next(tmp_path.rglob("*.json")).parent
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    left = files.temporary_beside(folder / "x.npy", ".tmp.npy")
    dead = left.with_name(left.name.replace(f".{os.getpid()}.", f".{int(gone.stdout)}."))
    dead.write_bytes(b"half")
    encode(clip, patches(4))
    assert dead.exists()  # nothing is missing: the folder is not listed
    encode(clip, patches(8))
    assert not dead.exists()


def test_batches_do_not_cross_the_border_of_a_shard(encode, clip, passes):
    encode(clip, patches(), batch_size=3)
    assert passes == [3, 1, 3, 1, 2]


def test_the_default_backbone_on_the_real_patches(lite0, encode, shared_data):
    paths = sorted((shared_data / "pannuke" / "images").glob("*.png"))[:5]
    images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    result = encode(lite0, replace(patches(5), source=Pixels(images)))
    assert (result.pooled.shape, result.tokens.shape, result.grid) == ((5, 1, 384), (5, 1, 49, 384), 7)
    pooled, tokens = result.pooled.take(np.arange(5)), result.tokens.take(np.arange(5))
    np.testing.assert_allclose(tokens.mean(axis=1, dtype=np.float32), pooled, atol=0.01 * np.abs(pooled).max())
