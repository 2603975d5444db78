"""The head against PyTorch's own decoder, its initial weights, and the files in which it is kept."""

import json
import os
import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.models.cmm import CMM, CMMLayer, Dropout, dropout, load_cmm, read_metadata, save_cmm

CLASSES = ["tumor", "stroma", "necrosis"]


def class_embeddings(n_classes=3, width=32):
    return nn.functional.normalize(torch.randn(n_classes, width), dim=-1)


# Dropout


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_dropout_has_the_share_and_scale_of_torch(p):
    torch.manual_seed(0)
    ones = torch.ones(100_003)
    found = dropout(ones, p)
    dropped = (found == 0).float().mean().item()
    assert dropped == pytest.approx(round(256 * p) / 256, abs=4 * (p * (1 - p) / len(ones)) ** 0.5)
    assert found.mean().item() == pytest.approx(1, abs=0.03)
    assert found[found > 0].unique().tolist() == pytest.approx([1 / (1 - p)], rel=0.02)
    assert nn.functional.dropout(ones, p).mean().item() == pytest.approx(found.mean().item(), abs=0.03)


def test_dropout_is_independent_between_neighbours():
    torch.manual_seed(0)
    kept = (dropout(torch.ones(4000, 64), 0.5) > 0).double().numpy()
    assert np.abs(kept.mean(axis=0) - 0.5).max() < 0.04  # five standard deviations; every eighth byte too
    correlations = np.corrcoef(kept.T)[~np.eye(64, dtype=bool)]
    assert np.abs(correlations).max() < 0.08


@given(st.lists(st.integers(1, 5), max_size=4), st.floats(0, 0.9999))
def test_dropout_keeps_any_shape_and_passes_its_gradient(shape, p):
    values = torch.full(shape, 2.0, dtype=torch.float32, requires_grad=True)
    found = dropout(values, p)
    assert found.shape == values.shape
    found.sum().backward()
    torch.testing.assert_close(values.grad, found.detach() / 2)


def test_dropout_follows_the_seed():
    torch.manual_seed(3)
    first, second = dropout(torch.ones(100), 0.5), dropout(torch.ones(100), 0.5)
    torch.manual_seed(3)
    assert torch.equal(first, dropout(torch.ones(100), 0.5))
    assert not torch.equal(first, second)


def test_dropout_does_nothing_in_prediction_or_at_zero():
    values = torch.randn(10)
    module = Dropout(0.5)
    assert (module(torch.ones(1000)) == 0).any()
    assert module.eval()(values) is values
    assert dropout(values, 0.0) is values


# The layer and the head


@pytest.mark.parametrize("length", [1, 7])
@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("queries_differ", [False, True])
@pytest.mark.parametrize("pre_norm", [True, False])
def test_layer_equals_torch_decoder_layer(length, heads, queries_differ, pre_norm):
    torch.manual_seed(0)
    reference = nn.TransformerDecoderLayer(32, heads, 48, 0.1, "gelu", batch_first=True, norm_first=pre_norm).eval()
    for parameter in reference.parameters():  # biases are zero at first and would hide their errors
        nn.init.normal_(parameter, std=0.3)
    layer = CMMLayer(32, heads, 48, 0.1, pre_norm).eval()
    layer.load_state_dict(reference.state_dict())
    queries, tokens = torch.randn(5 if queries_differ else 1, 3, 32), torch.randn(5, length, 32)
    with torch.no_grad():
        found, attention = layer(queries, tokens)
        expected = reference(queries.expand(5, -1, -1), tokens)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert attention.shape == (5, heads, 3, length)
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(5, heads, 3))


