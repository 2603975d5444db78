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
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from drawing import HOSTILE as HOSTILE_NAMES
from drawing import draw
from IPython.core.formatters import DisplayFormatter
from matplotlib import pyplot as plt
from nbformat import v4
from PIL import Image
from prompt_vectors import NAMES, SCALE, TEMPLATES, WIDTH, PromptVectors
from sklearn.metrics import average_precision_score, multilabel_confusion_matrix, precision_recall_fscore_support

from histoclip_lib.common.arrays import all_right
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.html import EXPLORER_TYPE
from histoclip_lib.common.predictions import mean_accuracy
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.models.attention import enlarge
from histoclip_lib.prompting.strategies import STRATEGIES, StrategyContext, score_zero_shot
from histoclip_lib.prompting.vocabulary import TextEncoder, Vocabulary, class_embeddings
from histoclip_lib.report.explorers import (
    ASSETS,
    MOST_EXPLORED,
    MOST_IN_GALLERY,
    ROOM,
    attention_explorer,
    choose_to_explore,
    noted_patches,
    patch_browser,
    patch_gallery,
    prompt_explorer,
    slide_explorer,
    threshold_explorer,
)
from histoclip_lib.report.export import WIDGET, export_page

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
        return attention_explorer(self.patches, self.index, self.maps, self.probabilities, chosen, self.maps[::-1])

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
    patches = PatchDataset(
        "painted", list(classes), files, labels, Painted(size), groups, has_masks=masks, patch_mpp=np.full(n + 5, 0.5)
    )
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
        for own, kept in zip(case.maps[i], shown["maps"][0], strict=True):
            cells = np.frombuffer(base64.b64decode(kept["cells"]), dtype=np.uint8).reshape(GRID, GRID)
            scaled = (own - own.min()) / np.ptp(own)
            np.testing.assert_allclose(cells / 255, scaled, atol=0.5 / 255 + 1e-6)
            assert kept["peak"] == pytest.approx(own.max() * GRID**2, abs=0.06)


def test_area_and_share_are_those_of_the_mask(case):
    shown = case.attention((2,)).data["patches"][0]
    mask = case.patches.mask(case.index[2])
    assert shown["areas"] == [0.25, 0.25, 0.25, 0]
    assert shown["maps"][0][3]["inside"] is None
    for k, kept in enumerate(shown["maps"][0][:3]):
        inside = mask == k + 1
        enlarged = enlarge(case.maps[2, k].astype(float), SIDE)
        assert kept["inside"] == pytest.approx(enlarged[inside].sum() / enlarged.sum(), abs=1e-4)
    step = case.attention((2,)).data["maskStep"]
    np.testing.assert_array_equal(decoded(shown["mask"]) / step, mask)


def test_the_place_is_said_in_words_and_an_even_map_has_none(case):
    maps = np.zeros_like(case.maps)
    maps[:, :, 0, 0] = 1
    maps[0, 1] = 1 / GRID**2
    first, even = replace(case, maps=maps).attention((0,)).data["patches"][0]["maps"][0][:2]
    assert first["where"] == "at the top left"
    assert even["where"] is None
    assert set(base64.b64decode(even["cells"])) == {0}


def test_patches_have_their_own_resolution_and_with_maps_they_are_the_square_that_the_encoder_sees():
    case = make_case(n=6, size=(300, 400))
    for explorer, size in ((case.attention((1,)), (300, 300)), (case.gallery(), (300, 400))):
        shown = explorer.data["patches"][0]
        assert decoded(shown["image"]).shape == (*size, 3)
        assert decoded(shown["mask"]).shape == size
        assert (shown["size"], shown["um"]) == ([*size[::-1]], size[1] / 2)


def test_a_page_holds_as_many_patches_as_have_room():
    data = make_case(n=40, size=(500, 500)).gallery().data
    assert len(json.dumps(data["patches"])) <= ROOM < len(json.dumps(data["patches"])) * 1.1
    assert data["held"].startswith(f"Of 40 patches, {len(data['patches'])} are here: ")


