"""PanNuke: real counts, every layout from real patches, folds and where they are missing."""

import hashlib
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pannuke_files import load_small, png, write_fold
from PIL import Image

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.data.pannuke.layouts import labels_from_counts, load_pannuke
from histoclip_lib.data.pannuke.parquet import TISSUES
from histoclip_lib.data.splits import split_dataset

COUNT_COLUMNS = ["Neoplastic", "Inflammatory", "Connective", "Dead", "Epithelial"]
SIZE = 256
PER_FOLD, N_TRAIN = 5, 8  # real patches of a fold at most, and of folds 1 and 2 together
ARRAY_LAYOUTS = {
    "official": ("Fold {n}/images/fold{n}", "Fold {n}/masks/fold{n}", 1),
    "no_space": ("Fold{n}/images/fold{n}", "Fold{n}/masks/fold{n}", 1),
    "zip_names": ("fold_{n}/Fold {n}/images/fold{n}", "fold_{n}/Fold {n}/masks/fold{n}", 1),
    "one_folder_less": ("Fold{n}/images", "Fold{n}/masks", 1),
    "flat": ("fold{n}", "fold{n}", 1),
    "flat_from_0": ("fold{n}", "fold{n}", 0),
    "below_another": ("PanNuke/data/fold{n}", "PanNuke/data/fold{n}", 0),
}


# Labels


def test_real_counts_give_the_known_labels(shared_data):
    tables = [pd.read_csv(shared_data / f"pannuke/cell_count_fold{fold}.csv") for fold in (1, 2, 3)]
    assert [len(table) for table in tables] == [2656, 2523, 2722]
    labels = labels_from_counts(pd.concat(tables)[COUNT_COLUMNS].to_numpy(), 1)
    assert labels.shape == (7901, 5)
    assert labels.sum(axis=0).tolist() == [4191, 4132, 6140, 232, 1528]
    assert (labels.sum(axis=1) == 0).sum() == 343
    assert len(np.unique(labels, axis=0)) == 27
    assert labels.mean() == pytest.approx(0.41066, abs=5e-6)  # mAcc of the all-positive predictor, eq. (6)


@given(arrays(np.int64, (7, 5), elements=st.integers(0, 300)), st.integers(1, 20))
def test_labels_need_min_nuclei(counts, min_nuclei):
    labels = labels_from_counts(counts, min_nuclei)
    assert labels.dtype == np.uint8
    assert (labels.astype(bool) == (counts >= min_nuclei)).all()


# Layouts, from real patches


def paint_instances(counts: np.ndarray) -> np.ndarray:
    """Masks with as many 5x5 nuclei as `counts` says, ids of the size that real ones have."""
    masks = np.zeros((len(counts), SIZE, SIZE, 6))
    for patch, row in enumerate(counts):
        channels = np.repeat(np.arange(5), row)
        for nucleus, channel in enumerate(channels):
            y, x = divmod(nucleus, 36)
            masks[patch, 7 * y : 7 * y + 5, 7 * x : 7 * x + 5, channel] = 3000 + 5 * nucleus
        masks[patch, ..., 5] = masks[patch, ..., :5].sum(axis=-1) == 0
    return masks


@pytest.fixture(scope="module")
def real(shared_data, tmp_path_factory):
    """Official folds 1 to 3 made of real patches; the third repeats the first two, since none is of fold 3."""
    table = pd.read_csv(shared_data / "pannuke/labels37.csv")
    assert len(table) == 37
    table = table.groupby("fold").head(PER_FOLD)
    folder = tmp_path_factory.mktemp("pannuke")
    folds = {}
    for fold, rows in ((1, table[table.fold == 1]), (2, table[table.fold == 2]), (3, table.iloc[:2])):
        images = np.stack([np.asarray(Image.open(shared_data / "pannuke/images" / name)) for name in rows.file])
        counts = rows[[f"n_{column}" for column in COUNT_COLUMNS]].to_numpy()
        (folder / str(fold)).mkdir()
        np.save(folder / str(fold) / "images.npy", images.astype(np.float64))
        np.save(folder / str(fold) / "masks.npy", paint_instances(counts))
        np.save(folder / str(fold) / "types.npy", rows.tissue.to_numpy().astype("<U13"))
        folds[fold] = (images, counts, rows.tissue.tolist())
    return folder, folds


