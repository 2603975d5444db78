"""The folder format: what it gives, and what its errors name."""

import os
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.data import folder
from histoclip_lib.data.checks import check_images
from histoclip_lib.data.splits import split_dataset

LABELS = {"tumor": [1, 0, 1, 0], "stroma": [0, 0, 1, 1]}
HOSTILE = ["<b>", "a|b", "x" * 200, "肿瘤", "two\nlines", 'comma, "quote"', "=1+1"]


@pytest.fixture
def root(tmp_path, write_folder):
    return write_folder(tmp_path / "data", LABELS)


def rewrite(root, change):
    table = pd.read_csv(root / "labels.csv", dtype=str)
    change(table)
    table.to_csv(root / "labels.csv", index=False)


def refusal(root):
    with pytest.raises(HistoCLIPError) as raised:
        folder.load(root)
    return str(raised.value)


# What it gives


def test_class_columns_are_those_left_over(tmp_path, write_folder):
    groups, parts = ["p1", "p1", "p2", "p2"], ["train", "train", "val", "val"]
    dataset = folder.load(write_folder(tmp_path, LABELS, group=groups, split=parts))
    assert dataset.classes == ["tumor", "stroma"]
    assert dataset.files == ["000.png", "001.png", "002.png", "003.png"]
    assert dataset.labels.dtype == np.uint8
    assert dataset.labels.tolist() == [[1, 0], [0, 0], [1, 1], [0, 1]]
    assert dataset.groups.tolist() == groups
    assert dataset.parts.tolist() == parts
    assert not dataset.has_masks


def test_groups_parts_and_masks_are_optional(root):
    dataset = folder.load(str(root))
    assert dataset.groups is None
    assert dataset.parts is None
    assert dataset.mask(0) is None
    assert dataset.image(3).tolist() == np.asarray(Image.open(root / "003.png")).tolist()


def test_mask_value_k_is_the_kth_class_column(root):
    stored = np.zeros((48, 48), dtype=np.uint8)
    stored[:10], stored[20:] = 1, 2
    Image.fromarray(stored).save(root / "mask.png")
    rewrite(root, lambda table: table.insert(1, "mask", "mask.png"))
    dataset = folder.load(root)
    assert dataset.has_masks
    assert dataset.mask(2).tolist() == stored.tolist()
    stored[0, 0] = 3
    Image.fromarray(stored).save(root / "mask.png")
    with pytest.raises(HistoCLIPError, match=r"mask values \[3\] do not name a class"):
        check_images(dataset, progress=False)


def test_numbers_and_missing_looking_names_stay_text(tmp_path, write_folder):
    groups = ["007", "NA", "nan", "1e5"]
    dataset = folder.load(write_folder(tmp_path, {"0": [0, 1, 1, 0], "NA": [1, 1, 0, 0]}, group=groups))
    assert dataset.classes == ["0", "NA"]
    assert dataset.groups.tolist() == groups


def test_hostile_class_names_stay_as_they_are(tmp_path, write_folder):
    dataset = folder.load(write_folder(tmp_path, {name: [0, 1] for name in HOSTILE}))
    assert dataset.classes == HOSTILE
    assert dataset.labels.tolist() == [[0] * len(HOSTILE), [1] * len(HOSTILE)]


def test_real_consep_loads_whole(shared_data):
    dataset = folder.load(shared_data / "consep")
    table = pd.read_csv(shared_data / "consep/labels.csv")
    assert len(dataset) == 656
    assert len(np.unique(dataset.groups)) == 41
    assert dataset.labels.tolist() == table[dataset.classes].to_numpy().tolist()
    check_images(dataset, progress=False)
    for index in range(0, len(dataset), 41):
        shown = np.isin(np.arange(1, len(dataset.classes) + 1), dataset.mask(index))
        assert (shown >= dataset.labels[index].astype(bool)).all()  # a class that is present is in the mask


# What it refuses


@pytest.mark.parametrize("exists", [True, False])
def test_a_missing_folder_or_table_says_what_was_looked_for_and_what_it_should_hold(tmp_path, exists):
    data_dir = tmp_path if exists else tmp_path / "nowhere"
    message = refusal(data_dir)
    assert f"{data_dir / 'labels.csv'} was not found" in message
    assert "data_dir" in message
    assert "one 0/1 column for each class" in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"file,tumor\n000.png,1\n001.png,0,1\n", "3 cells: line 3"),
        (b"who,tumor\n000.png,1\n", r"has the columns \['who', 'tumor'\]"),
        (b"file,tumor\n", "has no rows"),
        (b"file,group\n000.png,a\n", "has no class column"),
        (b"file,tumor,stroma,tumor\n000.png,1,0,1\n", "'tumor' appears 2 times"),
    ],
)
def test_invalid_tables_are_refused_with_the_expected_form(root, content, reason):
    (root / "labels.csv").write_bytes(content)
    message = refusal(root)
    assert str(root / "labels.csv") in message
    assert re.search(reason, message)
    assert "labels.csv needs a column `file`" in message or "each column needs" in message


