"""PanNuke as arrays: ids, counts kept in a table, large masks in little memory, faulty files."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.lib.format import open_memmap
from pannuke_files import load_small, write_fold

from histoclip_lib.common.cache import cached_items
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.data.checks import check_images
from histoclip_lib.data.pannuke import arrays as pannuke_arrays
from histoclip_lib.data.pannuke.arrays import CLASSES, count_nuclei
from histoclip_lib.data.pannuke.layouts import load_pannuke

SIZE = 256
BYTES = b"gr\xfcn".decode(errors="surrogateescape")


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int16, np.uint16, np.int64])
def test_ids_are_compared_as_stored(tmp_path, dtype):
    masks = np.zeros((3, 32, 32, 6), dtype=dtype)
    masks[0, :4, :4, 0], masks[0, 8:12, :4, 0] = 3517, 3517 - 256  # equal modulo 256
    masks[1, :4, :4, 3] = 256  # 0 modulo 256
    masks[2, ..., 5] = 1  # background is no class
    write_fold(tmp_path, masks=masks, images=np.full((3, 32, 32, 3), 255, dtype=dtype))
    dataset = load_small(tmp_path)
    assert count_nuclei(tmp_path / "fold1/masks.npy")[0, 0] == 2
    assert dataset.labels.tolist() == [[1, 0, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]]
    assert dataset.image(0).dtype == np.uint8
    assert dataset.image(0).min() == 255
    assert dataset.mask(1)[0, 0] == 4
    assert dataset.mask(2).max() == 0
    assert load_small(tmp_path, min_nuclei=2).labels.tolist() == [[1, 0, 0, 0, 0], [0] * 5, [0] * 5]


def test_counts_are_kept_until_the_masks_change(tmp_path, monkeypatch):
    write_fold(tmp_path)
    assert load_small(tmp_path).labels.sum() == 0
    table = next((tmp_path / "cache/pannuke").iterdir())
    assert pd.read_csv(table).columns.tolist() == list(CLASSES)

    def refuse(*_):
        raise AssertionError("counted again")

    with monkeypatch.context() as patch:
        patch.setattr(pannuke_arrays, "count_nuclei", refuse)
        assert load_small(tmp_path).labels.sum() == 0

    write_fold(tmp_path, masks=np.ones((3, 32, 32, 6)))
    os.utime(tmp_path / "fold1/masks.npy", ns=(1, 1))  # the size is the same: the time tells
    assert load_small(tmp_path).labels.all()
    assert all(path.suffix == ".csv" for path in (tmp_path / "cache/pannuke").iterdir())


def test_interrupted_counting_leaves_no_table(tmp_path, monkeypatch):
    write_fold(tmp_path)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load_small(tmp_path)
    assert not list((tmp_path / "cache/pannuke").glob("*.csv"))
    assert len(load_small(tmp_path)) == 3


def test_array_digests_follow_the_file(tmp_path):
    write_fold(tmp_path)
    source = load_small(tmp_path).source
    before = [source.digest(index) for index in range(3)]
    assert len(set(before)) == 3
    os.utime(tmp_path / "fold1/images.npy", ns=(1, 1))
    assert not set(before) & {source.digest(index) for index in range(3)}


def test_default_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HISTOCLIP_CACHE", str(tmp_path / "kept"))
    write_fold(tmp_path / "data")
    load_pannuke(tmp_path / "data")
    assert len(list((tmp_path / "kept").rglob("counts-*.csv"))) == 1
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HISTOCLIP_CACHE", str(tmp_path / "file"))
    with pytest.raises(HistoCLIPError, match="HISTOCLIP_CACHE"):
        load_pannuke(tmp_path / "data")


MEASURE = """
import sys
from pathlib import Path
from histoclip_lib.data.pannuke.arrays import count_nuclei

def peak_mib():  # of this process alone; ru_maxrss would start from the parent's
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

