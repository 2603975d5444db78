"""The tower through ONNX Runtime: the features of PyTorch, kept in a file, and PyTorch again where it fails."""

import pytest
import torch
from tiny_clip import pixels, tiny_clip

from histoclip_lib.clip import towers as module
from histoclip_lib.clip.towers import onnx_tower

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
SIZE = (64, 64)


@pytest.fixture(scope="module")
def tower():
    return tiny_clip("timm_cnn").tower


@pytest.fixture(scope="module")
def folder(tower, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    assert onnx_tower(tower, SIZE, folder) is not None
    return folder


def eager(tower, images):
    with torch.inference_mode():
        return tower(images)


def assert_near(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() < 1e-4 * other.norm()


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_features_are_those_of_pytorch(tower, folder, batch):
    images = pixels(batch, SIZE[0])
    assert_near(onnx_tower(tower, SIZE, folder)(images), eager(tower, images))


def test_features_do_not_depend_on_the_rest_of_the_batch(tower, folder):
    images, run = pixels(5, SIZE[0]), onnx_tower(tower, SIZE, folder)
    for whole, *parts in zip(run(images), run(images[:2]), run(images[2:]), strict=True):
        assert torch.equal(whole, torch.cat(parts))


def test_default_backbone_has_the_features_of_pytorch(lite0):
    images = pixels(3, 224)
    assert lite0.fast_tower is not None
    assert_near(lite0.fast_tower(images), eager(lite0.tower, images))


def test_layout_of_the_images_does_not_matter(tower, folder):
    images = pixels(2, SIZE[0])
    run = onnx_tower(tower, SIZE, folder)
    for one, other in zip(run(images), run(images.contiguous(memory_format=torch.channels_last)), strict=True):
        assert torch.equal(one, other)


def test_a_kept_tower_is_not_exported_again(tower, folder, monkeypatch):
    monkeypatch.setattr(module, "_export", lambda *arguments: pytest.fail("exported again"))
    assert onnx_tower(tower, SIZE, folder) is not None


def test_other_weights_are_another_file(tower, folder):
    before = set(folder.iterdir())
    assert onnx_tower(tiny_clip("timm_cnn", seed=1).tower, SIZE, folder) is not None
    assert len(set(folder.iterdir()) - before) == 1


def test_damaged_file_is_made_again(tower, folder, tmp_path):
    [name] = {path.name for path in folder.iterdir()} & {f"{module._digest(tower, SIZE)}.onnx"}
    (tmp_path / name).write_bytes((folder / name).read_bytes()[:1000])
    images = pixels(2, SIZE[0])
    assert_near(onnx_tower(tower, SIZE, tmp_path)(images), eager(tower, images))
    assert (tmp_path / name).stat().st_size > 1000


def test_file_of_another_tower_under_this_name_is_not_believed(tower, folder, tmp_path):
    other = tiny_clip("timm_cnn", seed=2).tower
    onnx_tower(other, SIZE, tmp_path)
    [file] = tmp_path.iterdir()
    file.rename(tmp_path / f"{module._digest(tower, SIZE)}.onnx")
    assert onnx_tower(tower, SIZE, tmp_path) is None


def test_without_the_packages_pytorch_does_it(tower, folder, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert onnx_tower(tower, SIZE, folder) is None


def test_tower_that_cannot_be_exported_is_left_to_pytorch(tower, tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(module, "_export", fail)
    assert onnx_tower(tower, SIZE, tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["vit", "resnet", "timm_vit", "timm_channels_last"])
def test_only_convolutional_towers_of_timm_are_exported(kind):
    assert tiny_clip(kind).fast_tower is None


def test_reduced_precision_is_left_to_pytorch():
    from dataclasses import replace

    assert replace(tiny_clip("timm_cnn"), amp_dtype=torch.bfloat16).fast_tower is None


def test_clip_encodes_through_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HISTOCLIP_CACHE", str(tmp_path))
    clip, images = tiny_clip("timm_cnn"), pixels(3, SIZE[0])
    found = clip.encode_images(images)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    expected = tiny_clip("timm_cnn").encode_images(images)
    assert (tmp_path / "onnx").is_dir()
    assert_near(found, expected)
