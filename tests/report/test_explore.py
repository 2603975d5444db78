"""Explorers, moved as a reader would move them: what they show is computed again by other means."""

import base64
import io
from dataclasses import replace

import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup
from drawing import HOSTILE, draw
from IPython.core.formatters import DisplayFormatter
from matplotlib import pyplot as plt
from nbformat import v4
from PIL import Image
from sklearn.metrics import average_precision_score, multilabel_confusion_matrix, precision_recall_fscore_support
from test_zero_shot import NAMES, TEMPLATES, WIDTH, PromptVectors

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.predictions import mean_accuracy
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.features.encode import ImageFeatures
from histoclip_lib.features.store import SHARD_SIZE, Shards
from histoclip_lib.models.attention import enlarge
from histoclip_lib.prompting.strategies import score_all
from histoclip_lib.prompting.vocabulary import TextEncoder, Vocabulary, class_embeddings
from histoclip_lib.report import explore, figures
from histoclip_lib.report.explore.tissue import outlined, overlaid
from histoclip_lib.report.export import WIDGET, export_page
from histoclip_lib.report.figures import patches as galleries

ACTING = [*HOSTILE, '"><img src=x onerror=alert(1)>', "</svg><b>", "مرحبا"]
N_PATCHES = 20


class Source:
    """Noise, with a mask that has class 1 at the top and class 2 at the bottom; those listed cannot be read."""

    def __init__(self, unreadable=()):
        self.unreadable = unreadable

    def image(self, index):
        if index in self.unreadable:
            raise OSError("truncated file <b>")
        return np.random.default_rng(index).integers(0, 255, (48, 64, 3), dtype=np.uint8)

    def mask(self, index):
        mask = np.zeros((48, 64), dtype=np.uint8)
        mask[:24, 16:40], mask[36:] = 1, 2
        return mask


def dataset(n_classes=2, n_patches=N_PATCHES, classes=None, **fields):
    classes = classes or [f"class {k}" for k in range(n_classes)]
    labels = np.random.default_rng(7).integers(0, 2, (n_patches, len(classes))).astype(np.uint8)
    files = fields.pop("files", [f"{i}.png" for i in range(n_patches)])
    return PatchDataset("made", classes, files, labels, Source(fields.pop("unreadable", ())), **fields)


def soup_of(explorer, view):
    return BeautifulSoup(explorer.views[view].value, "html.parser")


def lines_of(explorer, view, table=0):
    return [
        [cell.get_text() for cell in row.find_all(["th", "td"])]
        for row in soup_of(explorer, view).find_all("table")[table].find_all("tr")
    ]


def file_of(explorer, view="labels"):
    return dict(lines_of(explorer, view))["file"]


def pixels_of(explorer, view):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(soup_of(explorer, view).img["src"].partition(",")[2]))))


def attention_case(n_classes=2, n_patches=N_PATCHES, **fields):
    patches, generator = dataset(n_classes, n_patches, **fields), np.random.default_rng(3)
    rows = np.arange(n_patches)[::-1]
    maps = generator.random((n_patches, len(patches.classes), 4, 4)).astype(np.float32)
    return patches, rows, maps, generator.random((n_patches, len(patches.classes)))


def threshold_case(n_classes=3, n_patches=N_PATCHES):
    generator = np.random.default_rng(5)
    labels = generator.integers(0, 2, (n_patches, n_classes)).astype(np.uint8)
    return labels, generator.random((n_patches, n_classes)), [f"class {k}" for k in range(n_classes)]


def prompts_case(n_classes=3, n_patches=N_PATCHES, classes=None, encode=None, names=None, **options):
    patches = dataset(n_classes, n_patches, classes)
    pooled = np.random.default_rng(1).normal(size=(n_patches, 1, WIDTH)).astype(np.float32)
    pieces = [pooled[start : start + SHARD_SIZE] for start in range(0, n_patches, SHARD_SIZE)]
    features = ImageFeatures(Shards(pieces), Shards([piece[:, :, None] for piece in pieces]), encoded=0)
    names = names or [*NAMES, *(f"word {k}" for k in range(30))][: len(patches.classes)]
    vocabulary = Vocabulary(names, TEMPLATES, synonyms=[["carcinoma"], *([] for _ in names[1:])])
    explorer = explore.prompts(
        encode or TextEncoder(PromptVectors()), vocabulary, features, patches, np.arange(n_patches),
        np.full(len(patches.classes), 0.4), **options,
    )  # fmt: skip
    return explorer, vocabulary, patches, pooled[:, 0]