@pytest.fixture
def crowded(tmp_path):
    """A gallery of more than a page has room for, with the other pictures beside the page."""
    case = make_case(n=40, size=(500, 500))
    (tmp_path / "page_files").mkdir()
    (tmp_path / "page_files" / "of-an-earlier-page.webp").write_bytes(b"")
    return patch_gallery(case.patches, case.index, case.probabilities, 4, 0, tmp_path / "page_files"), tmp_path


def test_pictures_that_a_page_has_no_room_for_lie_beside_it(crowded, visit):
    explorer, folder = crowded
    beside = {own["image"] for own in explorer.data["patches"] if not own["image"].startswith("data:")}
    assert len(explorer.data["patches"]) == 40 and 5 < len(beside) < 40
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.webp")} == beside
    told = f" The pictures of {len(beside)} lie in the folder page_files beside the page."
    assert explorer.data["held"].endswith(told)
    box = box_of(visit(page_of(folder, explorer)))
    box.get_by_role("combobox", name="Show").select_option(label="all patches")
    box.get_by_role("button", name="Show 16 more").click()
    box.page.wait_for_function(
        "[...document.querySelectorAll('.pictures img')].filter((one) => one.naturalWidth === 500).length === 40"
    )


def test_patches_for_which_there_is_no_room_leave_no_picture(tmp_path, monkeypatch):
    monkeypatch.setattr("histoclip_lib.report.explorers.ROOM", 9000)
    case = make_case(n=40)
    explorer = patch_gallery(case.patches, case.index, case.probabilities, 4, 0, tmp_path / "page_files")
    images = {own["image"] for own in explorer.data["patches"]}
    assert 1 < len(images) < 40
    assert {f"page_files/{path.name}" for path in tmp_path.rglob("*.webp")} == images - {
        explorer.data["patches"][0]["image"]
    }


def test_a_picture_that_is_no_longer_beside_the_page_is_named(crowded, chromium):
    explorer, folder = crowded
    for picture in folder.rglob("*.webp"):
        picture.unlink()
    with chromium.new_context() as context:
        opened = context.new_page()
        opened.goto(page_of(folder, explorer).as_uri())
        opened.get_by_role("combobox", name="Show").select_option(label="all patches")
        opened.get_by_role("button", name="Show 16 more").click()
        opened.get_by_text("is not beside this page").last.wait_for()


@pytest.mark.parametrize(("n", "n_classes", "masks"), [(20, 3, True), (10, 20, True), (30, 12, False)])
def test_any_number_of_classes_with_and_without_masks(n, n_classes, masks):
    case = make_case(n, [f"class {k}" for k in range(n_classes)], masks)
    shown = case.attention()
    assert len(shown.data["patches"]) == min(n, MOST_EXPLORED)
    for patch in shown.data["patches"]:
        assert (patch["mask"] is not None) == masks
        assert len(patch["maps"][0]) == len(patch["labels"]) == len(patch["probabilities"]) == n_classes
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


def box_of(opened, name="Gallery of patches"):
    box = opened.get_by_role("group", name=name, exact=True)
    box.get_by_text("match the filters").first.wait_for()
    return box


def names_in(box):
    return box.locator(".pictures button").evaluate_all("all => all.map(one => one.title)")


def drawn(canvas):
    return canvas.evaluate("canvas => canvas.toDataURL()")


def open_first(box, name=None):
    """Open a patch, the first by default, and wait until its pictures are there."""
    box.locator(f".pictures button[title={json.dumps(name)}]" if name else ".pictures button").first.click()
    dialog = box.page.get_by_role("dialog")
    dialog.locator(".lens .layers").first.wait_for()
    return dialog


