"""CLIP and SigLIP in the layout of transformers: features are those of transformers, tokens those of the tower."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from open_clip.tokenizer import default_bpe
from PIL import Image
from tiny_clip import pixels

from histoclip_lib.clip.encoder import load_clip
from histoclip_lib.common.errors import HistoCLIPError

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
PROMPTS = ["an H&E image of tumor", "stroma"]
LENGTH = 16


@pytest.fixture(autouse=True)
def no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def clip_tokenizer():
    """CLIP's own tokenizer, made from the vocabulary that open_clip carries."""
    import gzip

    with gzip.open(default_bpe()) as file:
        merges = [tuple(line.split()) for line in file.read().decode().split("\n")[1 : 49152 - 256 - 2 + 1]]
    from open_clip.tokenizer import SimpleTokenizer

    vocabulary = SimpleTokenizer().encoder
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    vocabulary = {
        {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}.get(word, word): number
        for word, number in vocabulary.items()
    }
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token="<|endoftext|>", **names)


def write(folder, kind, legacy_eos=False, form="safetensors"):
    """Write a small model as its publisher does; return it and its processor of images."""
    torch.manual_seed(0)
    vision = SMALL | {"image_size": 32, "patch_size": 8}
    if kind == "clip":
        tokenizer = clip_tokenizer()
        text = SMALL | {"max_position_embeddings": LENGTH, "vocab_size": 49408}
        text |= {"eos_token_id": 2 if legacy_eos else 49407, "bos_token_id": 49406}
        model = transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
        )
        processor = transformers.CLIPImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=[0.4] * 3, image_std=[0.3] * 3
        )
    else:
        tokenizer = clip_tokenizer()
        text = SMALL | {"max_position_embeddings": LENGTH, "vocab_size": 49408, "projection_size": 32}
        model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision))
        processor = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    for parameter in model.parameters():  # no norm or bias is left at one or zero
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.eval().save_pretrained(folder)
    if form == "bin":
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor, tokenizer


@pytest.mark.parametrize(
    ("kind", "legacy_eos", "form"),
    [("clip", False, "safetensors"), ("clip", True, "bin"), ("siglip", False, "safetensors")],
)
@torch.inference_mode()
def test_features_are_those_of_transformers(tmp_path, kind, legacy_eos, form):
    model, processor, tokenizer = write(tmp_path / "model", kind, legacy_eos, form)
    clip = load_clip(f"local-dir:{tmp_path / 'model'}", device="cpu")
    noise = np.random.default_rng(0).integers(0, 256, (3, 50, 40, 3)).astype(np.uint8)
    pictures = [Image.fromarray(image) for image in noise]
    images = torch.stack([clip.resize(image) for image in pictures])
    expected = model.get_image_features(**processor(pictures, return_tensors="pt")).pooler_output
    torch.testing.assert_close(clip.encode_images(images)[0], expected, rtol=0, atol=1e-5)

    given = tokenizer(PROMPTS, padding="max_length", max_length=LENGTH, return_tensors="pt")
    mask = {"attention_mask": given["attention_mask"]} if kind == "clip" else {}
    texts = model.get_text_features(given["input_ids"], **mask).pooler_output
    texts = torch.nn.functional.normalize(texts, dim=-1)
    torch.testing.assert_close(clip.encode_text(PROMPTS), texts, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@torch.inference_mode()
def test_a_token_is_projected_as_the_tower_projects_an_image_of_this_token_alone(tmp_path, kind):
    model, _, _ = write(tmp_path / "model", kind)
    clip = load_clip(f"local-dir:{tmp_path / 'model'}", device="cpu")
    images = pixels(2, 32)
    pooled, tokens = clip.encode_images(images)
    assert tokens.shape == (2, 16, pooled.shape[1])
    vision = model.vision_model
    hidden = vision(clip.tower.normalize(images)).last_hidden_state
    if kind == "clip":
        assert torch.allclose(model.visual_projection(vision.post_layernorm(hidden[:, 0])), pooled, atol=1e-5)
        expected = model.visual_projection(vision.post_layernorm(hidden[:, 1 + 5]))
    else:
        assert torch.allclose(vision.head(hidden), pooled, atol=1e-5)
        expected = vision.head(hidden[:, 5:6])
    torch.testing.assert_close(tokens[:, 5], expected, rtol=0, atol=1e-5)


def test_weights_in_16_bits_are_computed_in_32(tmp_path):
    model, _, _ = write(tmp_path / "model", "clip")
    model.half().save_pretrained(tmp_path / "model")
    clip = load_clip(f"local-dir:{tmp_path / 'model'}", device="cpu")
    assert all(values.dtype == torch.float32 for values in (*clip.encode_images(pixels(2, 32)), clip.model.logit_scale))


def test_a_prompt_that_fills_the_context_warns(tmp_path):
    write(tmp_path / "model", "clip")
    clip = load_clip(f"local-dir:{tmp_path / 'model'}", device="cpu")
    with pytest.warns(UserWarning, match=f"1 of 2 prompts fill the {LENGTH} tokens"):
        clip.encode_text(["tumor " * LENGTH, "tumor"])


def test_the_hub_s_cache_is_read_without_a_network(tmp_path):
    write(tmp_path / "model", "clip")
    root = tmp_path / "hub" / "models--owner--plip"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tmp_path / "model", root / "snapshots" / ("0" * 40))
    expected = load_clip(f"local-dir:{tmp_path / 'model'}", device="cpu").encode_text(PROMPTS)
    assert torch.equal(load_clip("hf-hub:owner/plip", device="cpu").encode_text(PROMPTS), expected)
    assert torch.equal(load_clip("plip", str(tmp_path / "model"), device="cpu").encode_text(PROMPTS), expected)


def test_weights_that_lack_a_layer_are_refused(tmp_path):
    model, _, _ = write(tmp_path / "model", "clip")
    kept = {name: value for name, value in model.state_dict().items() if "visual_projection" not in name}
    torch.save(kept, tmp_path / "model" / "pytorch_model.bin")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(HistoCLIPError, match=r"these weights of the model are not there:\n.*visual_projection.weight"):
        load_clip(f"local-dir:{tmp_path / 'model'}")


def test_an_image_processor_that_resizes_and_crops_to_different_sizes_is_refused(tmp_path):
    write(tmp_path / "model", "clip")
    path = Path(tmp_path / "model" / "preprocessor_config.json")
    about = json.loads(path.read_text()) | {"size": {"shortest_edge": 40}}
    path.write_text(json.dumps(about))
    with pytest.raises(HistoCLIPError, match="resized to 40 and then cropped to 32"):
        load_clip(f"local-dir:{tmp_path / 'model'}")
