"""What every data set promises, and the check of its images."""

import io
import pickle
import re
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from histoclip_lib.datasets.base import ImageFiles, PatchDataset, check_images, read_class_map
from histoclip_lib.errors import HistoCLIPError, bullet_list

TWO_CLASSES = np.array([0, 1, 2] + [255] * 253, dtype=np.uint8)  # mask values of a data set with two classes


class Arrays:
    """Patches in memory."""

    def __init__(self, images, masks=None):
        self.images, self.masks = images, masks

    def image(self, index):
        return self.images[index]

    def mask(self, index):
        return self.masks[index]

    def digest(self, index):
        return str(index)


def blank(height=40, width=40):
    return np.zeros((height, width, 3), dtype=np.uint8)


def make(labels, files=None, source=None, **more):
    labels = np.array(labels)
    files = files or [f"{index}.png" for index in range(len(labels))]
    return PatchDataset("made", ["tumor", "stroma"][: labels.shape[1]], files, labels, source, **more)


def from_files(paths, masks=()):
    return make(
        [[1, 0]] * len(paths),
        [path.name for path in paths],
        ImageFiles(list(paths), list(masks), TWO_CLASSES),
        has_masks=bool(masks),
    )


def encoded(form, size=(48, 48)):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


# PatchDataset


def test_prevalence_is_the_fraction_of_patches_with_the_class():
    assert make([[1, 0], [1, 1], [0, 0], [1, 0]]).prevalence.tolist() == [0.75, 0.25]


def test_labels_must_have_a_row_for_each_file_and_a_column_for_each_class():
    with pytest.raises(HistoCLIPError, match=re.escape("labels have shape (2, 2), expected (3, 2)")):
        make([[1, 0], [0, 1]], ["a.png", "b.png", "c.png"])


def test_a_data_set_without_patches_is_refused():
    with pytest.raises(HistoCLIPError, match="no patches were found"):
        PatchDataset("made", ["tumor"], [], np.zeros((0, 1)), None)


@pytest.mark.parametrize("value", [2, -1, 0.5, np.nan])
def test_every_patch_with_a_label_other_than_0_and_1_is_listed(value):
    with pytest.raises(HistoCLIPError, match=r"(?s)must be 0 or 1.*b\.png.*d\.png") as raised:
        make([[1, 0], [value, 0], [0, 1], [0, value]], ["a.png", "b.png", "c.png", "d.png"])
    assert "a.png" not in str(raised.value)
    assert "c.png" not in str(raised.value)


def test_every_file_that_is_listed_twice_is_named():
    with pytest.raises(HistoCLIPError, match=r"(?s)a\.png \(2 times\).*c\.png \(3 times\)") as raised:
        make([[1, 0]] * 6, ["a.png", "c.png", "b.png", "a.png", "c.png", "c.png"])
    assert "b.png" not in str(raised.value)


def test_without_masks_no_mask_is_read():
    assert make([[1, 0]], source=Arrays([blank()], [np.zeros((40, 40))])).mask(0) is None


# Files


def test_images_are_rgb_whatever_the_file_holds(tmp_path):
    colour = (200, 30, 90)
    for mode, color in (("RGB", colour), ("RGBA", (*colour, 255)), ("L", 77)):
        Image.new(mode, (40, 50), color).save(tmp_path / f"{mode}.png")
    paths = [tmp_path / f"{mode}.png" for mode in ("RGB", "RGBA", "L")]
    dataset = from_files(paths)
    images = [dataset.image(index) for index in range(3)]
    assert {(image.shape, image.dtype) for image in images} == {((50, 40, 3), np.dtype(np.uint8))}
    assert [image[0, 0].tolist() for image in images] == [list(colour), list(colour), [77, 77, 77]]


def test_the_digest_follows_the_bytes_of_the_file_and_the_source_can_be_pickled(tmp_path):
    one, other, same = tmp_path / "1.png", tmp_path / "2.png", tmp_path / "3.png"
    one.write_bytes(encoded("png"))
    same.write_bytes(encoded("png"))
    other.write_bytes(encoded("png", (48, 49)))
    source = pickle.loads(pickle.dumps(from_files([one, other, same]).source))
    assert source.digest(0) == source.digest(2) != source.digest(1)


@pytest.mark.parametrize("mode", ["P", "L"])
def test_mask_values_become_class_numbers(tmp_path, mode):
    stored = np.array([[0, 1], [4, 1]], dtype=np.uint8)
    mask = Image.fromarray(stored)
    if mode == "P":
        mask = mask.convert("P")
        mask.putdata(stored.ravel().tolist())
        mask.putpalette([255, 0, 0] * 256)
    mask.save(tmp_path / "mask.png")
    values = np.full(256, 255, dtype=np.uint8)
    values[[0, 1, 4]] = 1, 2, 0
    class_map = read_class_map(tmp_path / "mask.png", values)
    assert class_map.dtype == np.uint8
    assert class_map.tolist() == [[1, 2], [0, 2]]