def expected_names(case, explorer, k, wanted, group, area, low, high):
    """Filter and sort as the viewer says it does."""
    found = []
    for place, patch in enumerate(explorer.data["patches"]):
        kinds = outcomes(np.array(patch["labels"]), np.array(patch["probabilities"]))
        all_right = (kinds == "correct").all()
        sureness = np.round(np.abs(2 * np.array(patch["probabilities"]) - 1) * 10000)
        looked = list(range(len(case.patches.classes))) if k is None else [k]
        fits = {
            "all patches": lambda c: True,
            "class present": lambda c, patch=patch: patch["labels"][c] == 1,
            "class absent": lambda c, patch=patch: patch["labels"][c] == 0,
            "errors": lambda c, kinds=kinds: kinds[c] != "correct",
            "false negatives": lambda c, kinds=kinds: kinds[c] == "false negative",
            "correct in all classes": lambda c, all_right=all_right: all_right,
        }[wanted]
        fitting = sorted(((kinds[c] != "correct", sureness[c]) for c in looked if fits(c)), reverse=True)
        chosen = group in (None, patch["group"]) and max(patch["areas"][c] for c in looked) >= area / 100
        if fitting and chosen and 100 * low <= fitting[0][1] <= 100 * high:
            found.append((0 if k is None and wanted == "all patches" else -fitting[0][1], place, patch["name"]))
    return [name for _, _, name in sorted(found)]


def test_the_viewer_lists_exactly_what_fits_the_most_confident_first(visit, page, case):
    box, classes, counts = box_of(visit(page)), case.patches.classes, set()
    for k, wanted, group, area, low, high in (
        (None, "errors", None, 0, 0, 100),
        (None, "all patches", None, 0, 0, 100),
        (None, "correct in all classes", None, 0, 0, 100),
        (0, "correct in all classes", None, 0, 0, 100),
        (1, "false negatives", None, 0, 0, 100),
        (1, "class present", "patient 3", 0, 0, 100),
        (2, "class absent", None, 25, 10, 80),
        (3, "all patches", None, 5, 0, 100),
        (None, "errors", None, 0, 10, 25),
        (0, "all patches", None, 30, 0, 100),
    ):
        box.get_by_role("combobox", name="Class").select_option(label="any class" if k is None else classes[k])
        box.get_by_role("combobox", name="Show").select_option(label=wanted)
        box.get_by_label("Group").select_option(label=group or "any group")
        for name, value in (("Covered area at least", area), ("Confidence from", low), ("Confidence to", high)):
            box.get_by_role("slider", name=name).fill(str(value))
        expected = expected_names(case, case.gallery(), k, wanted, group, area, low, high)
        said = (
            f"{len(expected)} of 40 patches match the filters." if expected else "No patch matches the filters, of 40."
        )
        box.get_by_text(said).wait_for()
        assert names_in(box) == expected[:24]
        counts.add(len(expected))
    assert len(counts) >= 5  # the filters do filter


def test_labels_that_are_not_known_make_no_patch_wrong(visit, tmp_path, case):
    labels = case.patches.labels.astype(float)
    labels[:, 0] = np.nan
    partly = replace(case, patches=replace(case.patches, labels=labels))
    box = box_of(visit(page_of(tmp_path, partly.gallery())))
    box.get_by_role("combobox", name="Show").select_option(label="correct in all classes")
    right = all_right(partly.labels, partly.probabilities >= 0.5).sum()
    assert 0 < right < 40
    box.get_by_text(f"{right} of 40 patches match the filters.").wait_for(timeout=5000)


def test_more_patches_appear_when_asked_for(visit, page):
    box = box_of(visit(page))
    box.get_by_role("combobox", name="Show").select_option(label="all patches")
    box.get_by_text("40 of 40 patches match the filters.").wait_for()
    assert box.locator("li").count() == 24
    box.get_by_role("button", name="Show 16 more").click()
    assert box.locator("li").count() == 40
    assert box.locator("li button").nth(24).evaluate("button => button === document.activeElement")
    assert box.get_by_role("button", name="more").count() == 0


def test_the_ends_of_the_confidence_push_each_other(visit, page):
    box = box_of(visit(page))
    low, high = (box.get_by_role("slider", name=f"Confidence {name}") for name in ("from", "to"))
    high.fill("30")
    low.fill("60")
    assert high.input_value() == "60"
    high.fill("20")
    assert low.input_value() == "20"


def test_pictures_are_large_enough_to_judge(visit, page):
    for width in (390, 1440):
        box = box_of(visit(page, width=width)).locator(".picture").first.bounding_box()
        assert box["width"] >= 200 and box["height"] >= 200


