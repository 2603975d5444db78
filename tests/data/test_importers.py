"""Importers of label tables: the form is found by content, the plan says what is meant, the folder holds just that."""

import csv
import io
import json
import os

import numpy as np
import openpyxl
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.data import folder
from histoclip_lib.data.importers import IMPORTERS, Found, ImportOptions, Item, importer, make_plan, plan_import
from histoclip_lib.data.importers.cells import SEPARATORS, read_cells
from histoclip_lib.data.importers.split_files import read_split


@pytest.fixture
def images(tmp_path):
    """A folder with images a.png to d.png, in different places and of different content."""
    root = tmp_path / "images"
    for index, name in enumerate(("a.png", "sub/b.png", "sub/deep/c.PNG", "d.png")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 48), (index, 0, 0)).save(root / name)
    return root


@pytest.fixture
def plan(tmp_path, images):
    """Plan the import of a table, given as text; options as `ImportOptions` has them."""

    def make(text, name="table.csv", format="", **options):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return plan_import(path, ImportOptions(**({"images": images} | options)), format)

    return make


def labels(plan):
    """Return the labels of each patch as text, with `?` for what is not known, by the stem of its file."""
    signs = {None: "?", 0: "0", 1: "1"}
    return {patch.file.rpartition("/")[2][0]: "".join(signs[value] for value in patch.labels) for patch in plan.patches}


def column(plan, name):
    return [getattr(patch.item, name) for patch in plan.patches]


# Tables with a column for each class

THREE = {"a": "10", "b": "01", "c": "00"}


@pytest.mark.parametrize(
    "text",
    [
        "file,tumor,stroma\na.png,1,0\nb.png,0,1\nc.png,0,0\n",
        "filename\ttumor\tstroma\na.png\t1\t0\nsub/b.png\t0\t1\nc.png\t0\t0\n",
        "tumor;stroma;Image Name\nTRUE;FALSE;a\nfalse;true;b\nno;no;c\n",
        "# made by hand\nimage tumor stroma\na.png 1.0 0.0\nb.png  0.0 1.0\nc.png 0.0 0.0\n",
        "image,tumor,stroma\na.png,2,0\nb.png,0,17\nc.png,0,0\n",
        "image,n_tumor,n_stroma\na.png,2,0\nb.png,0,17\nc.png,0,0\n",
        ",path,tumor,stroma,note,age\n0,sub\\a.png,1,0,see,60\n1,b.png,0,1,page,71\n2,c.png,0,0,2,55\n",
        "file,tumor,stroma\na.png,1,0\nb.png,0,0\nb.png,0,1\nc.png,0,0\n",
        '"file","tumor","stroma"\r\n"a.png","1","0"\r\n"b.png","0","1"\r\n"c.png","0","0"\r\n',
    ],
)
def test_columns_of_classes_are_found_in_tables_of_many_kinds(plan, text):
    result = plan(text)
    assert result.classes == ["tumor", "stroma"]
    assert labels(result) == THREE


def test_a_table_without_header_has_the_names_that_are_given(plan):
    text = "a.png 1 0\nb.png 0 1\nc.png 0 0\n"
    assert plan(text).classes == ["class 1", "class 2"]
    result = plan(text, classes=("tumor", "stroma"))
    assert result.classes == ["tumor", "stroma"]
    assert labels(result) == THREE


def test_an_excel_file_is_a_table(tmp_path, images):
    book = openpyxl.Workbook()
    for row in (["image", "tumor", "stroma"], ["a.png", 1, 0], ["b.png", 0.0, 1.0], ["c.png", False, 0]):
        book.active.append(row)
    book.save(tmp_path / "labels.xlsx")
    result = plan_import(tmp_path / "labels.xlsx", ImportOptions(images=images))
    assert labels(result) == THREE
    assert "the first sheet" in result.describe()


def test_votes_make_a_label_from_min_count_on(plan):
    text = "file,tumor,stroma\na.png,3.0,1.0\nb.png,0.0,2.0\nc.png,1.0,0.0\n"
    assert labels(plan(text)) == {"a": "11", "b": "01", "c": "10"}
    assert labels(plan(text, min_count=2)) == {"a": "10", "b": "01", "c": "00"}