@pytest.mark.parametrize("length", [1, 7])
@pytest.mark.parametrize("queries_differ", [False, True])
def test_mean_and_scale_on_the_weights_are_mean_and_scale_on_the_tokens(length, queries_differ):
    torch.manual_seed(0)
    layer = CMMLayer(32, 4, 48, 0.0).train()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    queries, tokens = torch.randn(5 if queries_differ else 1, 3, 32), 4 * torch.randn(5, length, 32) + 9
    mean, scale = tokens.mean(dim=(0, 1)), torch.tensor(3.7)
    gradients = []
    for asked in ((tokens, mean, scale), ((tokens - mean) / scale,)):
        found, attention = layer(queries, *asked)
        found.square().sum().backward()
        grads = [p.grad for p in layer.parameters() if p.grad is not None]
        gradients.append([found.detach(), attention.detach(), *grads])
        layer.zero_grad(set_to_none=True)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * other.abs().max().item() + 1e-6)


def test_attention_weights_are_those_of_torch():
    torch.manual_seed(0)
    layer = CMMLayer(32, 4, 48, 0.0).eval()
    queries, tokens = torch.randn(1, 3, 32), torch.randn(5, 9, 32)
    with torch.no_grad():
        _, found = layer(queries, tokens)
        asked = queries + layer._sa_block(layer.norm1(queries), None, None)
        _, expected = layer.multihead_attn(
            layer.norm2(asked).expand(5, -1, -1), tokens, tokens, average_attn_weights=False
        )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_gradients_equal_those_of_torch():
    torch.manual_seed(0)
    reference = nn.TransformerDecoderLayer(16, 2, 8, 0.0, "gelu", batch_first=True, norm_first=True)
    layer = CMMLayer(16, 2, 8, 0.0)
    layer.load_state_dict(reference.state_dict())
    queries, tokens = torch.randn(1, 3, 16), torch.randn(4, 6, 16)
    layer(queries, tokens)[0].square().sum().backward()
    reference(queries.expand(4, -1, -1), tokens).square().sum().backward()
    for (name, found), expected in zip(layer.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    head, tokens = CMM(class_embeddings(), heads=4, dropout=0.5), torch.randn(2, 9, 32)
    assert not torch.equal(head(tokens)[0], head(tokens)[0])
    head.eval()
    assert torch.equal(head(tokens)[0], head(tokens)[0])


def test_initial_logits_of_a_post_norm_head_are_zero():
    """Why the head is pre-norm: the mean of a normalised vector is 0."""
    head = CMM(class_embeddings(), heads=4, pre_norm=False).eval()
    with torch.no_grad():
        assert head(torch.randn(6, 9, 32))[0].abs().max() < 1e-6


@pytest.mark.parametrize("n_classes", [1, 2, 5])
def test_each_class_starts_with_hidden_units_of_its_own(n_classes):
    torch.manual_seed(0)
    head, seen = CMM(class_embeddings(n_classes, 64), heads=4, hidden=40).eval(), []
    head.layers[0].linear1.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs.mean(dim=0)))
    with torch.no_grad():
        head(torch.randn(200, 9, 64))
    owner = torch.arange(40) % n_classes
    on = seen[0] > 0  # (N, 40)
    assert torch.equal(on, owner == torch.arange(n_classes)[:, None])
    assert seen[0].abs().min() > 0.5


def test_classes_of_the_same_name_start_with_small_weights():
    same = class_embeddings(1, 64).expand(3, -1)
    head = CMM(same, heads=4)
    assert head.layers[0].linear1.weight.abs().max() < 2
    assert head.layers[0].linear1.bias.isfinite().all()


@pytest.mark.parametrize("layers", [1, 2])
def test_initial_logits_differ_between_images_and_classes(layers):
    torch.manual_seed(0)
    head = CMM(class_embeddings(), heads=4, layers=layers).eval()
    with torch.no_grad():
        logits, attention = head(torch.randn(6, 9, 32))
    assert logits.shape == (6, 3)
    assert attention.shape == (6, 4, 3, 9)
    assert logits.std(dim=0).min() > 1e-3
    assert logits.std(dim=1).min() > 1e-3


