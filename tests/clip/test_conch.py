"""CONCH v1 from its published files: features of a plain forward pass, prompts as its own tokenizer reads them."""

import shutil
from dataclasses import replace

import published_files as files
import pytest
import tiny_clip
import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from histoclip_lib.clip import conch
from histoclip_lib.clip.encoder import load_clip
from histoclip_lib.clip.registry import ENCODERS
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.prompting.vocabulary import TextEncoder

WIDTH, JOINT, HEADS, LAYERS, VOCABULARY = 32, 24, 2, 2, 300
POOLER_HEADS = 4
SIZES = replace(
    conch.SIZES,
    width=WIDTH,
    layers=LAYERS,
    heads=HEADS,
    joint=JOINT,
    pooler_heads=POOLER_HEADS,
    vocabulary=VOCABULARY,
    text_width=WIDTH,
    text_layers=LAYERS,
    text_heads=HEADS,
)


def pooler_shapes(name, joint, queries):
    shapes = {f"{name}.query": (queries, joint), f"{name}.attn.in_proj_bias": (3 * joint,)}
    shapes |= {
        f"{name}.attn.{part}_proj_weight": (joint, size)
        for part, size in zip("qkv", (joint, WIDTH, WIDTH), strict=True)
    }
    shapes |= {f"{name}.attn.out_proj.weight": (joint, joint), f"{name}.attn.out_proj.bias": (joint,)}
    for norm, size in (("ln_q", joint), ("ln_k", WIDTH)):
        shapes |= {f"{name}.{norm}.weight": (size,), f"{name}.{norm}.bias": (size,)}
    return shapes


def published_weights():
    shapes = files.vit_shapes("visual.trunk.", WIDTH, LAYERS, 16, 1 + 28 * 28)
    shapes |= pooler_shapes("visual.attn_pool_contrast", JOINT, 1)
    shapes |= {"visual.ln_contrast.weight": (JOINT,), "visual.ln_contrast.bias": (JOINT,)}
    shapes |= {"visual.proj_contrast": (JOINT, JOINT), "logit_scale": ()}
    # Of the captioner, which is not loaded:
    shapes |= pooler_shapes("visual.attn_pool_caption", WIDTH, 256)
    shapes |= {"visual.ln_caption.weight": (WIDTH,), "visual.ln_caption.bias": (WIDTH,)}
    shapes |= {"text_decoder.ln_final.weight": (WIDTH,)}
    shapes |= {
        "text.cls_emb": (WIDTH,),
        "text.token_embedding.weight": (VOCABULARY, WIDTH),
        "text.positional_embedding": (128, WIDTH),
        "text.text_projection": (WIDTH, JOINT),
        "text.ln_final.weight": (WIDTH,),
        "text.ln_final.bias": (WIDTH,),
    }
    for layer in range(LAYERS):
        block = f"text.transformer.resblocks.{layer}."
        shapes |= {f"{block}attn.in_proj_weight": (3 * WIDTH, WIDTH), f"{block}attn.in_proj_bias": (3 * WIDTH,)}
        for name, out, into in (
            ("attn.out_proj", WIDTH, WIDTH),
            ("mlp.c_fc", 4 * WIDTH, WIDTH),
            ("mlp.c_proj", WIDTH, 4 * WIDTH),
        ):
            shapes |= {f"{block}{name}.weight": (out, into), f"{block}{name}.bias": (out,)}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{block}{name}.weight": (WIDTH,), f"{block}{name}.bias": (WIDTH,)}
    return files.random_weights(shapes)


@pytest.fixture(scope="module")
def weights():
    return published_weights()


