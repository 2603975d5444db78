"""The registry of encoders: what is known without loading one, and one that is registered from outside."""

import pytest
import tiny_clip
from open_clip.transform import PreprocessCfg

from histoclip_lib.clip.encoder import load_clip
from histoclip_lib.clip.registry import ENCODERS, OPEN_CLIP, encoder, encoder_entry
from histoclip_lib.common.errors import HistoCLIPError


@pytest.fixture
def toy(monkeypatch):
    """An encoder that is registered from outside the library."""
    monkeypatch.setattr(ENCODERS, "_entries", dict(ENCODERS.load()))

    @encoder("toy", title="A toy", licence="CC0 1.0", is_clip=False, about="**A toy.**", pretraining="Nothing.")
    def load(backbone, pretrained):
        model = tiny_clip.tiny_model("vit")
        return model, lambda prompts: None, PreprocessCfg(size=32)


def test_a_name_that_is_not_registered_is_one_of_open_clip_s():
    assert encoder_entry("ViT-L-14-quickgelu", "openai").name == OPEN_CLIP
    assert "TCGA images may be among them" in encoder_entry("ViT-L-14-quickgelu", "openai").pretraining
    assert encoder_entry("lite0-minilm").pretraining.endswith("No tissue.")


@pytest.mark.parametrize("name", ["hf-hub:vinid/plip", "ViT-B-16", "local-dir:/models/quilt"])
def test_pathology_models_are_told_by_their_names(name):
    images = "Pathology images" in encoder_entry(name, "").pretraining
    assert images == ("plip" in name or "quilt" in name)


def test_an_encoder_registered_from_outside_is_loaded_and_described(toy):
    clip = load_clip("toy", device="cpu")
    assert (clip.is_clip, clip.about(), clip.entry.licence) == (False, "**A toy.**", "CC0 1.0")


def test_weights_for_an_encoder_that_takes_none_are_refused(toy):
    with pytest.raises(HistoCLIPError, match="has no meaning for toy"):
        load_clip("toy", "weights.pt", device="cpu")