def test_an_opened_patch_turns_by_arrow_keys_and_gives_the_focus_back(visit, page, case):
    opened = visit(page)
    box = box_of(opened)
    names = names_in(box)
    shown = {patch["name"]: patch for patch in case.gallery().data["patches"]}
    box.locator("li button").nth(2).focus()
    opened.keyboard.press("Enter")
    dialog = opened.get_by_role("dialog")
    opened.keyboard.press("ArrowRight")
    patch = shown[names[3]]
    dialog.get_by_text(f"{names[3]}, group {patch['group']}").wait_for()
    fitting = box.get_by_text("patches match the filters.").inner_text().split()[0]
    assert dialog.get_by_role("status").inner_text().startswith(f"Patch 4 of {fitting}. ")
    kinds = outcomes(np.array(patch["labels"]), np.array(patch["probabilities"]))
    told = dialog.locator(".choose-class label > span:last-child").all_inner_texts()
    assert [text.replace("\xa0", " ") for text in told] == [
        f"{'present' if label else 'absent'}, p = {p:.2f}, {'✓' if kind == 'correct' else '✗'} {kind}"
        for label, p, kind in zip(patch["labels"], patch["probabilities"], kinds, strict=True)
    ]
    dialog.get_by_role("button", name="Previous").click()
    for _ in range(3):
        opened.keyboard.press("ArrowLeft")
    assert dialog.get_by_role("button", name="Previous").is_disabled()
    opened.keyboard.press("Escape")
    opened.wait_for_timeout(50)
    assert dialog.count() == 0
    assert box.locator("li button").first.evaluate("button => button === document.activeElement")


def test_filters_that_answer_while_a_patch_is_open_leave_it_open(visit, page):
    opened = visit(page)
    box = box_of(opened)
    box.get_by_role("combobox", name="Show").select_option(label="all patches")
    box.get_by_text("40 of 40 patches match the filters.").wait_for()
    dialog = open_first(box, names_in(box)[20])
    box.locator("select").nth(1).evaluate(
        "select => { select.value = 'correct'; select.dispatchEvent(new Event('input')); }"
    )
    box.get_by_text("12 of 40 patches match the filters.").wait_for()
    opened.keyboard.press("ArrowRight")
    assert dialog.get_by_role("status").inner_text().startswith("Patch 22 of 40. ")
    opened.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    assert box.locator(".pictures li").count() == 12


def places_of(dialog):
    """Return the zoom and the place of each picture, as parts of its side."""
    return dialog.locator(".lens").evaluate_all(
        """all => all.map((lens) => {
            const [outer, inner] = [lens, lens.firstChild].map((node) => node.getBoundingClientRect());
            const place = [inner.width, inner.left - outer.left, inner.top - outer.top];
            return place.map((length) => Number((length / outer.width).toFixed(3)));
        })"""
    )


def test_patch_mask_and_maps_zoom_and_move_together_with_a_scale_bar(visit, page, case):
    opened = visit(page)
    dialog = open_first(box_of(opened, "Attention over patches"))
    titles = dialog.locator(".panel .panel-title").all_inner_texts()
    assert titles == ["Patch", "Mask", "Attention", "Linear probe"]
    assert places_of(dialog) == [[1, 0, 0]] * 4
    lens = dialog.locator(".lens").first.bounding_box()  # a plain picture, which the browser would drag away
    opened.mouse.move(lens["x"] + lens["width"] / 4, lens["y"] + lens["height"] / 2)
    opened.mouse.wheel(0, -600)
    opened.wait_for_function("document.querySelector('dialog[open] .views').style.getPropertyValue('--zoom') > 3.9")
    assert places_of(dialog) == [[4, pytest.approx(-0.75, abs=0.01), pytest.approx(-1.5, abs=0.01)]] * 4
    opened.mouse.down()
    opened.mouse.move(lens["x"] + lens["width"] / 2, lens["y"] + lens["height"] / 2, steps=3)
    opened.mouse.up()
    assert places_of(dialog) == [[4, pytest.approx(-0.5, abs=0.01), pytest.approx(-1.5, abs=0.01)]] * 4
    line, bar = dialog.locator(".scale-bar span").bounding_box(), dialog.locator(".scale-bar").inner_text()
    micrometres = SIDE * 0.5 * line["width"] / (4 * lens["width"])
    assert float(bar.split()[0]) == pytest.approx(micrometres, rel=0.01)
    opened.keyboard.press("Shift+ArrowRight")
    assert places_of(dialog)[0][1] == pytest.approx(-0.6, abs=0.01)
    for key in ("Control+0", "Alt+ArrowRight"):  # the browser's own
        opened.keyboard.press(key)
    assert places_of(dialog)[0][1] == pytest.approx(-0.6, abs=0.01)
    assert dialog.get_by_role("status").inner_text().startswith("Patch 1 of ")
    opened.keyboard.press("0")
    assert places_of(dialog) == [[1, 0, 0]] * 4


