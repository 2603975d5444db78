"""Explorers: what their data say, and that a reader can move through them on a page and in JupyterLab."""

import base64
import io
import json
import re
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from drawing import HOSTILE as HOSTILE_NAMES
from drawing import draw
from IPython.core.formatters import DisplayFormatter
from matplotlib import pyplot as plt
from nbformat import v4
from PIL import Image
from prompt_vectors import NAMES, SCALE, TEMPLATES, WIDTH, PromptVectors
from sklearn.metrics import average_precision_score, multilabel_confusion_matrix, precision_recall_fscore_support

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.predictions import mean_accuracy
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.models.attention import enlarge
from histoclip_lib.prompting.strategies import STRATEGIES, StrategyContext, score_zero_shot
from histoclip_lib.prompting.vocabulary import TextEncoder, Vocabulary, class_embeddings
from histoclip_lib.report.explorers import (
    ASSETS,
    MOST_EXPLORED,
    MOST_IN_GALLERY,
    attention_explorer,
    choose_to_explore,
    patch_browser,
    patch_gallery,
    prompt_explorer,
    slide_explorer,
    threshold_explorer,
)
from histoclip_lib.report.export import EXPLORER_TYPE, WIDGET, export_page

HOSTILE = [
    *HOSTILE_NAMES,
    "</script><script>window.hit=1</script>",
    '"><img src=x onerror="window.hit=1">',
    "<!--<script>",
    "סטרומה-‮abc",
]
SIDE, GRID = 64, 7
UNREADABLE = 2  # this patch cannot be read


@dataclass(frozen=True)
class Painted:
    """Noise, and masks of squares: class k fills the k-th quarter, classes from the fifth on are in no mask."""

    size: tuple[int, int] = (SIDE, SIDE)

    def image(self, index):
        if index == UNREADABLE:
            raise OSError("truncated file <b>")
        return np.random.default_rng(index).integers(60, 220, (*self.size, 3), dtype=np.uint8)

    def mask(self, index):
        mask = np.zeros(self.size, dtype=np.uint8)
        height, width = self.size[0] // 2, self.size[1] // 2
        mask[:height, :width], mask[:height, width:], mask[height:, :width] = 1, 2, 3
        return mask


@dataclass(frozen=True, eq=False)
class Case:
    """A data set and what a head would say of it."""

    patches: PatchDataset
    index: np.ndarray
    maps: np.ndarray
    probabilities: np.ndarray

    @property
    def labels(self):
        return self.patches.labels[self.index]

    @cache  # noqa: B019
    def attention(self, chosen=None):
        return attention_explorer(self.patches, self.index, self.maps, self.probabilities, chosen)

    @cache  # noqa: B019
    def gallery(self, count=4, seed=0):
        return patch_gallery(self.patches, self.index, self.probabilities, count, seed)

    @cache  # noqa: B019
    def browser(self):
        return patch_browser(self.patches, self.index, 4, 0)

    @cache  # noqa: B019
    def thresholds(self):
        return threshold_explorer(self.labels, self.probabilities, self.patches.classes)

    def on_page(self):
        return self.attention(), self.gallery(), self.browser(), self.thresholds()


def make_case(n=40, classes=("tumor", "stroma", "lymphocyte", "necrosis"), masks=True, files=None, size=(SIDE, SIDE)):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, (n + 5, len(classes)), dtype=np.uint8)
    files = files or [f"patch_{i:05d}.png" for i in range(n + 5)]
    groups = np.array([f"patient {i % 7}" for i in range(n + 5)])
    patches = PatchDataset("painted", list(classes), files, labels, Painted(size), groups, has_masks=masks)
    index = np.arange(n) + 5
    probabilities = np.clip(0.5 + (labels[index] - 0.5) * rng.uniform(-0.35, 0.999, labels[index].shape), 0, 1)
    maps = rng.random((n, len(classes), GRID, GRID)).astype(np.float32) ** 4
    return Case(patches, index, maps / maps.sum(axis=(2, 3), keepdims=True), probabilities.astype(np.float32))


@pytest.fixture(scope="module")
def case():
    return make_case()


def page_of(folder, *explorers):
    outputs = []
    for explorer in explorers:
        data, metadata = explorer._repr_mimebundle_()
        outputs.append(v4.new_output("display_data", data=data, metadata=metadata))
    cells = [v4.new_markdown_cell("# Page\n\n## Explorers"), v4.new_code_cell("explore()", outputs=outputs)]
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(v4.new_notebook(cells=cells), folder / "05_attention.ipynb")
    export_page(folder / "05_attention.ipynb", folder / "05_attention.html", "demo · 05 Attention", [], {})
    return folder / "05_attention.html"


@pytest.fixture(scope="module")
def page(case, tmp_path_factory):
    return page_of(tmp_path_factory.mktemp("demo"), *case.on_page())


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    case = make_case(n=25, classes=HOSTILE, masks=False, files=[f"{HOSTILE[i % len(HOSTILE)]} {i}" for i in range(30)])
    return page_of(tmp_path_factory.mktemp("hostile"), *case.on_page())


def decoded(address):
    kind, _, data = address.partition(";base64,")
    assert kind.startswith("data:image/")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def outcomes(labels, probabilities):
    decisions = probabilities >= 0.5
    return np.where(decisions == labels, "correct", np.where(labels == 1, "false negative", "false positive"))


# The data


def test_maps_are_kept_to_a_256th_of_their_range(case):
    chosen = (4, 7)
    for i, shown in zip(chosen, case.attention(chosen).data["patches"], strict=True):
        for own, kept in zip(case.maps[i], shown["maps"], strict=True):
            cells = np.frombuffer(base64.b64decode(kept["cells"]), dtype=np.uint8).reshape(GRID, GRID)
            scaled = (own - own.min()) / np.ptp(own)
            np.testing.assert_allclose(cells / 255, scaled, atol=0.5 / 255 + 1e-6)
            assert kept["peak"] == pytest.approx(own.max() * GRID**2, abs=0.06)


def test_area_and_share_are_those_of_the_mask(case):
    shown = case.attention((2,)).data["patches"][0]
    mask = case.patches.mask(case.index[2])
    for k, kept in enumerate(shown["maps"]):
        inside = mask == k + 1
        if k == 3:
            assert (kept["area"], kept["inside"]) == (None, None)
            continue
        enlarged = enlarge(case.maps[2, k].astype(float), SIDE)
        assert kept["area"] == pytest.approx(0.25)
        assert kept["inside"] == pytest.approx(enlarged[inside].sum() / enlarged.sum(), abs=1e-4)
    step = case.attention((2,)).data["maskStep"]
    np.testing.assert_array_equal(decoded(shown["mask"]) / step, mask)