def test_classes_are_chosen_renamed_and_united(plan):
    text = "file,a,b,c\na.png,1,0,0\nb.png,0,0,1\nc.png,,0,1\nd.png,,1,0\n"
    assert labels(plan(text, ignore=("b",))) == {"a": "10", "b": "01", "c": "?1", "d": "?0"}
    result = plan(text, classes=("c=stroma", "a=tumor", "b=tumor"))
    assert result.classes == ["stroma", "tumor"]
    assert labels(result) == {"a": "01", "b": "10", "c": "1?", "d": "01"}


def test_codes_for_unknown_become_empty_cells_and_are_asked_for(plan, tmp_path):
    text = "file,tumor,stroma\na.png,1,-1\nb.png,-1.0,\nc.png,0,1\n"
    with pytest.raises(
        HistoCLIPError, match=r"(?s)--unknown=-1.*line 3, column tumor: -1.0.*line 2, column stroma: -1"
    ):
        plan(text)
    result = plan(text, unknown=("-1",))
    assert labels(result) == {"a": "1?", "b": "??", "c": "01"}
    assert "tumor   present 1, absent 1, not known 1" in result.describe()
    result.write(tmp_path / "out")
    assert (tmp_path / "out/labels.csv").read_text().splitlines()[1:3] == ["images/a.png,1,", "images/sub/b.png,,"]


def test_what_is_no_class_is_named_with_the_reason(plan):
    text = "id,file,case_id,train,val,tumor,score,note,age,empty\n" + "".join(
        f"{k},{name}.png,p{k},TRUE,FALSE,{k % 2},0.{k}5,x,{50 + k % 2},\n" for k, name in enumerate("abcd")
    )
    result = plan(text)
    assert result.classes == ["tumor"]
    assert result.left_out == {
        "columns: a running number": ["id"],
        "columns: the name of a part: a split is given with --split FILE": ["train", "val"],
        "columns: numbers that are not counts": ["score"],
        "columns: text": ["note"],
        "columns: a number that is never 0": ["age"],
        "columns: nothing is known in it": ["empty"],
    }
    assert column(result, "group") == ["p0", "p1", "p2", "p3"]


# Class names in cells


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("file,label\na.png,tumor\nb.png,stroma\nc.png,No Finding\n", {}),
        ("Image Index,Finding Labels\na.png,tumor|tumor\nb.png,stroma\nc.png,No Finding\n", {}),
        ("file,labels\na.png,tumor\nb.png,stroma\nc.png,healthy\n", {"none": "healthy"}),
        ("file,labels\na.png,tumor\nb.png,stroma\nc.png,\n", {"none": ""}),
        ("image,x,class_id,class_name\na,1,4,tumor\nb,2,7,stroma\na,3,4,tumor\nc,4,0,none\n", {}),
        ("file,kind\na.png,tumor\nb.png,stroma\nc.png,none\n", {"label_column": "kind"}),
        ("name,label\na.png,tumor\nb.png,stroma\nc.png,none\n", {}),
        ("image,name,class\na.png,1st,tumor\nb.png,2nd,stroma\nc.png,3rd,none\n", {}),
        ("sep=;\nfile;label\na.png;tumor\nb.png;stroma\nc.png;none\n", {}),
    ],
)
def test_class_names_in_cells_are_labels(plan, text, options):
    result = plan(text, **options)
    order = [result.classes.index(name) for name in ("tumor", "stroma")]
    assert {name: "".join(text[k] for k in order) for name, text in labels(result).items()} == THREE


@pytest.mark.parametrize("cell", ["tumor|stroma", '"tumor, stroma"', "tumor;stroma"])
def test_several_names_in_a_cell_are_several_labels(plan, cell):
    result = plan(f"file,labels\na.png,{cell}\nb.png,stroma\nc.png,\n")
    assert result.classes == ["stroma", "tumor"]
    assert labels(result) == {"a": "11", "b": "10"}
    assert [names for reason, names in result.left_out.items() if "is empty" in reason] == [["c.png"]]


def test_numbers_of_classes_keep_their_order_and_take_names(plan):
    text = "file,class\na.png,10\nb.png,2\na.png,2\nc.png,1\n"
    assert plan(text).classes == ["1", "2", "10"]
    result = plan(text, classes=("2=tumor", "10=stroma"))
    assert labels(result) == {"a": "11", "b": "10"}
    assert result.left_out == {"no label of the classes above": ["c.png"]}