before = peak_mib()
counts = count_nuclei(Path(sys.argv[1]))
print(peak_mib() - before, counts.sum())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_counting_needs_little_memory(tmp_path):
    """500 MB of masks, sparse on disk, are counted within 250 MiB (the real 8.4 GB likewise)."""
    masks = open_memmap(tmp_path / "masks.npy", mode="w+", dtype=np.float64, shape=(160, SIZE, SIZE, 6))
    masks[::40, :8, :8, 2] = 3517
    del masks
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "masks.npy")]
    growth, total = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert float(total) == 4
    assert float(growth) < 250


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"images": np.zeros((3, 32, 32))}, r"images.npy: shape \(3, 32, 32\), expected \(B, H, W, 3\)"),
        ({"images": np.zeros((3, 3, 32, 32))}, r"expected \(B, H, W, 3\)"),
        ({"masks": np.zeros((3, 32, 32, 5))}, r"masks.npy: shape \(3, 32, 32, 5\), expected \(B, H, W, 6\)"),
        ({"masks": np.zeros((3, 32, 32))}, r"expected \(B, H, W, 6\)"),
        ({"masks": np.zeros((2, 32, 32, 6))}, "3 patches, .* 2 and .* 3"),
        ({"masks": np.zeros((3, 64, 64, 6))}, "shape .3, 32, 32, 3., but"),
        ({"types": np.array(["Breast", "Colon"])}, "3 patches, .* 3 and .* 2"),
        ({"types": np.array([["Breast"]] * 3)}, r"types.npy: shape \(3, 1\)"),
        ({"types": np.array([1, 2, 3])}, "types.npy: dtype int64, expected text"),
        ({"types": np.array(["Breast", "Colon", None], dtype=object)}, "types.npy .*dtype object"),
        ({"masks": np.zeros((3, 32, 32, 6), dtype=object)}, "masks.npy .*dtype object"),
        ({"masks": np.zeros((3, 32, 32, 6), dtype=complex)}, "masks.npy: dtype complex128"),
        ({"images": np.full((3, 32, 32, 3), 0.5)}, "between 0 and 1"),
        ({"images": np.zeros((3, 32, 32, 3), dtype="datetime64[s]")}, "images.npy: dtype datetime64"),
        ({"images": np.zeros((3, 32, 32, 3), dtype=[("r", float)])}, "images.npy: dtype"),
        ({"images": np.float64(3)}, r"images.npy: shape \(\), expected"),
        ({"types": np.array(["Breast", BYTES, "Colon"])}, "types.npy: contains invalid Unicode"),
        ({"types": np.full(3, 0x110000, dtype=np.uint32).view("<U1")}, "types.npy: contains invalid Unicode"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, replaced, message):
    write_fold(tmp_path, **replaced)
    with pytest.raises(HistoCLIPError, match=message):
        load_small(tmp_path)


