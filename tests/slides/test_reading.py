"""Slides of every kind give their pixels at their scale; others are refused with a remedy."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from painted import halved, picture, save_image, write_slide
from PIL import Image

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.slides import open_slide, reading

PIXELS = picture()
OME = {
    "axes": "YXS",
    "PhysicalSizeX": 500.0,
    "PhysicalSizeXUnit": "nm",
    "PhysicalSizeY": 500.0,
    "PhysicalSizeYUnit": "nm",
}


def with_alpha(pixels):
    opaque = np.full((*pixels.shape[:2], 1), 255, np.uint8)
    opaque[:50] = 0
    return np.concatenate([pixels, opaque], axis=2)


WRITERS = {
    "tiles.tif": lambda path: write_slide(path, [PIXELS]),
    "strips.tif": lambda path: tifffile.imwrite(path, PIXELS, photometric="rgb", rowsperstrip=32, compression="lzw"),
    "sixteen bits.tif": lambda path: write_slide(path, [PIXELS.astype(np.uint16) << 8]),
    "pyramid.ome.tif": lambda path: write_slide(path, [PIXELS, halved(PIXELS)], mpp=None, metadata=OME),
    "a plain image.png": lambda path: save_image(path, PIXELS),
    "#1 \N{NEUTRAL FACE} %41.bmp": lambda path: save_image(path, PIXELS),
}


@pytest.mark.parametrize("name", WRITERS)
def test_fields_are_the_pixels_of_the_file_and_white_beyond_its_edge(tmp_path, name):
    WRITERS[name](tmp_path / name)
    with open_slide(tmp_path / name, mpp=0.5) as slide:
        assert (slide.width, slide.height, slide.mpp, slide.bounds) == (900, 700, 0.5, (0, 0))
        np.testing.assert_array_equal(slide.read_field(201, 77, 256, 256), PIXELS[77 : 77 + 256, 201 : 201 + 256])
        corner = slide.read_field(-20, 600, 128, 128)
        np.testing.assert_array_equal(corner[:100, 20:], PIXELS[600:, :108])
        assert (corner[100:] == 255).all() and (corner[:, :20] == 255).all()
        assert (slide.read_field(5000, 5000, 64, 32) == 255).all()


@pytest.mark.parametrize("name", ["rgba.tif", "rgba.png"])
def test_what_is_transparent_is_white(tmp_path, name):
    pixels = with_alpha(PIXELS)
    if name.endswith("tif"):
        write_slide(tmp_path / name, [pixels], extrasamples=["unassalpha"])
    else:
        save_image(tmp_path / name, pixels)
    with open_slide(tmp_path / name, mpp=0.5) as slide:
        field = slide.read_field(300, 0, 100, 100)
    assert (field[:50] == 255).all()
    np.testing.assert_array_equal(field[50:], PIXELS[50:100, 300:400])


def test_a_field_comes_from_the_nearest_finer_level(tmp_path):
    levels = [np.full((512 // 2**n, 512 // 2**n, 3), 40 * (n + 1), np.uint8) for n in range(4)]
    with open_slide(write_slide(tmp_path / "a.tif", levels)) as slide:
        assert slide.level_downsamples == (1, 2, 4, 8)
        sides = {1: 40, 1.9: 40, 1.99: 80, 2: 80, 3.9: 80, 4: 120, 7: 120, 9: 160, 0.5: 40}
        found = {scale: slide.read_field(0, 0, 32 * scale, 32).max() for scale in sides}
    assert found == sides


def test_reducing_averages_and_does_not_skip(tmp_path):
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 200
    with open_slide(write_slide(tmp_path / "a.tif", [stripes])) as slide:
        field, whole = slide.read_field(37, 11, 300, 100), slide.thumbnail(128)
    assert whole.shape == (128, 128, 3)
    for found in (field, whole):
        np.testing.assert_allclose(found, 100, atol=12)


def test_a_thumbnail_in_blocks_is_the_one_in_a_piece(tmp_path, monkeypatch):
    with open_slide(write_slide(tmp_path / "a.tif", [PIXELS])) as slide:
        whole = slide.thumbnail(300).astype(int)
        monkeypatch.setattr(reading, "BLOCK", 120)
        assert np.abs(slide.thumbnail(300) - whole).max() <= 12  # of noise 18 wide: the filter ends at a block
    assert whole.shape == (233, 300, 3)


def test_threads_read_what_one_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "CACHE_BYTES", 1)  # the fewest tiles are kept
    places = [(x, y) for y in range(0, 700, 90) for x in range(0, 900, 70)] * 3
    with open_slide(write_slide(tmp_path / "a.tif", [PIXELS])) as slide, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda place: slide.read_field(*place, 90, 90), places))
        for place, field in zip(places, found, strict=True):
            np.testing.assert_array_equal(field, slide.read_field(*place, 90, 90))


def test_a_large_plain_image_needs_no_change_of_pillows_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    path = save_image(tmp_path / "a.jpg", PIXELS)
    with open_slide(path, mpp=1) as slide:
        assert slide.thumbnail(90).shape == (70, 90, 3)
    assert Image.MAX_IMAGE_PIXELS == 1000
    monkeypatch.setattr(reading, "MAX_WHOLE", 1000)
    with pytest.raises(HistoCLIPError, match=r"900 x 700 pixels of a JPEG .* limit is 1,000.* vips tiffsave"):
        open_slide(path, mpp=1)


def stack(path, count):
    with tifffile.TiffWriter(path) as writer:
        for _ in range(count):
            writer.write(PIXELS, photometric="rgb", tile=(128, 128), contiguous=False)


REFUSED = {
    "text.svs": (lambda path: path.write_text("not a slide"), "not a slide or an image.*b'not a slide'"),
    "empty.svs": (lambda path: path.write_bytes(b""), "empty"),
    "pages.tif": (lambda path: stack(path, 3), "stack of 3 images.*export one RGB image"),
    "grey.tif": (lambda path: tifffile.imwrite(path, PIXELS[..., 0], tile=(128, 128)), "not brightfield RGB"),
    "channels.ome.tif": (
        lambda path: tifffile.imwrite(path, np.moveaxis(PIXELS, 2, 0), photometric="minisblack", tile=(128, 128)),
        "not brightfield RGB",
    ),
    "float.tif": (
        lambda path: tifffile.imwrite(path, PIXELS.astype(np.float32), photometric="rgb", tile=(128, 128)),
        "not RGB of 8 or 16 bits.*float32",
    ),
    "twelve bits.tif": (lambda path: write_slide(path, [PIXELS.astype(np.uint16) << 4]), "12 of them"),
    "no scale.png": (lambda path: save_image(path, PIXELS), "does not say its scale.*--mpp"),
    "folder": (lambda path: path.mkdir(), "without DICOM files"),
    "missing": (lambda path: None, "does not exist"),
    "truncated.png": (lambda path: path.write_bytes(png_bytes()[:4000]), "truncated"),
}


def png_bytes():
    import io

    held = io.BytesIO()
    Image.fromarray(PIXELS).save(held, "PNG")
    return held.getvalue()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_slide_is_refused_with_its_name_and_a_remedy(tmp_path, name):
    write, message = REFUSED[name]
    write(tmp_path / name)
    with pytest.raises(HistoCLIPError, match=f"(?s){message}") as raised:
        open_slide(tmp_path / name)
    assert str(tmp_path / name) in str(raised.value)


def test_a_striped_file_too_large_to_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_WHOLE", 1000)
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, photometric="rgb")
    with pytest.raises(HistoCLIPError, match=r"900 x 700 pixels in strips .* vips tiffsave"):
        open_slide(tmp_path / "a.tif", mpp=1)


def test_a_truncated_slide_opens_and_says_so_where_it_ends(tmp_path):
    path = write_slide(tmp_path / "a.tif", [PIXELS])
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with open_slide(path) as slide:
        slide.read_field(0, 0, 128, 128)
        with pytest.raises(HistoCLIPError, match=r"a\.tif: cannot be read at pixel \d+, \d+ of level 0.*truncated"):
            slide.read_field(600, 500, 128, 128)


def mpp(x, y=None, power=None):
    said = {"openslide.mpp-x": x, "openslide.mpp-y": x if y is None else y, "openslide.objective-power": power}
    return {name: value for name, value in said.items() if value is not None}


@pytest.mark.parametrize(
    "said, given, expected",
    [
        (mpp("0.25", power="40"), None, 0.25),
        (mpp("0.5", "0.51"), None, 0.505),
        (mpp("0.499", power="40"), 0.5, 0.5),
        (mpp("0"), 0.5, 0.5),
        ({}, 28.97, 28.97),
        ({}, None, "does not say its scale"),
        (mpp("nonsense"), None, "does not say its scale"),
        ({"openslide.objective-power": "20"}, None, "objective power is 20, with which 0.5 is usual"),
        (mpp("0"), None, "says 0 micrometres"),
        (mpp("0.0025"), None, "says 0.0025 micrometres"),
        (mpp("25"), None, "says 25 micrometres"),
        (mpp("0.5", "0.6"), None, "0.5 micrometres per pixel in x and 0.6 in y"),
        (mpp("0.499", power="40"), None, "0.499 micrometres per pixel and an objective power of 40, with which 0.25"),
        ({}, 0.0, "mpp 0.0 was given"),
        ({}, float("nan"), "mpp nan was given"),
    ],
)
def test_the_scale_is_the_users_else_the_slides_else_an_error(said, given, expected):
    if isinstance(expected, float):
        assert reading._scale(Path("a.svs"), said, given)[0] == pytest.approx(expected)
        return
    with pytest.raises(HistoCLIPError, match=expected) as raised:
        reading._scale(Path("a.svs"), said, given)
    assert given is not None or "--mpp" in str(raised.value)


def test_a_scale_that_overrides_the_slides_is_noted(tmp_path):
    path = write_slide(tmp_path / "a.tif", [PIXELS], mpp=0.25)
    with open_slide(path) as slide:
        assert (slide.mpp, slide.mpp_source) == (0.25, "TIFF resolution")
    with open_slide(path, mpp=1) as slide:
        assert slide.notes == ("The mpp given, 1, overrides that of the slide, 0.25.",)


REAL = {
    "CMU-1-Small-Region.svs": (2220, 2967, 0.499, 1),
    "dicom_cmu_small_pyramid_jcupitt": (2220, 2967, 0.499, 12),
    "odd/tcga_pyramid_mpp_in_nm.ome.tif": (4443, 3567, 2.0, 3),
    "odd/cmu_striped_not_tiled.tif": (2220, 2967, 0.499, 1),
    "odd/\N{NEUTRAL FACE}.svs": (16, 16, 0.499, 1),
}


@pytest.mark.parametrize("name", REAL)
def test_real_slides_open_with_their_size_and_scale(shared_data, name):
    with open_slide(shared_data / "slides" / name) as slide:
        found = (slide.width, slide.height, round(slide.mpp, 3), len(slide.level_downsamples))
    assert found == REAL[name]


@pytest.mark.parametrize(
    "name, message",
    [
        ("odd/cmu_appmag40_but_mpp0.499.svs", "objective power of 40"),
        ("odd/cmu_mpp_zero.svs", "says 0 micrometres"),
        ("odd/cmu_pyramid_generic_no_mpp.tif", "does not say its scale"),
        ("odd/broken.svs", "not a slide or an image"),
        ("odd/cmu_truncated_60pct.svs", "truncated"),
        ("odd/unreadable.svs", "cannot be read at pixel 0, 0"),
        ("tcga-cr-7395-01a-01-ts1.svs", "does not say its scale"),
        ("multiframe_camelyon_challenge_image.dcm", "28.969"),
    ],
)
def test_real_odd_files_are_refused(shared_data, name, message):
    with pytest.raises(HistoCLIPError, match=message), open_slide(shared_data / "slides" / name) as slide:
        slide.thumbnail(64)


def test_one_region_in_three_formats_has_the_same_colours(shared_data):
    names = ["CMU-1-Small-Region.svs", "dicom_cmu_small_pyramid_jcupitt", "odd/cmu_pyramid_generic_no_mpp.tif"]
    fields = []
    for name in names:
        with open_slide(shared_data / "slides" / name, mpp=0.499) as slide:
            fields.append(slide.read_field(700, 1200, 512, 512).astype(float))
    for other in fields[1:]:  # the DICOM file calls YCbCr pixels RGB
        assert np.abs(other.mean(axis=(0, 1)) - fields[0].mean(axis=(0, 1))).max() < 2
        assert np.abs(other - fields[0]).mean() < 10  # compressed twice
