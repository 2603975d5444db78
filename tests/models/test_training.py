"""Training: it learns, it resumes exactly, a finished head is not trained again, and what fails is named."""

import copy
import json
import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch._dynamo.backends.registry import lookup_backend

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.features.reader import FeatureReader
from histoclip_lib.features.store import ImageFeatures, Shards
from histoclip_lib.models import training
from histoclip_lib.models.cmm import CMM, load_cmm
from histoclip_lib.models.training import (
    TrainingOptions,
    TrainingStep,
    load_checkpoint,
    not_finite,
    predict_probabilities,
    save_checkpoint,
    some_tokens,
    train_head,
    train_heads,
)

CPU = torch.device("cpu")
WIDTH, LENGTH, VIEWS, PATCHES = 16, 4, 3, 60


@pytest.fixture(scope="module")
def features():
    """Tokens (B, V, L, d) in which the labels can be found, and the labels."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, (PATCHES, 2)).astype(np.uint8)
    tokens = generator.normal(size=(PATCHES, VIEWS, LENGTH, WIDTH))
    tokens[..., 0, 0] += 3 * labels[:, None, 0]
    tokens[..., 0, 1] += 3 * labels[:, None, 1]
    return Shards([tokens.astype(np.float16)]), labels


def new_head(dropout=0.1):
    torch.manual_seed(0)
    return CMM(nn.functional.normalize(torch.randn(2, WIDTH), dim=-1), heads=2, hidden=8, dropout=dropout)


def fit(features, options, checkpoint=None, head=None, **reader_options):
    shards, labels = features
    head = head or new_head()
    train, val = np.arange(45), np.arange(45, PATCHES)
    reader = FeatureReader(shards, CPU, **reader_options)
    history = train_head(head, reader, labels, train, val, options, checkpoint, progress=False)
    return head, history


def weights(head):
    return torch.cat([value.flatten() for value in head.state_dict().values()])


def test_training_learns(features):
    head, history = fit(
        features, TrainingOptions(60, 2, learning_rate=3e-2, batch_size=16, token_dropout=0.0, mixup=0.0)
    )
    assert history["loss"].iloc[-1] < 0.3 < history["loss"].iloc[0]
    assert history["val_mAcc"].iloc[-1] > 0.75
    assert not head.training
    assert list(history["epoch"]) == list(range(1, 61))


def test_same_seed_same_weights_other_seed_other_weights(features):
    options = TrainingOptions(epochs=3, warmup_epochs=1, batch_size=16)
    first, second = fit(features, options)[0], fit(features, options)[0]
    other = fit(features, TrainingOptions(epochs=3, warmup_epochs=1, batch_size=16, seed=1))[0]
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))


@pytest.mark.parametrize("stop_after", [1, 5])
def test_resumed_training_ends_with_the_same_weights(features, tmp_path, monkeypatch, stop_after):
    options = TrainingOptions(epochs=6, warmup_epochs=1, batch_size=16)
    whole, whole_history = fit(features, options)
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 1)
    checkpoint = tmp_path / "state.safetensors"
    save = training.save_checkpoint

    def stop(path, identity, head, optimizer, scaler, history):
        save(path, identity, head, optimizer, scaler, history)
        if len(history) == stop_after:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "save_checkpoint", stop)
    with pytest.raises(KeyboardInterrupt):
        fit(features, options, checkpoint)
    monkeypatch.setattr(training, "save_checkpoint", save)
    assert checkpoint.is_file()
    torch.manual_seed(123)  # whatever happened in between must not matter
    resumed, history = fit(features, options, checkpoint)
    assert torch.equal(weights(resumed), weights(whole))
    assert history.equals(whole_history)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", ["options", "labels", "classes", "features"])
def test_checkpoint_of_another_training_is_not_resumed(features, tmp_path, monkeypatch, change):
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 1)
    checkpoint = tmp_path / "state.safetensors"
    shards, labels = features
    save = training.save_checkpoint

    def stop(*state):
        save(*state)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "save_checkpoint", stop)
    options = TrainingOptions(epochs=3, warmup_epochs=1, batch_size=16)
    with pytest.raises(KeyboardInterrupt):
        fit(features, options, checkpoint)
    monkeypatch.setattr(training, "save_checkpoint", save)

    def head():
        new = new_head()
        if change == "classes":
            new.class_embeddings += 0.1
        if change == "features":
            new.token_mean += 0.1
        return new

    if change == "options":
        options = TrainingOptions(epochs=4, warmup_epochs=1, batch_size=16)
    if change == "labels":
        labels = 1 - labels
    resumed, _ = fit((shards, labels), options, checkpoint, head())
    assert torch.equal(weights(resumed), weights(fit((shards, labels), options, head=head())[0]))


@pytest.mark.parametrize("layers", [1, 2])
def test_training_equals_a_plain_loop_over_torch_modules(features, layers):
    """Folded projections, queries shared by all images and tokens never normalised are faster, and change nothing."""
    shards, labels = features
    options = TrainingOptions(8, 1, batch_size=16, learning_rate=1e-2, weight_decay=3.0, token_dropout=0.0, mixup=0.0)
    torch.manual_seed(0)
    head = CMM(nn.functional.normalize(torch.randn(2, WIDTH), dim=-1), heads=2, layers=layers, hidden=8, dropout=0.0)
    tokens = torch.from_numpy(np.concatenate(shards.pieces)).float()
    head.fit_scale(tokens[:45])
    decoder = nn.TransformerDecoder(
        nn.TransformerDecoderLayer(WIDTH, 2, 8, 0.0, "gelu", batch_first=True, norm_first=True), layers
    )
    for plain, ours in zip(decoder.layers, head.layers, strict=True):
        plain.load_state_dict(ours.state_dict())
    queries, mean, scale = head.queries().clone(), head.token_mean.clone(), head.token_scale.clone()
    fit((shards, labels), options, head=head)

    decay = options.weight_decay * math.sqrt(16 / (45 * 8))
    matrices = [p for p in decoder.parameters() if p.ndim > 1]
    vectors = [p for p in decoder.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}], lr=1.0
    )
    for epoch in range(8):
        draw = np.random.default_rng([0, epoch])
        order, views = draw.permutation(45), draw.integers(VIEWS, size=45)
        for step, part in enumerate(np.array_split(np.arange(45), 3)):
            for group in optimizer.param_groups:
                group["lr"] = options.rate(epoch + (step + 1) / 3)
            images = (tokens[order[part], views[part]] - mean) / scale
            logits = decoder(queries.expand(len(part), -1, -1), images).mean(dim=-1)
            truth = torch.from_numpy(labels[order[part]].astype(np.float32))
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(logits, truth).backward()
            optimizer.step()
    for name, expected in decoder.named_parameters():
        found = head.get_parameter(name)
        if name.endswith("in_proj_bias"):  # the key bias changes nothing: Adam lets its rounding errors walk
            found, expected = (torch.cat([bias[:WIDTH], bias[2 * WIDTH :]]) for bias in (found, expected))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_compiled_steps_train_the_same_head(features, monkeypatch):
    """What torch traces of a step, forwards and backwards; without dropout, which is drawn otherwise."""
    traced = []

    def traces(graph, inputs):
        traced.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=traces))
    shards, labels = features
    options = TrainingOptions(4, 1, batch_size=16, learning_rate=1e-2, token_dropout=0.0)
    heads = [new_head(0.0), new_head(0.0)]
    for head, compiled in zip(heads, (True, False), strict=True):
        reader = FeatureReader(shards, CPU)
        train_head(head, reader, labels, np.arange(45), np.arange(0), options, progress=False, compiled=compiled)
    logits = [head(reader.take(np.arange(45)))[0] for head in heads]
    assert traced
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)


def test_streamed_features_train_the_same_head(features):
    options = TrainingOptions(epochs=3, warmup_epochs=1, batch_size=16)
    resident, streamed = fit(features, options)[0], fit(features, options, resident_limit=0)[0]
    assert torch.equal(weights(resident), weights(streamed))


def test_learning_rate_rises_linearly_then_falls_along_a_cosine():
    options = TrainingOptions(epochs=105, warmup_epochs=5, learning_rate=2e-3)
    assert options.rate(0) == 0
    assert options.rate(2.5) == pytest.approx(1e-3)
    assert options.rate(5) == pytest.approx(2e-3)
    assert options.rate(55) == pytest.approx(1e-3)
    assert options.rate(30) == pytest.approx(2e-3 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert options.rate(105) == pytest.approx(0, abs=1e-12)


def test_history_holds_the_scheduled_rate(features):
    _, history = fit(features, TrainingOptions(epochs=4, warmup_epochs=2, learning_rate=1e-2, batch_size=100))
    assert history["learning_rate"].tolist() == pytest.approx([5e-3, 1e-2, 5e-3, 0])


def test_loss_is_torch_binary_cross_entropy(features):
    shards, labels = features
    head = new_head(dropout=0.0)
    with torch.no_grad():
        logits = head(FeatureReader(shards, CPU).take(np.arange(45)))[0]
    expected = nn.functional.binary_cross_entropy(logits.sigmoid(), torch.from_numpy(labels[:45]).float()).item()
    one_view = Shards([shards.pieces[0][:, :1]])
    _, history = fit((one_view, labels), TrainingOptions(1, 0, batch_size=45, token_dropout=0.0, mixup=0.0), head=head)
    assert history["loss"].iloc[0] == pytest.approx(expected, rel=1e-4)


def test_weights_do_not_depend_on_how_often_validation_is_scored(features, monkeypatch):
    options = TrainingOptions(epochs=4, warmup_epochs=1, batch_size=16)
    often = fit(features, options)[0]
    monkeypatch.setattr(training, "EVALUATIONS", 1)
    assert torch.equal(weights(often), weights(fit(features, options)[0]))


def test_biases_and_norms_do_not_decay():
    head = new_head()
    options = TrainingOptions(epochs=100, batch_size=64, weight_decay=25.0)
    decaying, free = training._optimizer(head, options, 400).param_groups
    assert decaying["weight_decay"] == pytest.approx(25 * 0.04)  # sqrt(64 / (400 * 100))
    assert {parameter.ndim for parameter in decaying["params"]} == {2}
    assert {parameter.ndim for parameter in free["params"]} == {1}
    assert free["weight_decay"] == 0


@pytest.mark.parametrize(("dropout", "kept"), [(0.0, 8), (0.5, 4), (0.75, 2), (0.99, 1)])
def test_token_dropout_keeps_a_random_part_of_each_patch(dropout, kept):
    torch.manual_seed(0)
    tokens = torch.arange(200 * 8 * 3).reshape(200, 8, 3).float()
    found = some_tokens(tokens, dropout)
    assert found.shape == (200, kept, 3)
    numbers = (found[..., 0] - tokens[:, :1, 0]) / 3  # which tokens of its patch
    assert torch.equal(found, tokens.gather(1, numbers.long()[..., None].expand(-1, -1, 3)))
    assert all(len(set(row.tolist())) == kept for row in numbers)
    counts = torch.bincount(numbers.long().flatten(), minlength=8) / 200
    assert (counts - kept / 8).abs().max() < 0.15


def test_training_sees_a_part_of_the_tokens_and_prediction_all(features, monkeypatch):
    lengths = {True: set(), False: set()}
    forward = CMM.forward

    def counted(self, tokens):
        lengths[self.training].add(tokens.shape[1])
        return forward(self, tokens)

    monkeypatch.setattr(CMM, "forward", counted)
    fit(features, TrainingOptions(epochs=2, warmup_epochs=1, token_dropout=0.5))
    assert lengths == {True: {LENGTH // 2}, False: {LENGTH}}


def test_mixup_mixes_tokens_and_labels_alike(features, monkeypatch):
    """Labels that are written into the tokens stay there when both are mixed."""
    labels = features[1]
    tokens = np.zeros((PATCHES, 1, LENGTH, WIDTH), dtype=np.float16)
    tokens[..., :2] = labels[:, None, None]
    seen, losses = [], []
    forward, loss = CMM.forward, nn.functional.binary_cross_entropy_with_logits
    monkeypatch.setattr(CMM, "forward", lambda self, batch: seen.append(batch) or forward(self, batch))
    monkeypatch.setattr(
        nn.functional,
        "binary_cross_entropy_with_logits",
        lambda logits, truth, weight: losses.append(truth) or loss(logits, truth, weight),
    )
    fit((Shards([tokens]), labels), TrainingOptions(4, 0, batch_size=15, mixup=1.0))
    mixed = [batch for batch in seen if batch.shape[1] == 1]  # training steps, the others see all tokens
    for batch, truth in zip(mixed, losses, strict=True):
        torch.testing.assert_close(batch[:, 0, :2], truth)
    assert any(((truth > 0.1) & (truth < 0.9)).any() for truth in losses)


def test_labels_that_are_not_known_have_no_gradient(batch):
    tokens, truth = batch
    known = torch.ones_like(truth)
    known[0], known[1, 2], known[4, :2] = 0, 0, 0
    step = new_step(7)
    logits = step.head(tokens)[0].detach().requires_grad_()
    loss = step.loss(lambda _: (logits, None), tokens, truth, None, known / known.mean())
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[known == 0] == 0).all()
    assert (gradient[known == 1] != 0).all()
    expected = nn.functional.binary_cross_entropy_with_logits(logits[known == 1], truth[known == 1])
    torch.testing.assert_close(loss, expected)
    whole, halved = new_step(7), new_step(7)
    halved.parts = 2
    torch.testing.assert_close(whole(tokens, truth, known), halved(tokens, truth, known))
    torch.testing.assert_close(whole.head.linear.weight, halved.head.linear.weight)


@pytest.mark.parametrize("mixup", [0.0, 1.0])
def test_a_patch_of_which_nothing_is_known_teaches_nothing(features, mixup):
    shards, labels = features
    unknown = labels.astype(np.float32)
    unknown[::2] = np.nan
    other = Shards([shards.pieces[0].copy()])
    other.pieces[0][::2] += 3  # features that only patches without labels have
    options = TrainingOptions(3, 1, batch_size=60, mixup=mixup)
    trained = []
    for tokens in (shards, other):
        head = new_head()
        reader = FeatureReader(tokens, CPU)
        train_head(head, reader, unknown, np.arange(45), np.arange(0), options, progress=False)
        trained.append(weights(head))
    assert trained[0].isfinite().all()
    assert torch.equal(*trained) == (mixup == 0)  # mixed, they lend their looks to labels of others


def test_training_without_a_validation_part(features):
    shards, labels = features
    options = TrainingOptions(epochs=3, warmup_epochs=1, batch_size=16)
    head, nothing = new_head(), np.arange(0)
    history = train_head(head, FeatureReader(shards, CPU), labels, np.arange(45), nothing, options, progress=False)
    assert history["val_mAcc"].isna().all()
    assert torch.equal(weights(head), weights(fit(features, options)[0]))


def test_prediction_is_the_mean_over_the_views(features):
    shards, _ = features
    head, reader, index = new_head().eval(), FeatureReader(shards, CPU), np.array([5, 2, 9])
    with torch.no_grad():
        expected = sum(head(reader.take(index, view))[0].sigmoid() for view in range(VIEWS)) / VIEWS
    np.testing.assert_allclose(predict_probabilities(head, reader, index), expected, rtol=1e-5, atol=1e-6)


def test_prediction_leaves_the_mode_of_the_head(features):
    head = new_head().train()
    predict_probabilities(head, FeatureReader(features[0], CPU), np.arange(4))
    assert head.training


def test_loss_that_is_not_finite_stops_with_epoch_batch_and_parameters_named(features):
    shards, labels = features
    broken = shards.pieces[0].copy()
    broken[7] = np.nan
    options = TrainingOptions(epochs=2, warmup_epochs=1, batch_size=15)
    batches = np.array_split(np.random.default_rng([options.seed, 0]).permutation(45), 3)
    number = next(n for n, index in enumerate(batches, 1) if 7 in index)
    message = rf"epoch 1, batch {number} of 3: the loss is nan; .* layers\.0\.\S+weight.*learning_rate \(0\.001\)"
    with pytest.raises(HistoCLIPError, match=message):
        fit((Shards([broken]), labels), replace(options, mixup=0.0))


def test_diverging_training_keeps_the_last_good_checkpoint(features, tmp_path, monkeypatch):
    checkpoint, options = tmp_path / "state.safetensors", TrainingOptions(6, 1, batch_size=16)
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 2)
    step, calls = TrainingStep.__call__, []

    def spoiled(self, tokens, truth):
        loss = step(self, tokens, truth)
        calls.append(loss)
        if len(calls) == 15:  # the last batch of epoch 5: its loss is fine, what it leaves is not
            with torch.no_grad():
                self.head.layers[0].linear1.bias[0] = np.inf
        return loss

    monkeypatch.setattr(TrainingStep, "__call__", spoiled)
    message = r"epoch 5, batch 3 of 3: .* not finite: layers\.0\.linear1\.bias\. .*after epoch 4 is kept in .*state"
    with pytest.raises(HistoCLIPError, match=message):
        fit(features, options, checkpoint)
    monkeypatch.setattr(TrainingStep, "__call__", step)
    resumed, history = fit(features, options, checkpoint)
    assert len(history) == 6
    assert torch.equal(weights(resumed), weights(fit(features, options)[0]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs: 0 must be above 0"),
        ({"learning_rate": -1.0}, "learning_rate: -1.0"),
        ({"batch_size": 0}, "batch_size: 0"),
        ({"epochs": 5, "warmup_epochs": 5}, "warmup_epochs: 5 must be at least 0 and below epochs"),
        ({"warmup_epochs": -1}, "warmup_epochs: -1"),
        ({"token_dropout": 1.0}, "token_dropout: 1.0 must be at least 0 and below 1"),
        ({"token_dropout": -0.1}, "token_dropout: -0.1"),
        ({"mixup": -1.0}, "mixup: -1.0 must be at least 0"),
    ],
)
def test_impossible_options_are_refused(values, message):
    with pytest.raises(HistoCLIPError, match=message):
        TrainingOptions(**values)


@pytest.mark.parametrize("amp_dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains_nearly_the_same_head(features, amp_dtype):
    """The path of a GPU, as far as a CPU can go it; float16 brings the loss scaler."""
    shards, labels = features
    options = TrainingOptions(20, 1, learning_rate=3e-2, batch_size=16, token_dropout=0.0, mixup=0.0)
    train, val = np.arange(45), np.arange(45, PATCHES)
    losses = []
    for dtype in (None, amp_dtype):
        history = train_head(
            new_head(0.0), FeatureReader(shards, CPU), labels, train, val, options, amp_dtype=dtype, progress=False
        )
        losses.append(history["loss"].to_numpy())
    assert losses[1][-1] < 0.8 * losses[1][0]
    np.testing.assert_allclose(losses[1][:3], losses[0][:3], rtol=0.05)


# Both heads of a run


@pytest.fixture
def run_of(features, tmp_path):
    """A function that trains both heads in one folder, and counts how many it had to train."""
    tokens, labels = features
    pooled = Shards([tokens.pieces[0].mean(axis=2, dtype=np.float32)])
    patches = PatchDataset("made", ["a", "b"], [f"{i}.png" for i in range(PATCHES)], labels, None)
    clip = SimpleNamespace(device=CPU, amp_dtype=None, compiled=False, backbone="tiny")
    embeddings = nn.functional.normalize(torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1)), dim=-1)

    def run(monkeypatch, **changes):
        trained = []
        options = changes.get("options", TrainingOptions(3, 1, batch_size=16))
        monkeypatch.setattr(training, "train_head", lambda *args, **kw: trained.append(1) or train_head(*args, **kw))
        heads, history = train_heads(
            changes.get("embeddings", embeddings).numpy(), {"heads": 2, "hidden": 8},
            ImageFeatures(pooled, tokens, 0), changes.get("patches", patches),
            changes.get("folds", [(np.arange(45), np.arange(45, PATCHES))]), options,
            SimpleNamespace(**vars(clip) | changes.get("clip", {})), tmp_path, workers=1,
        )  # fmt: skip
        return heads, history, len(trained)

    return SimpleNamespace(run=run, patches=patches, embeddings=embeddings, folder=tmp_path)


def test_finished_heads_are_loaded_with_their_history(run_of, monkeypatch):
    first, history, n_trained = run_of.run(monkeypatch)
    assert n_trained == 2
    assert sorted(path.name for path in run_of.folder.glob("*.*")) == [
        "cmm_global.safetensors",
        "cmm_patch.safetensors",
    ]
    assert list(history["head"]) == ["global"] * 3 + ["patch"] * 3
    second, kept, n_trained = run_of.run(monkeypatch)
    assert n_trained == 0
    assert kept.equals(history)
    for kind in ("global", "patch"):
        (one,), (other,) = first[kind], second[kind]
        assert torch.equal(weights(one), weights(other))
        stored = load_cmm(run_of.folder / f"cmm_{kind}.safetensors", ["a", "b"], "tiny")
        assert torch.equal(weights(one), weights(stored))


def test_each_fold_has_its_heads_and_a_final_one_sees_all_patches(run_of, monkeypatch):
    thirds = np.array_split(np.arange(PATCHES), 3)
    folds = [(np.setdiff1d(np.arange(PATCHES), third), third) for third in thirds]
    heads, history, n_trained = run_of.run(monkeypatch, folds=folds)
    assert n_trained == 8
    assert history["val_mAcc"].notna().any()  # the curve of the first fold
    nothing = np.arange(0)
    for k, (train, _) in enumerate(folds):
        alone, _, _ = run_of.run(monkeypatch, folds=[(train, nothing)])
        assert torch.equal(weights(heads["patch"][k]), weights(alone["patch"][0]))
    alone, _, _ = run_of.run(monkeypatch, folds=[(np.arange(PATCHES), nothing)])
    *_, n_trained = run_of.run(monkeypatch, folds=folds)
    final = load_cmm(run_of.folder / "cmm_patch.safetensors", ["a", "b"], "tiny")
    assert torch.equal(weights(final), weights(alone["patch"][0]))
    *_, n_trained = run_of.run(monkeypatch, folds=folds)
    assert n_trained == 0


@pytest.mark.parametrize(
    "change", ["options", "split", "labels", "class names", "class matrix", "backbone", "precision", "code", "damage"]
)
def test_heads_of_another_training_are_trained_again(run_of, monkeypatch, change):
    run_of.run(monkeypatch)
    changes = {
        "options": {"options": TrainingOptions(3, 1, batch_size=16, mixup=0.1)},
        "split": {"folds": [(np.arange(44), np.arange(45, PATCHES))]},
        "labels": {"patches": replace(run_of.patches, labels=1 - run_of.patches.labels)},
        "class names": {"patches": replace(run_of.patches, classes=["a", "c"])},
        "class matrix": {"embeddings": run_of.embeddings.flip(0)},
        "backbone": {"clip": {"backbone": "other"}},
        "precision": {"clip": {"amp_dtype": torch.bfloat16}},
    }
    if change == "code":
        monkeypatch.setattr(training, "source_digest", lambda: "another")
    if change == "damage":
        path = run_of.folder / "cmm_patch.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
    *_, n_trained = run_of.run(monkeypatch, **changes.get(change, {}))
    assert n_trained == (1 if change == "damage" else 2)


# One step


class Head(nn.Module):
    """A linear head on the mean token, with room for `room` patches at once."""

    def __init__(self, room):
        super().__init__()
        self.linear, self.room, self.sizes = nn.Linear(8, 3), room, []

    def forward(self, tokens):
        self.sizes.append(len(tokens))
        if len(tokens) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.linear(tokens.mean(dim=1)), None


def new_step(room, dtype=None):
    torch.manual_seed(0)
    head = Head(room)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.5)
    return TrainingStep(head, optimizer, torch.amp.GradScaler("cpu", enabled=False), dtype)


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(7, 4, 8), (torch.rand(7, 3) > 0.5).float()


def test_a_batch_that_does_not_fit_is_taken_in_halves_with_the_same_result(batch):
    whole, halved = new_step(7), new_step(4)
    expected = whole(*batch)
    with pytest.warns(UserWarning, match="batch of 7 patches does not fit"):
        loss = halved(*batch)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(halved.head.linear.weight, whole.head.linear.weight)
    assert halved.head.sizes == [7, 4, 3]


@pytest.mark.filterwarnings("error")
def test_later_batches_are_halved_without_another_try_or_notice(batch):
    step = new_step(4)
    step.parts = 2
    step(*batch)
    assert step.head.sizes == [4, 3]


@pytest.mark.filterwarnings("ignore:A batch of")
def test_half_a_batch_that_does_not_fit_is_an_error_and_changes_nothing(batch):
    step = new_step(3)
    before = copy.deepcopy(step.head.state_dict())
    with pytest.raises(HistoCLIPError, match=r"half a batch of 7 patches with 4 tokens .* Lower batch_size"):
        step(*batch)
    assert all(torch.equal(before[name], value) for name, value in step.head.state_dict().items())
    assert step.head.sizes == [7, 4]


def test_one_patch_cannot_be_halved(batch):
    tokens, truth = batch
    with pytest.raises(HistoCLIPError, match="half a batch of 1 patches"):
        new_step(0)(tokens[:1], truth[:1])


def test_parameters_that_are_not_finite_are_named():
    head = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert not_finite(head) == []
    with torch.no_grad():
        head[1].weight[0, 0] = float("nan")
    assert not_finite(head) == ["1.weight"]


# Checkpoints

HISTORY = [{"epoch": 1, "loss": 0.5}]


def parts(seed=0):
    torch.manual_seed(seed)
    head = CMM(torch.randn(3, 8), heads=2, hidden=6)
    return head, torch.optim.AdamW(head.parameters()), torch.amp.GradScaler("cpu", enabled=False)


@pytest.fixture
def path(tmp_path):
    head, optimizer, scaler = parts()
    head(torch.randn(2, 4, 8))[0].sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path / "state", "mine", head, optimizer, scaler, HISTORY)
    return tmp_path / "state"


def state_of(head, optimizer):
    moments = optimizer.state_dict()["state"]
    return [*head.state_dict().values(), *(value for number in moments for value in moments[number].values())]


def metadata(**changes):
    return {"identity": "mine", "history": json.dumps(HISTORY), "scaler": "{}"} | changes


def assert_passed_over(path):
    head, optimizer, scaler = parts(seed=1)
    before = [value.clone() for value in state_of(head, optimizer)]
    assert load_checkpoint(path, "mine", head, optimizer, scaler) == []
    after = state_of(head, optimizer)
    assert len(after) == len(before)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_saved_checkpoint_is_loaded(path):
    head, optimizer, scaler = parts(seed=1)
    assert load_checkpoint(path, "mine", head, optimizer, scaler) == HISTORY
    stored = load_file(path)
    assert torch.equal(head.state_dict()["token_mean"], stored["head.token_mean"])
    assert torch.equal(optimizer.state_dict()["state"][0]["exp_avg"], stored["optimizer.0.exp_avg"])


@pytest.mark.parametrize("content", [b"", b"half a file", b"\xff" * 100, b"PK\x03\x04"])
def test_a_checkpoint_that_is_not_safetensors_is_passed_over(path, content):
    path.write_bytes(content)
    assert_passed_over(path)


def test_a_truncated_or_missing_checkpoint_is_passed_over(path):
    path.write_bytes(path.read_bytes()[:-1])
    assert_passed_over(path)
    path.unlink()
    assert_passed_over(path)


@pytest.mark.parametrize(
    "about",
    [
        {},
        metadata(identity="another"),
        metadata(history="no JSON"),
        metadata(history="3"),
        metadata(history="[3]"),
        metadata(history="[" * 100_000),
        {key: value for key, value in metadata().items() if key != "scaler"},
    ],
)
def test_a_checkpoint_with_other_metadata_is_passed_over(path, about):
    save_file(load_file(path), path, about)
    assert_passed_over(path)


@pytest.mark.parametrize(
    "change",
    [
        {"head.token_mean": torch.zeros(9)},
        {"head.more": torch.zeros(9)},
        {"optimizer.0.exp_avg": torch.zeros(9)},
        {"optimizer.0.step": torch.zeros(2)},
        {"optimizer.99.exp_avg": torch.zeros(9)},
        {"optimizer.zero.exp_avg": torch.zeros(9)},
        {"optimizer.0": torch.zeros(9)},
    ],
)
def test_a_checkpoint_with_other_tensors_is_passed_over(path, change):
    save_file(load_file(path) | change, path, metadata())
    assert_passed_over(path)