def test_pickles_are_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    write_fold(tmp_path, types=np.array([Bomb()] * 3, dtype=object))
    with pytest.raises(HistoCLIPError):
        load_small(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_all_faults_are_listed(tmp_path):
    write_fold(tmp_path, 1, masks=np.zeros((3, 32, 32, 5)), types=np.array(["a"] * 3, dtype=object))
    write_fold(tmp_path, 2, images=np.zeros((4, 32, 32, 3)))
    truncated = tmp_path / "fold2/masks.npy"
    truncated.write_bytes(truncated.read_bytes()[:-100])
    with pytest.raises(HistoCLIPError) as caught:
        load_small(tmp_path)
    for offender in ("fold1/masks.npy: shape", "fold1/types.npy", "fold2/masks.npy"):
        assert offender in str(caught.value)


def test_values_out_of_range_are_refused_where_read(tmp_path):
    write_fold(tmp_path, images=np.full((3, 32, 32, 3), 300.0))
    with pytest.raises(HistoCLIPError, match=r"300\.0, expected 0 to 255"):
        load_small(tmp_path).image(1)


def test_arrays_in_any_order_of_bytes_and_axes_give_the_same(tmp_path):
    rng = np.random.default_rng(0)
    images, masks = rng.integers(0, 256, (3, 32, 40, 3)).astype(float), rng.integers(0, 3, (3, 32, 40, 6)).astype(float)
    write_fold(tmp_path / "plain", images=images, masks=masks)
    write_fold(tmp_path / "fortran", images=np.asfortranarray(images), masks=np.asfortranarray(masks))
    write_fold(tmp_path / "big", images=images.astype(">f8"), masks=masks.astype(">i4"))
    plain, *others = (load_small(tmp_path / name) for name in ("plain", "fortran", "big"))
    for other in others:
        assert np.array_equal(other.labels, plain.labels)
        assert all(np.array_equal(other.image(row), plain.image(row)) for row in range(3))
        assert all(np.array_equal(other.mask(row), plain.mask(row)) for row in range(3))


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_every_mask_with_invalid_ids_is_listed(tmp_path, value):
    masks = np.zeros((40, 32, 32, 6))
    masks[3, 0, 0, 0] = masks[25, 5, 5, 4] = value
    write_fold(tmp_path, n=40, masks=masks)
    with pytest.raises(HistoCLIPError, match=r"(?s)2 of 40 patches.*patch 3: ids from.*patch 25: ids from"):
        load_small(tmp_path)
    assert not list((tmp_path / "cache").rglob("*.csv"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 256.0])
def test_every_image_with_invalid_values_is_listed(tmp_path, value):
    images = np.full((4, 32, 32, 3), 200.0)
    images[1, 0, 0, 0] = images[3, 9, 9, 2] = value
    write_fold(tmp_path, n=4, images=images)
    with pytest.raises(HistoCLIPError, match=r"(?s)2 of 4 .*fold1/00001: .*expected 0 to 255.*fold1/00003: "):
        check_images(load_small(tmp_path), progress=False)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"no array",
        b"\x93NUMPY\x01\x00\x0a\x00{'descr': \n",
        b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
        b"\x93NUMPY\x09\x00",
        b"PK\x03\x04",
    ],
)
def test_files_that_are_not_arrays_are_refused(tmp_path, content):
    write_fold(tmp_path)
    for name in ("images", "masks", "types"):
        write_fold(tmp_path)
        (tmp_path / f"fold1/{name}.npy").write_bytes(content)
        with pytest.raises(HistoCLIPError, match=rf"{name}\.npy cannot be read as an array"):
            load_small(tmp_path)


def test_an_archive_of_arrays_is_no_array(tmp_path):
    write_fold(tmp_path)
    np.savez(tmp_path / "many.npz", images=np.zeros((3, 32, 32, 3)))
    (tmp_path / "many.npz").replace(tmp_path / "fold1/images.npy")
    with pytest.raises(HistoCLIPError, match=r"images\.npy cannot be read as an array"):
        load_small(tmp_path)


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_an_array_header_larger_than_the_file_is_refused(tmp_path):
    folder = write_fold(tmp_path)
    for shape in ((10**9, 32, 32, 3), (-3, 32, 32, 3), (3, 2**62, 32, 3), (True, 32, 32, 3)):
        with (folder / "images.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
        with pytest.raises(HistoCLIPError, match=r"images\.npy"):
            load_small(tmp_path)


def test_patches_as_large_as_slides_are_refused_unread(tmp_path):
    folder = write_fold(tmp_path, n=1)
    for name, channels in (("images", 3), ("masks", 6)):
        open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.uint8, shape=(1, 4001, 4001, channels))
    with pytest.raises(HistoCLIPError, match="a patch has at most 16,000,000 pixels"):
        load_small(tmp_path)


HEADER = ",".join(CLASSES)


@pytest.mark.parametrize(
    "content",
    ["", "no table", "neoplastic\n1\n", f"{HEADER}\n1,1,1,1,1\n", HEADER + "\n1,1,1,1,-1" * 3, "\0"],
)
def test_a_damaged_table_of_counts_is_counted_again(tmp_path, content):
    write_fold(tmp_path)
    load_small(tmp_path)
    table = next((tmp_path / "cache/pannuke").iterdir())
    good = table.read_text()
    table.write_text(content)
    assert load_small(tmp_path).labels.sum() == 0
    assert table.read_text() == good


def test_a_table_of_counts_is_kept_in_the_cache_while_it_is_used(tmp_path):
    write_fold(tmp_path)
    load_small(tmp_path)
    table = next((tmp_path / "cache/pannuke").iterdir())
    os.utime(table, (1e9, 1e9))
    load_small(tmp_path)
    assert cached_items(tmp_path / "cache")[0].idle < 1