def test_the_place_is_said_in_words_and_an_even_map_has_none(case):
    maps = np.zeros_like(case.maps)
    maps[:, :, 0, 0] = 1
    maps[0, 1] = 1 / GRID**2
    first, even = replace(case, maps=maps).attention((0,)).data["patches"][0]["maps"][:2]
    assert first["where"] == "at the top left"
    assert even["where"] is None
    assert set(base64.b64decode(even["cells"])) == {0}


def test_patches_are_the_square_that_the_encoder_sees():
    case = make_case(n=6, size=(300, 400))
    shown = case.attention((1,)).data["patches"][0]
    assert decoded(shown["image"]).shape == (224, 224, 3)
    assert decoded(shown["mask"]).shape == (224, 224)
    assert max(decoded(case.gallery().data["patches"][0]["image"]).shape) == 112


@pytest.mark.parametrize(("n", "n_classes", "masks"), [(20, 3, True), (10, 20, True), (30, 12, False)])
def test_any_number_of_classes_with_and_without_masks(n, n_classes, masks):
    case = make_case(n, [f"class {k}" for k in range(n_classes)], masks)
    shown = case.attention()
    assert len(shown.data["patches"]) == min(n, MOST_EXPLORED)
    for patch in shown.data["patches"]:
        assert (patch["mask"] is not None) == masks
        assert len(patch["maps"]) == len(patch["labels"]) == len(patch["probabilities"]) == n_classes
        if masks:
            values = decoded(patch["mask"]) // shown.data["maskStep"]
            assert values.max() == min(n_classes, 3)
    for explorer in (shown, case.gallery()):
        json.dumps(explorer.data, allow_nan=False)


def test_twenty_classes_on_a_fine_grid_stay_within_the_budget():
    case = make_case(24, [f"class {k}" for k in range(20)], size=(224, 224))
    maps = np.random.default_rng(0).random((24, 20, 16, 16))
    explorer = attention_explorer(case.patches, case.index, maps, case.probabilities, list(range(24)))
    pixels = sum(len(patch["image"]) for patch in explorer.data["patches"])  # noise, which no patch is
    assert len(json.dumps(explorer.data)) - pixels < 300_000


def test_rounding_carries_no_score_over_the_threshold(case):
    probabilities = case.probabilities.copy()
    probabilities[0, :2] = 0.49999, 0.5
    shown = replace(case, probabilities=probabilities).attention((0,)).data["patches"][0]
    assert shown["probabilities"][:2] == [0.4999, 0.5]


def test_half_of_what_is_explored_are_the_most_confident_errors(case):
    chosen = choose_to_explore(case.labels, case.probabilities, 12)
    wrong = (outcomes(case.labels, case.probabilities) != "correct").any(axis=1)
    n_right = min(6, (~wrong).sum())
    assert len(set(chosen)) == len(chosen) == 12
    assert wrong[chosen].tolist() == [False] * n_right + [True] * (12 - n_right)
    surest = np.abs(case.probabilities - 0.5)
    surest[outcomes(case.labels, case.probabilities) == "correct"] = -1
    assert chosen[n_right] == surest.max(axis=1).argmax()


@pytest.mark.parametrize("flip", [0, 1])
def test_where_everything_is_right_or_wrong_the_places_are_filled(case, flip):
    probabilities = np.abs(case.labels - flip) * 0.8 + 0.1
    assert len(choose_to_explore(case.labels, probabilities)) == MOST_EXPLORED
    assert len(set(choose_to_explore(case.labels, probabilities, 100))) == len(case.labels)
    nothing = np.zeros_like(case.labels)
    assert len(choose_to_explore(nothing, nothing + 0.1)) == MOST_EXPLORED


@pytest.mark.parametrize("chosen", [(), tuple(range(MOST_EXPLORED + 1))])
def test_too_few_and_too_many_patches_are_refused(case, chosen):
    with pytest.raises(HistoCLIPError, match=f"{len(chosen)} patches are chosen"):
        case.attention(chosen)


def test_the_gallery_holds_all_errors_first_and_others_at_random():
    case = make_case(n=MOST_IN_GALLERY + 150)
    right = (case.labels * 0.8 + 0.1).astype(np.float32)
    fewer = replace(case, probabilities=np.where(np.arange(len(right))[:, None] < 90, case.probabilities, right))
    wrong = (outcomes(fewer.labels, fewer.probabilities) != "correct").any(axis=1)
    assert 40 < wrong.sum() < 90
    data = fewer.gallery().data
    names = [patch["name"] for patch in data["patches"]]
    files = np.array(case.patches.files)[case.index]
    assert len(set(names)) == len(names) == MOST_IN_GALLERY
    assert set(names[: wrong.sum()]) == set(files[wrong])
    assert data["held"] == (
        f"Of {len(right)} patches, {MOST_IN_GALLERY} are here: all {wrong.sum()} with a wrong decision, and "
        f"{MOST_IN_GALLERY - wrong.sum()} of the others, drawn at random."
    )
    assert [patch["name"] for patch in fewer.gallery().data["patches"]] == names
    other = [patch["name"] for patch in fewer.gallery(seed=1).data["patches"]]
    assert other != names
    assert other[: wrong.sum()] == names[: wrong.sum()]


def test_of_too_many_errors_the_most_confident_are_in_the_gallery():
    case = make_case(n=MOST_IN_GALLERY + 20)
    probabilities = np.abs(1 - case.labels) * 0.8 + 0.1
    probabilities[:20] = np.abs(1 - case.labels[:20]) * 0.02 + 0.49
    data = replace(case, probabilities=probabilities).gallery().data
    assert {patch["name"] for patch in data["patches"]} == {case.patches.files[row] for row in case.index[20:]}
    n = len(probabilities)
    assert data["held"] == f"Of {n} patches, 200 are here: the 200 most confident of {n} with a wrong decision."


def test_a_gallery_without_errors_has_a_figure(case):
    gallery = replace(case, probabilities=case.labels * 0.8 + 0.1).gallery()
    assert gallery.static.alternative.startswith("4 patches.")
    assert gallery.data["held"] == "All 40 patches are here."
    assert case.gallery().static.alternative.startswith("The most confident errors.")


def test_an_explorer_gives_the_widget_the_data_of_the_page_and_the_figure(case):
    for explorer in (*case.on_page(), prompts_case()[0]):
        assert plt.get_fignums() == []
        data, metadata = DisplayFormatter().format(explorer)
        [picture] = data.keys() & {"image/png", "image/jpeg"}
        assert (data.get(EXPLORER_TYPE) == {"kind": explorer.kind, **explorer.data}) == (explorer.kind != "prompts")
        assert "model_id" in data[WIDGET]
        assert metadata[picture]["alt"] == explorer.static.alternative
        assert metadata[picture]["caption"] == explorer.static.caption
        draw(explorer.static)
        assert Image.open(io.BytesIO(base64.b64decode(data[picture]))).width // 2 == metadata[picture]["width"]
        assert len(repr(explorer)) < 100
        state = {name: value for name, value in explorer.widget().get_state().items() if not name.startswith("_")}
        assert len(json.dumps(state, default=str)) < 1000  # the data are asked for, and kept once in a notebook


