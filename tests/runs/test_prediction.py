"""`histoclip predict` on patches: what it takes, what it writes, and that a killed run goes on."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.models.bundle import load_model
from histoclip_lib.runs import prediction
from histoclip_lib.runs.prediction import find_images, open_predictions, predict_images
from tests.small_runs import execute_here


@pytest.fixture
def model(saved_model):
    return load_model(saved_model[0], device="cpu")


@pytest.fixture
def images(tmp_path, saved_model):
    """A folder with five painted patches, one of them deeper, a text file and a broken image."""
    folder, patches = tmp_path / "mine", saved_model[1]
    (folder / "deep").mkdir(parents=True)
    for k in range(5):
        Image.fromarray(patches.image(k)).save(folder / ("deep/4.PNG" if k == 4 else f"{k}.png"))
    (folder / "notes.txt").write_text("no image")
    (folder / "x.png").write_bytes(b"broken")
    return folder


def test_folders_are_searched_at_any_depth_for_images_alone(images):
    found, labelled = find_images([images, images / "0.png"])
    assert [path.relative_to(images).as_posix() for path in found] == [
        "0.png", "1.png", "2.png", "3.png", "deep/4.PNG", "x.png",
    ]  # fmt: skip
    assert labelled is None


@pytest.mark.parametrize("name", ["nothing", "empty", "other.csv"])
def test_input_without_images_is_refused_by_name(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.csv").write_text("a,b\n")
    with pytest.raises(HistoCLIPError, match=name):
        find_images([tmp_path / name])


def test_tables_hold_what_the_model_says_and_unreadable_images_are_named(model, images, tmp_path):
    found, _ = find_images([images])
    skipped = predict_images(model, found, tmp_path / "out", views=1, batch_size=2)
    assert list(skipped) == [str(images / "x.png")] and "not an image" in skipped[str(images / "x.png")]
    table = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    expected = model.predict([np.asarray(Image.open(path)) for path in found[:-1]], views=1)
    shape = (5, len(model.classes))
    np.testing.assert_allclose(table["probability"].to_numpy().reshape(shape), expected.probabilities, atol=1e-5)
    assert (table["present_fitted"].to_numpy().reshape(shape) == expected.fitted).all()
    assert table["file"].tolist()[:: shape[1]] == [str(path) for path in found[:-1]]
    as_csv = pd.read_csv(tmp_path / "out" / "predictions.csv")
    pd.testing.assert_frame_equal(as_csv, table, check_dtype=False, rtol=1e-4)


def test_a_killed_run_goes_on_and_gives_the_same_bytes(model, images, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "CHUNK", 2)
    found, _ = find_images([images])
    predict_images(model, found, tmp_path / "whole", views=1)
    calls, whole = [], type(model).predict_tensor

    def dies_in_the_third(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, *arguments)

    monkeypatch.setattr(type(model), "predict_tensor", dies_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        predict_images(model, found, tmp_path / "out", views=1)
    predict_images(model, found, tmp_path / "out", views=1)
    assert len(calls) == 4  # the two finished parts are not predicted again
    for name in ("predictions.parquet", "predictions.csv", "attention.npy", "predictions.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "out" / prediction.PARTS).exists()


def test_where_no_slide_could_be_predicted_all_reasons_are_given(tmp_path):
    pd.DataFrame({"slide": ["a.svs", "b.svs"], "error": ["is empty", "no mpp"]}).to_parquet(tmp_path / "slides.parquet")
    with pytest.raises(HistoCLIPError, match=r"2 slides could be predicted:\n.*a\.svs: is empty\n.*no mpp"):
        prediction.write_prediction_pages(tmp_path, lambda event: None)


def test_labelled_images_are_scored_whatever_the_order_of_the_columns(model, saved_model, write_folder, tmp_path):
    patches = saved_model[1]
    labels = {name: patches.labels[:6, k].tolist() for k, name in enumerate(patches.classes)}
    folder = write_folder(tmp_path / "mine", dict(reversed(labels.items())), other=[0] * 6, group=list("aabbcc"))
    found, labelled = find_images([folder / "labels.csv"])
    predict_images(model, found, tmp_path / "out", views=1, patches=labelled)
    opened = open_predictions(tmp_path / "out")
    np.testing.assert_array_equal(opened.patches.labels, patches.labels[:6])
    assert opened.patches.groups.tolist() == list("aabbcc")
    accuracy = (opened.patches.labels == (opened.probabilities >= 0.5)).mean()
    assert opened.scores().frame.loc["at 0.5", "mAcc"].startswith(f"{accuracy:.3f}")


def test_labels_of_other_classes_are_refused(model, write_folder, tmp_path):
    folder = write_folder(tmp_path / "mine", {"gland": [1, 0]})
    found, labelled = find_images([folder / "labels.csv"])
    with pytest.raises(HistoCLIPError, match="no column for 'tumor', 'stroma'"):
        predict_images(model, found, tmp_path / "out", patches=labelled)


def test_the_page_shows_predictions_without_truth(model, images, tmp_path, monkeypatch):
    monkeypatch.setattr("histoclip_lib.runs.pipeline.execute_notebook", execute_here)
    found, _ = find_images([images])
    predict_images(model, found, tmp_path / "out", views=1)
    page = prediction.write_prediction_pages(tmp_path / "out", lambda event: None).read_text()
    assert "5 images: " in page and "Images that could not be read." in page
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["images"] == 5
    assert "false negative" not in page.split("<script")[0]