def test_lines_of_one_image_in_several_parts_are_told(plan):
    result = plan("file,label,split\na.png,x,train\na.png,y,test\nb.png,x,test\n")
    assert column(result, "split") == ["train", "test"]
    assert "images whose lines differ in group or part: 1; the first line counts" in result.notes


def test_counts_of_one_class_in_two_columns_are_two_classes(plan):
    assert plan("file,n_x,num_x\na.png,1,0\nb.png,0,5\n").classes == ["n_x", "num_x"]


def test_objects_are_counted_per_image(plan):
    text = "file,class\n" + "a.png,tumor\n" * 3 + "a.png,stroma\n" + "b.png,tumor\n" * 2
    assert labels(plan(text, min_count=2)) == {"a": "01", "b": "01"}


# Groups, parts, meta, files


def test_groups_come_from_a_column_or_a_pattern(plan):
    text = "file,slide,tumor\na.png,TCGA-01-x,1\nb.png,TCGA-01-y,0\nc.png,TCGA-02-x,1\n"
    assert column(plan(text), "group") == ["TCGA-01-x", "TCGA-01-y", "TCGA-02-x"]
    assert column(plan(text, group_pattern=r"^(TCGA-\d\d)"), "group") == ["TCGA-01", "TCGA-01", "TCGA-02"]
    assert column(plan(text.replace("slide", "x"), group_pattern=r"(\w)\."), "group") == ["a", "b", "c"]
    assert "groups: not every patch has one, so there are none" in plan(text.replace("TCGA-02-x", "")).notes
    with pytest.raises(HistoCLIPError, match=r"(?s)finds nothing in 1 of 3:\n  - TCGA-02-x"):
        plan(text, group_pattern="TCGA-01")


def test_parts_are_understood_in_any_words(plan):
    text = "file,Group,tumor\na.png,Training,1\nb.png,VALID,0\nc.png,hold out,1\n"
    result = plan(text)
    assert column(result, "split") == ["train", "val", "test"]
    assert set(column(result, "group")) == {""}
    assert "split     train 1, val 1, test 1" in result.describe()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "split.json",
            json.dumps({"train_cases": ["p1"], "val_cases": ["p2"], "test_cases": ["p3"], "train_images": 7}),
        ),
        ("splits_0.csv", ",train,val,test\n0,a,b,c\n1,,,\n"),
        ("splits_0_bool.csv", ",train,val,test\na,True,False,False\nb,False,True,False\nc,False,False,True\n"),
    ],
)
def test_a_split_file_names_groups_or_files(plan, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    table = "file,case,tumor\na.png,p1,1\nb.png,p2,0\nc.png,p3,1\nd.png,p4,1\n"
    result = plan(table, split=tmp_path / name)
    assert column(result, "split") == ["train", "val", "test"]
    assert result.left_out == {"in none of the parts train, val and test": ["d.png"]}


def test_a_list_of_test_names_leaves_the_rest_to_train(plan, tmp_path):
    (tmp_path / "ds_test.txt").write_text("a.png\nc\n")
    assert read_split(tmp_path / "ds_test.txt") == {"a.png": "test", "c": "test"}
    for text in ("file,tumor\na.png,1\nb.png,0\nc.png,1\n", "file,tumor\na,1\nb,0\nc,1\n"):
        assert column(plan(text, split=tmp_path / "ds_test.txt"), "split") == ["test", "train", "test"]


@pytest.mark.parametrize("text", ["{}", "[1]", "{", '{"train": ["a"], "test": ["a"]}'])
def test_what_is_no_split_is_refused(tmp_path, text):
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(HistoCLIPError, match=r"split\.json"):
        read_split(tmp_path / "split.json")


def test_files_that_are_missing_or_ambiguous_are_left_out(plan, images):
    Image.new("RGB", (40, 40)).save(images / "sub/a.png")
    result = plan("file,tumor\na,1\nsub/a.png,1\nA.PNG,0\ngone.png,1\nc,0\n")
    assert [patch.file for patch in result.patches] == ["a.png", "sub/a.png", "sub/deep/c.PNG"]
    assert [len(names) for names in result.left_out.values()] == [1]
    assert "1: no image of that name below" in result.describe() and "(gone.png)" in result.describe()
    (images / "a.png").unlink()
    Image.new("RGB", (40, 40)).save(images / "sub/deep/a.png")
    assert plan("file,tumor\na.png,1\nb.png,0\n").left_out == {f"several images of that name below {images}": ["a.png"]}


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        ("file,tumor\nx.png,1\n", {}, r"no patch is left to import. Left out:\n  - 1: no image of that name"),
        ("file_name,path,tumor\na.png,b.png,1\n", {}, "several columns may hold the files: file_name, path"),
        ("file,tumor\na.png,1\n", {"classes": ("glands",)}, r"--classes: glands not found. The source has:\n  - tumor"),
        ("file,tumor\na.png,1\n", {"meta": ("site",)}, "--meta: there is no column 'site'"),
        ("file,tumor\na.png,1\n", {"slide": "x.svs"}, "--slide: the format columns .* does not take it"),
        ("file,tumor\na.png,1,1\n", {}, "no separator gives"),
        (
            'file,label\na.png,"x\nb.png,y\nc.png,x\n',
            {"format": "names"},
            "csv, line 2: .*unexpected end",
        ),
        ("file,tumor\na.png,x\n", {"format": "collumns"}, "Did you mean columns"),
        ("file,note\na.png,hello\n", {}, "the label format was not recognised"),
        ("nothing\n", {}, "no separator gives its lines the same number of columns"),
        ("file,Mask\na.png,1\n", {}, "Mask cannot be the name of a class"),
        ("file,label\na.png,Test\nb.png,meta_x\n", {}, "Test, meta_x cannot be the name of a class"),
        ("file,tumor\na.png,1\n", {"ignore": ("tumor",)}, "no class of at most 254"),
    ],
)
def test_what_cannot_be_imported_is_refused_with_the_reason(plan, text, options, reason):
    with pytest.raises(HistoCLIPError, match=f"(?s){reason}"):
        plan(text, **options)