def any_explorer(kind, **options):
    if kind == "patches":
        return explore.patches(dataset(**options))
    if kind == "attention":
        return explore.attention(*attention_case(**options), chosen=[0])
    if kind == "thresholds":
        return explore.thresholds(*threshold_case(**options))
    return prompts_case(**options)[0]


KINDS = ["patches", "attention", "thresholds", "prompts"]


# What all share


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_classes", [2, 20])
def test_a_cell_gives_the_widget_and_a_picture_with_its_alternative(kind, n_classes):
    explorer = any_explorer(kind, n_classes=n_classes)
    assert plt.get_fignums() == []
    data, metadata = DisplayFormatter().format(explorer)
    assert data[WIDGET]["model_id"] == explorer.widget.model_id
    [mimetype] = set(data) & {"image/png", "image/jpeg"}
    assert Image.open(io.BytesIO(base64.b64decode(data[mimetype]))).width > 200
    assert metadata[mimetype]["alt"] == explorer.static.alternative
    assert "class 1" in metadata[mimetype]["alt"] or (kind == "prompts" and "stroma" in metadata[mimetype]["alt"])
    assert metadata[mimetype]["width"] > 100
    assert plt.get_fignums() == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_control_can_be_named_and_stands_in_the_widget(kind):
    explorer = any_explorer(kind, **({"has_masks": True} if kind in KINDS[:2] else {}))

    def below(widget):
        return {widget}.union(*map(below, getattr(widget, "children", ())))

    assert {*explorer.controls.values(), *explorer.views.values()} <= below(explorer.widget)
    for control in explorer.controls.values():
        assert control.description and control.tooltip
        assert getattr(control, "description_allow_html", False) is False


def test_a_page_can_be_given_another_picture():
    class Shown:
        def _repr_mimebundle_(self, **kwargs):
            return {"text/html": "<p>mine</p>"}

    explorers = [
        explore.patches(dataset(), static=Shown()),
        explore.attention(*attention_case(), chosen=[], static=Shown()),
        explore.thresholds(*threshold_case(), static=Shown()),
        prompts_case(static=Shown())[0],
    ]
    for explorer in explorers:
        data, metadata = explorer._repr_mimebundle_()
        assert data["text/html"] == "<p>mine</p>" and WIDGET in data and metadata == {}
        assert "image/png" not in data


def test_a_page_shows_the_picture_in_the_place_of_the_widget(tmp_path):
    explorer = explore.thresholds(*threshold_case())
    data, metadata = DisplayFormatter().format(explorer)
    output = v4.new_output("execute_result", data=data, metadata=metadata, execution_count=1)
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell("x", outputs=[output])]), tmp_path / "x.ipynb")
    export_page(tmp_path / "x.ipynb", tmp_path / "x.html", "x", [], {})
    page = BeautifulSoup((tmp_path / "x.html").read_text(encoding="utf-8"), "html.parser")
    assert [image["alt"] for image in page.main.find_all("img")] == [explorer.static.alternative]
    assert "widget" not in page.main.get_text() and "Box(" not in page.main.get_text()


@pytest.mark.parametrize("kind", KINDS)
def test_names_cannot_act(kind):
    classes, files = ACTING, [f"{i}{name}" for i, name in enumerate((ACTING * 4)[:N_PATCHES])]
    groups = np.array((ACTING * 4)[:N_PATCHES])
    fields = {"classes": classes, "files": files, "groups": groups, "parts": groups, "tissue": groups}
    if kind == "patches":
        explorer = explore.patches(dataset(has_masks=True, **fields))
    elif kind == "attention":
        explorer = explore.attention(*attention_case(has_masks=True, **fields), chosen=[])
    elif kind == "thresholds":
        labels, scores, _ = threshold_case(len(ACTING))
        explorer = explore.thresholds(labels, scores, classes)
    else:
        explorer, *_ = prompts_case(classes=classes, names=[f"word {name}" for name in ACTING])
        explorer.controls["name 1"].value = ACTING[4]
        explorer.controls["templates"].value = "{} <script>alert(1)</script>"
    for view in explorer.views:
        soup = soup_of(explorer, view)
        assert not soup.find_all("script") and not soup.select("[onerror]"), view
        assert all(image["src"].startswith("data:") for image in soup.find_all("img"))
    places = {"patches": ("labels", 1), "attention": ("scores", 1), "thresholds": ("counts",), "prompts": ("cosines",)}
    shown = [line[0].removeprefix("■ ") for line in lines_of(explorer, *places[kind])[1:]]
    assert shown[: len(classes)] == classes
    draw(explorer.static)