def test_without_anywidget_data_and_figure_are_shown(case, monkeypatch):
    monkeypatch.setattr("histoclip_lib.report.explorers._widget_class", lambda: __import__("no_such_module"))
    data, _ = case.thresholds()._repr_mimebundle_()
    assert set(data) == {EXPLORER_TYPE, "image/png"}


@pytest.mark.parametrize("score", [-0.1, 1.1, np.nan])
def test_thresholds_ask_for_probabilities(case, score):
    scores = case.probabilities.copy()
    scores[3, 1] = score
    with pytest.raises(HistoCLIPError, match="Give probabilities"):
        threshold_explorer(case.labels, scores, case.patches.classes)


# The page


def test_the_page_prints_figure_and_data_and_carries_the_module(page, case):
    soup = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
    figures, explorers = soup.select("figure.explorer"), case.on_page()
    assert [figure.img["alt"] for figure in figures] == [own.static.alternative for own in explorers]
    for figure, own in zip(figures, explorers, strict=True):
        assert json.loads(figure.select_one("script.explorer-data").string) == {"kind": own.kind, **own.data}
    assert soup.head.find("script", type="module").string == (ASSETS / "explorers.js").read_text(encoding="utf-8")
    assert "model_id" not in soup.decode()


def test_pages_without_explorers_carry_no_module_for_them(tmp_path):
    plain = page_of(tmp_path, SimpleNamespace(_repr_mimebundle_=lambda: ({EXPLORER_TYPE: {"kind": "gallery"}}, {})))
    text = plain.read_text(encoding="utf-8")
    assert '"explorer-data"' not in BeautifulSoup(text, "html.parser").article.decode()  # there is no figure
    assert "explorer-live" not in page_of(tmp_path / "plain").read_text(encoding="utf-8")


def test_a_prompt_explorer_is_its_figure_on_a_page(tmp_path):
    explorer, *_ = prompts_case()
    soup = BeautifulSoup(page_of(tmp_path, explorer).read_text(encoding="utf-8"), "html.parser")
    assert [image["alt"] for image in soup.article.find_all("img")] == [explorer.static.alternative]
    assert not soup.select(".explorer, .explorer-data")


def attention_of(opened):
    return opened.get_by_role("group", name="Attention over patches")


def overlay(opened):
    return attention_of(opened).locator("canvas").last


def drawn(canvas):
    return canvas.evaluate("canvas => canvas.toDataURL()")


def wait_for_overlay(opened, words):
    opened.locator(f"canvas[aria-label*={json.dumps(words)}]").last.wait_for()


def test_a_patch_and_a_class_are_chosen_by_mouse(visit, page, case):
    opened, data = visit(page), case.attention().data
    wait_for_overlay(opened, f"Attention of tumor over patch {data['patches'][0]['name']}")
    before = drawn(overlay(opened))
    box = attention_of(opened)
    patch = data["patches"][20]
    box.get_by_role("radio", name=patch["name"]).check()
    box.get_by_role("radio", name="stroma").check()
    wait_for_overlay(opened, f"Attention of stroma over patch {patch['name']}")
    assert drawn(overlay(opened)) != before
    state = "present" if patch["labels"][1] else "absent"
    kept = patch["maps"][1]
    said = box.get_by_role("status").inner_text()
    assert said.startswith(f"Patch 21 of 24. stroma: {state}, p = {patch['probabilities'][1]:.2f}, ")
    assert f"most attention {kept['where']}; {100 * kept['inside']:.0f} % of it in the mask, which covers 25 %" in said
    assert kept["where"] in overlay(opened).get_attribute("aria-label")
    expected = outcomes(np.array(patch["labels"]), np.array(patch["probabilities"]))
    marks = box.locator(".choose-class .kind").all_inner_texts()
    assert [mark.replace("\xa0", " ")[2:] for mark in marks] == expected.tolist()
    assert [float(text) for text in box.locator(".choose-class .p").all_inner_texts()] == pytest.approx(
        patch["probabilities"], abs=0.0051
    )


def test_a_patch_and_a_class_are_chosen_by_keyboard(visit, page, case):
    opened, data = visit(page), case.attention().data
    box = attention_of(opened)
    box.get_by_role("radio", name=data["patches"][0]["name"]).focus()
    opened.keyboard.press("ArrowRight")
    opened.keyboard.press("ArrowRight")
    opened.keyboard.press("Tab")
    opened.keyboard.press("ArrowDown")
    wait_for_overlay(opened, f"Attention of stroma over patch {data['patches'][2]['name']}")
    opened.keyboard.press("Tab")
    opened.keyboard.press("End")
    assert box.get_by_role("slider", name="Opacity").input_value() == "100"
    outline = opened.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def half(pixels):
    """Undo that a patch is drawn at twice its size."""
    return pixels.reshape(SIDE, 2, SIDE, 2, 3).mean(axis=(1, 3))


def test_opacity_runs_from_the_tissue_to_a_map_that_is_clear_where_it_is_low(visit, page, case):
    opened = visit(page)
    first = case.attention().data["patches"][0]
    wait_for_overlay(opened, first["name"])
    box = attention_of(opened)
    box.get_by_label("Outline of the class in the mask").uncheck()

    def pixels(opacity):
        box.get_by_role("slider", name="Opacity").fill(str(opacity))
        opened.evaluate("() => new Promise(requestAnimationFrame)")
        picture = base64.b64decode(drawn(overlay(opened)).partition(",")[2])
        return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)

    tissue = pixels(0)
    assert abs(tissue.mean() - decoded(first["image"]).mean()) < 2
    colours = pixels(100)
    cells = np.frombuffer(base64.b64decode(first["maps"][0]["cells"]), dtype=np.uint8).reshape(GRID, GRID)
    heat = np.frombuffer(base64.b64decode(case.attention().data["heat"]), dtype=np.uint8).reshape(256, 3)
    values = np.round(enlarge(cells.astype(float), SIDE)).astype(int)
    share, (below, above) = values[..., None] / 255, (half(part) for part in (tissue, colours))
    blurred = np.abs(above - ((1 - share) * below + share * heat[values]))
    assert blurred.mean() < 3
    middle = pixels(50)
    np.testing.assert_allclose(middle, (tissue + colours) / 2, atol=2)


def test_the_outline_is_drawn_and_taken_away(visit, page, case):
    opened = visit(page)
    wait_for_overlay(opened, "with the outline of the mask")
    with_outline = drawn(overlay(opened))
    box = attention_of(opened)
    box.get_by_label("Outline of the class in the mask").uncheck()
    opened.locator("canvas:not([aria-label*='with the outline'])").last.wait_for()
    wait_for_overlay(opened, "Attention of tumor")
    opened.wait_for_timeout(50)
    assert drawn(overlay(opened)) != with_outline
    assert "outline" not in overlay(opened).get_attribute("aria-label")
    box.get_by_role("radio", name="necrosis").check()  # in no mask
    assert "the class is not in the mask" in box.get_by_role("status").inner_text()