def test_two_patches_are_shown_side_by_side(visit, page):
    opened = visit(page)
    box = box_of(opened)
    dialog = open_first(box)
    dialog.get_by_role("button", name="Compare").click()
    opened.keyboard.press("ArrowRight")
    dialog.locator(".panels").nth(1).wait_for()
    texts = dialog.locator(".panels").all_inner_texts()
    assert [name in text for name, text in zip(names_in(box), texts, strict=False)] == [True, True]
    opened.keyboard.press("+")
    assert {zoom for zoom, _, _ in places_of(dialog)} == {1.5}
    dialog.get_by_role("button", name="Stop comparing").click()
    dialog.locator(".panels").nth(1).wait_for(state="detached")


def test_a_link_opens_a_patch_and_a_class_whatever_is_listed(visit, tmp_path, case):
    page = page_of(tmp_path, case.gallery())
    opened = visit(page)
    box = box_of(opened)
    hidden = next(own["name"] for own in case.gallery().data["patches"] if own["name"] not in names_in(box))
    opened.evaluate("hash => { window.location.hash = hash; }", f"#patch={hidden};class=lymphocyte")
    dialog = opened.get_by_role("dialog")
    dialog.get_by_text(hidden).wait_for()
    assert dialog.get_by_role("radio", name="lymphocyte").is_checked()
    dialog.get_by_role("radio", name="stroma").check()
    assert dialog.get_by_role("link").get_attribute("href") == f"{page.as_uri()}#patch={hidden};class=stroma"
    opened.reload()
    dialog.get_by_text(hidden).wait_for()
    assert dialog.get_by_role("radio", name="lymphocyte").is_checked()


def test_a_map_is_drawn_in_its_colours_clear_where_it_is_low_and_as_opaque_as_wished(visit, page, case):
    dialog = open_first(box_of(visit(page), "Attention over patches"))
    dialog.get_by_role("radio", name="tumor").check()
    dialog.locator("[aria-label^='Attention of patch'][aria-label*='tumor']").wait_for()
    canvas = dialog.locator(".lens").nth(2).locator("canvas")
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn(canvas).partition(",")[2])))).astype(int)
    cells = np.frombuffer(base64.b64decode(case.attention().data["patches"][0]["maps"][0][0]["cells"]), np.uint8)
    heat = np.frombuffer(base64.b64decode(case.attention().data["heat"]), dtype=np.uint8).reshape(256, 3)
    values = np.round(enlarge(cells.reshape(GRID, GRID).astype(float), 8 * GRID)).astype(int)
    assert np.abs(picture[..., 3] - values).max() <= 1
    seen = values > 100  # elsewhere the browser rounds colours
    assert np.abs(picture[..., :3] - heat[values])[seen].max() <= 6
    dialog.get_by_role("slider", name="Opacity").fill("25")
    dialog.page.wait_for_function(
        "document.querySelectorAll('dialog[open] .lens')[2].querySelector('canvas').style.opacity == 0.25"
    )


