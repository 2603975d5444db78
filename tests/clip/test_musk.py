"""MUSK from its published files: features of a plain BEiT-3, prompts as XLM-RoBERTa reads them."""

from dataclasses import replace

import published_files as files
import pytest
import tiny_clip
import torch
from torch.nn import functional

from histoclip_lib.clip import musk
from histoclip_lib.clip.encoder import load_clip
from histoclip_lib.clip.registry import ENCODERS
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.prompting.vocabulary import TextEncoder

pytest.importorskip("google.protobuf", reason="protobuf reads the tokenizer")

WIDTH, LAYERS, HEADS, VOCABULARY = 32, 2, 2, 40
SIZES = replace(musk.SIZES, width=WIDTH, layers=LAYERS, heads=HEADS, vocabulary=VOCABULARY, positions=120)
PIECES = ["<unk>", "<s>", "</s>", "▁tumor", "▁", "t", "u", "m", "o", "r", "▁str", "oma", "s", "▁of", "▁tum", "a", "f"]


def published_weights():
    shapes = {
        "beit3.text_embed.weight": (VOCABULARY, WIDTH),
        "beit3.vision_embed.mask_token": (1, 1, WIDTH),
        "beit3.vision_embed.cls_token": (1, 1, WIDTH),
        "beit3.vision_embed.proj.weight": (WIDTH, 3, 16, 16),
        "beit3.vision_embed.proj.bias": (WIDTH,),
        "beit3.encoder.embed_positions.A.weight": (24 * 24 + 3, WIDTH),
        "beit3.encoder.embed_positions.B.weight": (120, WIDTH),
        "vision_head.weight": (WIDTH, WIDTH),
        "language_head.weight": (WIDTH, WIDTH),
        "logit_scale": (),
    }
    for branch in "AB":
        norms, linears = [f"beit3.encoder.layer_norm.{branch}"], {}
        for layer in range(LAYERS):
            at = f"beit3.encoder.layers.{layer}."
            for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
                linears[f"{at}self_attn.{part}.{branch}"] = (WIDTH, WIDTH)
            linears[f"{at}ffn.{branch}.fc1"] = (4 * WIDTH, WIDTH)
            linears[f"{at}ffn.{branch}.fc2"] = (WIDTH, 4 * WIDTH)
            norms += [f"{at}{name}.{branch}" for name in ("self_attn_layer_norm", "final_layer_norm")]
            norms += [f"{at}self_attn.inner_attn_ln.{branch}"]
            shapes |= dict.fromkeys(
                [f"{at}ffn.{branch}.ffn_layernorm.{kind}" for kind in ("weight", "bias")], (4 * WIDTH,)
            )
        for name in norms:
            shapes |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
        for name, shape in linears.items():
            shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return files.random_weights(shapes)


def write_sentencepiece(path):
    from transformers.utils import sentencepiece_model_pb2_new as sentencepiece

    model = sentencepiece.ModelProto()
    model.trainer_spec.model_type, model.trainer_spec.unk_id = 1, 0  # unigram
    for place, piece in enumerate(PIECES):
        kind = {0: 2, 1: 3, 2: 3}.get(place, 1)  # unknown, control, normal
        model.pieces.add(piece=piece, score=-float(place), type=kind)
    path.write_bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def weights():
    return published_weights()


