"""Points and tiles with classes on a large image, cut into patches."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.data.importers import ImportOptions, plan_import


@pytest.fixture
def plan(tmp_path, slide):
    def make(text, name="S1.csv", format="", **options):
        path = tmp_path / name
        path.write_text(text)
        return plan_import(path, ImportOptions(**({"slide": slide[0], "patch": 64} | options)), format)

    return make


def labels(plan):
    return {patch.file.removesuffix(".png"): patch.labels for patch in plan.patches}


GRID = {"S1_x0_y0": (1, 1), "S1_x64_y0": (0, 1)}


@pytest.mark.parametrize(
    "text",
    [
        "x,y,class\n10,20,tumor\n30,63.9,in situ\n64,1,in situ\n",
        "x\ty\tpixel_x\tpixel_y\tlabel\n1\t2\t10\t20\ttumor\n3\t4\t30\t63.9\tin situ\n5\t6\t64\t1\tin situ\n",
        "x0,y0,x1,y1,score,classification\n0,10,20,30,0.5,tumor\n20,50,40,77.8,0.1,in situ\n60,0,68,2,1,in situ\n",
        "label,classification,x,y,centroid_x,centroid_y\n1,tumor,0,0,10,20\n2,in situ,0,0,30,40\n3,in situ,0,0,70,4\n",
    ],
)
def test_points_are_counted_in_the_fields_of_a_grid(plan, text):
    result = plan(text)
    assert result.classes == ["tumor", "in situ"]
    assert labels(result) == GRID
    assert {patch.item.group for patch in result.patches} == {"S1"}


def test_a_table_without_header_is_row_column_and_class(plan):
    result = plan("20 10 7\n40 30 11\n1 64 11\n", name="S1.txt", classes=("7=tumor", "11=in situ"))
    assert result.classes == ["tumor", "in situ"]
    assert labels(result) == GRID
    assert plan("20 10 7\n1 64 11\n", name="S1.txt").classes == ["7", "11"]


def test_a_table_belongs_to_no_slide_whose_number_its_own_continues(plan, slide):
    with pytest.raises(HistoCLIPError, match="no file of labels has a slide"):
        plan("x,y,class\n10,20,tumor\n", name="S10.csv", slide=slide[0].parent)
    assert labels(plan("x,y,class\n10,20,tumor\n", name="S1_points.csv", slide=slide[0].parent))


def test_a_patch_around_each_point_has_all_classes_within_it(plan, tmp_path):
    text = "x,y,class\n100,100,tumor\n120,100,stroma\n300,100,stroma\n10,10,tumor\n500,500,ignored\n,7,tumor\n8,8,\n"
    result = plan(text, around=True, ignore=("ignored",))
    assert labels(result) == {"S1_x68_y68": (1, 1), "S1_x88_y68": (1, 1), "S1_x268_y68": (0, 1)}
    assert {reason: len(names) for reason, names in result.left_out.items()} == {
        "lines without numbers for coordinates": 1,
        "points without a class": 1,
        "fields beyond the edge of the image": 1,
        "no label of the classes above": 1,
    }
    result.write(tmp_path / "out")
    assert np.asarray(Image.open(tmp_path / "out/images/S1_x268_y68.png"))[0, 0].tolist() == [67, 17, 0]


def test_min_count_asks_for_several_points(plan):
    assert labels(plan("x,y,class\n1,1,a\n2,2,a\n3,3,b\n", min_count=2)) == {"S1_x0_y0": (1, 0)}


def test_results_of_wsinfer_are_tiles_with_decisions(plan):
    text = "minx,miny,width,height,prob_a,prob_b\n0,0,128,128,0.2,0.8\n128,0,128,128,0.5,0.1\n0,128,100,50,1,1\n"
    result = plan(text)
    assert labels(result) == {"S1_x0_y0": (0, 1), "S1_x128_y0": (1, 0)}
    assert set(labels(plan(text, threshold=0.9)).values()) == {(0, 0)}
    assert result.patches[1].item.read()[0, 0].tolist() == [32, 0, 0]
    assert {patch.item.mpp for patch in result.patches} == {1.0}
    assert "the decisions of another model" in result.describe()


def test_a_plain_image_needs_no_mpp_for_fields_in_pixels(plan, tmp_path):
    Image.new("RGB", (200, 100), "white").save(tmp_path / "S1.png")
    result = plan("x,y,class\n1,1,a\n", slide=tmp_path / "S1.png")
    result.write(tmp_path / "out")
    assert list(pd.read_csv(tmp_path / "out/labels.csv")) == ["file", "group", "a"]


def test_tables_without_points_or_classes_are_refused(plan):
    with pytest.raises(HistoCLIPError, match="no line has coordinates and a class:\n  - 2 points without a class"):
        plan('x,y,class\n1,2,"Unclassified"\n3,4,\n')
    with pytest.raises(HistoCLIPError, match="no columns x, y and class were found"):
        plan("x,y,z\n1,2,3\n", format="coordinates")


def test_real_spots_are_read(shared_data, slide):
    path = shared_data / "tables/21_her2st_G2_labeled_coordinates.tsv"
    Image.new("RGB", (4000, 4000)).save(slide[0])
    plan = plan_import(path, ImportOptions(slide=slide[0], patch=64, ignore=("undetermined",), around=True))
    rows = pd.read_csv(path, sep="\t")
    assert set(plan.classes) == set(rows["label"].dropna()) - {"undetermined"}
    for patch in plan.patches:
        x, y = (int(text[1:]) + 32 for text in patch.file.removesuffix(".png").split("_")[1:])
        near = rows[((rows["pixel_x"] - x).abs() <= 32) & ((rows["pixel_y"] - y).abs() <= 32)]
        assert patch.labels == tuple(int((near["label"] == name).any()) for name in plan.classes)