def test_the_outline_is_drawn_and_taken_away_and_the_mask_has_a_legend(visit, page, case):
    dialog = open_first(box_of(visit(page), "Attention over patches"))
    dialog.get_by_role("radio", name="stroma").check()
    dialog.locator("[aria-label^='Attention'][aria-label*='stroma']").wait_for()
    assert dialog.locator(".lens path[stroke]").count() == 3  # not over the mask
    assert {dialog.locator(".lens path[stroke]").first.get_attribute("stroke")} == {case.attention().data["colours"][1]}
    dialog.get_by_label("Outline of the class in the mask").uncheck()
    dialog.locator(".lens path").first.wait_for(state="detached")
    mask = dialog.get_by_role("img", name="Mask of patch")
    picture = Image.open(io.BytesIO(base64.b64decode(drawn(mask.locator("canvas")).partition(",")[2]))).convert("RGB")
    colours = [tuple(bytes.fromhex(hue[1:])) for hue in case.attention().data["colours"]]
    quarters = [picture.getpixel(place) for place in ((9, 9), (SIDE - 9, 9), (9, SIDE - 9), (SIDE - 9, SIDE - 9))]
    assert quarters == [*colours[:3], (255, 255, 255)]
    assert mask.get_attribute("aria-label").endswith(": tumor 25%, stroma 25%, lymphocyte 25%")
    keys = dialog.locator(".legend .key").evaluate_all("all => all.map(one => one.textContent)")
    assert keys == ["tumor 25%", "stroma 25%", "lymphocyte 25%"]


def test_without_masks_nothing_speaks_of_them(visit, hostile):
    box = box_of(visit(hostile), "Attention over patches")
    assert open_first(box).locator(".panel").count() == 3
    assert "mask" not in box.inner_text().lower()
    assert box.get_by_label("Covered area at least").is_hidden()


def test_labels_are_listed_where_there_are_no_scores_and_notes_where_there_are_notes(visit, tmp_path, case):
    notes = [f"note {i} <b>" for i in range(3)]
    noted = noted_patches(case.patches, [case.patches.files[i] for i in case.index[:3]], notes, "Three", "Notes.")
    opened = visit(page_of(tmp_path, case.browser(), noted))
    box = box_of(opened, "Patches with their labels")
    said = [
        ", ".join(c for c, label in zip(case.patches.classes, own["labels"], strict=True) if label) or "no label"
        for own in case.browser().data["patches"][:3]
    ]
    assert box.locator(".pictures button > span").all_inner_texts()[:3] == said
    assert box.get_by_label("Confidence from").is_hidden()
    assert box_of(opened, "Patches").locator(".pictures button > span").all_inner_texts() == notes


def test_hostile_names_are_shown_as_typed_and_inert(visit, hostile):
    opened = visit(hostile)
    box = box_of(opened, "Attention over patches")
    options = box.get_by_role("combobox", name="Class").locator("option")
    assert options.evaluate_all("all => all.map(one => one.textContent)") == ["any class", *HOSTILE]
    dialog = open_first(box)
    names = dialog.locator(".choose-class .name").evaluate_all("all => all.map(one => one.textContent)")
    assert names == HOSTILE
    for i in range(len(HOSTILE)):
        dialog.locator(".choose-class input").nth(i).check()
        opened.keyboard.press("Tab")
        dialog.get_by_role("button", name="Next").click()
        dialog.get_by_text(f"Patch {i + 2} of {MOST_EXPLORED}. ").wait_for()
    assert opened.evaluate("window.hit === undefined")
    assert opened.locator("article script:not([type='application/json'])").count() == 0


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
    open_first(box_of(opened, "Attention over patches"))
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    dialog = opened.get_by_role("dialog").bounding_box()
    assert dialog["x"] >= 0
    assert dialog["x"] + dialog["width"] <= width


@pytest.mark.parametrize(("name", "scheme"), [("page", "light"), ("hostile", "dark")])
def test_axe_finds_nothing(accessible, request, name, scheme):
    opened = accessible(request.getfixturevalue(name), color_scheme=scheme)
    assert opened.locator(".explorer-live").count() == 4
    open_first(box_of(opened, "Attention over patches"))
    found = Axe().run(opened, context=".viewer[open]").response["violations"]
    assert [own["id"] for own in found if own["impact"] != "minor"] == []


def test_nothing_moves(page):
    assert not re.search(r"\b(transition|animation)\b", page.read_text(encoding="utf-8").partition("</head>")[0])


