import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.features.reader import FeatureReader
from histoclip_lib.features.store import Shards
from histoclip_lib.models.cmm import CMM, MLP, mlp_like
from histoclip_lib.models.training import TrainingOptions, predict_probabilities, train_head


def size_of(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("n_classes", "width", "options"), [(4, 384, {}), (16, 768, {"layers": 2}), (2, 64, {})])
def test_mlp_has_the_size_dropout_and_feature_scale_of_the_head(n_classes, width, options):
    head = CMM(functional.normalize(torch.randn(n_classes, width), dim=-1), dropout=0.2, **options)
    head.fit_scale(5 + torch.randn(20, width))
    mlp = mlp_like(head)
    assert torch.equal(mlp.token_mean, head.token_mean)
    assert mlp.token_scale == head.token_scale
    assert size_of(mlp) == pytest.approx(size_of(head), rel=0.005)
    assert [layer.p for layer in mlp.modules() if isinstance(layer, nn.Dropout)] == [0.2]
    logits, attention = mlp(torch.randn(3, 1, width))
    assert logits.shape == (3, n_classes)
    assert attention is None


def test_mlp_is_two_layers_on_centred_features():
    torch.manual_seed(0)
    mlp = MLP(6, 2, 100).eval()
    features = 5 + 3 * torch.randn(50, 1, 6)
    mlp.fit_scale(features)
    centred = (features - mlp.token_mean) / mlp.token_scale
    torch.testing.assert_close(centred.mean(dim=(0, 1)), torch.zeros(6), atol=1e-5, rtol=0)
    assert centred.square().mean().item() == pytest.approx(1, rel=1e-5)
    first, _, _, second = mlp.layers
    expected = functional.gelu(centred[:, 0] @ first.weight.T + first.bias) @ second.weight.T + second.bias
    torch.testing.assert_close(mlp(features)[0], expected)


def test_too_few_parameters_are_refused():
    assert size_of(MLP(10, 2, 15)) == 15
    assert size_of(MLP(2, 30, 63)) == 63
    with pytest.raises(HistoCLIPError, match="n_parameters: 5 are too few"):
        MLP(10, 2, 5)


def test_mlp_learns_what_a_linear_model_cannot(tmp_path):
    """One class is the exclusive or of two features: a linear model is right half the time."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(300, 1, 8)).astype(np.float32)
    labels = np.stack([features[:, 0, 0] * features[:, 0, 1] > 0, features[:, 0, 2] > 0], axis=1).astype(np.uint8)
    reader = FeatureReader(Shards([features[:256], features[256:]]), torch.device("cpu"))
    train, val = np.arange(240), np.arange(240, 300)
    torch.manual_seed(0)
    mlp = MLP(8, 2, 700, dropout=0.1)
    mlp.fit_scale(reader.take(train))
    options = TrainingOptions(epochs=60, warmup_epochs=2, learning_rate=1e-2, batch_size=32, mixup=0.0)
    history = train_head(mlp, reader, labels, train, val, options, tmp_path / "checkpoint.safetensors", progress=False)
    assert history["loss"].iloc[-1] < 0.5 * history["loss"].iloc[0]
    right = (predict_probabilities(mlp, reader, val) >= 0.5) == labels[val]
    assert right.mean(axis=0).min() > 0.8