def test_the_mask_is_drawn_in_the_colours_of_the_classes(visit, page, case):
    opened = visit(page)
    wait_for_overlay(opened, "Attention of tumor")
    canvas = attention_of(opened).locator("canvas").first
    picture = Image.open(io.BytesIO(base64.b64decode(drawn(canvas).partition(",")[2]))).convert("RGB")
    colours = [tuple(bytes.fromhex(hue[1:])) for hue in case.attention().data["colours"]]
    quarters = [picture.getpixel(place) for place in ((9, 9), (SIDE - 9, 9), (9, SIDE - 9), (SIDE - 9, SIDE - 9))]
    assert quarters == [*colours[:3], (255, 255, 255)]
    assert canvas.get_attribute("aria-label").endswith(": tumor 25 %, stroma 25 %, lymphocyte 25 %.")
    keys = attention_of(opened).locator(".legend .key").evaluate_all("all => all.map(one => one.textContent)")
    assert keys == ["tumor 25 %", "stroma 25 %", "lymphocyte 25 %"]


def test_without_masks_nothing_speaks_of_them(visit, hostile):
    opened = visit(hostile)
    wait_for_overlay(opened, "Attention of")
    assert attention_of(opened).locator("canvas:visible").count() == 1
    assert opened.get_by_label("Outline of the class in the mask").count() == 0
    assert "mask" not in attention_of(opened).inner_text().lower()


def gallery_of(opened):
    return opened.get_by_role("group", name="Gallery of patches")


def end_of(box, name):
    return box.get_by_role("slider", name=f"Confidence {name}")


def expected_names(case, k, kinds, low=0, high=100):
    """Filter and sort as the gallery says it does."""
    kind = outcomes(case.labels, case.probabilities)
    shown = case.gallery().data["patches"]
    sureness = np.round(np.abs(2 * np.array([patch["probabilities"] for patch in shown]) - 1) * 10000).astype(int)
    position = {case.patches.files[row]: i for i, row in enumerate(case.index)}
    found = []
    for place, patch in enumerate(shown):
        looked = range(len(case.patches.classes)) if k is None else [k]
        kind_here = kind[position[patch["name"]]]
        all_right = all(kind_here[c] == "correct" for c in looked)
        fitting = [
            sureness[place, c] for c in looked if kind_here[c] in kinds and (kind_here[c] != "correct" or all_right)
        ]
        if fitting and 100 * low <= max(fitting) <= 100 * high:
            found.append((-max(fitting), place, patch["name"]))
    return [name for _, _, name in sorted(found)]


def test_the_gallery_shows_exactly_what_fits_the_most_confident_first(visit, page, case):
    box = gallery_of(visit(page))
    counts = set()
    for k, kinds, low, high in (
        (None, ["false negative", "false positive"], 0, 100),
        (None, ["correct"], 0, 100),
        (None, ["false negative", "false positive", "correct"], 0, 100),
        (1, ["false negative"], 0, 100),
        (1, ["correct"], 35, 80),
        (2, ["false positive"], 0, 15),
        (None, ["false negative"], 10, 25),
        (0, ["false negative", "false positive", "correct"], 5, 60),
        (None, [], 0, 100),
    ):
        box.get_by_label("Class").select_option(label="all classes" if k is None else case.patches.classes[k])
        for kind in ("false negative", "false positive", "correct"):
            box.get_by_label(kind).set_checked(kind in kinds)
        end_of(box, "from").fill(str(low))
        end_of(box, "to").fill(str(high))
        expected = expected_names(case, k, kinds, low, high)
        found = box.locator("li img").evaluate_all("all => all.map(one => one.alt)")
        assert [alt.removesuffix(": ") for alt in found] == expected
        status = box.get_by_role("status").inner_text()
        assert status.startswith(f"{len(expected)} of 40 patches fit." if expected else "No patch fits, of 40.")
        counts.add(len(expected))
    assert len(counts) >= 6  # the filters do filter


def test_more_thumbnails_appear_when_asked_for(visit, tmp_path):
    case = make_case(n=100)
    opened = visit(page_of(tmp_path, case.gallery()))
    box = gallery_of(opened)
    for kind in ("false negative", "false positive", "correct"):
        box.get_by_label(kind).check()
    assert box.locator("li").count() == 40
    box.get_by_role("button", name="Show 40 more").click()
    box.get_by_role("button", name="Show 20 more").click()
    assert box.locator("li").count() == 100
    assert box.locator("li button").nth(80).evaluate("button => button === document.activeElement")
    assert box.get_by_role("button", name="more").count() == 0


def test_the_ends_of_the_confidence_push_each_other(visit, page):
    opened = visit(page)
    box = gallery_of(opened)
    end_of(box, "to").fill("30")
    end_of(box, "from").fill("60")
    assert end_of(box, "to").input_value() == "60"
    end_of(box, "to").fill("20")
    assert end_of(box, "from").input_value() == "20"


def test_a_thumbnail_opens_a_larger_view_that_turns_and_gives_the_focus_back(visit, page, case):
    opened = visit(page)
    box = gallery_of(opened)
    names = expected_names(case, None, ["false negative", "false positive"])
    shown = {patch["name"]: patch for patch in case.gallery().data["patches"]}
    box.locator("li button").nth(2).focus()
    opened.keyboard.press("Enter")
    dialog = opened.get_by_role("dialog")
    opened.keyboard.press("ArrowRight")
    patch = shown[names[3]]
    assert dialog.locator(".panel-title").inner_text() == f"{names[3]}, group {patch['group']} (4 of {len(names)})"
    rows = [row.split("\t") for row in dialog.locator("tbody").inner_text().splitlines()]
    kinds = outcomes(np.array(patch["labels"]), np.array(patch["probabilities"]))
    for row, name, label, p, kind in zip(
        rows, case.patches.classes, patch["labels"], patch["probabilities"], kinds, strict=True
    ):
        assert row[:2] == [name, "present" if label else "absent"]
        assert float(row[2]) == pytest.approx(p, abs=0.0051)
        assert row[3].replace("\xa0", " ")[2:] == kind
    dialog.get_by_role("button", name="Previous").click()
    opened.keyboard.press("ArrowLeft")
    opened.keyboard.press("ArrowLeft")
    opened.keyboard.press("ArrowLeft")
    assert dialog.get_by_role("button", name="Previous").is_disabled()
    opened.keyboard.press("Escape")
    opened.wait_for_timeout(50)
    assert dialog.count() == 0
    assert box.locator("li button").first.evaluate("button => button === document.activeElement")