def test_training_starts_from_the_similarity_of_class_and_token():
    """With one head the first attention is softmax(Q K^T / sqrt(d)) of the classes asked and the tokens as they are."""
    torch.manual_seed(0)
    head, tokens = CMM(class_embeddings(), heads=1).eval(), torch.randn(2, 9, 32)
    layer = head.layers[0]
    with torch.no_grad():
        asked = head.queries() + layer._sa_block(layer.norm1(head.queries()), None, None)
        expected = (layer.norm2(asked) @ tokens.transpose(1, 2) / 32**0.5).softmax(dim=-1)
        torch.testing.assert_close(head(tokens)[1][:, 0], expected)


def test_logit_is_the_mean_over_the_features():
    torch.manual_seed(0)
    head, tokens = CMM(class_embeddings(), heads=4).eval(), torch.randn(2, 9, 32)
    with torch.no_grad():
        queries, _ = head.layers[0](head.queries(), tokens)
        pooled = nn.functional.adaptive_avg_pool1d(queries, 1).squeeze(-1)
        torch.testing.assert_close(head(tokens)[0], pooled)


def test_classes_are_exchangeable():
    torch.manual_seed(0)
    embeddings, tokens, order = class_embeddings(), torch.randn(2, 9, 32), torch.tensor([2, 0, 1])
    head, shuffled = CMM(embeddings, heads=4).eval(), CMM(embeddings[order], heads=4).eval()
    shuffled.layers.load_state_dict(head.layers.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(head(tokens)[0][:, order], shuffled(tokens)[0])


def test_fit_scale_makes_the_scale_of_the_features_irrelevant():
    torch.manual_seed(0)
    head, tokens = CMM(class_embeddings(), heads=4).eval(), torch.randn(20, 9, 32)
    with torch.no_grad():
        head.fit_scale(tokens)
        plain = head(tokens)[0]
        head.fit_scale(tokens * 50 + 3)
        torch.testing.assert_close(head(tokens * 50 + 3)[0], plain, rtol=1e-4, atol=1e-4)


def test_float16_tokens_are_read():
    head = CMM(class_embeddings(), heads=4).eval()
    tokens = torch.randn(2, 9, 32).half()
    with torch.no_grad():
        torch.testing.assert_close(head(tokens)[0], head(tokens.float())[0])


def test_heads_must_divide_the_width():
    with pytest.raises(HistoCLIPError, match="5 does not divide the embedding width 32"):
        CMM(class_embeddings(), heads=5)


def test_saved_head_gives_the_same_logits(tmp_path):
    torch.manual_seed(0)
    head, tokens = CMM(class_embeddings(), heads=4, layers=2, hidden=20, dropout=0.2).eval(), torch.randn(2, 9, 32)
    head.fit_scale(tokens)
    path = tmp_path / "cmm.safetensors"
    save_cmm(head, path, CLASSES, "vit", identity="this training")
    assert read_metadata(path)["identity"] == "this training"
    loaded = load_cmm(path, CLASSES, "vit")
    assert not loaded.training
    assert loaded.options == head.options
    with torch.no_grad():
        assert torch.equal(loaded(tokens)[0], head(tokens)[0])
    assert [file.name for file in tmp_path.iterdir()] == ["cmm.safetensors"]


def test_missing_head_names_the_notebook(tmp_path):
    with pytest.raises(HistoCLIPError, match="03_train"):
        load_cmm(tmp_path / "none.safetensors", CLASSES, "vit")


GOOD_OPTIONS = {"heads": 4, "layers": 1, "hidden": 256, "dropout": 0.1, "pre_norm": True}


def damaged(path, change=None, options=GOOD_OPTIONS, classes=CLASSES, backbone="vit"):
    """Write a head with some of its tensors replaced (None: left out) and with other metadata."""
    save_cmm(CMM(class_embeddings(), heads=4), path, CLASSES, "vit")
    state = load_file(path) | (change or {})
    metadata = {"options": options, "classes": classes}
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    save_file({k: v for k, v in state.items() if v is not None}, path, metadata | {"backbone": backbone})


def refusal(path, classes=CLASSES, backbone="vit"):
    with pytest.raises(HistoCLIPError) as raised:
        load_cmm(path, classes, backbone)
    assert str(path) in str(raised.value)
    return str(raised.value)


def test_an_undamaged_head_is_taken(tmp_path):
    damaged(tmp_path / "head")
    assert load_cmm(tmp_path / "head", CLASSES, "vit").options == GOOD_OPTIONS


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a head",
        b"\xff" * 200,
        (2**60).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        b"PK\x03\x04" + b"\0" * 90,
    ],
)
def test_a_head_that_is_not_safetensors_is_refused(tmp_path, content):
    (tmp_path / "head").write_bytes(content)
    assert "is not a HistoCLIP head" in refusal(tmp_path / "head")


