"""`histoclip import`: the plan is printed first, and nothing but the folder is written."""

import json

import pandas as pd
import pytest
from PIL import Image

TABLE = "image,case,tumor,stroma\na.png,p1,1,0\nb.png,p2,0,1\nx.png,p3,1,1\n"


@pytest.fixture
def here(tmp_path):
    (tmp_path / "tiles").mkdir()
    for index, name in enumerate("ab"):
        Image.new("RGB", (40, 40), (index, 0, 0)).save(tmp_path / f"tiles/{name}.png")
    (tmp_path / "table.csv").write_text(TABLE)
    return tmp_path


def test_dry_run_prints_the_plan_and_writes_nothing(invoke, here):
    result = invoke("import", "table.csv", "--images", "tiles", "--out", "data", "--dry-run")
    assert result.exit_code == 0
    assert result.stdout.startswith("A column for each class: table.csv\n  patches   2 (files)")
    assert "1: no image of that name below tiles (x.png)" in result.stdout
    assert result.stderr == "nothing was written (--dry-run)\n"
    assert not (here / "data").exists()


def test_an_import_prints_the_plan_and_the_table_that_it_wrote(invoke, here):
    dry = invoke("import", "table.csv", "--images", "tiles", "--out", "data", "--dry-run")
    result = invoke("import", "columns", "table.csv", "--images", "tiles", "--out", "data")
    assert result.exit_code == 0
    assert result.stdout == dry.stdout + f"{here / 'data/labels.csv'}\n"
    assert "2 patches written" in result.stderr
    assert pd.read_csv(here / "data/labels.csv").to_dict("list") == {
        "file": ["images/a.png", "images/b.png"],
        "group": ["p1", "p2"],
        "tumor": [1, 0],
        "stroma": [0, 1],
    }
    again = invoke("import", "table.csv", "--images", "tiles", "--out", "data")
    assert again.exit_code == 2
    assert "labels.csv exists" in again.stderr and "Traceback" not in again.output


def test_lists_and_codes_are_taken_from_options(invoke, here):
    (here / "table.csv").write_text(TABLE.replace("1,0", "1,-1"))
    options = ["--images", "tiles", "--out", "data", "--unknown=-1", "--classes", "stroma=s, tumor", "--ignore", "x"]
    assert invoke("import", "table.csv", *options).exit_code == 0
    table = pd.read_csv(here / "data/labels.csv")
    assert list(table) == ["file", "group", "s", "tumor"]
    assert table["s"].isna().tolist() == [True, False]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["gone.csv"], "gone.csv does not exist"),
        (["columns", "names", "table.csv"], "give one source"),
        (["columns", "table.csv", "--format", "columns"], "give one source"),
        (["colums", "table.csv"], "Did you mean columns?"),
        (["table.csv", "--images", "tiles", "--patch", "100"], "--patch: the format columns"),
        (["table.csv", "--images", "tiles", "--mpp", "0"], "--mpp: 0.0 must be more than 0"),
        (["coco", "table.csv"], "is not JSON"),
    ],
)
def test_what_cannot_be_used_is_one_error_with_exit_code_2(invoke, here, arguments, reason):
    result = invoke("import", *arguments, "--out", "data")
    assert result.exit_code == 2
    assert reason in result.stderr and "Traceback" not in result.output
    assert result.stdout == "" and not (here / "data").exists()


def test_help_lists_the_forms(invoke):
    text = invoke("import", "--help").stdout.partition("Formats:")[2]
    assert all(name in text for name in ("coco", "qupath", "wsinfer", "coordinates", "roboflow", "columns", "folders"))


def test_a_coco_file_is_recognised(invoke, here):
    image = {"id": 1, "file_name": "a.png", "width": 40, "height": 40}
    annotation = {"image_id": 1, "category_id": 1, "segmentation": [[0, 0, 20, 0, 20, 20]]}
    content = {"images": [image], "annotations": [annotation], "categories": [{"id": 1, "name": "tumor"}]}
    (here / "coco.json").write_text(json.dumps(content))
    result = invoke("import", "coco.json", "--images", "tiles", "--out", "data")
    assert result.exit_code == 0 and result.stdout.startswith("COCO JSON: coco.json")
    assert (here / "data/masks/a.png").is_file()