def test_hostile_names_are_shown_as_typed_and_inert(visit, hostile):
    opened = visit(hostile)
    wait_for_overlay(opened, "Attention of")
    text = attention_of(opened).locator(".choose-class .name").evaluate_all("all => all.map(one => one.textContent)")
    assert text == HOSTILE
    options = gallery_of(opened).get_by_label("Class").locator("option")
    assert options.evaluate_all("all => all.map(one => one.textContent)") == ["all classes", *HOSTILE]
    for i in range(len(HOSTILE)):
        attention_of(opened).locator(".choose-class input").nth(i).check()
        attention_of(opened).locator(".choose-patch input").nth(i).check()
        opened.get_by_text(f"Patch {i + 1} of {MOST_EXPLORED}. ").wait_for()
    gallery_of(opened).locator("li button").first.click()
    assert opened.get_by_role("dialog").is_visible()
    assert opened.evaluate("window.hit === undefined")
    assert opened.locator("article script:not([type='application/json'])").count() == 0
    alts = attention_of(opened).locator(".choose-patch img").evaluate_all("all => all.map(one => one.alt)")
    assert all(any(alt.startswith(name) for name in HOSTILE) for alt in alts)


def test_without_script_the_figures_stand_there(visit, page):
    opened = visit(page, java_script_enabled=False)
    assert opened.locator("figure.explorer > .figure-scroll img").count() == 4
    for i in range(4):
        assert opened.locator("figure.explorer > .figure-scroll img").nth(i).is_visible()
    assert opened.locator(".explorer-live").count() == 0


def test_on_paper_the_figures_stand_there(visit, page):
    opened = visit(page)
    figures, live = opened.locator("figure.explorer > .figure-scroll img"), opened.locator(".explorer-live")
    assert [figures.nth(i).is_visible() for i in range(4)] == [False] * 4
    assert [live.nth(i).is_visible() for i in range(4)] == [True] * 4
    opened.emulate_media(media="print")
    assert [figures.nth(i).is_visible() for i in range(4)] == [True] * 4
    assert [live.nth(i).is_visible() for i in range(4)] == [False] * 4


@pytest.mark.parametrize("name", ["page", "hostile"])
@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_never_scrolls_sideways(visit, request, name, width):
    opened = visit(request.getfixturevalue(name), width=width)
    wait_for_overlay(opened, "Attention of")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    gallery_of(opened).locator("li button").first.click()
    dialog = opened.get_by_role("dialog").bounding_box()
    assert dialog["x"] >= 0
    assert dialog["x"] + dialog["width"] <= width


@pytest.mark.parametrize(("name", "scheme"), [("page", "light"), ("hostile", "dark")])
def test_axe_finds_nothing(accessible, request, name, scheme):
    opened = accessible(request.getfixturevalue(name), color_scheme=scheme)
    assert opened.locator(".explorer-live").count() == 4


def test_nothing_moves(page):
    assert not re.search(r"\b(transition|animation)\b", page.read_text(encoding="utf-8").partition("</head>")[0])


# Patches with their labels, on a page


def browser_of(opened):
    return opened.get_by_role("group", name="Patches with their labels")


def lines_of(table):
    rows = table.locator("tbody tr").evaluate_all("all => all.map(row => [...row.cells].map(cell => cell.textContent))")
    return [[text.replace("\xa0", " ") for text in row] for row in rows]


def seen(box, names):
    """Turn through what fits; a name is shown once its patch is drawn."""
    slider, found = box.get_by_role("slider", name="Patch"), []
    for place, name in enumerate(names, 1):
        slider.fill(str(place))
        box.get_by_role("img", name=f"Patch {name}:").wait_for()
        found.append(name)
    return found, int(slider.get_attribute("max"))


def test_patches_are_chosen_by_class_and_group_on_the_page(visit, page, case):
    box, shown = browser_of(visit(page)), case.browser().data["patches"]
    status = box.get_by_role("status")
    assert len(shown) == MOST_EXPLORED
    for k, state, group in [
        (None, "present", None),
        (0, "absent", None),
        (1, "present", None),
        (1, "present", "patient 3"),
    ]:
        box.get_by_role("combobox", name="Class").select_option(
            label="any class" if k is None else case.patches.classes[k]
        )
        if k is not None:
            box.get_by_role("combobox", name="which is").select_option(label=state)
        box.get_by_role("combobox", name="Group").select_option(label=group or "any group")
        fitting = [
            patch
            for patch in shown
            if (k is None or patch["labels"][k] == (state == "present")) and group in (None, patch["group"])
        ]
        found, last = seen(box, [patch["name"] for patch in fitting[:3]])
        assert found and last == len(fitting)
        assert status.inner_text() == f"{len(fitting)} of the {MOST_EXPLORED} patches on this page, of 45, fit."
    patch = fitting[len(found) - 1]
    expected = [
        [name, "present" if label else "absent", "25 %" if k < 3 else "0 %"]
        for k, (name, label) in enumerate(zip(case.patches.classes, patch["labels"], strict=True))
    ]
    assert lines_of(box) == expected
    assert box.locator(".panel p").inner_text() == f"{patch['name']}, group {patch['group']}"
    canvas = box.locator("canvas")
    before = drawn(canvas)
    box.get_by_label("Outlines of the classes").uncheck()
    box.page.wait_for_function(
        "([canvas, before]) => canvas.toDataURL() !== before", arg=[canvas.element_handle(), before]
    )


def test_where_no_patch_fits_the_browser_says_so(visit, tmp_path):
    case = make_case(n=10)
    none = replace(case.patches, labels=np.zeros_like(case.patches.labels), groups=None, has_masks=False)
    box = browser_of(visit(page_of(tmp_path, replace(case, patches=none).browser())))
    box.get_by_role("combobox", name="Class").select_option(label="stroma")
    assert box.get_by_text("No patch fits.").is_visible()
    assert box.locator("canvas:visible").count() == box.locator("table:visible").count() == 0
    for control in ("Group", "Outlines of the classes in the mask"):
        assert box.locator("label:visible", has_text=control).count() == 0


# Thresholds


def thresholds_of(opened):
    return opened.get_by_role("group", name="Thresholds of the classes")