def test_columns_called_almost_like_those_with_a_meaning_are_all_listed(root):
    rewrite(root, lambda table: table.insert(1, "Group", "a"))
    rewrite(root, lambda table: table.insert(1, "SPLIT", "train"))
    message = refusal(root)
    assert "write 'group' for 'Group'" in message
    assert "write 'split' for 'SPLIT'" in message


@pytest.mark.parametrize(
    "ones_and_zeros", [("1", "0"), ("1.0", "0.0"), ("True", "False"), ("TRUE", "FALSE"), ("yes", "no"), (" 1", "0 ")]
)
def test_labels_are_understood_however_they_are_written(root, ones_and_zeros):
    one, zero = ones_and_zeros
    expected = folder.load(root).labels.tolist()

    def change(table):
        table["tumor"] = table["tumor"].map({"1": one, "0": zero})

    rewrite(root, change)
    dataset = folder.load(root)
    assert dataset.labels.tolist() == expected
    assert dataset.labels.dtype == np.uint8


@pytest.mark.parametrize("value", ["2", "-1", "0.5", "y", "nan", "NA", "ja", "01", "1e0", "\u0661", "<b>"])
def test_every_column_with_invalid_labels_is_listed_with_their_lines(root, value):
    def change(table):
        table.loc[1:2, "tumor"] = value
        table.loc[3, "stroma"] = value

    rewrite(root, change)
    message = refusal(root)
    assert "Correct the cells" in message
    assert f"column tumor: 2 of 4 cells; {value!r} on line 3-4\n" in message
    assert f"column stroma: 1 of 4 cells; {value!r} on line 5" in message
    assert message.count("  - ") == 2


def test_an_empty_cell_is_a_label_that_is_not_known(root):
    def change(table):
        table.loc[1, "tumor"] = ""

    rewrite(root, change)
    np.testing.assert_array_equal(folder.load(root).labels, [[1, 0], [np.nan, 0], [1, 1], [0, 1]])
    rewrite(root, lambda table: table.__setitem__("tumor", ""))
    assert "column tumor: all cells are empty" in refusal(root)


def test_columns_that_are_no_classes_are_named_with_the_line_to_write(root):
    def change(table):
        table["Follow-up #"] = ["3", "5", "1", "12"]
        table["notsure"] = ["", "?", "", ""]

    rewrite(root, change)
    message = refusal(root)
    assert message.count("  - ") == 2
    assert """column Follow-up #: 3 of 4 cells; '3' on line 2, '5' on line 3, '12' on line 5""" in message
    assert """add `ignore: ["Follow-up #", "notsure"]` to the parameter file""" in message
    assert folder.load(root, ignore=("Follow-up #", "notsure")).classes == ["tumor", "stroma"]
    assert folder.load(root, classes=("stroma",)).classes == ["stroma"]
    for given in ({"ignore": ("flag",)}, {"classes": ("mask",)}, {"classes": ("notsure",), "ignore": ("notsure",)}):
        with pytest.raises(HistoCLIPError, match=r": \['\w+'\] is not a column of .*'Follow-up #'"):
            folder.load(root, **given)


def test_captions_of_thousands_of_lines_give_a_short_message(root):
    rewrite(root, lambda table: table.insert(1, "caption", [f"a patch {n}" for n in range(4)]))
    with (root / "labels.csv").open("a") as file:
        file.writelines(f"{n}.png,see {n},x,0\n000.png,y,1,1\n" for n in range(4000))
    message = refusal(root)
    assert message.count("  - ") == 2
    assert len(message) < 900


def test_masks_number_the_columns_of_the_table_whichever_are_classes(tmp_path, write_folder):
    write_folder(tmp_path, {"a": [0, 1], "note": [5, 6], "b": [1, 0]}, mask="mask.png")
    Image.fromarray(np.repeat(np.uint8([[0, 1, 2]]), 48, axis=0).repeat(16, axis=1)).save(tmp_path / "mask.png")
    for classes, row in (((), [0, 1, 2]), (("b",), [0, 0, 1]), (("b", "a"), [0, 2, 1])):
        dataset = folder.load(tmp_path, classes=classes, ignore=("note",))
        assert dataset.mask(0)[0, ::16].tolist() == row
        assert [str(note) for note in dataset.notes] == [
            "columns left out that count in the numbers of masks: 1 (a)"
        ] * (classes == ("b",))