def test_a_truncated_head_is_refused(tmp_path):
    damaged(tmp_path / "head")
    whole = (tmp_path / "head").read_bytes()
    for length in (4, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "head").write_bytes(whole[:length])
        assert "is not a HistoCLIP head" in refusal(tmp_path / "head")


def test_a_pickle_under_the_name_of_a_head_is_not_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    for write in (lambda path: torch.save(Bomb(), path), lambda path: path.write_bytes(pickle.dumps(Bomb()))):
        write(tmp_path / "head")
        assert "is not a HistoCLIP head" in refusal(tmp_path / "head")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"token_mean": torch.zeros(7)}, r"token_mean: \(7,\) in the file, \(32,\) expected"),
        ({"token_mean": None}, r"token_mean: nothing in the file, \(32,\) expected"),
        ({"weight": torch.zeros(2)}, r"weight: \(2,\) in the file, nothing expected"),
        ({"class_embeddings": torch.zeros(3, 64)}, r"linear1.weight: \(256, 32\) in the file, \(256, 64\) expected"),
        ({"class_embeddings": torch.zeros(3)}, r"class_embeddings has the shape \(3,\), for 3 classes"),
        ({"class_embeddings": torch.zeros(4, 32)}, r"class_embeddings has the shape \(4, 32\), for 3 classes"),
        ({"class_embeddings": None}, r"class_embeddings has the shape \(\), for 3 classes"),
        ({"class_embeddings": torch.zeros(3, 0)}, r"linear1.weight: \(256, 32\) in the file, \(256, 0\) expected"),
        ({"layers.1.weight": torch.zeros(1)}, "2 layers are stored, the option layers is 1"),
        ({"token_mean": torch.full((32,), torch.nan)}, "token_mean: not all numbers are finite"),
        ({"layers.0.linear1.bias": torch.full((256,), torch.inf)}, "linear1.bias: not all numbers are finite"),
    ],
)
def test_a_head_of_another_shape_names_both_sides(tmp_path, change, reason):
    damaged(tmp_path / "head", change)
    assert re.search(rf"is not a HistoCLIP head \(.*{reason}", refusal(tmp_path / "head"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (GOOD_OPTIONS | {"hidden": 10**12}, r"linear1.weight: \(256, 32\) in the file, \(1000000000000, 32\)"),
        (GOOD_OPTIONS | {"layers": 10**9}, "1 layers are stored, the option layers is 1000000000"),
        (GOOD_OPTIONS | {"heads": 0}, "the option heads is 0"),
        (GOOD_OPTIONS | {"heads": 5}, "heads: 5 does not divide"),
        (GOOD_OPTIONS | {"heads": True}, "the option heads is True"),
        (GOOD_OPTIONS | {"dropout": 1.0}, "the option dropout is 1.0"),
        (GOOD_OPTIONS | {"dropout": float("nan")}, "the option dropout is nan"),
        (GOOD_OPTIONS | {"pre_norm": "yes"}, "the option pre_norm is 'yes'"),
        (GOOD_OPTIONS | {"evil": 1}, "expected are heads, layers, hidden, dropout, pre_norm"),
        ({"heads": 4}, "expected are heads"),
        ([1], "expected are heads"),
        ("no JSON", "is not a HistoCLIP head"),
        ("[" * 100_000, "is not a HistoCLIP head"),
    ],
)
def test_options_that_do_not_fit_the_file_are_refused_before_anything_is_built(tmp_path, options, reason):
    damaged(tmp_path / "head", options=options)
    assert re.search(reason, refusal(tmp_path / "head"))