def test_counts_follow_the_thresholds(visit, tmp_path):
    generator, classes = np.random.default_rng(5), [f"class {k}" for k in range(11)]
    labels, scores = generator.integers(0, 2, (30, 11)).astype(np.uint8), generator.random((30, 11)).astype(np.float32)
    scores[:5, 0], scores[:5, 1], labels[:, 2], scores[:, 3] = 0.9, 0.13, 0, 0.3  # at its threshold a class is present
    box = thresholds_of(visit(page_of(tmp_path, threshold_explorer(labels, scores, classes))))
    cuts = np.full(11, 0.5)
    before = mean_accuracy(labels, scores >= 0.5)
    for k, value in [(None, 0.5), (0, 0.9), (1, 0.13), (0, 0.0), (1, 1.0)]:
        if k is not None:
            cuts[k] = value
            box.get_by_role("slider", name=f"Threshold of class {k}", exact=True).fill(str(round(100 * value)))
        decisions = scores >= cuts.astype(np.float32)
        expected = multilabel_confusion_matrix(labels, decisions)
        precision, recall, f1, _ = precision_recall_fscore_support(labels, decisions, zero_division=0)
        for j, (name, _, tp, fp, fn, tn, accuracy, *others) in enumerate(lines_of(box.locator("table").first)):
            assert name == classes[j]
            assert [[int(tn), int(fp)], [int(fn), int(tp)]] == expected[j].tolist()
            assert float(accuracy) == pytest.approx((labels[:, j] == decisions[:, j]).mean(), abs=6e-4)
            absent = labels[:, j] == 0
            specificity = (~decisions[absent, j]).mean() if absent.any() else 0
            for shown, value in zip(others, (recall[j], specificity, precision[j], f1[j]), strict=True):
                assert (0 if shown == "—" else float(shown)) == pytest.approx(value, abs=6e-4)
            assert (others[2] == "—", others[0] == "—") == (not decisions[:, j].any(), not labels[:, j].any())
        now = mean_accuracy(labels, decisions)
        (_, *accuracies), *_, (_, *f1s) = lines_of(box.locator("table").last)
        numbers = [float(text.replace("−", "-")) for text in accuracies]
        assert numbers == pytest.approx([now, before, now - before], abs=6e-4)
        assert float(f1s[0]) == pytest.approx(f1.mean(), abs=6e-4)


def test_all_thresholds_move_at_once_and_go_back(visit, page):
    box = thresholds_of(visit(page))
    at_start = lines_of(box.locator("table").first)
    sliders = box.get_by_role("slider")
    box.get_by_role("slider", name="All classes at").fill("20")
    assert sliders.evaluate_all("all => all.map(one => one.value)") == ["20"] * 5
    assert lines_of(box.locator("table").first) != at_start
    box.get_by_role("button", name="Reset to 0.5").click()
    assert sliders.evaluate_all("all => all.map(one => one.value)") == ["50"] * 5
    assert lines_of(box.locator("table").first) == at_start
    sliders.nth(1).press("ArrowRight")
    assert sliders.nth(1).get_attribute("aria-valuetext") == "0.51"


# JupyterLab: the module as anywidget calls it, asking through a widget


@pytest.fixture
def lab(chromium):
    """Return a function that renders an explorer by its widget's script; the kernel is this process."""
    context = chromium.new_context()
    complaints = []

    def render(explorer):
        widget, sent = explorer.widget(), []
        widget.send = sent.append

        def ask(message):
            widget._handle_custom_msg(message, [])
            return sent.pop()

        opened = context.new_page()
        opened.on("console", lambda message: complaints.append(message.text))
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.expose_function("ask", ask)
        opened.add_style_tag(content=widget._css)
        opened.evaluate(
            """async (source) => {
                const { default: { render } } = await import(`data:text/javascript;base64,${source}`);
                let hear;
                const send = async (message) => hear(await window.ask(message));
                const model = { on: (_, called) => { hear = called; }, send };
                await render({ model, el: document.body });
            }""",
            base64.b64encode(widget._esm.encode()).decode(),
        )
        return opened

    yield render
    context.close()
    assert complaints == []


def test_in_jupyterlab_every_patch_is_found_and_an_unreadable_one_is_named(lab, case):
    box = browser_of(lab(case.browser()))
    box.get_by_role("combobox", name="Class").select_option(label="stroma")
    box.get_by_role("combobox", name="which is").select_option(label="absent")
    box.get_by_role("combobox", name="Group").select_option(label="patient 4")
    fits = (case.patches.labels[:, 1] == 0) & (case.patches.groups == "patient 4")
    names = [case.patches.files[i] for i in np.flatnonzero(fits)]
    found, last = seen(box, names[:2])
    assert last == len(names) and found
    assert box.get_by_role("status").inner_text() == f"{len(names)} of the 45 patches fit."
    box.get_by_role("combobox", name="Class").select_option(label="any class")
    box.get_by_role("combobox", name="Group").select_option(label="any group")
    box.get_by_text("45 of the 45 patches fit.").wait_for()
    box.get_by_role("slider", name="Patch").fill(str(UNREADABLE + 1))
    box.get_by_text("truncated file <b>").wait_for()
    assert box.locator("canvas:visible").count() == 0


def test_in_jupyterlab_any_patch_can_be_added_to_the_attention(lab, case):
    opened = lab(case.attention((0, 1)))
    box = attention_of(opened)
    box.get_by_label("Add the patch at place").fill("30")
    box.get_by_label("Add the patch at place").press("Enter")
    name = case.patches.files[case.index[29]]
    wait_for_overlay(opened, f"Attention of tumor over patch {name}")
    assert box.get_by_role("status").inner_text().startswith("Patch 3 of 3. tumor")
    box.get_by_label("Add the patch at place").fill("41")
    box.get_by_label("Add the patch at place").press("Enter")
    box.get_by_text("There is no patch at place 41. Choose one from 1 to 40.").wait_for()
    assert box.locator(".choose-patch img").count() == 3


def prompts_case(n=20, classes=("tumor", "stroma", "lymphocyte"), names=None, rule="sigmoid"):
    case, names = make_case(n, classes), names or NAMES[: len(classes)]
    pooled = np.random.default_rng(1).normal(size=(n + 5, WIDTH)).astype(np.float32)
    features = SimpleNamespace(pooled=SimpleNamespace(take=lambda index: pooled[index]))
    vocabulary = Vocabulary(list(names), TEMPLATES, synonyms=[["carcinoma"], *([] for _ in names[1:])])
    context, clip = StrategyContext(np.full(len(names), 0.4), rule, 1 / SCALE), PromptVectors()
    explorer = prompt_explorer(TextEncoder(clip), vocabulary, features, case.patches, case.index, context)
    return explorer, vocabulary, case, pooled[case.index], context, clip


def words_of(vocabulary, place=0, **changed):
    texts = {
        "names": vocabulary.names, "templates": vocabulary.templates, "template": vocabulary.photo_of,
        "negative": vocabulary.negative_prompt, "place": place,
    }  # fmt: skip
    return texts | changed


