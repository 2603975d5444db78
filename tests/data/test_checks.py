"""The check of all images: every one that cannot be used is listed, with its reason, before anything costly."""

import re

import numpy as np
import pytest
from patches import TWO_CLASSES, Arrays, blank, encoded, from_files, make
from PIL import Image

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.data.checks import check_images, too_few
from histoclip_lib.data.images import ImageFiles


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
    assert re.search(r"c\.png: .*mask_c\.png: mask values \[3\] do not name a class", str(raised.value))
    assert "- d.png: " in str(raised.value)


def test_control_characters_in_names_are_escaped(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"broken")
    names = ["a\n  - b.png: fine", "\x1b[2Jc.png", "<b>d</b>.png"]
    dataset = make([[1, 0]] * 3, names, ImageFiles([tmp_path / "broken.png"] * 3, [], TWO_CLASSES))
    with pytest.raises(HistoCLIPError, match="3 of 3") as raised:
        check_images(dataset, progress=False)
    lines = str(raised.value).splitlines()
    assert len(lines) == 4
    assert lines[1].startswith(r"  - a\n  - b.png: fine: ")
    assert lines[2].startswith(r"  - \x1b[2Jc.png: ")
    assert lines[3].startswith("  - <b>d</b>.png: ")


@pytest.mark.parametrize("sizes", [[(1, 1)], [(1, 1), (48, 48)], [(31, 48)] * 3])
def test_tiny_patches_are_refused(sizes):
    source = Arrays([np.zeros((*size, 3), dtype=np.uint8) for size in sizes])
    with pytest.raises(HistoCLIPError, match="is too small for a patch"):
        check_images(make([[1, 0]] * len(sizes), source=source), progress=False)


def notes(*arguments, **more):
    return [str(note) for note in check_images(make(*arguments, **more), progress=False)]


def noise(seed):
    return np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)


def test_sound_patches_give_no_notes():
    masks = [np.repeat(np.uint8([[0, 1]]), 40, axis=0).repeat(20, axis=1)] * 3
    assert notes([[1, 0]] * 3, source=Arrays([noise(0), noise(0), noise(1)], masks), has_masks=True) == []


def test_one_image_under_several_names_with_contradicting_labels_is_noted():
    images = [noise(0), noise(0), noise(1), noise(1), noise(0)]
    labels = [[1, 0], [1, 1], [1, np.nan], [1, 0], [1, 0]]
    assert notes(labels, source=Arrays(images)) == [
        "images under several names with contradicting labels: 1 (0.png = 1.png = 4.png: stroma)"
    ]


def test_masks_that_contradict_labels_are_noted_both_ways():
    masks = [np.zeros((40, 40), np.uint8) for _ in range(5)]
    masks[1][:4] = 1
    masks[2][:, 0] = 2
    labels = [[0, 0], [0, 0], [0, 1], [1, 1], [np.nan, 0]]
    masks[4][:] = 1
    source = Arrays([noise(k) for k in range(5)], masks)
    assert notes(labels, source=source, has_masks=True) == [
        "masks that show a class whose label is 0: 1 (1.png: tumor on 10.0%)",
        "masks that do not show a class whose label is 1: 2 (3.png: tumor, 3.png: stroma)",
    ]
    assert notes(labels, source=source, has_masks=True, labels_follow_masks=True) == []


def test_blank_patches_are_noted_and_are_no_copies_of_each_other():
    white, colour = blank() + np.uint8(255), blank() + np.uint8([9, 8, 7])
    images = [noise(0), blank(), white, white, colour, noise(1)]
    labels = [[1, 0], [1, 0], [0, 1], [1, 0], [1, 0], [0, 1]]
    assert notes(labels, source=Arrays(images)) == ["patches of one colour: 4 (1.png, 2.png, 3.png, ...)"]


@pytest.mark.parametrize(("n", "enough"), [(3, False), (18, False), (20, True)])
def test_few_patches_say_that_nothing_can_be_concluded(n, enough):
    text = too_few(make([[1], [0]] * (n // 2) + [[1]] * (n % 2)), np.arange(n))
    assert (text == "") == enough
    assert enough or text.startswith(f"Nothing can be concluded: among the patches held out ({n}) no")
    assert too_few(make([[1]] * 50), np.arange(50))