@pytest.mark.parametrize(
    "options",
    [{"patch": 0}, {"min_count": 0}, {"min_coverage": 0}, {"threshold": 2}, {"mpp": -1}, {"group_pattern": "("}],
)
def test_options_that_cannot_be_meant_are_refused(options):
    with pytest.raises(HistoCLIPError, match=f"--{next(iter(options)).replace('_', '-')}: "):
        ImportOptions(**options)


CELLS = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=6)
TABLE = st.integers(2, 5).flatmap(
    lambda width: st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=2, max_size=6)
)


@given(TABLE, st.sampled_from([separator for separator in SEPARATORS if separator != " "]))
@settings(max_examples=100)
def test_cells_are_read_as_the_csv_module_writes_them(tmp_path_factory, rows, separator):
    """A table in which another separator divides every line alike says the same in two ways: it is not tried."""
    text = io.StringIO()
    csv.writer(text, delimiter=separator).writerows(rows)
    rivals = [mark for mark in SEPARATORS if mark != separator]
    if text.getvalue().startswith("#") or any(mark in rows[0][k] for mark in rivals for k in range(len(rows[0]))):
        return
    path = tmp_path_factory.mktemp("any") / "table.csv"
    path.write_bytes(text.getvalue().encode())
    try:
        cells = read_cells(path)
    except HistoCLIPError as error:
        assert "must be unique" in str(error) and len(set(rows[0])) < len(rows[0])
        return
    assert [list(row) for row in zip(*cells.columns.values(), strict=True)] == rows[cells.has_header :]
    assert not cells.has_header or list(cells.columns) == rows[0]


# Other forms


def coco(tmp_path, annotations, width=40, height=48):
    (tmp_path / "coco.json").write_text(
        json.dumps(
            {
                "images": [
                    {"id": 7, "file_name": "a.png", "width": width, "height": height},
                    {"id": 8, "file_name": "b.png", "width": width, "height": height},
                ],
                "categories": [{"id": 3, "name": "tumor"}, {"id": 1, "name": "stroma"}],
                "annotations": annotations,
            }
        )
    )
    return tmp_path / "coco.json"


