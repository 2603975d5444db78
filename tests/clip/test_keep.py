"""KEEP from its published files, without their code: features of timm's and transformers' own models."""

import published_files as files
import pytest
import timm
import tiny_clip
import torch
from tokenizers import BertWordPieceTokenizer
from torch import nn
from torch.nn import functional
from transformers import AutoTokenizer, BertConfig, BertModel, BertTokenizer

from histoclip_lib.clip import keep
from histoclip_lib.clip.encoder import load_clip
from histoclip_lib.clip.registry import ENCODERS
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.prompting.vocabulary import TextEncoder

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
JOINT = 24
TEXT = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": JOINT,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 120,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
CONFIG = {
    "model_type": "keep",
    "architectures": ["KEEPModel"],
    "auto_map": {"AutoConfig": "modeling_keep.KEEPConfig", "AutoModel": "modeling_keep.KEEPModel"},
    "projection_dim": JOINT,
    "text_config": TEXT,
    "vision_config": {"model_name": "vit_large_patch16_224"},
}


class Published(nn.Module):
    """The parts of KEEP under the names of its file."""

    def __init__(self):
        super().__init__()
        self.visual = timm.create_model(
            "vit_large_patch16_224", init_values=1e-5, num_classes=0, dynamic_img_size=True, **SMALL
        )
        self.visual_head = nn.Sequential(nn.Linear(32, JOINT), nn.GELU(), nn.Linear(JOINT, JOINT))
        self.text = BertModel(BertConfig(**TEXT))
        self.logit_scale = nn.Parameter(torch.ones([]))


@pytest.fixture(scope="module")
def published():
    model = Published().eval().requires_grad_(False)
    weights = files.random_weights({name: tuple(value.shape) for name, value in model.state_dict().items()})
    model.load_state_dict(weights)
    return model


@pytest.fixture(scope="module")
def folder(published, tmp_path_factory):
    folder = tmp_path_factory.mktemp("keep")
    files.save(folder, published.state_dict(), "model.safetensors")
    files.save_json(folder / "config.json", CONFIG)
    (folder / "modeling_keep.py").write_text("raise AssertionError('code of the repository was run')\n")
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    tokenizer.train_from_iterator(files.SENTENCES, vocab_size=TEXT["vocab_size"], show_progress=False)
    tokenizer.save_model(str(folder))  # vocab.txt
    BertTokenizer.from_pretrained(str(folder), do_lower_case=True).save_pretrained(str(folder))  # tokenizer.json
    return folder


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(keep, "TOWER", keep.TOWER | SMALL)


@pytest.fixture
def clip(folder, small):
    return load_clip("keep", str(folder), device="cpu")


@torch.inference_mode()
def test_image_features_are_those_of_timm_through_the_head(clip, published):
    images = tiny_clip.pixels(2, 224)
    pooled, tokens = clip.encode_images(images)
    normal = (images / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    torch.testing.assert_close(pooled, published.visual_head(published.visual(normal)), rtol=1e-4, atol=1e-5)
    patches = published.visual.forward_features(normal)[:, 1:]
    torch.testing.assert_close(tokens, published.visual_head(patches), rtol=1e-4, atol=1e-5)


def test_tokens_lie_row_by_row_from_the_top_left(clip):
    assert files.token_that_changes_most(clip, row=2, column=11, patch=16) == 2 * 14 + 11


@torch.inference_mode()
def test_text_features_are_those_of_bert_with_all_its_padding(clip, published, folder):
    tokenizer = AutoTokenizer.from_pretrained(str(folder), do_lower_case=True, trust_remote_code=False)
    inputs = tokenizer(files.SENTENCES, max_length=256, padding="max_length", truncation=True, return_tensors="pt")
    assert torch.equal(clip.tokenizer(files.SENTENCES), inputs.input_ids)
    expected = functional.normalize(published.text(**inputs).pooler_output, dim=-1)
    torch.testing.assert_close(clip.encode_text(files.SENTENCES), expected, rtol=1e-4, atol=1e-5)


def test_published_sizes():
    with torch.device("meta"):
        tower = keep.image_tower(768)
    assert sum(parameter.numel() for parameter in tower.trunk.parameters()) == 303_350_784  # UNI's, from which it began
    assert tower.trunk.blocks[0].attn.num_heads == 16
    assert ENCODERS["keep"].token_shape("keep", "") == (196, 768)


def test_older_files_are_read_too(folder, published, small, clip, tmp_path):
    ids = {"text.embeddings.position_ids": torch.arange(512)[None]}
    path = files.save(tmp_path, published.state_dict() | ids, "pytorch_model.bin")
    files.save_json(tmp_path / "config.json", CONFIG)
    (tmp_path / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes())
    older = load_clip("keep", str(path), device="cpu")
    assert older.fingerprint() == clip.fingerprint()
    assert torch.equal(older.tokenizer(files.SENTENCES), clip.tokenizer(files.SENTENCES))


def test_a_file_without_a_tensor_of_the_text_tower_is_refused(folder, published, small, tmp_path):
    weights = published.state_dict()
    del weights["text.pooler.dense.bias"]
    path = files.save(tmp_path, weights, "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(HistoCLIPError, match=r"not the weights of this model. missing_keys: \['pooler.dense.bias'\]"):
        load_clip("keep", str(path), device="cpu")


@pytest.mark.parametrize("text", ["{", "{}", '{"text_config": 3, "projection_dim": 4}'])
def test_another_configuration_is_refused(folder, small, tmp_path, text):
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(HistoCLIPError, match="this is not KEEP's configuration"):
        load_clip("keep", str(tmp_path), device="cpu")


def test_the_temperature_of_the_file_is_that_of_the_text_encoder(clip, published):
    assert TextEncoder(clip).temperature == pytest.approx(1 / published.logit_scale.exp().item())