@pytest.mark.parametrize("rule", ["sigmoid", "prevalence"])
def test_other_words_give_what_the_strategies_give_for_them(rule):
    explorer, vocabulary, case, pooled, context, _ = prompts_case(rule=rule)

    def by_hand(words):
        methods = score_zero_shot(pooled, TextEncoder(PromptVectors()), words, context)
        return methods, np.array(
            [
                (mean_accuracy(case.labels, m.decisions), average_precision_score(case.labels, m.scores))
                for m in methods.values()
            ]
        )

    _, before = by_hand(vocabulary)
    for given, changed in [
        ({}, {}),
        ({"names": ["carcinoma", *vocabulary.names[1:]]}, {"names": ["carcinoma", *vocabulary.names[1:]]}),
        ({"templates": ["some {}", "", "  any {} at all "]}, {"templates": ["some {}", "any {} at all"]}),
        ({"template": "this is {}"}, {"photo_of": "this is {}"}),
        ({"negative": "empty"}, {"negative_prompt": "empty"}),
    ]:
        words = replace(vocabulary, **changed)
        told = explorer.answer("words", words_of(vocabulary, 6, **given))
        methods, now = by_hand(words)
        assert [line[0] for line in told["methods"]] == [own.label for own in STRATEGIES.load().values()]
        numbers = [[float(text) for text in line[1:]] for line in told["methods"]]
        columns = np.stack([now[:, 0], now[:, 0] - before[:, 0], now[:, 1], now[:, 1] - before[:, 1]], axis=1)
        np.testing.assert_allclose(numbers, columns, atol=6e-4)
    image, encode = pooled[6] / np.linalg.norm(pooled[6]), TextEncoder(PromptVectors())
    *lines, nothing = told["cosines"]
    for k, (column, called, truth, cosine, chosen) in enumerate(lines):
        assert (column, called) == (case.patches.classes[k], vocabulary.names[k])
        assert truth == ("present" if case.labels[6, k] else "absent")
        assert float(cosine) == pytest.approx((class_embeddings(encode, words) @ image)[k], abs=6e-4)
        labels = {own.label: methods[name].decisions[6, k] for name, own in STRATEGIES.load().items()}
        assert chosen == ", ".join(label for label, decided in labels.items() if decided)
    assert float(nothing[3]) == pytest.approx(image @ encode(["empty"])[0], abs=6e-4)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"templates": ["a photo"]}, "Templates: each template needs one {}"),
        ({"template": "a photo <b>"}, "Template of the other strategies: each template needs one {}"),
        ({"names": ["a", " ", "c"], "negative": ""}, "These fields are empty: the name of stroma, Negative prompt."),
        ({"templates": [" "]}, "These fields are empty: Templates."),
    ],
)
def test_words_that_cannot_be_used_are_refused(given, words):
    explorer, vocabulary, *_ = prompts_case()
    with pytest.raises(HistoCLIPError, match=re.escape(words)):
        explorer.answer("words", words_of(vocabulary, **given))


def test_every_prompt_is_encoded_once():
    explorer, vocabulary, *_, clip = prompts_case()
    for name in ("carcinoma", "tumor", "carcinoma"):
        explorer.answer("words", words_of(vocabulary, names=[name, *vocabulary.names[1:]]))
    assert "a photo of a carcinoma" in clip.asked and len(clip.asked) == len(set(clip.asked))


def test_strategies_that_need_too_many_prompts_are_left_out_and_many_patches_are_sampled():
    names = [f"word {k}" for k in range(9)]
    explorer, vocabulary, *_ = prompts_case(1201, names, names)
    told = explorer.answer("words", words_of(vocabulary, 499))
    assert told["note"] == "On 500 patches; change against the words of the report. —: too many new prompts or classes."
    scored = {line[0]: line[1] != "—" for line in told["methods"]}
    assert scored["Baseline"] and not scored["Power-set"]
    assert told["patch"]["name"] == "patch_01205.png"


def test_words_are_changed_in_jupyterlab_and_reset(lab):
    names = [f"word {name}" for name in HOSTILE[:4]]
    explorer, *_ = prompts_case(classes=HOSTILE[:4], names=[" ".join(name.split()) for name in names])
    opened = lab(explorer)
    box = opened.get_by_role("group", name="Prompts", exact=True)
    methods, cosines = (
        box.get_by_role("group", name="Strategies"),
        box.get_by_role("group", name="Cosines of the patch"),
    )
    methods.wait_for()
    before = lines_of(methods)
    assert [line[0] for line in lines_of(cosines)[:4]] == HOSTILE[:4]
    field = box.locator("input[type=text]").first
    assert box.locator("datalist").first.locator("option").count() == 2
    field.fill("carcinoma <b>")
    field.press("Enter")
    opened.get_by_role("cell", name="carcinoma <b>").wait_for()
    assert lines_of(methods) != before
    field.fill("")
    field.press("Enter")
    opened.get_by_text("These fields are empty").wait_for()
    assert methods.count() == 0
    box.get_by_role("button", name="Reset the words").click()
    methods.wait_for()
    assert lines_of(methods) == before
    assert opened.evaluate("window.hit === undefined")


@pytest.mark.parametrize("kind", ["gallery", "thresholds"])
def test_the_other_explorers_are_the_same_in_jupyterlab(lab, case, kind):
    opened = lab(getattr(case, kind)())
    box = gallery_of(opened) if kind == "gallery" else thresholds_of(opened)
    assert box.is_visible()


# Slides

SLIDE, TILE, TOP = (4000, 3000), 200, 3  # pixels of level 0; tiles of each class on the page


def slide_case(classes=("tumor", "stroma"), read=None):
    """A slide whose tiles cover its middle, and an explorer of it."""
    rng = np.random.default_rng(4)
    y, x = (axis.ravel() * TILE for axis in np.mgrid[3:12, 4:16])
    tiles = pd.DataFrame({"x": x, "y": y, "width": TILE, "height": TILE, "ood": rng.gamma(2, 1, len(x))})
    thresholds = np.linspace(0.4, 0.6, len(classes))
    for name, threshold in zip(classes, thresholds, strict=True):
        tiles[f"prob_{name}"] = rng.random(len(x))
        tiles[f"present_{name}"] = tiles[f"prob_{name}"] >= threshold
    image = rng.integers(150, 255, (TILE, TILE, 3), dtype=np.uint8)
    top = {name: [(int(i), image) for i in np.argsort(-tiles[f"prob_{name}"])[:TOP]] for name in classes}
    mask = np.zeros((300, 400), np.uint8)
    mask[60:240, 80:200], mask[60:240, 200:320] = 1, 2
    overview = np.full((600, 800, 3), 240, np.uint8)
    attention = rng.random((len(x), len(classes), 4, 4))
    return tiles, slide_explorer(
        tiles, list(classes), overview, SLIDE, 0.5, thresholds, 4.0, top, mask, attention, read
    )  # fmt: skip


@pytest.fixture(scope="module")
def slide_page(tmp_path_factory):
    return page_of(tmp_path_factory.mktemp("slide"), slide_case()[1])


def viewer_of(opened):
    box = opened.get_by_role("group", name="Slide with maps")
    box.locator("canvas[data-ready]").wait_for()
    return box, box.locator("canvas")


def point(canvas, x, y):
    """Return where a place of the slide lies on the screen while all of it is shown."""
    box = canvas.bounding_box()
    zoom = min(box["width"] / SLIDE[0], box["height"] / SLIDE[1])
    return box["x"] + (box["width"] - SLIDE[0] * zoom) / 2 + x * zoom, box["y"] + (
        box["height"] - SLIDE[1] * zoom
    ) / 2 + y * zoom