@pytest.mark.parametrize(("mode", "value"), [("L", 255), ("L", 1), ("1", 1)])
def test_masks_of_one_class_may_be_binary_in_any_way(tmp_path, write_folder, mode, value):
    write_folder(tmp_path, {"tumor": [1, 0]}, mask=["mask.png", ""])
    Image.new(mode, (48, 48), value).save(tmp_path / "mask.png")
    dataset = folder.load(tmp_path)
    assert (dataset.mask(0) == 1).all()
    assert dataset.mask(1) is None
    check_images(dataset, progress=False)


def test_columns_named_like_parts_are_no_classes(root):
    rewrite(root, lambda table: [table.insert(1, part, ["TRUE", "FALSE"] * 2) for part in ("train", "val", "test")])
    message = refusal(root)
    assert "parts of a split, not like classes: test, val, train. " in message
    assert f"`histoclip import {root / 'labels.csv'} --split {root / 'labels.csv'} --out DIR` reads them" in message
    assert folder.load(root, ignore=("train", "val", "test")).classes == ["tumor", "stroma"]


@pytest.mark.parametrize("name", ["filename", "image", "image_name", "path", "File"])
def test_the_column_of_files_may_be_called_otherwise(root, name):
    rewrite(root, lambda table: table.rename(columns={"file": name}, inplace=True))
    dataset = folder.load(root)
    assert dataset.files[0] == "000.png"
    assert [str(note) for note in dataset.notes] == [f"column {name!r} is read as 'file'"]
    rewrite(root, lambda table: table.insert(1, "filepath", "x"))
    assert "Which of " in refusal(root)


@pytest.mark.parametrize("name", ["labels.tsv", "labels.xlsx", "train.csv"])
def test_a_table_of_another_name_is_named_with_the_command_that_imports_it(root, name):
    (root / "labels.csv").rename(root / name)
    assert f"There is {name}: `histoclip import {root / name} --images {root} --out DIR`" in refusal(root)


@pytest.mark.parametrize(
    ("groups", "noted", "pattern"),
    [
        (["1", "1.0", "01", "S10"], "01 and 1 and 1.0", r"^0*(.+?)(?:\.0*)?$"),
        (
            ["TCGA-A1-A0SK-01Z", "TCGA-A1-A0SK-DX1", "TCGA-A2-A0SK-DX1", "x"],
            "TCGA-A1-A0SK-01Z and ",
            r"TCGA-\w{2}-\w{4}|x",
        ),
    ],
)
def test_groups_that_may_be_one_patient_are_noted_and_a_pattern_joins_them(root, groups, noted, pattern):
    rewrite(root, lambda table: table.insert(1, "group", groups))
    (note,) = folder.load(root).notes
    assert "groups that may be one patient" in note.what
    assert pattern.removesuffix("|x") in note.what
    assert note.count == 1
    assert noted in note.examples[0]
    joined = folder.load(root, group_pattern=pattern)
    assert joined.notes == ()
    assert len(set(joined.groups)) == len(set(groups)) - 2 + pattern.endswith("|x")
    with pytest.raises(HistoCLIPError, match=r"group_pattern: 'q' finds nothing in 4 of 4"):
        folder.load(root, group_pattern="q")


def test_a_group_pattern_finds_patients_in_file_names(root):
    assert folder.load(root, group_pattern="0([0-9])").groups.tolist() == ["0"] * 4


def test_names_are_found_in_another_spelling_where_only_one_file_fits(root):
    (root / "images").mkdir()
    (root / "000.png").rename(root / "images/Gr\u00fcn.PNG")
    (root / "001.png").rename(root / "images/b.png")
    names = ["images\\gru\u0308n.png", "Images/b.PNG", "002.png", "003.png"]
    rewrite(root, lambda table: table.__setitem__("file", names))
    dataset = folder.load(root)
    assert dataset.files == names
    (note,) = dataset.notes
    assert str(note).startswith("files found under another spelling: 2 (")
    assert "Images/b.PNG is images/b.png" in note.examples
    check_images(dataset, progress=False)
    (root / "images/B.png").write_bytes((root / "images/b.png").read_bytes())
    assert re.search(
        r"line 3: 'Images/b\.PNG' does not exist; is it images/[bB]\.png or images/[bB]\.png\?", refusal(root)
    )


def test_lines_are_those_of_the_file_though_some_are_empty(root):
    (root / "labels.csv").write_text("file,tumor\n\n000.png,1\n\n001.png,x\n002.png,0\n")
    assert "column tumor: 1 of 3 cells; 'x' on line 5" in refusal(root)