def test_coco_gives_labels_and_masks_of_polygons_and_run_lengths(tmp_path, images):
    square = {"image_id": 7, "category_id": 1, "segmentation": [[10, 10, 20, 10, 20, 30, 10, 30]], "bbox": [0, 0, 1, 1]}
    column = {"image_id": 7, "category_id": 3, "segmentation": {"size": [48, 40], "counts": [0, 96, 48 * 40 - 96]}}
    lost = {"image_id": 9, "category_id": 3, "segmentation": [[1, 1, 2, 2, 3, 3]]}
    plan = plan_import(coco(tmp_path, [square, column, lost]), ImportOptions(images=images))
    assert plan.classes == ["tumor", "stroma"]
    assert labels(plan) == {"a": "11", "b": "00"}
    assert plan.left_out == {"annotations of an image that is not listed": ["annotation ?"]}
    plan.write(tmp_path / "out")
    dataset = folder.load(tmp_path / "out")
    expected = np.zeros((48, 40), dtype=np.uint8)
    expected[:, :2], expected[10:30, 10:20] = 1, 2
    assert dataset.mask(0).tolist() == expected.tolist()
    assert not dataset.mask(1).any()


def test_coco_outlines_of_an_image_that_is_listed_twice_are_all_drawn(tmp_path, images):
    squares = [
        {"image_id": image, "category_id": category, "segmentation": [[x, x, x + 9, x, x + 9, x + 9, x, x + 9]]}
        for image, category, x in ((7, 3, 0), (8, 1, 20))
    ]
    source = coco(tmp_path, squares)
    source.write_text(source.read_text().replace("b.png", "a.png"))
    plan = plan_import(source, ImportOptions(images=images))
    plan.write(tmp_path / "out")
    assert np.bincount(folder.load(tmp_path / "out").mask(0).ravel()).tolist() == [40 * 48 - 2 * 81, 81, 81]


def test_coco_boxes_give_labels_and_no_masks_and_other_sizes_are_left_out(tmp_path, images):
    box = {"image_id": 7, "category_id": 1, "bbox": [0, 0, 9, 9]}
    plan = plan_import(coco(tmp_path, [box]), ImportOptions(images=images))
    assert labels(plan) == {"a": "01", "b": "00"} and not plan.has_masks
    square = box | {"segmentation": [[10, 10, 20, 10, 20, 30]]}
    with pytest.raises(HistoCLIPError, match="2: the image has another size, 40x48, than its annotations"):
        plan_import(coco(tmp_path, [square], width=48), ImportOptions(images=images))


@pytest.mark.parametrize("change", [{"image_id": None, "category_id": 1}, {"segmentation": [[1, 2, 3]]}, 3])
def test_a_broken_coco_file_is_refused(tmp_path, images, change):
    good = {"image_id": 7, "category_id": 1, "segmentation": [[1, 1, 2, 2, 3, 3]]}
    path = coco(tmp_path, [good | change if isinstance(change, dict) else change])
    try:
        assert plan_import(path, ImportOptions(images=images)).left_out
    except HistoCLIPError as error:
        assert str(path) in str(error)


def test_folders_of_classes_unite_what_lies_in_several(tmp_path):
    for file in (
        "train/tumor/1.png",
        "train/tumor/2.png",
        "train/stroma/2.png",
        "valid/stroma/3.png",
        "train/stray.png",
    ):
        (tmp_path / "in" / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (int(file[-5]) if file[-5].isdigit() else 9, 0, 0)).save(tmp_path / "in" / file)
    plan = plan_import(tmp_path / "in", ImportOptions())
    assert plan.classes == ["stroma", "tumor"]
    assert {patch.file: patch.labels for patch in plan.patches} == {
        "train/stroma/2.png": (1, 1),
        "train/tumor/1.png": (0, 1),
        "valid/stroma/3.png": (1, 0),
    }
    assert column(plan, "split") == ["train", "train", "val"]
    assert plan.left_out == {"in no folder of a class": ["train/stray.png"]}
    assert "4 files, 3 different images" in plan.describe()