@pytest.fixture(scope="module")
def folder(weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("conch")
    files.save(folder, weights, "pytorch_model.bin")
    files.write_bpe_tokenizer(folder / "conch_byte_level_bpe_uncased.json", VOCABULARY)
    return folder


@pytest.fixture(scope="module")
def clip(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conch, "SIZES", SIZES)
        return load_clip("conch", str(folder), device="cpu")


def pooler(weights, tokens):
    """Return what the pooler makes of tokens (B, N, w) before its norm, the attention of each head, and the values."""
    name = "visual.attn_pool_contrast"
    keys = files.norm(tokens, weights, f"{name}.ln_k", 1e-5)
    query = files.norm(weights[f"{name}.query"], weights, f"{name}.ln_q", 1e-5).expand(len(tokens), -1, -1)
    biases = weights[f"{name}.attn.in_proj_bias"].chunk(3)
    query, key, value = (
        part @ weights[f"{name}.attn.{letter}_proj_weight"].T + bias
        for part, letter, bias in zip((query, keys, keys), "qkv", biases, strict=True)
    )
    sums, shares = files.attention(query, key, value, POOLER_HEADS)
    return files.linear(sums, weights, f"{name}.attn.out_proj"), shares, value


def projected(weights, pooled):
    return files.norm(pooled, weights, "visual.ln_contrast", 1e-5) @ weights["visual.proj_contrast"]


@torch.inference_mode()
def test_features_are_those_of_a_plain_forward_pass(clip, weights):
    images = tiny_clip.pixels(2, 448)
    pooled, tokens = clip.encode_images(images)
    hidden = files.vit(weights, clip.tower.normalize(images), HEADS, 16, "visual.trunk.")
    torch.testing.assert_close(pooled, projected(weights, pooler(weights, hidden)[0])[:, 0], rtol=1e-4, atol=1e-5)
    for place in (0, 400, 783):
        alone = projected(weights, pooler(weights, hidden[:, 1 + place : 2 + place])[0])[:, 0]
        torch.testing.assert_close(tokens[:, place], alone, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_value_paths_weighted_by_attention_add_up_to_the_pooled_embedding(clip):
    visual = clip.model.visual
    hidden = visual.trunk.forward_features(clip.tower.normalize(tiny_clip.pixels(1, 448)))
    name, state = "visual.attn_pool_contrast", {f"visual.{key}": value for key, value in visual.state_dict().items()}
    _, shares, values = pooler(state, hidden)  # (1, heads, 1, N), (1, N, d)
    by_head = values.unflatten(-1, (POOLER_HEADS, -1))  # (1, N, heads, d / heads)
    summed = torch.einsum("bhqn,bnhd->bqhd", shares, by_head).flatten(2)
    pooled = visual.attn_pool_contrast(hidden)
    torch.testing.assert_close(files.linear(summed, state, f"{name}.attn.out_proj"), pooled, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_equal_tokens_are_the_pooled_embedding(clip):
    visual, token = clip.model.visual, torch.randn(1, 1, WIDTH, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(visual.project(token.expand(1, 785, -1)), visual.project(token), rtol=1e-4, atol=1e-5)


def test_tokens_lie_row_by_row_from_the_top_left(clip):
    assert files.token_that_changes_most(clip, row=3, column=17, patch=16) == 3 * 28 + 17


@torch.inference_mode()
def test_text_features_are_those_of_a_plain_forward_pass(clip, weights):
    prompts = [*files.SENTENCES, "", "tumor " * 200]
    ids = clip.tokenizer(prompts)
    hidden = weights["text.token_embedding.weight"][ids]
    last = weights["text.cls_emb"].expand(len(ids), 1, -1)
    hidden = torch.cat([hidden, last], dim=1) + weights["text.positional_embedding"]
    later = torch.full((128, 128), -torch.inf).triu(1)
    # As CoCa has it: the padding of place n hides place n + 1.
    padded = functional.pad(ids == 0, (1, 0)).float().masked_fill(functional.pad(ids == 0, (1, 0)), -torch.inf)
    mask = later + padded[:, None, None]
    for layer in range(LAYERS):
        block = f"text.transformer.resblocks.{layer}."
        inner = files.norm(hidden, weights, f"{block}ln_1", 1e-5) @ weights[f"{block}attn.in_proj_weight"].T
        parts = (inner + weights[f"{block}attn.in_proj_bias"]).chunk(3, dim=-1)
        hidden = hidden + files.linear(files.attention(*parts, HEADS, mask)[0], weights, f"{block}attn.out_proj")
        inner = functional.gelu(
            files.linear(files.norm(hidden, weights, f"{block}ln_2", 1e-5), weights, f"{block}mlp.c_fc")
        )
        hidden = hidden + files.linear(inner, weights, f"{block}mlp.c_proj")
    expected = files.norm(hidden[:, -1], weights, "text.ln_final", 1e-5) @ weights["text.text_projection"]
    found = clip.encode_text(prompts[:5])
    torch.testing.assert_close(found, functional.normalize(expected[:5], dim=-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(clip.model.encode_text(ids), expected, rtol=1e-4, atol=1e-5)


def test_prompts_become_the_token_ids_of_transformers(clip, folder):
    expected = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "conch_byte_level_bpe_uncased.json"),
        bos_token="<start_of_text>",
        eos_token="<end_of_text>",
        pad_token="<pad>",
    )
    prompts = [*files.SENTENCES, "", "  Café\tH&E ", "tumor " * 200]
    ids = expected(prompts, max_length=127, truncation=True, padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(clip.tokenizer(prompts), ids)
    assert ids[-1, -1] == 2  # the end of a prompt is lost, not its end token


def test_published_sizes():
    with torch.device("meta"):
        model = conch.build(conch.SIZES)
    assert model.visual.trunk.blocks[0].attn.num_heads == model.text.transformer.resblocks[0].attn.num_heads == 12
    assert model.visual.attn_pool_contrast.attn.num_heads == 8
    assert round(sum(parameter.numel() for parameter in model.text.parameters()) / 1e6) == 110
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes["visual.attn_pool_contrast.attn.k_proj_weight"] == (512, 768)
    assert shapes["text.positional_embedding"] == (128, 768)
    assert ENCODERS["conch"].token_shape("conch", "") == (784, 512)


def test_missing_tokenizer_is_said_with_the_place_where_it_is(folder, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(conch, "SIZES", SIZES)
    files.save(tmp_path, weights, "pytorch_model.bin")
    with pytest.raises(HistoCLIPError, match=r"(?s)conch_byte_level_bpe_uncased.json\n.*github.com/mahmoodlab/CONCH"):
        load_clip("conch", str(tmp_path), device="cpu")
    shutil.copy(folder / "conch_byte_level_bpe_uncased.json", tmp_path)
    assert load_clip("conch", str(tmp_path / "pytorch_model.bin"), device="cpu").preprocess_cfg.size == 448


def test_the_temperature_of_the_file_is_that_of_the_text_encoder(clip, weights):
    assert TextEncoder(clip).temperature == pytest.approx(1 / weights["logit_scale"].exp().item())
