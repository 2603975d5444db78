"""Reading one image or mask: what becomes 8-bit RGB and how, and what is refused with which reason."""

import io
import os
import pickle
import struct
import zlib

import numpy as np
import pytest
import tifffile
from patches import TWO_CLASSES, encoded, from_files
from PIL import Image, ImageFile

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.data import images
from histoclip_lib.data.images import MAX_BYTES, read_class_map, read_nonzero, read_rgb

COLOUR = (200, 30, 90)
PNG = b"\x89PNG\r\n\x1a\n"


def saved(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_of_any_depth(pixels, kind):
    """Return a PNG of 16-bit pixels, which Pillow does not write in colour; kind 0 is grey, 2 RGB, 6 RGBA."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    height, width = pixels.shape[:2]
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    chunks = [
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in [*parts, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def header_of(form, side):
    """Return the beginning of a file that says it is `side` pixels wide and high."""
    if form == "PNG":
        return PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)) + chunk(b"IEND", b"")
    if form == "GIF":
        frame = struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x01\x00\x00;"
        return b"GIF89a" + struct.pack("<HHBBB", side, side, 0, 0, 0) + b"," + frame
    about = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 1, 1, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + about


def refusal(content, place="a.png"):
    with pytest.raises(HistoCLIPError) as raised:
        read_rgb(content, place)
    assert str(raised.value).startswith(f"{place}: ")
    return str(raised.value)


# What becomes RGB, and how


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGB", (40, 50), COLOUR), COLOUR),
        (Image.new("L", (40, 50), 77), (77, 77, 77)),
        (Image.new("1", (40, 50), 1), (255, 255, 255)),
        (Image.new("1", (40, 50), 0), (0, 0, 0)),
        (Image.new("RGB", (40, 50), COLOUR).convert("P", palette=Image.Palette.ADAPTIVE), COLOUR),
        (Image.new("RGBA", (40, 50), (*COLOUR, 255)), COLOUR),
        (Image.new("RGBA", (40, 50), (*COLOUR, 0)), (255, 255, 255)),
        (Image.new("RGBA", (40, 50), (0, 0, 0, 128)), (127, 127, 127)),
        (Image.new("LA", (40, 50), (100, 255)), (100, 100, 100)),
        (Image.new("LA", (40, 50), (100, 0)), (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb_on_white(image, expected):
    rgb = read_rgb(saved(image), "a")
    assert rgb.dtype == np.uint8
    assert rgb.shape == (50, 40, 3)
    assert (rgb == expected).all()


def test_transparent_palette_entries_and_colours_become_white():
    palette = Image.new("P", (40, 50), 1)
    palette.putpalette([0, 0, 0, *COLOUR])
    assert (read_rgb(saved(palette, transparency=0), "a") == COLOUR).all()
    assert (read_rgb(saved(palette, transparency=1), "a") == 255).all()
    colour = Image.new("RGB", (40, 50), COLOUR)
    assert (read_rgb(saved(colour, transparency=COLOUR), "a") == 255).all()


def test_cmyk_is_converted():
    for form in ("JPEG", "TIFF"):
        rgb = read_rgb(saved(Image.new("CMYK", (40, 50), (0, 255, 255, 0)), form), "a")
        assert abs(rgb.astype(int) - (255, 0, 0)).max() <= 2


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "JPEG"])
def test_formats_are_detected_by_content(tmp_path, form):
    path = tmp_path / "a.jpg"
    path.write_bytes(saved(Image.new("RGB", (40, 50), COLOUR), form))
    assert abs(read_rgb(path, "a").astype(int) - COLOUR).max() <= (0 if form not in ("JPEG", "WEBP") else 4)


# 16 bits


@pytest.mark.parametrize("value", [4096, 40_000, 65_535])
def test_of_16_bits_the_upper_8_are_kept(value, tmp_path):
    grey = np.full((40, 50), value, dtype=np.uint16)
    colour = np.stack([grey, grey // 2, grey // 4], axis=2)
    for content in (saved(Image.fromarray(grey)), saved(Image.fromarray(grey), "TIFF"), png_of_any_depth(grey, 0)):
        assert (read_rgb(content, "a") == value // 256).all()
    for order in "<>":
        for compression in (None, "zlib"):
            tifffile.imwrite(tmp_path / "a.tif", colour, byteorder=order, compression=compression, photometric="rgb")
            assert (read_rgb(tmp_path / "a.tif", "a") == colour[0, 0] // 256).all()
    assert (read_rgb(png_of_any_depth(colour, 2), "a") == colour[0, 0] // 256).all()


def test_12_bits_stored_as_16_are_refused():
    dark = np.full((40, 50), 4095, dtype=np.uint16)
    for content in (png_of_any_depth(dark, 0), png_of_any_depth(np.stack([dark] * 3, axis=2), 2)):
        message = refusal(content)
        assert "no value above 4,095 of 65,535" in message
        assert "Save it again, upright, as an 8-bit RGB PNG" in message
    assert (read_rgb(saved(Image.new("RGB", (40, 50), (9, 9, 9))), "a") == 9).all()  # 8 bits may be dark


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3)])
@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_more_than_16_bits_are_refused_with_how_to_convert_them(dtype, shape):
    for big in (False, True):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, np.ones(shape, dtype), photometric="rgb" if shape[2:] else "minisblack", bigtiff=big)
        message = refusal(buffer.getvalue())
        assert dtype in message
        assert "astype('uint8')).save('new.png')" in message


def test_an_image_that_is_hidden_by_its_alpha_channel_is_refused():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 4), dtype=np.uint8)
    pixels[..., 3] = 0
    for form in ("TIFF", "PNG"):
        assert "its alpha channel is 0 everywhere" in refusal(saved(Image.fromarray(pixels), form))
    pixels[0, 0, 3] = 1
    assert (read_rgb(saved(Image.fromarray(pixels), "TIFF"), "a")[1:] == 255).all()


# One frame, one way up


@pytest.mark.parametrize("form", ["GIF", "PNG", "TIFF", "WEBP"])
def test_several_frames_or_pages_are_refused(form):
    frames = [Image.new("RGB", (40, 50), (level, 0, 0)) for level in (0, 90, 180)]
    content = saved(frames[0], form, save_all=True, append_images=frames[1:])
    assert "several frames or pages" in refusal(content)
    assert read_rgb(saved(frames[0], form), "a").shape == (50, 40, 3)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 2, 6, 8])
def test_exif_rotation_is_refused(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(Image.new("RGB", (40, 50), COLOUR), form, exif=exif)
    if orientation == 1:
        assert read_rgb(content, "a").shape == (50, 40, 3)
    else:
        assert f"its EXIF orientation is {orientation}" in refusal(content)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_ignored():
    content = saved(Image.new("RGB", (40, 50), COLOUR), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01" * 30)
    assert read_rgb(content, "a").shape == (50, 40, 3)


def test_a_mask_is_held_to_the_same(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (40, 40)).save(tmp_path / "mask.png", exif=exif)
    with pytest.raises(HistoCLIPError, match=r"mask\.png: its EXIF orientation is 6"):
        read_class_map(tmp_path / "mask.png", TWO_CLASSES)
    pages = [Image.new("L", (40, 40))] * 2
    pages[0].save(tmp_path / "mask.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(HistoCLIPError, match=r"mask\.tif: it holds several frames"):
        read_class_map(tmp_path / "mask.tif", TWO_CLASSES)


# What is too large


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # Pillow's own, of the same number
@pytest.mark.parametrize("form", ["PNG", "GIF", "BMP"])
@pytest.mark.parametrize("side", [4001, 5000, 30_000])
def test_large_images_are_refused_before_decoding(form, side, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("it was decoded"))
    assert "are too many for a patch (at most 16,000,000 pixels)" in refusal(header_of(form, side))


def test_the_same_header_with_fewer_pixels_is_decoded():
    assert "cannot be decoded" in refusal(header_of("PNG", 40))


def test_a_file_of_many_bytes_is_not_opened(tmp_path, monkeypatch):
    with (tmp_path / "a.png").open("wb") as sparse:
        sparse.write(encoded("png"))
        sparse.truncate(MAX_BYTES + 1)
    monkeypatch.setattr(images.Image, "open", lambda *_, **__: pytest.fail("it was opened"))
    assert "268,435,457 bytes are too many" in refusal(tmp_path / "a.png")


# What is not an image


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not an image at all", "is not an image in a supported format (PNG, JPEG, TIFF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n", "is not an image"),  # Pillow would call Ghostscript
        (b"%PDF-1.4\n", "is not an image"),
        (saved(Image.new("RGB", (40, 50)), "PPM"), "is not an image"),
        (saved(Image.new("RGB", (40, 50)), "TGA"), "is not an image"),
        (encoded("png")[:900], "cannot be decoded"),
        (encoded("jpeg")[:700], "cannot be decoded (image file is truncated"),
        (encoded("tiff")[:900], "cannot be decoded"),
        (encoded("png")[:12], "is not an image"),
    ],
)
def test_files_that_are_not_whole_images_are_refused(content, reason, tmp_path):
    assert reason in refusal(content)
    (tmp_path / "a.png").write_bytes(content)
    assert reason in refusal(tmp_path / "a.png")


def test_pipes_folders_and_empty_files_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.png").touch()
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere")
    assert "is a folder or a device" in refusal(tmp_path / "pipe.png")
    assert "is a folder or a device" in refusal(tmp_path / "folder.png")
    assert "is empty (0 bytes)" in refusal(tmp_path / "empty.png")
    assert "No such file" in refusal(tmp_path / "link.png")
    assert "is not an image" in refusal(b"")


# Masks and sources


def test_where_an_image_is_not_0():
    pixels = np.zeros((40, 50), dtype=np.uint8)
    pixels[3, 4] = 1
    assert (read_nonzero(saved(Image.fromarray(pixels)), "a") == pixels.astype(bool)).all()
    with pytest.raises(HistoCLIPError, match="a: one channel was expected, this image is RGB"):
        read_nonzero(encoded("png"), "a")


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
    with pytest.raises(HistoCLIPError, match=r"mask\.png: mask values \[7, 9\] do not name a class"):
        read_class_map(tmp_path / "mask.png", TWO_CLASSES)


def test_a_mask_of_one_class_holds_one_value_for_it(tmp_path):
    values = np.array([0, 1] + [255] * 253 + [1], dtype=np.uint8)
    for stored, expected in (([0, 255], [0, 1]), ([0, 1], [0, 1])):
        Image.fromarray(np.array([stored], dtype=np.uint8)).save(tmp_path / "mask.png")
        assert read_class_map(tmp_path / "mask.png", values).tolist() == [expected]
    Image.fromarray(np.array([[0, 1, 255]], dtype=np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(HistoCLIPError, match="holds 1 or 255 for it, not both"):
        read_class_map(tmp_path / "mask.png", values)


def test_a_colour_image_is_no_mask(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "mask.png")
    with pytest.raises(HistoCLIPError, match=r"mask\.png: a mask must be a P, L or 1-bit image .*, not RGB"):
        read_class_map(tmp_path / "mask.png", TWO_CLASSES)