def lines_of(table):
    rows = table.locator("tbody tr").evaluate_all("all => all.map(row => [...row.cells].map(cell => cell.textContent))")
    return [[text.replace("\xa0", " ") for text in row] for row in rows]


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
        (_, *accuracies), (_, *sensitivities), _, (_, *f1s) = lines_of(box.locator("table").last)
        assert sensitivities == ["—"] * 3  # not defined for a class that no patch has
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


def test_in_jupyterlab_every_patch_is_listed_and_an_unreadable_one_says_why(lab, case):
    box = box_of(lab(case.browser()), "Patches with their labels")
    box.get_by_text("45 of 45 patches match the filters.").wait_for()
    box.get_by_label("Group").select_option(label="patient 2")
    names = [case.patches.files[i] for i in np.flatnonzero(case.patches.groups == "patient 2")]
    box.get_by_text(f"{len(names)} of 45 patches match the filters.").wait_for()
    assert sorted(names_in(box)) == names
    box.get_by_text("truncated file <b>").wait_for()
    box.get_by_role("slider", name="Covered area at least").fill("25")
    box.get_by_role("combobox", name="Class").select_option(label="necrosis")
    box.get_by_text("No patch matches the filters, of 45.").wait_for()
    box.get_by_role("combobox", name="Class").select_option(label="tumor")
    box.get_by_text(f"{len(names)} of 45 patches match the filters.").wait_for()


def test_in_jupyterlab_attention_is_there_for_every_patch(lab, case):
    box = box_of(lab(case.attention((0, 1))), "Attention over patches")
    box.get_by_text("40 of 40 patches match the filters.").wait_for()
    name = case.patches.files[case.index[21]]
    box.locator(f"button[title='{name}'] canvas").wait_for()
    dialog = open_first(box, name)
    where = case.attention((21,)).data["patches"][0]["maps"][0]
    assert any(
        own["where"] in dialog.locator("[aria-label^='Attention of']").get_attribute("aria-label") for own in where
    )


LUMINO = """document.addEventListener('keydown', (event) => {
    for (let node = event.target; node && !node.hasAttribute('data-lm-suppress-shortcuts'); node = node.parentElement) {
        if (node.matches(':focus')) { event.preventDefault(); event.stopPropagation(); return; }
    }
}, true)"""  # what JupyterLab does with the arrow keys, a shortcut on `:focus`


def test_in_jupyterlab_keys_reach_what_has_the_focus(lab, case):
    opened = lab(case.browser())
    opened.evaluate(LUMINO)
    dialog = open_first(box_of(opened, "Patches with their labels"))
    opened.keyboard.press("ArrowRight")
    dialog.get_by_text("Patch 2 of 45.").wait_for(timeout=5000)


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
    box = box_of(opened) if kind == "gallery" else thresholds_of(opened)
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


def test_a_drag_moves_the_slide_and_opens_nothing_nor_does_the_right_button(visit, slide_page):
    tiles, explorer = slide_case()
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
    box.get_by_role("button", name="Whole slide").click()
    stored = tiles.loc[explorer.data["top"][0][0]["i"]]
    opened.mouse.click(*point(canvas, stored.x + 100, stored.y + 100), button="right")
    opened.wait_for_timeout(100)
    assert opened.get_by_role("dialog").count() == 0


def test_keys_move_the_slide_and_the_tile_in_the_middle_is_told(visit, slide_page):
    tiles, _ = slide_case()
    box, canvas = viewer_of(visit(slide_page))
    canvas.focus()
    for _ in range(4):
        box.page.keyboard.press("+")
    size = canvas.bounding_box()
    zoom = 1.5**4 * min(size["width"] / SLIDE[0], size["height"] / SLIDE[1])
    for step in range(1, 7):
        box.page.keyboard.press("ArrowRight")
        x, y = SLIDE[0] / 2 + 60 * step / zoom, SLIDE[1] / 2
        [middle] = np.flatnonzero((tiles.x <= x) & (x < tiles.x + TILE) & (tiles.y <= y) & (y < tiles.y + TILE))
        assert box.get_by_role("status").inner_text().startswith(said_of(tiles, middle))


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
