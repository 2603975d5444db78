"""What every data set promises."""

import re

import numpy as np
import pytest
from patches import Arrays, blank, make

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.data.base import PatchDataset


def test_prevalence_is_the_fraction_of_patches_with_the_class():
    assert make([[1, 0], [1, 1], [0, 0], [1, 0]]).prevalence.tolist() == [0.75, 0.25]


def test_labels_must_have_a_row_for_each_file_and_a_column_for_each_class():
    with pytest.raises(HistoCLIPError, match=re.escape("labels have shape (2, 2), expected (3, 2)")):
        make([[1, 0], [0, 1]], ["a.png", "b.png", "c.png"])


def test_a_data_set_without_patches_is_refused():
    with pytest.raises(HistoCLIPError, match="no patches were found"):
        PatchDataset("made", ["tumor"], [], np.zeros((0, 1)), None)


@pytest.mark.parametrize("name", ["groups", "parts", "tissue", "patch_mpp", "site"])
def test_what_is_known_of_patches_has_a_value_for_each(name):
    values = {name: np.array([1.0, 1.0, 1.0])}
    with pytest.raises(HistoCLIPError, match=rf"(?s)each of the 2 patches needs one value.*{name}: 3"):
        make([[1, 0], [0, 1]], **({"meta": values} if name == "site" else values))


@pytest.mark.parametrize("value", [2, -1, 0.5])
def test_every_patch_with_a_label_other_than_0_and_1_is_listed(value):
    with pytest.raises(HistoCLIPError, match=r"(?s)must be 0, 1 or.*b\.png.*d\.png") as raised:
        make([[1, 0], [value, 0], [0, 1], [0, value]], ["a.png", "b.png", "c.png", "d.png"])
    assert "a.png" not in str(raised.value)
    assert "c.png" not in str(raised.value)


def test_every_file_that_is_listed_twice_is_named():
    with pytest.raises(HistoCLIPError, match=r"(?s)a\.png \(2 times\).*c\.png \(3 times\)") as raised:
        make([[1, 0]] * 6, ["a.png", "c.png", "b.png", "a.png", "c.png", "c.png"])
    assert "b.png" not in str(raised.value)


def test_without_masks_no_mask_is_read():
    assert make([[1, 0]], source=Arrays([blank()], [np.zeros((40, 40))])).mask(0) is None


BYTES = b"gr\xfcn.png".decode(errors="surrogateescape")  # as Python reads a name that is not UTF-8


@pytest.mark.parametrize(
    "names",
    [
        {"files": ["a.png", BYTES]},
        {"groups": np.array(["a", BYTES])},
        {"tissue": np.array([BYTES, "a"])},
        {"parts": np.array([BYTES, "a"])},
    ],
)
def test_names_that_are_not_unicode_are_refused_and_escaped(names):
    with pytest.raises(HistoCLIPError, match=r"not valid Unicode.*Rename:\n  - gr\\udcfcn\.png"):
        make([[1, 0], [0, 1]], **names)


def test_unusual_unicode_names_are_accepted():
    odd = ["a\nb", "<script>alert(1)</script>", "\u202egnp", "肿瘤"]
    assert make([[1, 0]] * 4, odd, groups=np.array(odd)).files == odd