def test_classes_and_groups_have_limited_length(root):
    rewrite(root, lambda table: table.insert(1, "group", ["a", "x" * 100_000, "b", "b"]))
    message = refusal(root)
    assert re.search(r"column group: expected a name of at most 255 characters.*'xxx.* on line 3", message)
    assert len(message) < 600
    (root / "labels.csv").write_text(f"file,{'y' * 1000}\n000.png,1\n")
    assert "a class has at most 255 characters" in refusal(root)


def test_more_classes_than_a_mask_can_tell_apart_are_refused(root):
    names = ",".join(f"c{n}" for n in range(255))
    (root / "labels.csv").write_text(f"file,{names}\n000.png{',1' * 255}\n")
    assert "255 class columns, more than 254" in refusal(root)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b.png"])
def test_invalid_file_names_are_refused(root, name):
    rewrite(root, lambda table: table.__setitem__("file", ["000.png", name, "002.png", "003.png"]))
    assert "line 3: " in refusal(root)


def test_every_file_that_is_not_there_is_listed(root):
    (root / "001.png").unlink()
    (root / "003.png").unlink()
    message = refusal(root)
    assert "2 files cannot be used" in message
    assert "line 3: '001.png' does not exist" in message
    assert "line 5: '003.png' does not exist" in message


@pytest.mark.parametrize("name", ["../outside.png", "sub/../../outside.png", "/etc/hostname", "link.png"])
def test_a_file_outside_the_folder_is_refused(root, name):
    (root.parent / "outside.png").write_bytes((root / "000.png").read_bytes())
    (root / "sub").mkdir()
    (root / "link.png").symlink_to(root.parent / "outside.png")
    rewrite(root, lambda table: table.__setitem__("file", ["000.png", name, "002.png", "003.png"]))
    assert f"line 3: {name!r} is outside the folder" in refusal(root)


def test_links_that_lead_out_are_followed_where_that_is_asked_for(root):
    (root.parent / "store").mkdir()
    (root / "000.png").rename(root.parent / "store/000.png")
    (root / "000.png").symlink_to(root.parent / "store/000.png")
    (root / "images").symlink_to(root.parent / "store")
    assert "line 2: '000.png' is outside the folder: a link leads there; where that is meant" in refusal(root)
    assert "write `follow_links: true`" in refusal(root)
    dataset = folder.load(root, follow_links=True)
    check_images(dataset, progress=False)
    names = ["../store/000.png", "images/000.png", "002.png", "003.png"]
    rewrite(root, lambda table: table.__setitem__("file", names))
    with pytest.raises(HistoCLIPError, match=r"1 files cannot be used(.|\n)*'../store/000.png' is outside"):
        folder.load(root, follow_links=True)


def test_a_link_within_the_folder_and_a_linked_folder_are_followed(root):
    (root / "link.png").symlink_to("001.png")
    rewrite(root, lambda table: table.__setitem__("file", ["000.png", "link.png", "002.png", "003.png"]))
    (root.parent / "elsewhere").symlink_to(root)
    for data_dir in (root, root.parent / "elsewhere"):
        assert folder.load(data_dir).files[1] == "link.png"


def test_a_folder_of_links_that_leads_out_is_refused(root):
    (root.parent / "outside").mkdir()
    (root.parent / "outside/x.png").write_bytes((root / "000.png").read_bytes())
    (root / "sub").symlink_to(root.parent / "outside")
    rewrite(root, lambda table: table.__setitem__("file", ["000.png", "sub/x.png", "002.png", "003.png"]))
    assert "line 3: 'sub/x.png' is outside the folder" in refusal(root)


def test_what_is_no_regular_file_is_refused_and_a_backslash_explained(root):
    (root / "sub").mkdir()
    os.mkfifo(root / "pipe.png")
    rewrite(root, lambda table: table.__setitem__("file", ["sub", "pipe.png", "sub\\\\a.png", "."]))
    message = refusal(root)
    assert "4 files cannot be used" in message
    assert "line 2: 'sub' is not a regular file" in message
    assert "line 3: 'pipe.png' is not a regular file" in message
    assert "folders are separated by /" in message


def test_a_name_with_a_line_break_or_markup_is_taken_and_inert(root):
    odd = "a\n<script>alert(1)</script>.png"
    (root / "000.png").rename(root / odd.replace("/", "_"))
    rewrite(root, lambda table: table.__setitem__("file", [odd.replace("/", "_"), "001.png", "002.png", "003.png"]))
    dataset = folder.load(root)
    assert dataset.files[0] == odd.replace("/", "_")
    check_images(dataset, progress=False)


