"""BCSS-WSSS and LUAD-HistoSeg: names, layouts, masks, and the threshold rule on real masks."""

import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.data import histoseg
from histoclip_lib.data.histoseg import (
    BCSS,
    LUAD,
    labels_from_mask,
    load_bcss_wsss,
    load_luad_histoseg,
)
from histoclip_lib.data.registry import DATASETS

BCSS_IMAGE = "TCGA-A1-A0SK-DX1_xmin45749_ymin25055_MPP-0.2500"
TRAIN_NAMES = {
    "bcss": [f"{BCSS_IMAGE}+0[1101].png", f"{BCSS_IMAGE}+12[0010].png"],
    "luad": ["1031280-2300-27920-[1 0 0 1].png", "1224965-9156-45007-[0 1 0 0].png"],
}
OTHER_NAMES = {
    "bcss": {"val": "TCGA-D8-A27F-DX1_xmin98787_ymin6725_MPP-0.2500+0.png", "test": f"{BCSS_IMAGE}+7.png"},
    "luad": {"val": "387709-10900-67592.png", "test": "1004470-36280-27403.png"},
}
LOADERS = {"bcss": load_bcss_wsss, "luad": load_luad_histoseg}
LABELS = st.lists(st.integers(0, 1), min_size=4, max_size=4)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


# Names