def said_of(tiles, i, classes=("tumor", "stroma")):
    tile = tiles.loc[i]
    marks = [f"{c} {tile[f'prob_{c}']:.2f}{' ✓' if tile[f'present_{c}'] else ''}" for c in classes]
    return f"Tile at x {tile.x:,.0f}, y {tile.y:,.0f}: {', '.join(marks)}; out of distribution {tile.ood:.2f}"


def test_the_slides_data_change_no_decision():
    tiles = slide_case()[0]
    tiles["prob_tumor"], tiles["present_tumor"] = np.nextafter(0.5, 0), False
    tiles.loc[:9, ["prob_tumor", "present_tumor"]] = [0.5, True]
    data = slide_explorer(tiles, ["tumor"], np.zeros((3, 4, 3), np.uint8), SLIDE, 0.5, np.array([0.5]), 1.0, {}).data
    chances = np.frombuffer(base64.b64decode(data["chances"]), "<u2") / 65535
    assert (chances >= data["thresholds"][0]).tolist() == tiles.present_tumor.tolist()
    np.testing.assert_allclose(chances, 0.5, atol=1e-4)
    assert data["mask"] is data["cells"] is None


def test_pointing_at_a_tile_reads_it(visit, slide_page):
    tiles, _ = slide_case()
    box, canvas = viewer_of(visit(slide_page))
    canvas.scroll_into_view_if_needed()
    for i in (0, 31, 100):
        box.page.mouse.move(*point(canvas, tiles.x[i] + 120, tiles.y[i] + 80))
        assert box.get_by_role("status").inner_text().startswith(said_of(tiles, i))
    box.page.mouse.move(*point(canvas, 100, 100))
    assert box.get_by_role("status").inner_text() == "No tile here: no tissue."


def test_a_class_is_chosen_by_keyboard_and_map_legend_and_tiles_follow(visit, slide_page):
    box, canvas = viewer_of(visit(slide_page))
    before = drawn(canvas)
    box.get_by_role("radio").first.focus()
    box.page.keyboard.press("ArrowRight")
    assert drawn(canvas) != before
    assert "probability of stroma, present from 0.60" in box.locator(".legend").inner_text()
    assert box.get_by_text("Highest probability of stroma").is_visible()
    assert box.locator("li").count() == TOP
    box.page.keyboard.press("ArrowRight")
    assert "out-of-distribution score" in box.locator(".legend").inner_text()
    assert box.locator("li").count() == 0


def test_zoom_keeps_the_point_under_the_cursor_and_ends_with_the_whole_slide(visit, slide_page):
    tiles, _ = slide_case()
    opened = visit(slide_page)
    box, canvas = viewer_of(opened)
    canvas.scroll_into_view_if_needed()
    whole = drawn(canvas)
    place = point(canvas, tiles.x[40] + 15, tiles.y[40] + 190)  # near a corner: a shift would leave the tile
    opened.mouse.move(*place)
    text = box.get_by_role("status").inner_text()
    assert text.startswith(said_of(tiles, 40))
    for _ in range(6):
        opened.mouse.wheel(0, -200)
    opened.wait_for_function(
        "([canvas, before]) => canvas.toDataURL() !== before", arg=[canvas.element_handle(), whole]
    )
    opened.mouse.move(place[0] + 1, place[1])
    assert box.get_by_role("status").inner_text() == text
    opened.mouse.move(place[0] + 40, place[1])  # six steps are 16 times: this is another tile only without the zoom
    assert box.get_by_role("status").inner_text() == text
    opened.mouse.move(*point(canvas, 100, 100))
    canvas.focus()
    opened.keyboard.press("0")
    opened.mouse.move(*place)
    assert box.get_by_role("status").inner_text() == text
    assert drawn(canvas) != ""


def test_a_drag_moves_the_slide_and_opens_nothing(visit, slide_page):
    opened = visit(slide_page)
    box, canvas = viewer_of(opened)
    canvas.scroll_into_view_if_needed()
    for _ in range(3):
        box.get_by_role("button", name="Zoom in").click()
    before, (x, y) = drawn(canvas), point(canvas, 2000, 1500)
    opened.mouse.move(x, y)
    opened.mouse.down()
    opened.mouse.move(x + 80, y + 50, steps=3)
    opened.mouse.up()
    assert drawn(canvas) != before
    assert opened.get_by_role("dialog").count() == 0


def test_stored_tiles_open_at_full_size_and_others_say_that_they_are_not_there(visit, slide_page):
    tiles, explorer = slide_case()
    opened = visit(slide_page)
    box, canvas = viewer_of(opened)
    highest = [entry["i"] for entry in explorer.data["top"][0]]
    box.locator("li button").first.click()
    dialog = opened.get_by_role("dialog")
    assert dialog.locator("img").evaluate("img => img.naturalWidth") == TILE
    assert lines_of(dialog)[0][:2] == ["tumor", f"{tiles.prob_tumor[highest[0]]:.2f}"]
    opened.keyboard.press("Escape")
    box.get_by_role("button", name="Whole slide").click()
    canvas.scroll_into_view_if_needed()
    stored = {entry["i"] for own in explorer.data["top"] for entry in own}
    other = next(i for i in range(len(tiles)) if i not in stored)
    opened.mouse.click(*point(canvas, tiles.x[other] + 100, tiles.y[other] + 100))
    assert "not stored on this page" in box.get_by_role("status").inner_text()
    opened.mouse.click(*point(canvas, tiles.x[highest[1]] + 100, tiles.y[highest[1]] + 100))
    assert dialog.is_visible()


def test_without_script_the_slide_is_a_figure(visit, slide_page):
    opened = visit(slide_page, java_script_enabled=False)
    assert opened.locator("figure.explorer > .figure-scroll img").is_visible()
    assert opened.locator(".explorer-live").count() == 0


@pytest.mark.parametrize("width", [390, 1440])
def test_the_slides_page_never_scrolls_sideways(visit, slide_page, width):
    opened = visit(slide_page, width=width)
    viewer_of(opened)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_the_slides_page(accessible, slide_page, scheme):
    assert accessible(slide_page, color_scheme=scheme).locator("canvas.slide").count() == 1


def test_in_jupyterlab_every_tile_opens(lab):
    tiles, explorer = slide_case(read=lambda i: np.full((TILE, TILE, 3), i, np.uint8))
    opened = lab(explorer)
    _, canvas = viewer_of(opened)
    canvas.scroll_into_view_if_needed()
    stored = {entry["i"] for own in explorer.data["top"] for entry in own}
    other = next(i for i in range(len(tiles)) if i not in stored)
    opened.mouse.click(*point(canvas, tiles.x[other] + 100, tiles.y[other] + 100))
    opened.get_by_role("dialog").wait_for()
