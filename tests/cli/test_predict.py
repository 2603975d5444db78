"""`histoclip predict` and `histoclip model` as a user calls them."""

from PIL import Image

from histoclip_lib.runs import prediction


def test_images_are_predicted_and_a_bad_one_makes_the_exit_code_1(invoke, saved_model, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "write_prediction_pages", lambda folder, report: folder / "index.html")
    folder, patches = saved_model[:2]
    (tmp_path / "mine").mkdir()
    Image.fromarray(patches.image(0)).save(tmp_path / "mine" / "a b.png")
    arguments = ("predict", folder, "mine", "--out", "out", "--views", "1")
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout.strip()) == (0, str(tmp_path / "out" / "index.html"))
    assert "predicting" not in result.stderr  # bars are for terminals
    (tmp_path / "mine" / "bad.png").write_bytes(b"")
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert "mine/bad.png: is empty" in result.stderr and "1 of 2 images and slides failed" in result.stderr


def test_a_folder_without_a_model_is_named(invoke, tmp_path):
    result = invoke("predict", tmp_path, "x.png", "--out", "out")
    assert result.exit_code == 2 and "holds no saved model" in result.stderr


def test_model_show_prints_classes_encoder_and_thresholds(invoke, saved_model):
    result = invoke("model", "show", saved_model[0])
    assert result.exit_code == 0
    for words in ("lite0-minilm", "224 px at 0.5 um/px, a field of 112 um", "lymphocyte", "0.600"):
        assert words in result.stdout