def test_roboflow_groups_the_copies_of_one_original(tmp_path):
    for part, names in (("train", ("x_jpg.rf.01.jpg", "x_jpg.rf.02.jpg")), ("test", ("y_jpg.rf.03.jpg",))):
        (tmp_path / "in" / part).mkdir(parents=True)
        for name in names:
            Image.new("RGB", (40, 40)).save(tmp_path / "in" / part / name)
        rows = "".join(f"{name}, 0, 1\n" for name in names)
        (tmp_path / "in" / part / "_classes.csv").write_text(f"filename, healthy, tumor\n{rows}")
    plan = plan_import(tmp_path / "in", ImportOptions(none="healthy"))
    assert plan.classes == ["tumor"]
    assert column(plan, "group") == ["y_jpg", "x_jpg", "x_jpg"]
    assert column(plan, "split") == ["test", "train", "train"]


# What is written


def test_a_written_folder_loads_with_all_that_the_plan_says(plan, tmp_path, images):
    text = "file,case,split,tumor,stroma,sex\na.png,p1,train,1,0,f\nb.png,p2,train,0,1,m\nc.png,p2,val,0,0,f\n"
    result = plan(text, meta=("sex",))
    before = {path: path.stat().st_mode for path in images.rglob("*.*")}
    result.write(tmp_path / "out")
    table = pd.read_csv(tmp_path / "out/labels.csv")
    assert list(table) == ["file", "group", "split", "meta_sex", "tumor", "stroma"]
    assert table["meta_sex"].tolist() == ["f", "m", "f"]
    dataset = folder.load(tmp_path / "out")
    assert dataset.classes == ["tumor", "stroma"]
    assert dataset.files == ["images/a.png", "images/sub/b.png", "images/sub/deep/c.PNG"]
    assert dataset.labels.tolist() == [[1, 0], [0, 1], [0, 0]]
    assert dataset.groups.tolist() == ["p1", "p2", "p2"] and dataset.parts.tolist() == ["train", "train", "val"]
    assert dataset.image(1)[0, 0].tolist() == [1, 0, 0]
    assert {path: path.stat().st_mode for path in images.rglob("*.*")} == before
    with pytest.raises(HistoCLIPError, match=r"labels.csv exists"):
        result.write(tmp_path / "out")


def test_an_import_can_be_written_beside_its_source_and_planned_again(plan, tmp_path):
    first = plan("file,tumor\na.png,1\nb.png,0\n", images=None, out=tmp_path / "out")
    first.write(tmp_path / "out", copy=True)
    again = plan("file,tumor\na.png,1\nb.png,0\n", images=None, out=tmp_path / "out")
    assert labels(first) == labels(again) == {"a": "1", "b": "0"}


def test_no_image_of_the_user_is_removed_or_overwritten(plan, tmp_path, images):
    (tmp_path / "alias").symlink_to(tmp_path)
    content = {path: path.read_bytes() for path in images.rglob("*.*")}
    for out in (tmp_path / "alias", images / ".."):  # both hold the images themselves
        with pytest.raises(HistoCLIPError, match="no patch is left to import"):
            plan("file,tumor\na.png,1\nb.png,0\n", out=out)
    result = plan("file,tumor\na.png,1\nb.png,0\n")
    result.write(tmp_path / "alias")  # as if the plan had been made for another folder
    (tmp_path / "out/images").mkdir(parents=True)
    (tmp_path / "out/images/a.png").write_bytes(b"another")
    with pytest.raises(HistoCLIPError, match=r"out/images/a.png exists and is another image"):
        result.write(tmp_path / "out")
    assert (tmp_path / "out/images/a.png").read_bytes() == b"another"
    assert {path: path.read_bytes() for path in images.rglob("*.*")} == content


def test_images_are_linked_or_copied_and_a_broken_import_can_be_resumed(plan, tmp_path, images, monkeypatch):
    result = plan("file,tumor\na.png,1\nb.png,0\n")
    (images / "sub/b.png").rename(tmp_path / "away.png")
    with pytest.raises(FileNotFoundError):
        result.write(tmp_path / "out")
    assert not (tmp_path / "out/labels.csv").exists()
    (tmp_path / "away.png").rename(images / "sub/b.png")
    result.write(tmp_path / "out")
    assert os.path.samefile(tmp_path / "out/images/a.png", images / "a.png")
    result.write(tmp_path / "copied", copy=True)
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("another disk")))
    result.write(tmp_path / "elsewhere")
    for name in ("copied", "elsewhere"):
        copied = tmp_path / name / "images/sub/b.png"
        assert not os.path.samefile(copied, images / "sub/b.png")
        assert copied.read_bytes() == (images / "sub/b.png").read_bytes()