@pytest.fixture(scope="module")
def folder(weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("musk")
    files.save(folder, weights, "model.safetensors")
    write_sentencepiece(folder / "tokenizer.spm")
    return folder


@pytest.fixture(scope="module")
def clip(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(musk, "SIZES", SIZES)
        return load_clip("musk", str(folder), device="cpu")


def beit3(weights, hidden, branch, padded=None):
    """Return what a BEiT-3 makes of embedded tokens (B, N, w); `padded` (B, N) are hidden from all others."""
    mask = 0.0 if padded is None else torch.zeros(padded.shape).masked_fill(padded, -torch.inf)[:, None, None]
    for layer in range(LAYERS):
        at = f"beit3.encoder.layers.{layer}."
        inner = files.norm(hidden, weights, f"{at}self_attn_layer_norm.{branch}", 1e-5)
        parts = (files.linear(inner, weights, f"{at}self_attn.{part}_proj.{branch}") for part in "qkv")
        inner = files.attention(*parts, HEADS, mask)[0]
        inner = files.norm(inner, weights, f"{at}self_attn.inner_attn_ln.{branch}", 1e-5)
        hidden = hidden + files.linear(inner, weights, f"{at}self_attn.out_proj.{branch}")
        inner = files.norm(hidden, weights, f"{at}final_layer_norm.{branch}", 1e-5)
        inner = functional.gelu(files.linear(inner, weights, f"{at}ffn.{branch}.fc1"))
        inner = files.norm(inner, weights, f"{at}ffn.{branch}.ffn_layernorm", 1e-5)
        hidden = hidden + files.linear(inner, weights, f"{at}ffn.{branch}.fc2")
    return files.norm(hidden, weights, f"beit3.encoder.layer_norm.{branch}", 1e-5)


@torch.inference_mode()
def test_image_features_are_those_of_a_plain_beit3(clip, weights):
    images = tiny_clip.pixels(2, 384)
    pooled, tokens = clip.encode_images(images)
    proj = "beit3.vision_embed.proj"
    patches = functional.conv2d(
        (images / 255 - 0.5) / 0.5, weights[f"{proj}.weight"], weights[f"{proj}.bias"], stride=16
    )
    first = weights["beit3.vision_embed.cls_token"].expand(2, -1, -1)
    hidden = torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)
    hidden = hidden + weights["beit3.encoder.embed_positions.A.weight"][2:]
    expected = beit3(weights, hidden, "A") @ weights["vision_head.weight"].T
    torch.testing.assert_close(pooled, expected[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens, expected[:, 1:], rtol=1e-4, atol=1e-5)


def test_tokens_lie_row_by_row_from_the_top_left(clip):
    assert files.token_that_changes_most(clip, row=5, column=20, patch=16) == 5 * 24 + 20


@torch.inference_mode()
def test_text_features_are_those_of_a_plain_beit3_with_all_its_padding(clip, weights):
    prompts = ["tumor", "stroma of tumor", "tumor of stroma of tumor of stroma"]
    ids = clip.tokenizer(prompts)
    hidden = weights["beit3.text_embed.weight"][ids] + weights["beit3.encoder.embed_positions.B.weight"][2:102]
    expected = beit3(weights, hidden, "B", padded=ids == 1)[:, 0] @ weights["language_head.weight"].T
    torch.testing.assert_close(clip.encode_text(prompts), functional.normalize(expected, dim=-1), rtol=1e-4, atol=1e-5)


def test_prompts_become_the_pieces_of_the_model_one_further_between_start_and_end(clip):
    tumor, of, *stroma = (PIECES.index(piece) + 1 for piece in ("▁tumor", "▁of", "▁str", "oma"))
    ids = clip.tokenizer(["tumor of  stroma", "tumor " * 200, "tumor 9"])
    assert ids.shape == (3, 100)
    assert ids[0].tolist() == [0, tumor, of, *stroma, 2] + [1] * 94
    assert ids[1].tolist() == [0] + [tumor] * 98 + [2]
    assert ids[2, :5].tolist() == [0, tumor, PIECES.index("▁") + 1, 3, 2]  # 3: unknown


def test_published_sizes():
    with torch.device("meta"):
        model = musk.build(musk.SIZES)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == 675
    assert model.visual.trunk.blocks[0].attn.num_heads == model.text.blocks[0].attn.num_heads == 16
    assert ENCODERS["musk"].token_shape("musk", "") == (576, 1024)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("beit3.encoder.layers.1.ffn.B.fc1.bias"), "ffn.B.fc1.bias"),
        (lambda weights: weights.update(more=torch.zeros(1)), "1 weights without a place, such as more"),
        (lambda weights: weights.update({"vision_head.weight": torch.zeros(3, 3)}), "not the weights of this model"),
    ],
)
def test_other_weights_are_refused(folder, weights, tmp_path, monkeypatch, change, message):
    monkeypatch.setattr(musk, "SIZES", SIZES)
    (tmp_path / "tokenizer.spm").write_bytes((folder / "tokenizer.spm").read_bytes())
    other = dict(weights)
    change(other)
    files.save(tmp_path, other, "model.safetensors")
    with pytest.raises(HistoCLIPError, match=message):
        load_clip("musk", str(tmp_path), device="cpu")


def test_a_garbled_tokenizer_is_refused(folder, tmp_path):
    (tmp_path / "tokenizer.spm").write_bytes(b"\xff" * 50)
    with pytest.raises(HistoCLIPError, match="this is not the tokenizer of MUSK"):
        musk.read_tokenizer(tmp_path / "tokenizer.spm")


def test_the_temperature_of_the_file_is_that_of_the_text_encoder(clip, weights):
    assert TextEncoder(clip).temperature == pytest.approx(1 / weights["logit_scale"].exp().item())
