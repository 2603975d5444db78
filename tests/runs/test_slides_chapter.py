"""What the notebook 07_slides shows, of slides that were predicted and of none."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.html import as_typed
from histoclip_lib.report.slide_views import STORED, SlideView
from histoclip_lib.runs.chapters.slides import Slides
from histoclip_lib.runs.run import Run

CLASSES = ["tumor", "<b>stroma"]
PARAMETERS = {"slides": "", "least_cover": 0.5, "resamples": 100, "seed": 0}


@pytest.fixture
def chapter(tmp_path):
    """Two slides, one of which failed, and a mask that the map of the first class agrees with."""
    y, x = (axis.ravel() * 100 for axis in np.mgrid[:12, :20])
    mask = np.zeros((120, 200), np.uint8)
    mask[:, :100] = 1
    tiles = pd.DataFrame({"x": x, "y": y, "width": 100, "height": 100, "tissue": 1.0, "ood": 1.0})
    tiles["prob_tumor"] = np.where(x < 1000, 0.9, 0.2)
    tiles["prob_<b>stroma"] = np.random.default_rng(0).random(len(x))
    for name in CLASSES:
        tiles[f"present_{name}"] = tiles[f"prob_{name}"] >= 0.5
    result = SimpleNamespace(
        slide="one_.tif", classes=CLASSES, width=2000, height=1200, mpp=0.5, thresholds=[0.5, 0.5], ood_threshold=2.0,
        n_predicted=len(x), n_ood=3,
    )  # fmt: skip
    view = SlideView(tmp_path / "one_.tif", result, tiles, mask=mask)
    view.__dict__["overview"] = np.full((120, 200, 3), 200, np.uint8)
    image = np.full((100, 100, 3), 90, np.uint8)
    view.__dict__["_stored"] = {i: image for own in view.highest.values() for i in own}
    shares = {f"{kind}_{name}": [0.5, np.nan] for kind in ("share", "share_low", "share_high") for name in CLASSES}
    slides = pd.DataFrame(
        {"slide": ["one_.tif", "two.tif"], "folder": ["one", "two#"], "n_tiles": [240, np.nan], "n_ood": [3, np.nan],
         "n_predicted": [240, np.nan], "error": ["", "two.tif: is truncated"], **shares}
    )  # fmt: skip
    for name in ("slides/slides.csv", "slides/one/tiles.csv", "slides/two#/slide.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return Slides(tmp_path / "slides", "slides/", slides, view, draws=(200, 0))


def test_the_finding_says_how_the_maps_agree_and_what_failed(chapter):
    finding = chapter.finding().data
    assert finding.startswith(f"**Over 240 tiles of {as_typed('one_.tif')}, ")
    assert (
        "the mean AUROC for the classes' presence in the mask is 1.000 (lowest for tumor, 1.000)" in finding
    )  # the other class is nowhere in the mask
    assert "3 tiles are unlike the training patches. 1 of 2 slides could not be read completely." in finding


def test_without_labels_the_finding_says_what_there_is(chapter):
    view = SlideView(chapter.view.path, chapter.view.result, chapter.view.tiles)
    bare = Slides(chapter.root, chapter.place, chapter.slides, view, draws=(200, 0))
    assert bare.finding().data.startswith(
        f"**240 tiles of {as_typed('one_.tif')} with tissue were predicted; the class with the largest share of "
        "positive tissue is tumor (50%)."
    )
    assert "_mask.png" in bare.scores().data


def test_scores_and_burdens_are_tables_and_undefined_values_dashes(chapter):
    scores = chapter.scores().frame
    assert scores.loc["tumor", ["tiles", "with the class"]].tolist() == ["240", "120"]
    assert scores.loc["tumor", "AUROC"].startswith("1.000 (1.000 to 1.000)")
    assert scores.loc["<b>stroma", "AUROC"] == "—"
    table = chapter.table().frame
    assert table.loc["one_.tif", "tumor"] == "0.500 (0.500 to 0.500)"
    assert table.loc["two.tif"].tolist() == ["", "", "—", "—"]
    assert chapter.failed().frame.loc["two.tif", "why"] == "two.tif: is truncated"


def test_files_are_links_that_hold_for_any_name(chapter):
    html = chapter.files().data
    assert 'href="slides/slides.csv"' in html
    assert 'href="slides/one/tiles.csv"' in html
    assert 'href="slides/two%23/slide.json"' in html


def test_viewer_and_figures_are_drawn(chapter):
    explorer = chapter.explorer()
    assert [len(own) for own in explorer.data["top"]] == [STORED, STORED]
    assert "in the mask" in chapter.maps().alt
    assert chapter.top_tiles().alt.startswith("The tiles with the highest probability. tumor: p 0.90")
    assert chapter.burdens().alt.startswith("Share of the tissue that is positive, 1 slide. tumor: one_.tif 0.50")


def test_without_slides_the_notebook_says_so_and_shows_nothing(tmp_path):
    empty = Slides.of(Run(tmp_path, PARAMETERS))
    assert empty.finding().data.startswith("**No slides were given.**")
    shown = (empty.explorer, empty.maps, empty.scores, empty.top_tiles, empty.burdens, empty.table, empty.files)
    assert [show() for show in shown] == [None] * len(shown)


def test_a_place_without_slides_is_refused(tmp_path):
    pytest.importorskip("histoclip_lib.runs.slides")
    run = Run(tmp_path, PARAMETERS | {"slides": str(tmp_path / "nowhere"), "device": "cpu", "precision": "auto"})
    with pytest.raises(HistoCLIPError, match="holds no slide"):
        Slides.of(run)


def test_pictures_of_a_painted_slide_say_so(tmp_path):
    path = tmp_path / "slide.png"
    Image.fromarray(np.full((600, 800, 3), 150, np.uint8)).save(path)
    tiles = pd.DataFrame({"x": [200], "y": [100], "width": [256], "height": [256]})
    view = SlideView(path, SimpleNamespace(mpp=0.5), tiles, generated=True)
    for picture in (view.overview, view.read(0)):
        stamp = (picture != 150).any(axis=2)
        assert stamp[-len(stamp) // 8 :, : stamp.shape[1] // 2].any()
        assert not stamp[: len(stamp) // 2].any()
