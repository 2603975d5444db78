"""HTML and Markdown: what is shown, that names cannot act in it, and that it survives the cleaning of pages."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from drawing import HOSTILE
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from histoclip_lib.common import html as displays
from histoclip_lib.common.html import as_typed
from histoclip_lib.common.predictions import from_probabilities
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.features.store import ImageFeatures, Shards
from histoclip_lib.models.cmm import CMM
from histoclip_lib.report.html import clean_output, markdown_to_html

ACTING = [*HOSTILE, '"><img src=x onerror=alert(1)>', "</svg><script>alert(1)</script>", "مرحبا"]


class Source:
    """Patches of one colour each; those listed cannot be read."""

    def __init__(self, unreadable=()):
        self.unreadable = unreadable

    def image(self, index):
        if index in self.unreadable:
            raise OSError("truncated")
        return np.full((64, 96, 3), index * 10 % 256, dtype=np.uint8)


def dataset(n_patches=20, classes=("a", "b"), **fields):
    labels = np.zeros((n_patches, len(classes)), dtype=np.uint8)
    labels[: n_patches // 4, 0] = 1
    names = [f"{i}.png" for i in range(n_patches)]
    return PatchDataset("made", list(classes), names, labels, fields.pop("source", Source()), **fields)


def soup_of(shown):
    return BeautifulSoup(shown if isinstance(shown, str) else shown._repr_html_(), "html.parser")


def cells(table):
    return [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in table.find_all("tr")]


def facts(table):
    return dict(cells(table))


def images_of(soup):
    return [Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))) for image in soup.find_all("img")]


# The parts


@pytest.mark.parametrize("text", ACTING)
def test_text_and_attributes_are_escaped(text):
    table = displays.table([text], [[text, displays.bar(0.5, text)]], text)
    image = displays.picture(np.zeros((4, 4, 3), dtype=np.uint8), text)
    written = displays.html(text, displays.element("p", text, title=text), table, image)
    soup = soup_of(written)
    assert [tag.name for tag in soup.find_all(["script", "img"])] == ["img"]
    assert soup.p.get_text() == soup.p["title"] == soup.caption.get_text() == soup.img["alt"] == text
    assert soup.svg["aria-label"] == text
    assert not {name for tag in soup.find_all(True) for name in tag.attrs if name.startswith("on")}
    assert "<script" not in written and "<script" not in clean_output(written)
    assert written.count("<img") == 1


def test_children_and_texts_keep_their_order():
    node = displays.element("p", "a", displays.element("b", "c"), "d", "e", displays.element("i"), "f")
    assert displays.html(node, "g") == "<p>a<b>c</b>de<i></i>f</p>g"


def test_an_image_has_no_end_tag_and_is_the_picture():
    image = np.full((8, 12, 3), (200, 10, 90), dtype=np.uint8)
    written = displays.html(displays.picture(image, "x"))
    assert "</img>" not in written
    soup = soup_of(written)
    [shown] = images_of(soup)
    assert shown.size == (12, 8) and soup.img["width"] == "12"
    assert np.abs(np.asarray(shown).astype(int) - image).max() < 8


@pytest.mark.parametrize(("fraction", "filled"), [(-1, 0), (0, 0), (0.25, 30), (1, 120), (2, 120)])
def test_a_bar_is_filled_so_far(fraction, filled):
    _, front = soup_of(displays.html(displays.bar(fraction, "x"))).find_all("rect")
    assert float(front["width"]) == filled


def test_a_histogram_has_the_heights_of_the_counts(monkeypatch):
    monkeypatch.setattr(displays, "BINS", 3)
    bars = soup_of(displays.html(displays.histogram([0, 0, 0, 1, 2, 2, np.nan, np.inf], "x"))).find_all("rect")
    assert [float(bar["height"]) for bar in bars[:-1]] == [24, 8, 16]
    for values in (np.full(5, 0.3), [1.0, np.nextafter(1, 0)], [1e30, 1e30], [0, 0]):
        constant = soup_of(displays.html(displays.histogram(values, "x"))).find_all("rect")
        assert [float(bar["height"]) for bar in constant[:-1]] == [0, 24, 0]
    assert len(soup_of(displays.html(displays.histogram(np.array([np.nan]), "x"))).find_all("rect")) == 4


def test_a_thumbnail_keeps_its_shape():
    assert displays.thumbnail(np.zeros((64, 96, 3), dtype=np.uint8), 48).shape == (32, 48, 3)


# The objects


def test_a_data_set_says_what_it_has():
    groups = np.array(["one"] * 12 + ["two"] * 8)
    parts = np.array(["train"] * 15 + ["test"] * 5)
    soup = soup_of(dataset(groups=groups, parts=parts, tissue=np.array(["skin"] * 20), has_masks=False))
    general, classes = soup.find_all("table")
    assert facts(general) == {
        "patches": "20", "masks": "no", "groups": "2, of 8 to 12 patches", "parts": "train 15, test 5",
        "tissue": "skin 20",
    }  # fmt: skip
    assert cells(classes)[1:] == [["a", "5", "25.0%", ""], ["b", "0", "0.0%", ""]]
    assert [float(bar["width"]) for bar in classes.find_all("rect")] == [120, 30, 120, 0]
    assert [image["alt"] for image in soup.find_all("img")] == [f"patch {i}.png" for i in (0, 3, 7, 11, 15, 19)]
    assert all(max(image.size) == 72 for image in images_of(soup))
    assert len(str(soup)) < 30_000


@pytest.mark.parametrize(("n_patches", "n_classes", "shown"), [(1, 2, 1), (3, 20, 3), (2000, 20, 6)])
def test_a_data_set_of_any_size(n_patches, n_classes, shown):
    soup = soup_of(dataset(n_patches, [f"class {k}" for k in range(n_classes)]))
    assert len(soup.find_all("img")) == shown
    assert len(cells(soup.find_all("table")[1])) == n_classes + 1


def test_a_patch_that_cannot_be_read_is_named():
    soup = soup_of(dataset(source=Source({0, 19})))
    assert "0.png cannot be read" in soup.get_text() and "19.png cannot be read" in soup.get_text()
    assert len(soup.find_all("img")) == 4


def test_names_in_a_data_set_cannot_act():
    files = ACTING + [f"{i}" for i in range(20 - len(ACTING))]
    groups = np.array((ACTING * 3)[:20])
    patches = PatchDataset(
        ACTING[1], ACTING, files, np.ones((20, len(ACTING)), np.uint8), Source({0}), groups=groups, parts=groups
    )
    soup = soup_of(patches)
    assert not soup.find_all("script") and len(soup.find_all("img")) == 5
    assert not soup.select("[onerror]")
    assert [line[0] for line in cells(soup.find_all("table")[1])[1:]] == ACTING


def test_features_say_their_shapes_and_what_was_encoded():
    pooled, tokens = np.zeros((30, 2, 8), dtype=np.float32), np.zeros((30, 2, 9, 8), dtype=np.float16)
    general, arrays = soup_of(ImageFeatures(Shards([pooled]), Shards([tokens]), 10, Path(), [])).find_all("table")
    assert facts(general) == {
        "patches": "30", "views": "2", "grid": "3 x 3 tokens", "encoded now": "10", "from the cache": "20",
    }  # fmt: skip
    assert cells(arrays)[1:] == [
        ["pooled", "30 x 2 x 8", "float32", "0.0 MiB"],
        ["tokens", "30 x 2 x 9 x 8", "float16", "0.0 MiB"],
    ]


@pytest.mark.parametrize("layers", [1, 2])
def test_a_head_says_its_options_and_counts_every_parameter(layers):
    head = CMM(torch.eye(16)[:3], heads=4, layers=layers, hidden=8)
    general, parts = soup_of(head).find_all("table")
    assert facts(general).items() >= {"classes": "3", "width": "16", "heads": "4", "hidden": "8"}.items()
    counts = {line[0]: int(line[1].replace(",", "")) for line in cells(parts)[1:]}
    together = counts.pop("together")
    assert together == sum(counts.values()) == sum(parameter.numel() for parameter in head.parameters())


@pytest.mark.parametrize("shape", [(1, 2), (20, 20)])
def test_predictions_say_how_often_each_class_is_chosen(shape):
    probabilities = np.random.default_rng(0).random(shape)
    probabilities[:, 1] = 0.25
    soup = soup_of(from_probabilities(probabilities))
    assert soup.p.get_text() == f"{shape[0]} patches, {shape[1]} classes"
    lines = cells(soup.table)[1:]
    assert [int(line[1]) for line in lines] == (probabilities >= 0.5).sum(axis=0).tolist()
    assert [line[2] for line in lines] == [f"{fraction:.1%}" for fraction in (probabilities >= 0.5).mean(axis=0)]
    assert lines[1] == ["class 2", "0", "0.0%", "0.25", "", "0.25"]


@pytest.mark.parametrize("shown", ["patches", "features", "head", "predictions"])
def test_what_is_shown_survives_the_pages(shown):
    zeros = np.zeros((2, 1, 4, 4), dtype=np.float16)
    made = {
        "patches": lambda: dataset(),
        "features": lambda: ImageFeatures(Shards([zeros[:, :, 0]]), Shards([zeros]), 0, Path(), []),
        "head": lambda: CMM(torch.eye(8)[:2], heads=2),
        "predictions": lambda: from_probabilities(np.linspace(0, 1, 40).reshape(20, 2)),
    }[shown]()
    before, after = soup_of(made), soup_of(clean_output(made._repr_html_()))
    assert [cells(table) for table in before.find_all("table")] == [cells(table) for table in after.find_all("table")]
    assert "&lt;" not in str(after)
    images = after.find_all("img")
    assert len(images) == len(before.find_all("img")) + len(before.find_all("svg"))
    assert all(image["alt"] and image["src"].startswith("data:image/") for image in images)


# Markdown


TYPED = [
    "a|b",
    "<script>alert(1)</script>",
    "`",
    "``",
    "a`b``c",
    "$x$ and $",
    "\\",
    "*a* [l](javascript:x)",
    "&amp;",
    "```py",
]


def shown_as(source):
    return BeautifulSoup(markdown_to_html(source), "html.parser")


@pytest.mark.parametrize("text", TYPED)
def test_text_is_shown_as_it_was_typed_and_does_nothing(text):
    for source in (f"- {as_typed(text)}: of $1$", f"# {as_typed(text)}", f"x {as_typed(text)}, {as_typed(text)} y"):
        page = shown_as(source)
        assert {code.get_text() for code in page.select("code")} == {text}
        assert not page.select("script, a[href], em, pre")


@settings(max_examples=200)
@given(st.text("`$|*<>&\\[]_ ab\n", max_size=12))
def test_any_text_is_shown_with_its_line_breaks_as_spaces(text):
    page = shown_as(f"- {as_typed(text)} end")
    assert page.select_one("code").get_text().strip() == " ".join(text.split())
    assert page.get_text().strip().endswith("end")