@pytest.mark.parametrize("classes", ["no JSON", "3", '{"a": 1}', "[1, 2, 3]"])
def test_classes_that_are_not_a_list_of_names_are_refused(tmp_path, classes):
    damaged(tmp_path / "head", classes=classes)
    assert "is not a HistoCLIP head" in refusal(tmp_path / "head")


def test_a_head_without_metadata_is_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "head")
    assert "is not a HistoCLIP head" in refusal(tmp_path / "head")


@pytest.mark.parametrize(("classes", "backbone"), [(["a", "b", "c"], "vit"), (CLASSES, "resnet")])
def test_a_head_of_other_classes_or_another_backbone_is_refused(tmp_path, classes, backbone):
    damaged(tmp_path / "head")
    assert "was trained for the classes" in refusal(tmp_path / "head", classes, backbone)


def test_a_head_of_another_run_names_both_sides(tmp_path):
    damaged(tmp_path / "head")
    message = refusal(tmp_path / "head", ["x"] * 1000, "resnet")
    assert f"was trained for the classes {CLASSES} on 'vit', this run has ['x', 'x'" in message
    assert "on 'resnet'" in message
    assert len(message) < 1500


def test_head_can_learn_what_one_token_says():
    """A class that depends on one token among many is found, and the attention says which token it was."""
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    tokens = torch.randn(256, 16, 32)
    labels = torch.from_numpy(generator.integers(0, 2, (256, 2))).float()
    place = torch.from_numpy(generator.integers(0, 16, (256, 2)))
    signal = torch.randn(2, 32) * 2
    for k in range(2):
        tokens[torch.arange(256), place[:, k]] += labels[:, k : k + 1] * signal[k]
    head = CMM(class_embeddings(2), heads=4, dropout=0.0)
    optimizer = torch.optim.AdamW(head.parameters(), 3e-3)
    for _ in range(100):
        loss = nn.functional.binary_cross_entropy_with_logits(head(tokens)[0], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        logits, attention = head.eval()(tokens)
    assert ((logits >= 0).float() == labels).float().mean() > 0.95
    for k in range(2):
        found = attention.mean(dim=1)[:, k].argmax(dim=-1) == place[:, k]
        assert found[labels[:, k] == 1].float().mean() > 0.5  # chance is 1/16


# Queries that are not class embeddings


@pytest.mark.parametrize("options", [{"queries": "learned"}, {"queries": "mapped", "width": 48}])
def test_learned_and_mapped_queries_are_unit_vectors_that_are_trained_and_kept(tmp_path, options):
    head, tokens = CMM(class_embeddings(), heads=4, **options), torch.randn(2, 9, options.get("width", 32))
    norms = head.unit_queries.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(3))
    head(tokens)[0].sum().backward()
    trained = head.class_embeddings if options["queries"] == "learned" else head.map.weight
    assert trained.grad.abs().sum() > 0
    save_cmm(head.eval(), tmp_path / "head.safetensors", CLASSES, "vit")
    again = load_cmm(tmp_path / "head.safetensors", CLASSES, "vit")
    torch.testing.assert_close(again(tokens)[0], head(tokens)[0])


def test_a_map_into_a_wider_space_keeps_the_angles_between_classes():
    embeddings = nn.functional.normalize(class_embeddings(), dim=-1)
    queries = CMM(embeddings, heads=4, queries="mapped", width=48).unit_queries
    torch.testing.assert_close(queries @ queries.T, embeddings @ embeddings.T, rtol=0, atol=1e-5)


def test_the_same_head_is_always_the_same_file(tmp_path):
    head = CMM(class_embeddings(), heads=4)
    for k in range(8):  # the library orders metadata by chance
        save_cmm(head, tmp_path / f"{k}", CLASSES, "vit", "identity", "[]")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    assert load_cmm(tmp_path / "0", CLASSES, "vit").options == head.options
