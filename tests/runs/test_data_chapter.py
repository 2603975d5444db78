"""The page of the data: what the check noted, and that three patches show nothing."""

import pytest
from PIL import Image

from histoclip_lib import open_run


@pytest.fixture
def described(tmp_path, write_folder):
    """Return a function that opens the data chapter of a folder with some labels."""

    def describe(labels, **columns):
        data = write_folder(tmp_path / "data", labels, **columns)
        values = {"dataset": "folder", "data_dir": str(data), "split": "random", "seed": 0, "val_fraction": 0.4}
        return open_run("trial", tmp_path / "reports", given=values).describe_data()

    return describe


def test_a_page_of_three_patches_and_one_class_says_first_that_nothing_can_be_concluded(described):
    data = described({"tumor": [1, 1, 0]})
    first, rest = data.finding().data.split("\n\n")
    assert first.startswith("**Nothing can be concluded: among the patches held out (1) no class has 10 that show it")
    assert rest.startswith("**3 patches with 1 classes.**")
    assert data.checked().data == "No problems were found in the labels, images and masks."


def test_the_page_lists_what_may_be_wrong_and_leaves_nothing_out(described, tmp_path):
    (tmp_path / "data").mkdir()
    Image.new("L", (48, 48), 1).save(tmp_path / "data/mask.png")
    data = described({"<b>": [1, 1, 0]}, mask="mask.png", group=["1", "01", "2"])
    page = data.checked()._repr_html_()
    assert len(data.run.patches) == 3
    assert "groups that may be one patient" in page
    assert "002.png: &lt;b&gt; on 100.0%" in page
    assert "No patch is left out because of them" in page