def place(source: Path, root: Path, layout: str, folds: tuple[int, ...] = (1, 2, 3)) -> None:
    """Lay out the arrays; they are linked, since they are large."""
    images_form, masks_form, first = ARRAY_LAYOUTS[layout]
    for fold in folds:
        number = fold - 1 + first
        for name, form in (("images", images_form), ("types", images_form), ("masks", masks_form)):
            target = root / form.format(n=number) / f"{name}.npy"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source / str(fold) / f"{name}.npy")


def expect_real(dataset, folds):
    images, counts, tissue = (
        np.concatenate([folds[fold][0] for fold in folds]),
        np.concatenate([folds[fold][1] for fold in folds]),
        [name for fold in folds for name in folds[fold][2]],
    )
    assert dataset.classes == ["neoplastic", "inflammatory", "connective", "dead", "epithelial"]
    assert dataset.labels.tolist() == (counts >= 1).astype(int).tolist()
    assert dataset.tissue.tolist() == tissue
    assert dataset.groups is None
    assert dataset.files[0] == f"fold{next(iter(folds))}/00000"
    for index in (0, len(images) // 2, len(images) - 1):
        assert dataset.image(index).dtype == np.uint8
        assert np.array_equal(dataset.image(index), images[index])
        mask = dataset.mask(index)
        assert mask.dtype == np.uint8
        assert mask.shape == (SIZE, SIZE)
        pixels = np.bincount(mask.ravel(), minlength=6)[1:]
        assert pixels.tolist() == (25 * counts[index]).tolist()
    digests = [dataset.source.digest(index) for index in range(len(dataset))]
    assert digests == [dataset.source.digest(index) for index in range(len(dataset))]
    return digests


@pytest.mark.parametrize("layout", list(ARRAY_LAYOUTS))
def test_every_array_layout_loads(real, tmp_path, layout):
    folder, folds = real
    place(folder, tmp_path / "data", layout)
    dataset = load_pannuke(tmp_path / "data", follow_links=True, cache_dir=tmp_path / "cache")
    assert len(set(expect_real(dataset, folds))) == len(dataset)
    assert dataset.parts.tolist() == ["train"] * N_TRAIN + ["test"] * 2
    assert dataset.files[-1] == "fold3/00001"


def test_some_folds_have_no_official_parts(real, tmp_path):
    folder, folds = real
    place(folder, tmp_path, "official", folds=(2, 3))
    dataset = load_pannuke(tmp_path, follow_links=True, cache_dir=tmp_path / "cache")
    expect_real(dataset, {fold: folds[fold] for fold in (2, 3)})
    assert dataset.parts is None
    counts = np.concatenate([folds[2][1], folds[3][1]])
    linked = {"follow_links": True}
    many = load_pannuke(tmp_path, min_nuclei=18, **linked, cache_dir=tmp_path / "cache")
    assert many.labels.tolist() == (counts >= 18).astype(int).tolist()


def write_parquets(root: Path, folds: dict, folder: Path, name: str, shards: int = 1, rows: int = 10) -> None:
    """Write the schema of RationAI/PanNuke: Image, list of Image (mode 1), list of ClassLabel, ClassLabel."""
    cell = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    for fold, (images, counts, tissue) in folds.items():
        masks = np.load(folder / str(fold) / "masks.npy", mmap_mode="r")
        instances, categories = [], []
        for patch, row in zip(masks, counts, strict=True):
            categories.append(np.repeat(np.arange(5), row).tolist())
            ids = [(c, i) for c in range(5) for i in np.unique(patch[..., c]) if i]
            instances.append([png(patch[..., c] == i) for c, i in ids])
        table = pa.table(
            {
                "image": pa.array([png(image) for image in images], cell),
                "instances": pa.array(instances, pa.list_(cell)),
                "categories": pa.array(categories, pa.list_(pa.int64())),
                "tissue": pa.array([list(TISSUES).index(name) for name in tissue], pa.int64()),
            }
        )
        bounds = np.linspace(0, len(images), shards + 1).astype(int)
        for shard, (start, stop) in enumerate(pairwise(bounds)):
            path = root / name.format(fold=fold, shard=shard, shards=shards)
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table.slice(start, stop - start), path, row_group_size=rows)