def test_mask_values_that_name_no_class_are_listed(tmp_path):
    Image.fromarray(np.array([[0, 9], [2, 7]], dtype=np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(HistoCLIPError, match=r"mask\.png: mask values \[7, 9\] name no class"):
        read_class_map(tmp_path / "mask.png", TWO_CLASSES)


def test_a_colour_image_is_no_mask(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "mask.png")
    with pytest.raises(HistoCLIPError, match=r"mask\.png: a mask must be a P or L image .* this one is RGB"):
        read_class_map(tmp_path / "mask.png", TWO_CLASSES)


# check_images


def test_sound_images_pass(tmp_path):
    for name, form in (("a.png", "png"), ("b.jpg", "jpeg"), ("c.tif", "tiff")):
        (tmp_path / name).write_bytes(encoded(form))
    check_images(from_files(sorted(tmp_path.iterdir())), progress=False)


def test_every_image_that_cannot_be_used_is_listed_with_its_reason(tmp_path):
    contents = {
        "cut.jpg": encoded("jpeg")[:700],
        "cut.png": encoded("png")[:900],
        "empty.png": b"",
        "good1.png": encoded("png"),
        "good2.png": encoded("png"),
        "good3.jpg": encoded("jpeg"),
        "other_size.png": encoded("png", (48, 64)),
        "text.png": b"not an image at all",
        "tiny.png": encoded("png", (31, 48)),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    dataset = from_files([tmp_path / name for name in contents])
    with pytest.raises(HistoCLIPError, match="6 of 9 patches cannot be used") as raised:
        check_images(dataset, progress=False)
    listed = dict(re.findall(r"^  - ([a-z0-9_.]+): (.*)$", str(raised.value), flags=re.MULTILINE))
    assert set(listed) == {name for name in contents if not name.startswith("good")}
    assert "truncated" in listed["cut.jpg"]
    assert listed["other_size.png"] == "64x48, where most patches are 48x48"
    assert listed["tiny.png"] == "48x31 is too small for a patch"


def test_a_file_that_is_gone_is_listed(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded("png"))
    with pytest.raises(HistoCLIPError, match=r"(?s)1 of 2 patches.*gone\.png: .*No such file"):
        check_images(from_files([tmp_path / "a.png", tmp_path / "gone.png"]), progress=False)


@pytest.mark.parametrize("n_good", [0, 1])
def test_mostly_unreadable_images_are_still_listed(tmp_path, n_good):
    names = [f"{index}.png" for index in range(4)]
    for index, name in enumerate(names):
        (tmp_path / name).write_bytes(encoded("png") if index < n_good else b"broken")
    with pytest.raises(HistoCLIPError, match=f"{4 - n_good} of 4 patches") as raised:
        check_images(from_files([tmp_path / name for name in names]), progress=False)
    assert [name for name in names if f"- {name}:" in str(raised.value)] == names[n_good:]


def test_more_than_a_screenful_of_broken_images_are_all_listed(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"broken")
    source = ImageFiles([tmp_path / "broken.png"] * 90, [], TWO_CLASSES)
    with pytest.raises(HistoCLIPError) as raised:
        check_images(make([[1, 0]] * 90, source=source), progress=False)
    assert str(raised.value).count("\n  - ") == 90


def test_a_mask_that_does_not_fit_or_cannot_be_read_is_listed(tmp_path):
    images, masks = [tmp_path / f"{name}.png" for name in "abcd"], [tmp_path / f"mask_{name}.png" for name in "abcd"]
    for image, mask in zip(images, masks, strict=True):
        image.write_bytes(encoded("png"))
        Image.new("L", (48, 48)).save(mask)
    Image.new("L", (48, 47)).save(masks[1])
    Image.new("L", (48, 48), 3).save(masks[2])
    masks[3].write_bytes(b"broken")
    with pytest.raises(HistoCLIPError, match="3 of 4 patches") as raised:
        check_images(from_files(images, masks), progress=False)
    assert "b.png: the mask is 48x47, the image 48x48" in str(raised.value)
    assert re.search(r"c\.png: .*mask_c\.png: mask values \[3\] name no class", str(raised.value))
    assert "- d.png: " in str(raised.value)


def test_a_slide_in_disguise_is_refused_before_it_is_decoded(tmp_path):
    header = encoded("png")
    sides = np.array([20000, 20000], dtype=">u4").tobytes()
    chunk = b"IHDR" + sides + header[24:29]
    (tmp_path / "slide.png").write_bytes(header[:12] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + header[33:])
    with pytest.raises(HistoCLIPError, match=r"slide\.png: Image size \(400000000 pixels\) exceeds limit"):
        check_images(from_files([tmp_path / "slide.png"]), progress=False)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of damaged TIFF tags
@pytest.mark.parametrize("form", ["png", "jpeg", "tiff", "bmp"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_no_damage_to_a_file_ends_in_another_exception(tmp_path_factory, form, data):
    content = bytearray(encoded(form))
    for at in data.draw(st.lists(st.integers(0, min(len(content) - 1, 400)), max_size=6)):
        content[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "a.img"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        check_images(from_files([path]), progress=False)
    except HistoCLIPError as error:
        assert "a.img: " in str(error)


# Errors


def test_a_long_list_says_how_many_it_left_out():
    assert bullet_list(["a", "b"]) == "  - a\n  - b"
    assert bullet_list(list("abcde"), limit=3).splitlines() == ["  - a", "  - b", "  - c", "  - ... and 2 more"]
