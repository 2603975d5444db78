"""The trunk through ONNX Runtime: the features of PyTorch, kept in a file, and PyTorch again where it fails."""

import pytest
import torch
from tiny_clip import tiny_clip

from histoclip_lib import onnx_trunk as module
from histoclip_lib.onnx_trunk import onnx_trunk

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
SIZE = (64, 64)


@pytest.fixture(scope="module")
def trunk():
    return tiny_clip("timm_cnn").model.visual.trunk


@pytest.fixture(scope="module")
def folder(trunk, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    assert onnx_trunk(trunk, SIZE, folder) is not None
    return folder


def eager(trunk, images):
    with torch.inference_mode():
        return trunk.forward_features(images)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_features_are_those_of_pytorch(trunk, folder, batch):
    images = torch.randn(batch, 3, *SIZE)
    found, expected = onnx_trunk(trunk, SIZE, folder)(images), eager(trunk, images)
    assert found.shape == expected.shape
    assert (found - expected).norm() < 1e-4 * expected.norm()


def test_default_backbone_has_the_features_of_pytorch(lite0):
    images = torch.rand(3, 3, 224, 224) * 2 - 1
    assert lite0.fast_trunk is not None
    expected = eager(lite0.model.visual.trunk, images)
    assert (lite0.fast_trunk(images) - expected).norm() < 1e-4 * expected.norm()


def test_layout_of_the_images_does_not_matter(trunk, folder):
    images = torch.randn(2, 3, *SIZE)
    run = onnx_trunk(trunk, SIZE, folder)
    assert torch.equal(run(images), run(images.contiguous(memory_format=torch.channels_last)))


def test_a_kept_trunk_is_not_exported_again(trunk, folder, monkeypatch):
    monkeypatch.setattr(module, "_export", lambda *arguments: pytest.fail("exported again"))
    assert onnx_trunk(trunk, SIZE, folder) is not None


def test_other_weights_are_another_file(trunk, folder):
    before = set(folder.iterdir())
    assert onnx_trunk(tiny_clip("timm_cnn", seed=1).model.visual.trunk, SIZE, folder) is not None
    assert len(set(folder.iterdir()) - before) == 1


def test_damaged_file_is_made_again(trunk, folder, tmp_path):
    [name] = {path.name for path in folder.iterdir()} & {f"{module._digest(trunk, SIZE)}.onnx"}
    (tmp_path / name).write_bytes((folder / name).read_bytes()[:1000])
    images = torch.randn(2, 3, *SIZE)
    torch.testing.assert_close(onnx_trunk(trunk, SIZE, tmp_path)(images), eager(trunk, images), rtol=1e-3, atol=1e-3)
    assert (tmp_path / name).stat().st_size > 1000


def test_file_of_another_trunk_under_this_name_is_not_believed(trunk, folder, tmp_path):
    other = tiny_clip("timm_cnn", seed=2).model.visual.trunk
    onnx_trunk(other, SIZE, tmp_path)
    [file] = tmp_path.iterdir()
    file.rename(tmp_path / f"{module._digest(trunk, SIZE)}.onnx")
    assert onnx_trunk(trunk, SIZE, tmp_path) is None


def test_without_the_packages_pytorch_does_it(trunk, folder, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert onnx_trunk(trunk, SIZE, folder) is None


def test_trunk_that_cannot_be_exported_is_left_to_pytorch(trunk, tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(module, "_export", fail)
    assert onnx_trunk(trunk, SIZE, tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["vit", "resnet", "timm_vit", "timm_channels_last"])
def test_only_convolutional_trunks_of_timm_are_exported(kind):
    assert tiny_clip(kind).fast_trunk is None


def test_reduced_precision_is_left_to_pytorch():
    from dataclasses import replace

    assert replace(tiny_clip("timm_cnn"), amp_dtype=torch.bfloat16).fast_trunk is None


def test_clip_encodes_through_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HISTOCLIP_CACHE", str(tmp_path))
    clip, images = tiny_clip("timm_cnn"), torch.randn(3, 3, *SIZE)
    found = clip.encode_images(images)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    expected = tiny_clip("timm_cnn").encode_images(images)
    assert (tmp_path / "onnx").is_dir()
    for fast, slow in zip(found, expected, strict=True):
        assert (fast - slow).norm() < 1e-4 * slow.norm()