def test_every_real_name_parses(shared_data):
    bcss = lines(shared_data / "bcss_wsss/train_names.txt")
    assert len(bcss) == 5856
    for name in bcss:
        assert BCSS.labels_of(name).tolist() == [int(c) for c in name[-9:-5]]
    patients = {BCSS.patient_of(name) for name in bcss + lines(shared_data / "bcss_wsss/val_test_names.txt")}
    assert all(re.fullmatch(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}", patient) for patient in patients)
    assert len({BCSS.patient_of(name) for name in bcss}) == 50

    luad = lines(shared_data / "luad_histoseg/train_names.txt")
    assert [LUAD.labels_of(name).tolist() for name in luad] == [[1, 0, 0, 1]] * len(luad)
    val_test = lines(shared_data / "luad_histoseg/val_test_names.txt")
    assert {LUAD.patient_of(name) for name in val_test} == {name.split("-")[0] for name in val_test}


@given(LABELS, st.from_regex(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}", fullmatch=True), st.integers(0, 999))
def test_bcss_names_round_trip(labels, patient, index):
    name = f"{patient}-DX1_xmin98787_ymin6725_MPP-0.2500+{index}[{''.join(map(str, labels))}].png"
    assert BCSS.labels_of(name).tolist() == labels
    assert BCSS.labels_of(name).dtype == np.uint8
    assert BCSS.patient_of(name) == patient


@given(LABELS, st.integers(0, 10**7), st.integers(0, 99999), st.integers(0, 99999))
def test_luad_names_round_trip(labels, patient, x, y):
    name = f"{patient}-{x}-{y}-[{' '.join(map(str, labels))}].png"
    assert LUAD.labels_of(name).tolist() == labels
    assert LUAD.patient_of(name) == str(patient) == LUAD.patient_of(f"{patient}-{x}-{y}.png")


LOOK_ALIKES = {
    "bcss": [
        f"{BCSS_IMAGE}+0[1, 1, 0, 1].png",
        f"{BCSS_IMAGE}+0[1 1 0 1].png",
        f"{BCSS_IMAGE}+0[110].png",
        f"{BCSS_IMAGE}+0[11012].png",
        f"{BCSS_IMAGE}+0[1102].png",
        f"{BCSS_IMAGE}-0[1101].png",
        f"{BCSS_IMAGE}+0-1101.png",
        f"{BCSS_IMAGE}+0.png",
        f"{BCSS_IMAGE}+[1101].png",
        f"{BCSS_IMAGE}+0[1101].jpg",
        "TCGA-A1-A0SKX_xmin1+0[1101].png",
        f"{BCSS_IMAGE}+٣[1101].png",
        TRAIN_NAMES["luad"][0],
    ],
    "luad": [
        "436219-9328-56427-[1, 1, 0].png",
        "436219-9328-56427-[1, 1, 0, 1].png",
        "436219-9328-56427-[1 1 0].png",
        "436219-9328-56427-[1 1 0 1 0].png",
        "436219-9328-56427-[1101].png",
        "436219-9328-56427[1 1 0 1].png",
        "436219-9328-[1 1 0 1].png",
        "436219_9328_56427_[1 1 0 1].png",
        "436219-9328-56427-[1 1 0 2].png",
        "436219-9328-56427-[1  1 0 1].png",
        "436219-9328-56427.png",
        TRAIN_NAMES["bcss"][0],
    ],
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in LOOK_ALIKES.items() for name in names])
def test_look_alike_names_are_refused(kind, name):
    parse = {"bcss": BCSS.labels_of, "luad": LUAD.labels_of}[kind]
    with pytest.raises(HistoCLIPError, match=re.escape(name)):
        parse(name)


# Labels from masks


def test_labels_from_mask_need_the_coverage():
    class_map = np.zeros((10, 10), dtype=np.uint8)
    class_map[0, :7] = 2  # 7 of 100 pixels
    class_map[1, 0] = 4
    assert labels_from_mask(class_map, 4, 0.07).tolist() == [0, 1, 0, 0]
    assert labels_from_mask(class_map, 4, 0.071).tolist() == [0, 0, 0, 0]
    assert labels_from_mask(class_map, 4, 0).tolist() == [0, 1, 0, 1]  # absent classes stay absent
    assert labels_from_mask(class_map, 4, 0.01).dtype == np.uint8


def test_threshold_rule_reproduces_the_real_labels(shared_data):
    """The official patches of four original masks, cut as README.md of the data says."""
    folder = shared_data / "bcss_wsss/original_masks"
    expected = {name.split("[")[0]: BCSS.labels_of(name) for name in lines(folder / "patch_names.txt")}
    found, any_pixel = {}, {}
    for path in sorted(folder.glob("TCGA*.png")):
        codes = np.asarray(Image.open(path))
        class_map = np.where(codes <= 4, codes, 0)
        kept = 0
        for x in range((codes.shape[1] - 224) // 224):
            for y in range((codes.shape[0] - 224) // 224):
                tile = class_map[y * 224 : (y + 1) * 224, x * 224 : (x + 1) * 224]
                if (tile == 0).mean() > 0.4:
                    continue
                found[f"{path.stem}+{kept}"] = labels_from_mask(tile, 4, 0.01)
                any_pixel[f"{path.stem}+{kept}"] = labels_from_mask(tile, 4, 0)
                kept += 1

    def n_equal(labels):
        return sum(np.array_equal(labels.get(name), real) for name, real in expected.items())

    assert len(expected) == 576
    assert n_equal(found) >= 571
    assert n_equal(any_pixel) < 520


# Layouts


def write_image(path: Path, value: int = 200) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((32, 32, 3), value, dtype=np.uint8)).save(path)


def write_mask(path: Path, stored: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(stored.astype(np.uint8)).convert("P")
    image.putdata(stored.ravel().tolist())
    image.save(path)


STORED = np.full((32, 32), 4, dtype=np.uint8)  # 4: excluded
STORED[:16] = 0  # class 1
STORED[16, :5] = 2  # class 3, on less than 1% of the patch
STORED[17:20] = 3  # class 4


def build(root: Path, kind: str, train: str = "train", val: str | None = "val") -> None:
    for name in TRAIN_NAMES[kind]:
        write_image(root / train / name)
    if val:
        for part, folder in (("val", val), ("test", "test")):
            write_image(root / folder / "img" / OTHER_NAMES[kind][part])
            write_mask(root / folder / "mask" / OTHER_NAMES[kind][part], STORED)


@pytest.mark.parametrize("kind", ["bcss", "luad"])
@pytest.mark.parametrize("nested", [".", "BCSS-WSSS", "BCSS-WSSS/BCSS-WSSS"])
@pytest.mark.parametrize("val", ["val", "valid"])
@pytest.mark.parametrize("train", ["train", "training", "train/img", "training/img"])
def test_every_layout_loads(tmp_path, kind, nested, val, train):
    build(tmp_path / nested, kind, train, val)
    training = LOADERS[kind](tmp_path)
    expected = [[1, 1, 0, 1], [0, 0, 1, 0]] if kind == "bcss" else [[1, 0, 0, 1], [0, 1, 0, 0]]
    assert training.labels.tolist() == expected
    assert training.parts is None
    assert training.mask(0) is None

    everything = LOADERS[kind](tmp_path, split="given")
    assert everything.parts.tolist() == ["train", "train", "val", "test"]
    assert everything.labels.tolist() == [*expected, [1, 0, 0, 1], [1, 0, 0, 1]]
    assert everything.has_masks
    assert everything.mask(0) is None
    assert np.unique(everything.mask(2)).tolist() == [0, 1, 3, 4]
    assert everything.mask(2)[0, 0] == 1
    assert everything.mask(2)[31, 31] == 0
    assert everything.image(3).shape == (32, 32, 3)
    assert all((tmp_path / file).is_file() for file in everything.files)
    assert everything.files[:2] == training.files
    assert pickle.loads(pickle.dumps(everything)).image(0).dtype == np.uint8


def test_classes_and_groups(tmp_path):
    build(tmp_path / "b", "bcss")
    build(tmp_path / "l", "luad")
    bcss = load_bcss_wsss(tmp_path / "b", split="given")
    luad = load_luad_histoseg(tmp_path / "l", split="given")
    assert bcss.classes == ["tumor", "stroma", "lymphocyte", "necrosis"]
    assert luad.classes == ["tumor_epithelial", "necrosis", "lymphocyte", "tumor_associated_stroma"]
    assert bcss.groups.tolist() == ["TCGA-A1-A0SK", "TCGA-A1-A0SK", "TCGA-D8-A27F", "TCGA-A1-A0SK"]
    assert luad.groups.tolist() == ["1031280", "1224965", "387709", "1004470"]
    assert (bcss.name, luad.name) == ("bcss_wsss", "luad_histoseg")


def test_mask_coverage_is_used(tmp_path):
    build(tmp_path, "bcss")
    assert load_bcss_wsss(tmp_path, "given", mask_coverage=0).labels[2].tolist() == [1, 0, 1, 1]
    assert load_bcss_wsss(tmp_path, "given", mask_coverage=0.5).labels[2].tolist() == [1, 0, 0, 0]
    with pytest.raises(HistoCLIPError, match="mask_coverage: 5"):
        load_bcss_wsss(tmp_path, "given", mask_coverage=5)


def test_the_report_states_a_coverage_below_one_percent():
    assert "at least 0.005 of the mask" in DATASETS["bcss_wsss"].present.format(mask_coverage=0.005)


def test_desktop_debris_is_ignored(tmp_path):
    build(tmp_path, "bcss")
    for name in ("._" + TRAIN_NAMES["bcss"][0], ".DS_Store", "Thumbs.db"):
        (tmp_path / "train" / name).write_bytes(b"x")
    (tmp_path / "__MACOSX/BCSS-WSSS/train").mkdir(parents=True)
    assert len(load_bcss_wsss(tmp_path)) == 2


# Errors


@pytest.mark.parametrize("kind", ["bcss", "luad"])
def test_all_look_alikes_in_a_folder_are_listed(tmp_path, kind):
    build(tmp_path, kind)
    for name in LOOK_ALIKES[kind]:
        write_image(tmp_path / "train" / name)
    with pytest.raises(HistoCLIPError) as caught:
        LOADERS[kind](tmp_path)
    assert all(name in str(caught.value) for name in LOOK_ALIKES[kind])
    assert TRAIN_NAMES[kind][0] not in str(caught.value)
    assert ("[a b c d].png" if kind == "luad" else "[abcd].png") in str(caught.value)


def test_all_images_without_mask_are_listed(tmp_path):
    build(tmp_path, "luad")
    for x in (1, 2):
        write_image(tmp_path / f"test/img/1004470-{x}-1.png")
    with pytest.raises(HistoCLIPError, match="2 images have no mask") as caught:
        load_luad_histoseg(tmp_path, split="given")
    assert "1004470-1-1.png" in str(caught.value)
    assert "1004470-2-1.png" in str(caught.value)


def test_unusable_masks_are_listed(tmp_path):
    build(tmp_path, "bcss")
    write_mask(tmp_path / "val/mask" / OTHER_NAMES["bcss"]["val"], STORED + 3)
    second = OTHER_NAMES["bcss"]["val"].replace("+0", "+1")
    write_image(tmp_path / "val/img" / second)
    (tmp_path / "val/mask" / second).write_bytes(b"no image")
    with pytest.raises(HistoCLIPError, match="2 masks cannot be used") as caught:
        load_bcss_wsss(tmp_path, split="given")
    assert "[5, 6, 7]" in str(caught.value)
    assert second in str(caught.value)


def test_entries_that_are_not_regular_files_are_listed(tmp_path):
    build(tmp_path, "bcss")
    train = tmp_path / "train"
    os.mkfifo(train / f"{BCSS_IMAGE}+1[1101].png")
    (train / f"{BCSS_IMAGE}+2[1101].png").mkdir()
    (train / f"{BCSS_IMAGE}+3[1101].png").symlink_to("nowhere.png")
    with pytest.raises(HistoCLIPError, match="3 entries have names of images but are folders, devices") as caught:
        load_bcss_wsss(tmp_path)
    assert all(f"+{number}[1101].png" in str(caught.value) for number in (1, 2, 3))


def test_links_are_followed_out_of_the_folder_where_that_is_asked_for(tmp_path):
    build(tmp_path / "store", "bcss")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train").symlink_to(tmp_path / "store/train")
    with pytest.raises(HistoCLIPError, match=r"files are outside; a link leads there.*`follow_links: true`"):
        load_bcss_wsss(tmp_path / "data")
    assert len(load_bcss_wsss(tmp_path / "data", follow_links=True)) == len(load_bcss_wsss(tmp_path / "store"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (b"TCGA-A1-A0SK-\xfc+0[1101].png", "not valid Unicode.*TCGA-A1-A0SK-\\\\udcfc"),
        (b"gr\xfcn.png", r"1 of 3 names are not.*gr\\udcfcn\.png"),
        (b"a\n  - b.png", r"1 of 3 names are not.*- a\\n  - b\.png"),
    ],
)
def test_hostile_names_are_escaped(tmp_path, name, said):
    build(tmp_path, "bcss")
    (tmp_path / "train" / os.fsdecode(name)).write_bytes((tmp_path / "train" / TRAIN_NAMES["bcss"][0]).read_bytes())
    with pytest.raises(HistoCLIPError, match=f"(?s){said}") as caught:
        load_bcss_wsss(tmp_path)
    str(caught.value).encode()


def test_two_masks_of_one_image_are_listed(tmp_path):
    build(tmp_path, "luad")
    mask = tmp_path / "val/mask" / OTHER_NAMES["luad"]["val"]
    mask.with_suffix(".bmp").write_bytes(mask.read_bytes())
    with pytest.raises(HistoCLIPError, match=r"Keep one of each:\n  - 387709-10900-67592\."):
        load_luad_histoseg(tmp_path, split="given")


def test_missing_folders_say_where_to_get_the_data(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(HistoCLIPError, match="ChuHan89/WSSS-Tissue") as caught:
            load_bcss_wsss(folder)
        assert "CC0" in str(caught.value)
        assert "training/" in str(caught.value)
    build(tmp_path, "luad", val=None)
    assert len(load_luad_histoseg(tmp_path)) == 2
    with pytest.raises(HistoCLIPError, match="val or valid"):
        load_luad_histoseg(tmp_path, split="given")
    (tmp_path / "val/img").mkdir(parents=True)
    with pytest.raises(HistoCLIPError, match="mask not found"):
        load_luad_histoseg(tmp_path, split="given")


def test_several_copies_and_empty_folders_are_refused(tmp_path):
    build(tmp_path / "BCSS-WSSS", "bcss")
    build(tmp_path / "LUAD-HistoSeg", "luad")
    with pytest.raises(HistoCLIPError, match="several training parts"):
        load_bcss_wsss(tmp_path)
    assert len(load_bcss_wsss(tmp_path / "BCSS-WSSS")) == 2
    (tmp_path / "empty/train").mkdir(parents=True)
    with pytest.raises(HistoCLIPError, match="holds no images"):
        load_bcss_wsss(tmp_path / "empty")


def test_masks_translate_the_stored_values():
    assert histoseg.MASK_VALUES[:5].tolist() == [1, 2, 3, 4, 0]
    assert (histoseg.MASK_VALUES[5:] == 255).all()