def test_each_file_is_looked_up_once(tmp_path, monkeypatch):
    n_files, looked = 10_000, 0
    (tmp_path / "labels.csv").write_text("file,a\n" + "".join(f"images/{n}.png,1\n" for n in range(n_files)))

    def count(path, *_, **__):
        nonlocal looked
        looked += 1
        return os.lstat(tmp_path / "labels.csv")

    followed, realpath = [], os.path.realpath
    monkeypatch.setattr(os, "stat", count)
    monkeypatch.setattr(os.path, "islink", lambda path: False)
    monkeypatch.setattr(os.path, "realpath", lambda path: followed.append(path) or realpath(path))
    dataset = folder.load(tmp_path)
    assert len(dataset) == n_files
    assert n_files <= looked <= n_files + 100
    assert len(followed) == 2  # the folder of the data, and the one that holds all images


@pytest.mark.parametrize("other", ["000.png", "./000.png", "sub/../000.png"])
def test_a_file_listed_twice_is_refused_however_it_is_spelled(root, other):
    (root / "sub").mkdir()
    rewrite(root, lambda table: table.__setitem__("file", ["000.png", "001.png", other, "003.png"]))
    assert "000.png: lines 2, 4" in refusal(root)
    (root / "labels.csv").write_text("file,tumor\n" + "000.png,1\n" * 5000)
    assert "000.png: lines 2-5001" in refusal(root)


def test_a_mask_that_is_not_there_is_refused_but_a_patch_may_have_none(root):
    Image.new("L", (48, 48)).save(root / "mask.png")
    rewrite(root, lambda table: table.insert(1, "mask", ["mask.png", "", "mask.png", "gone.png"]))
    message = refusal(root)
    assert "column mask: 1 files cannot be used" in message
    assert "line 5: 'gone.png' does not exist" in message


def test_an_empty_group_is_refused(root):
    rewrite(root, lambda table: table.insert(1, "group", ["a", "b", "", "b"]))
    assert re.search("(?s)column group: expected a name.* on every line.*found '' on line 4", refusal(root))


def test_parts_are_understood_in_the_words_that_people_use(root):
    rewrite(root, lambda table: table.insert(1, "split", ["Train", "validation", "TRAINING", "test"]))
    dataset = folder.load(root)
    assert dataset.parts.tolist() == ["train", "val", "train", "test"]
    assert str(dataset.notes[0]).startswith("parts written otherwise: 3 ('Train' is train, ")
    train, held_out = split_dataset(dataset, "given", 0)
    assert train.tolist() == [0, 2]
    assert held_out.tolist() == [3]  # where there is a test part, val chooses nothing
    rewrite(root, lambda table: table.__setitem__("split", ["train", "val", "fold 1", "fold 1"]))
    assert (
        "column split: expected train, val or test (validation, testing, ...), found 'fold 1' on line 4-5"
        in refusal(root)
    )


# Resolution


def test_a_column_mpp_gives_each_patch_its_resolution(tmp_path, write_folder):
    mixed = folder.load(write_folder(tmp_path / "mixed", {"a": [0, 1]}, mpp=["0.25", ""]))
    assert mixed.patch_mpp[0] == 0.25
    assert np.isnan(mixed.patch_mpp[1])
    assert mixed.mpp is None
    same = folder.load(write_folder(tmp_path / "same", {"a": [0, 1]}, mpp=[0.5, 0.5]))
    assert same.mpp == 0.5
    assert same.classes == ["a"]
    assert folder.load(write_folder(tmp_path / "none", {"a": [0, 1]})).patch_mpp is None


@pytest.mark.parametrize("cell", ["0", "half", "30", "-0.5", "nan", "-nan", "inf"])
def test_a_resolution_that_cannot_be_is_refused_with_its_line(tmp_path, write_folder, cell):
    written = write_folder(tmp_path, {"a": [0, 1]}, mpp=["0.25", cell])
    with pytest.raises(HistoCLIPError, match=rf"column mpp: expected micrometres per pixel .*\n.*line 3: '{cell}'"):
        folder.load(written)


def test_meta_columns_are_no_classes_and_are_kept(tmp_path, write_folder):
    write_folder(tmp_path, {"tumor": [1, 0, 1]}, meta_site=["A", "B", ""], group=["p", "q", "q"])
    patches = folder.load(tmp_path)
    assert patches.classes == ["tumor"]
    assert {name: values.tolist() for name, values in patches.meta.items()} == {"site": ["A", "B", ""]}
    assert patches.subgroups.keys() == {"site"}