# Patches


def test_patches_are_chosen_by_class_and_group():
    groups = np.array(["left", "right"] * (N_PATCHES // 2))
    patches = dataset(groups=groups)
    explorer = explore.patches(patches)
    controls = explorer.controls
    assert list(controls) == ["class", "state", "group", "patch"] and controls["state"].disabled
    for k, state, group in [(0, "present", -1), (0, "absent", -1), (1, "absent", 1), (-1, "absent", 0)]:
        controls["class"].value, controls["state"].value, controls["group"].value = k, state, group
        fits = np.ones(N_PATCHES, dtype=bool) if k < 0 else patches.labels[:, k] == (state == "present")
        if group >= 0:
            fits &= groups == ["left", "right"][group]
        expected = [patches.files[row] for row in np.flatnonzero(fits)]
        assert (controls["patch"].value, file_of(explorer)) == (1, expected[0])
        seen = []
        for place in range(1, controls["patch"].max + 1):
            controls["patch"].value = place
            seen.append(file_of(explorer))
        assert seen == expected and len(expected) > 1
        controls["patch"].value = 2


def test_the_labels_and_areas_shown_are_those_of_the_patch():
    patches = dataset(has_masks=True, parts=np.array(["train"] * N_PATCHES))
    explorer = explore.patches(patches)
    explorer.controls["patch"].value = 5
    assert dict(lines_of(explorer, "labels")) == {"patch": "5 of 20", "file": "4.png", "part": "train"}
    states = ["present" if label else "absent" for label in patches.labels[4]]
    areas = [f"{np.mean(patches.mask(4) == k):.1%}" for k in (1, 2)]
    table = lines_of(explorer, "labels", 1)[1:]
    assert [line[1:] for line in table] == [list(line) for line in zip(states, areas, strict=True)]
    with_lines = pixels_of(explorer, "picture")
    explorer.controls["outlines"].value = False
    assert np.abs(with_lines.astype(int) - pixels_of(explorer, "picture")).max() > 50
    assert with_lines.shape == (210, 280, 3)


def test_outlines_lie_inside_the_border_of_each_class():
    mask = Source().mask(0)
    drawn = outlined(np.zeros((48, 64, 3), dtype=np.uint8), mask, [0]).any(axis=2)
    expected = mask == 1
    expected[:22, 18:38] = False  # no line along the edge of the image
    np.testing.assert_array_equal(drawn, expected)


def test_without_masks_groups_or_a_fitting_patch():
    patches = replace(dataset(), labels=np.zeros((N_PATCHES, 2), dtype=np.uint8))
    explorer = explore.patches(patches)
    assert list(explorer.controls) == ["class", "state", "patch"]
    assert lines_of(explorer, "labels", 1)[0] == ["class", "label"]
    explorer.controls["patch"].value = 9
    explorer.controls["class"].value = 1
    assert "No patch fits" in explorer.views["picture"].value
    assert soup_of(explorer, "labels").get_text() == ""
    assert (explorer.controls["patch"].value, explorer.controls["patch"].disabled) == (1, True)
    explorer.controls["state"].value = "absent"
    assert (file_of(explorer), explorer.controls["patch"].max) == ("0.png", N_PATCHES)


def test_a_patch_that_cannot_be_read_says_so():
    patches = dataset(has_masks=True, unreadable={3})
    picture = galleries.sample_patches(patches, np.array([0]), 1, 0)
    _, *case = attention_case()
    for explorer, view, told in [
        (explore.patches(patches, static=picture), "picture", "labels"),
        (explore.attention(patches, np.arange(N_PATCHES), *case[1:], chosen=[0]), "patch", "scores"),
    ]:
        explorer.controls["patch"].value = 4
        assert soup_of(explorer, view).get_text() == "3.png cannot be read: truncated file <b>"
        assert file_of(explorer, told) == "3.png"
        explorer.controls["patch"].value = 5
        assert pixels_of(explorer, view).shape[1] == 280


# Attention


def test_attention_is_laid_over_the_patch_as_far_as_the_opacity_says():
    patches, rows, maps, probabilities = attention_case()
    explorer = explore.attention(patches, rows, maps, probabilities, chosen=[])
    explorer.controls["patch"].value = 3
    assert file_of(explorer, "scores") == patches.files[rows[2]]
    for k, opacity in [(0, 0.0), (0, 1.0), (1, 1.0)]:
        explorer.controls["class"].value, explorer.controls["opacity"].value = k, opacity
        image = pixels_of(explorer, "patch")
        expected = overlaid(image, maps[2, k], opacity)
        difference = np.abs(pixels_of(explorer, "attention").astype(int) - expected)
        assert difference.mean() < 6, (k, opacity)


def test_an_overlay_goes_from_grey_tissue_to_the_map():
    image, attention = np.full((8, 8, 3), (30, 60, 90), dtype=np.uint8), np.array([[0, 1], [2, 3]])
    assert (overlaid(image, attention, 0) == 60).all()
    only_map = overlaid(image, attention, 1).astype(int).sum(axis=2)
    assert only_map[0, 0] == only_map.min() < only_map[-1, -1] == only_map.max()
    assert (overlaid(image, np.ones((2, 2)), 1) == overlaid(image, np.zeros((2, 2)), 1)).all()


def test_chosen_patches_come_first_and_every_patch_once():
    explorer = explore.attention(*attention_case(), chosen=[7, 2])
    seen = []
    for place in range(1, N_PATCHES + 1):
        explorer.controls["patch"].value = place
        seen.append(file_of(explorer, "scores"))
    assert seen[:4] == ["12.png", "17.png", "19.png", "18.png"]  # rows run backwards
    assert len(set(seen)) == N_PATCHES


def test_scores_stand_beside_the_attention_inside_the_mask():
    patches, rows, maps, probabilities = attention_case(has_masks=True)
    probabilities[0] = [0.5, 0.4999]
    patches.labels[rows[0]] = [0, 0]
    explorer = explore.attention(patches, rows, maps, probabilities, chosen=[])
    first, second = lines_of(explorer, "scores", 1)[1:]
    assert first[1:4] == ["absent", "0.50", "wrong ✗"] and second[1:4] == ["absent", "0.50", "right"]
    mask = patches.mask(0)[:, 8:56]  # the square that the encoder sees
    for k, line in enumerate((first, second)):
        inside, enlarged = mask == k + 1, enlarge(maps[0, k], 48)
        assert float(line[4].rstrip("%")) == pytest.approx(100 * inside.mean(), abs=1)
        assert float(line[5].rstrip("%")) == pytest.approx(100 * enlarged[inside].sum() / enlarged.sum(), abs=2)
    assert pixels_of(explorer, "mask").shape == (280, 280, 3)


def test_attention_without_masks_shows_none():
    explorer = explore.attention(*attention_case(), chosen=[])
    assert explorer.views["mask"].layout.display == "none"
    assert explorer.views["attention"].layout.display != "none"
    assert list(explorer.controls) == ["patch", "class", "opacity"]
    assert lines_of(explorer, "scores", 1)[0] == ["class", "truth", "p", "decision"]


# Thresholds


@pytest.mark.parametrize("n_classes", [2, 20])
def test_counts_follow_the_thresholds(n_classes):
    labels, scores, classes = threshold_case(n_classes)
    cuts, scores[:5, 0], scores[:5, 1] = np.full(n_classes, 0.5), 0.9, 0.13  # a score at its threshold is above it
    explorer = explore.thresholds(labels, scores, classes)
    for k, value in [(None, 0.5), (0, 0.9), (1, 0.13), (0, 0.0), (1, 1.0)]:
        if k is not None:
            cuts[k] = explorer.controls[f"threshold {k}"].value = value
        decisions = scores >= cuts
        expected = multilabel_confusion_matrix(labels, decisions)
        precision, recall, f1, _ = precision_recall_fscore_support(labels, decisions, zero_division=0)
        lines = lines_of(explorer, "counts")[1:]
        for j, (name, tp, fp, fn, tn, accuracy, *others) in enumerate(lines):
            assert name == classes[j]
            assert [[int(tn), int(fp)], [int(fn), int(tp)]] == expected[j].tolist()
            assert float(accuracy) == pytest.approx((labels[:, j] == decisions[:, j]).mean(), abs=6e-4)
            for shown, value in zip(others, (precision[j], recall[j], f1[j]), strict=True):
                assert (0 if shown == "—" else float(shown)) == pytest.approx(value, abs=6e-4)
        assert_summary(explorer, labels, scores, decisions, f1.mean())


def assert_summary(explorer, labels, scores, decisions, f1):
    summary = {line[0]: line[1:] for line in lines_of(explorer, "summary")}
    now, before = mean_accuracy(labels, decisions), mean_accuracy(labels, scores >= 0.5)
    assert summary["mAcc"] == [f"{now:.3f}", f"{before:.3f}", f"{now - before:+.3f}"]
    assert float(summary["macro F1"][0]) == pytest.approx(f1, abs=6e-4)


def test_all_thresholds_move_at_once_and_go_back():
    labels, scores, classes = threshold_case()
    explorer = explore.thresholds(labels, scores, classes)
    controls, at_start = explorer.controls, explorer.views["counts"].value
    drawings = []
    explorer.views["counts"].observe(drawings.append, "value")
    controls["all"].value = 0.2
    assert len(drawings) == 1
    assert [controls[f"threshold {k}"].value for k in range(3)] == [0.2, 0.2, 0.2]
    assert int(lines_of(explorer, "counts")[1][1]) == ((scores[:, 0] >= 0.2) & (labels[:, 0] == 1)).sum()
    controls["reset"].click()
    assert [controls[name].value for name in ("all", "threshold 0", "threshold 2")] == [0.5] * 3
    assert explorer.views["counts"].value == at_start
    controls["threshold 2"].value = 0.9
    assert explorer.views["counts"].value != at_start
    controls["reset"].click()
    assert controls["threshold 2"].value == 0.5 and explorer.views["counts"].value == at_start


def test_a_class_that_is_never_there_has_no_recall():
    labels, scores, classes = threshold_case()
    labels[:, 1], scores[:, 2] = 0, 0.3
    explorer = explore.thresholds(labels, scores, classes)
    _, absent, constant = lines_of(explorer, "counts")[1:]
    assert (absent[1], absent[3], absent[7], absent[8]) == ("0", "0", "—", "0.000")
    assert (constant[1], constant[2], constant[6], constant[8]) == ("0", "0", "—", "0.000")
    draw(explorer.static)


@pytest.mark.parametrize("score", [-0.1, 1.1, np.nan])
def test_thresholds_ask_for_probabilities(score):
    labels, scores, classes = threshold_case()
    scores[3, 1] = score
    with pytest.raises(HistoCLIPError, match="Give probabilities"):
        explore.thresholds(labels, scores, classes)


def test_threshold_curves_are_those_of_every_cut():
    labels, scores, classes = threshold_case(12)
    scores[0, 0] = 0.5
    figure = figures.threshold_curves(labels, scores, classes)
    for axes, side in zip(figure.axes, ("accuracy", "f1"), strict=True):
        for k in (0, 11):
            cuts, shown = axes.lines[k].get_data()
            for cut, value in zip(cuts[::10], shown[::10], strict=True):
                decided = scores[:, k] >= cut
                f1 = precision_recall_fscore_support(labels[:, k], decided, average="binary", zero_division=0)[2]
                assert value == pytest.approx((labels[:, k] == decided).mean() if side == "accuracy" else f1)
        mean = np.mean([line.get_ydata() for line in axes.lines[:12]], axis=0)
        np.testing.assert_allclose(axes.lines[12].get_ydata(), mean)
    assert "class 11: F1" in draw(figure)


# Prompts


def rows_by_hand(pooled, vocabulary, labels, rule="sigmoid"):
    rows = score_all(pooled, TextEncoder(PromptVectors()), vocabulary, np.full(labels.shape[1], 0.4), rule)
    return [(mean_accuracy(labels, r.decisions), average_precision_score(labels, r.scores)) for r in rows.values()]


def assert_rows(explorer, expected, before):
    lines = lines_of(explorer, "rows")[1:]
    assert [line[0] for line in lines] == ["Baseline", "One-vs-Rest", "Power-set", "Top-k"]
    for (_, *shown), now, then in zip(lines, expected, before, strict=True):
        changes = [now[0], now[0] - then[0], now[1], now[1] - then[1]]
        np.testing.assert_allclose([float(number) for number in shown], changes, atol=6e-4)


@pytest.mark.parametrize("rule", ["sigmoid", "prevalence"])
def test_other_words_give_what_the_strategies_give_for_them(rule):
    explorer, vocabulary, patches, pooled = prompts_case(baseline_rule=rule)
    before = rows_by_hand(pooled, vocabulary, patches.labels, rule)
    assert_rows(explorer, before, before)
    changes = [
        ("name 0", "carcinoma", {"names": ["carcinoma", *vocabulary.names[1:]]}),
        ("templates", "some {}\n\n  any {} at all ", {"templates": ["some {}", "any {} at all"]}),
        ("template", "this is {}", {"photo_of": "this is {}"}),
        ("negative", "empty", {"negative_prompt": "empty"}),
    ]
    for field, text, change in changes:
        vocabulary = replace(vocabulary, **change)
        explorer.controls[field].value = text
        assert_rows(explorer, rows_by_hand(pooled, vocabulary, patches.labels, rule), before)
    assert lines_of(explorer, "cosines")[1][1] == "carcinoma"
    explorer.controls["reset"].click()
    assert_rows(explorer, before, before)
    assert explorer.controls["templates"].value == "\n".join(TEMPLATES)


def test_the_cosines_and_decisions_of_a_patch():
    explorer, vocabulary, patches, pooled = prompts_case()
    explorer.controls["patch"].value = 6
    explorer.controls["name 2"].value = "debris"
    vocabulary, encode = replace(vocabulary, names=[*vocabulary.names[:2], "debris"]), TextEncoder(PromptVectors())
    image = pooled[5] / np.linalg.norm(pooled[5])
    cosines = image @ class_embeddings(encode, vocabulary).numpy().T
    rows = score_all(pooled, encode, vocabulary, np.full(3, 0.4))
    *lines, nothing = lines_of(explorer, "cosines")[1:]
    assert soup_of(explorer, "cosines").caption.get_text() == "patch 5.png"
    for k, (name, called, truth, cosine, _, *chosen) in enumerate(lines):
        assert (name, called) == (f"■ class {k}", vocabulary.names[k])
        assert truth == ("present" if patches.labels[5, k] else "absent")
        assert float(cosine) == pytest.approx(cosines[k], abs=6e-4)
        assert [mark == "✓" for mark in chosen] == [row.decisions[5, k] for row in rows.values()]
    assert float(nothing[3]) == pytest.approx(image @ encode([vocabulary.negative_prompt])[0].numpy(), abs=6e-4)


@pytest.mark.parametrize(
    ("field", "text", "words"),
    [
        ("templates", "a photo", "Templates: each template needs one {} for the class name; not so: ['a photo']."),
        ("templates", "{} and {}", "each template needs one {}"),
        ("template", "a photo <b>", "One template: each template needs one {} for the class name"),
        ("name 1", "  ", "These fields are empty: the name of class 1."),
        ("templates", "\n", "These fields are empty: Templates."),
        ("negative", "", "These fields are empty: Negative prompt."),
    ],
)
def test_words_that_cannot_be_used_are_answered_in_the_widget(field, text, words):
    explorer, *_ = prompts_case()
    rows = explorer.views["rows"].value
    explorer.controls[field].value = text
    assert words in soup_of(explorer, "message").get_text()
    assert soup_of(explorer, "message").find(role="alert")
    assert not soup_of(explorer, "rows").table and not soup_of(explorer, "cosines").table
    explorer.controls["patch"].value = 2
    assert "1.png" in explorer.views["picture"].value
    explorer.controls["reset"].click()
    assert soup_of(explorer, "message").get_text() == "" and explorer.views["rows"].value == rows


def test_every_prompt_is_encoded_once():
    asked = []

    class Counting(PromptVectors):
        def encode_text(self, prompts):
            asked.extend(prompts)
            return super().encode_text(prompts)

    explorer, *_ = prompts_case(encode=TextEncoder(Counting()))
    for name in ("carcinoma", "tumor", "carcinoma"):
        explorer.controls["name 0"].value = name
    assert "a photo of a carcinoma" in asked and len(asked) == len(set(asked))
    count = len(asked)
    explorer.controls["patch"].value = 3
    explorer.controls["reset"].click()
    assert len(asked) == count


@pytest.mark.parametrize(("n_classes", "answered"), [(2, 4), (9, 3), (20, 2)])
def test_strategies_that_need_too_many_prompts_are_left_out(n_classes, answered):
    explorer, *_ = prompts_case(n_classes)
    soup = soup_of(explorer, "rows")
    assert sum(line[1] != "—" for line in lines_of(explorer, "rows")[1:]) >= answered
    assert ("needs more than 256 new prompts" in soup.caption.get_text()) == (n_classes > 2)
    assert lines_of(explorer, "rows")[1][1] != "—"


def test_many_patches_are_sampled_at_even_distances():
    explorer, *_ = prompts_case(n_patches=1201)
    assert explorer.controls["patch"].max == 500
    assert "on 500 patches" in explorer.views["rows"].value
    explorer.controls["patch"].value = 500
    assert "patch 1200.png" in explorer.views["cosines"].value