@pytest.mark.parametrize(
    ("name", "shards"),
    [("data/fold{fold}-{shard:05d}-of-{shards:05d}.parquet", 2), ("default/fold{fold}/{shard:04d}.parquet", 1)],
)
def test_parquet_loads_like_the_arrays(real, tmp_path, name, shards):
    folder, folds = real
    write_parquets(tmp_path, folds, folder, name, shards)
    dataset = load_pannuke(tmp_path)
    digests = expect_real(dataset, folds)
    assert dataset.parts.tolist() == ["train"] * N_TRAIN + ["test"] * 2
    source = dataset.source
    assert digests[0] == hashlib.blake2b(source._cell(0, "image")["bytes"], digest_size=16).hexdigest()
    assert digests[N_TRAIN] == digests[0]  # the third fold repeats these pixels: bytes count, not places


@pytest.mark.parametrize("form", ["arrays", "parquet"])
def test_sources_are_pickled_without_their_arrays(real, tmp_path, form):
    """Worker processes get the source by pickle and open the files themselves."""
    folder, folds = real
    if form == "arrays":
        place(folder, tmp_path, "official", folds=(2, 3))
    else:
        write_parquets(tmp_path, {fold: folds[fold] for fold in (2, 3)}, folder, "fold{fold}.parquet")
    source = load_pannuke(tmp_path, follow_links=True, cache_dir=tmp_path / "cache").source
    source.image(0), source.mask(0)  # what these open must not be pickled
    pickled = pickle.dumps(source)
    assert len(pickled) < 5000
    copy = pickle.loads(pickled)
    assert np.array_equal(copy.image(4), source.image(4))
    assert np.array_equal(copy.mask(4), source.mask(4))
    assert copy.digest(4) == source.digest(4)


# Errors