def test_an_importer_from_outside_is_found(tmp_path, images, monkeypatch):
    monkeypatch.setattr(IMPORTERS, "_entries", dict(IMPORTERS.load()))
    monkeypatch.setattr(IMPORTERS, "_module", dict(IMPORTERS._module))

    @importer(
        "mine", title="Mine", about="mine", recognises=lambda path, options: path.suffix == ".mine", options=("images",)
    )
    def read_mine(source, options):
        return Found(["tumor"], [Item("a.png", {"tumor": 1})])

    (tmp_path / "x.mine").touch()
    assert labels(plan_import(tmp_path / "x.mine", ImportOptions(images=images))) == {"a": "1"}


def test_a_plan_shows_names_that_control_a_terminal_as_escapes(tmp_path):
    found = Found(["\x1b[2J"], [Item("a", {"\x1b[2J": 1}, tmp_path / "a.png")])
    assert "\x1b" not in make_plan("Mine", tmp_path, found, ImportOptions()).describe()


# Real tables


def made_up(root, names, size=(40, 40)):
    root.mkdir()
    for name in names:
        Image.new("RGB", size).save(root / name)
    return root


def test_real_tables_are_understood(shared_data, tmp_path):
    tables = shared_data / "tables"
    rows = pd.read_csv(tables / "07_brecahad_image_statistics.csv")
    images = made_up(tmp_path / "images", [f"{name}.png" for name in rows["filename"]])
    split = tables / "07_brecahad_data_split.json"
    plan = plan_import(tables / "07_brecahad_image_statistics.csv", ImportOptions(images=images, split=split))
    assert plan.classes == ["Mitosis", "Apoptosis", "Tumor_nuclei", "Non_tumor_nuclei", "Tubule", "Non_tubule"]
    counted = rows.filter(like="n_").drop(columns="n_cells").to_numpy() > 0
    assert np.array([patch.labels for patch in plan.patches]).tolist() == counted.astype(int).tolist()
    assert [column(plan, "split").count(part) for part in ("train", "val", "test")] == [114, 25, 23]
    assert len(set(column(plan, "group"))) == 17
    boxes = plan_import(tables / "06_brecahad_all_cells.csv", ImportOptions(images=images))
    of_boxes = {patch.file: dict(zip(boxes.classes, patch.labels, strict=True)) for patch in boxes.patches}
    for patch in plan.patches:
        if patch.file in of_boxes:
            assert of_boxes[patch.file] == dict(zip(plan.classes, patch.labels, strict=True))
    brains = made_up(tmp_path / "brains", pd.read_csv(tables / "02_plaquebox_WSI_CERAD.csv")["WSI_ID"] + ".png")
    plan = plan_import(tables / "02_plaquebox_WSI_CERAD.csv", ImportOptions(images=brains, file_column="WSI_ID"))
    assert plan.classes == ["Cored_MTG", "Diffuse_MTG", "CAA_MTG"]
    assert [column(plan, "split").count(part) for part in ("train", "val", "test")] == [28, 4, 30]


def test_real_coco_masks_hold_what_the_file_says(shared_data, tmp_path):
    """The areas in the file are those of pycocotools; nuclei of one class that overlap would make them smaller."""
    source = shared_data / "tables/20_pannuke_coco_json_annotation_demo.json"
    content = json.loads(source.read_text())
    images = made_up(tmp_path / "images", [image["file_name"] for image in content["images"]], (256, 256))
    plan = plan_import(source, ImportOptions(images=images))
    areas = {}
    for annotation in content["annotations"]:
        key = annotation["image_id"], annotation["category_id"]
        areas[key] = areas.get(key, 0) + annotation["area"]
    ids = {image["file_name"]: image["id"] for image in content["images"]}
    for patch in plan.patches[::5]:
        for k, category in enumerate(content["categories"], 1):
            area = areas.get((ids[patch.file], category["id"]), 0)
            assert (plan._mask(patch) == k).sum() == area
            assert patch.labels[k - 1] == (area > 0)