def test_missing_data_say_where_to_get_them(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(HistoCLIPError, match="Warwick TIA Centre") as caught:
            load_pannuke(folder)
        assert "CC BY-NC-SA 4.0" in str(caught.value)
        assert "Fold 1/images/fold1/images.npy" in str(caught.value)
    folder = write_fold(tmp_path)
    (folder / "masks.npy").unlink()
    (folder / "types.npy").unlink()
    with pytest.raises(HistoCLIPError, match="missing") as caught:
        load_small(tmp_path)
    assert str(folder / "masks.npy") in str(caught.value)
    assert str(folder / "types.npy") in str(caught.value)


def test_folds_that_cannot_be_told_are_refused(tmp_path):
    write_fold(tmp_path / "four", 0)
    write_fold(tmp_path / "four", 3)
    with pytest.raises(HistoCLIPError, match="0 to 2"):
        load_small(tmp_path / "four")
    write_fold(tmp_path / "none", 1).rename(tmp_path / "none/patches")
    with pytest.raises(HistoCLIPError, match="no fold"):
        load_small(tmp_path / "none")
    write_fold(tmp_path / "two/fold1", 2)
    with pytest.raises(HistoCLIPError, match="1 and 2"):
        load_small(tmp_path / "two")
    write_fold(tmp_path / "twice/a")
    write_fold(tmp_path / "twice/b")
    with pytest.raises(HistoCLIPError, match="more than once"):
        load_small(tmp_path / "twice")


@pytest.mark.parametrize("form", ["arrays", "parquet"])
def test_a_fold_that_is_a_copy_of_another_is_refused_by_content(real, tmp_path, form):
    folder, folds = real
    copied = {1: folds[1], 2: folds[2], 3: folds[2]}
    if form == "parquet":
        (tmp_path / "arrays").mkdir()
        for fold, of in ((1, 1), (2, 2), (3, 2)):
            (tmp_path / f"arrays/{fold}").symlink_to(folder / str(of))
        write_parquets(tmp_path / "data", copied, tmp_path / "arrays", "fold{fold}.parquet")
    else:
        place(folder, tmp_path / "data", "flat", folds=(1, 2))
        (tmp_path / "data/fold3").symlink_to("fold2")
    with pytest.raises(HistoCLIPError, match="folds 2 and 3 hold the same images, as after a wrong download"):
        load_pannuke(tmp_path / "data", follow_links=True, cache_dir=tmp_path / "cache")


def test_a_copy_of_the_masks_alone_is_refused(tmp_path):
    masks = np.zeros((3, 32, 32, 6))
    masks[1, 3, 4, 0] = 7
    for fold in (1, 2):
        write_fold(tmp_path, fold, images=np.full((3, 32, 32, 3), 100.0 * fold), masks=masks)
    with pytest.raises(HistoCLIPError, match="folds 1 and 2 hold the same masks"):
        load_small(tmp_path)


def test_links_are_followed_out_of_the_folder_where_that_is_asked_for(tmp_path):
    write_fold(tmp_path / "store", 1)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/fold1").symlink_to(tmp_path / "store/fold1")
    with pytest.raises(HistoCLIPError, match=r"1 files are outside; a link leads there.* `follow_links: true`"):
        load_small(tmp_path / "data")
    assert len(load_small(tmp_path / "data", follow_links=True)) == 3


def test_a_split_that_cannot_be_made_names_what_pannuke_lacks(tmp_path):
    write_fold(tmp_path, 2)
    dataset = load_small(tmp_path)
    with pytest.raises(HistoCLIPError, match=r"no groups.* Its patients are not published\. Or use split: random"):
        split_dataset(dataset, "grouped", 0)
    with pytest.raises(HistoCLIPError, match=r"needs folds 1, 2 and 3; found: 2\. Or use split: random"):
        split_dataset(dataset, "given", 0)


def test_a_fold_of_another_official_size_is_refused(tmp_path):
    """`fold1` of the layout from 0 is the official Fold 2; alone, only its size tells."""
    n = 2523
    small = {"images": np.zeros((n, 2, 2, 3), np.uint8), "masks": np.zeros((n, 2, 2, 6), np.uint8)}
    write_fold(tmp_path, 1, n, **small)
    with pytest.raises(HistoCLIPError, match="read as fold 1, with the 2523 patches of fold 2"):
        load_small(tmp_path)
    write_fold(tmp_path, 0)
    assert load_small(tmp_path).files[-1] == "fold2/02522"


def test_two_copies_are_refused(tmp_path):
    write_fold(tmp_path)
    (tmp_path / "fold1.parquet").write_bytes(b"")
    with pytest.raises(HistoCLIPError, match="twice"):
        load_small(tmp_path)
    for folder in ("a", "b"):
        (tmp_path / "tables" / folder).mkdir(parents=True)
        (tmp_path / "tables" / folder / "fold1.parquet").write_bytes(b"")
    with pytest.raises(HistoCLIPError, match="several folders"):
        load_pannuke(tmp_path / "tables")


def test_min_nuclei_must_be_positive(tmp_path):
    with pytest.raises(HistoCLIPError, match="min_nuclei: 0"):
        load_pannuke(tmp_path, min_nuclei=0)
