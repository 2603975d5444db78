"""What a run would take: as much as it then takes, and nothing is loaded or asked for to know it."""

import json
import socket

import open_clip
import pytest
import tiny_clip
from huggingface_hub import constants

from histoclip_lib.clip import availability, lite0_minilm
from histoclip_lib.clip.availability import Availability, feature_bytes, find_encoder, forecast
from histoclip_lib.clip.registry import ENCODERS, encoder, encoder_entry
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.files import free_bytes
from histoclip_lib.data.registry import load_dataset
from histoclip_lib.features.encode import encode_dataset

MEASURABLE = ("vit", "vit_average_pool", "coca_vit", "resnet")  # the others are towers of timm


def token_shape(backbone):
    return encoder_entry(backbone).token_shape(backbone, "")


def weights_at_hand(backbone, pretrained):
    return encoder_entry(backbone, pretrained).weights_at_hand(backbone, pretrained)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Put files of a repository into an empty cache of the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(repository, name, text="x"):
        root = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        (root / "refs").mkdir(parents=True, exist_ok=True)
        (root / "refs" / "main").write_text("0" * 40)
        file = root / "snapshots" / ("0" * 40) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return str(file)

    return put


def local_dir(folder, kind):
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": tiny_clip.config(kind)}))
    return f"local-dir:{folder}"


@pytest.mark.parametrize("kind", sorted(tiny_clip.TOWERS))
def test_the_tokens_are_those_that_the_model_gives(tmp_path, kind):
    clip = tiny_clip.clip_of(kind)
    _, tokens = clip.encode_images(tiny_clip.images_for(kind, 1))
    expected = tuple(tokens.shape[1:]) if kind in MEASURABLE else None
    assert token_shape(local_dir(tmp_path / kind, kind)) == expected


def test_the_offline_default_has_the_tokens_that_it_gives(lite0):
    _, tokens = lite0.encode_images(tiny_clip.pixels(1, 224))
    assert token_shape("lite0-minilm") == tuple(tokens.shape[1:])


def test_the_paper_s_backbone_is_known_by_name():
    assert token_shape("ViT-L-14-quickgelu") == (256, 768)
    assert token_shape("RN50") == (49, 1024)


@pytest.mark.parametrize("backbone", ["convnext_base", "no-such-name", "hf-hub:a/b", "hf-hub:a:b//c", "local-dir:/no"])
def test_what_only_the_model_would_tell_is_not_guessed(hub, backbone):
    assert token_shape(backbone) is None


def test_a_tower_of_timm_is_not_taken_for_the_vit_whose_numbers_stand_beside_it(tmp_path):
    config = tiny_clip.config("vit")
    config["vision_cfg"]["timm_model_name"] = "test_efficientnet"
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    assert token_shape(f"local-dir:{tmp_path}") is None


@pytest.mark.parametrize("text", ["", "[]", '{"model_cfg": 3}', '{"vision_cfg": {"image_size": "a", "layers": 1}}'])
def test_a_garbled_configuration_is_not_guessed(tmp_path, text):
    (tmp_path / "open_clip_config.json").write_text(text)
    assert token_shape(f"local-dir:{tmp_path}") is None


def test_a_configuration_of_the_hub_is_read_where_it_is_cached(hub):
    hub("a/b", "open_clip_config.json", json.dumps({"model_cfg": tiny_clip.config("vit")}))
    assert token_shape("hf-hub:a/b") == (16, 12)


def test_the_cache_takes_the_bytes_that_were_forecast(tmp_path, write_folder):
    patches = load_dataset("folder", str(write_folder(tmp_path / "data", {"a": [0, 1, 1], "b": [1, 0, 1]})))
    features = encode_dataset(tiny_clip.clip_of("vit"), patches, 2, workers=0, cache=tmp_path, progress=False)
    shape = token_shape(local_dir(tmp_path / "model", "vit"))
    assert features.pooled.nbytes + features.tokens.nbytes == feature_bytes(3, 2, shape)


# Weights


def test_weights_of_the_offline_default_are_installed(monkeypatch):
    assert weights_at_hand("lite0-minilm", "") == "installed packages"
    monkeypatch.setattr(lite0_minilm, "PACKAGES", ("torch", "no_such_package"))
    assert weights_at_hand("lite0-minilm", "") is None


def test_weights_of_a_tag_are_found_in_the_hub_s_cache(hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights_at_hand("ViT-L-14-quickgelu", "openai") is None
    file = hub(
        open_clip.get_pretrained_cfg("ViT-L-14-quickgelu", "openai")["hf_hub"].strip("/"), "open_clip_model.safetensors"
    )
    assert weights_at_hand("ViT-L-14-quickgelu", "openai") == file


def test_a_file_that_a_tag_names_is_the_one_looked_for(hub, monkeypatch):
    monkeypatch.setattr(
        open_clip, "get_pretrained_cfg", lambda *_: {"hf_hub": "a/b/special.bin", "url": "https://x/y.pt"}
    )
    hub("a/b", "open_clip_model.safetensors")
    assert weights_at_hand("ViT-B-32", "tag") is None
    file = hub("a/b", "special.bin")
    assert weights_at_hand("ViT-B-32", "tag") == file


def test_weights_with_an_address_alone_lie_where_open_clip_puts_them(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: {"url": "https://host/path/y.pt"})
    assert weights_at_hand("ViT-B-32", "tag") is None
    (tmp_path / ".cache" / "clip").mkdir(parents=True)
    (tmp_path / ".cache" / "clip" / "y.pt").write_text("x")
    assert weights_at_hand("ViT-B-32", "tag") == str(tmp_path / ".cache" / "clip" / "y.pt")


def test_weights_in_a_file_a_folder_or_a_repository(hub, tmp_path):
    (tmp_path / "mine.pt").write_text("x")
    assert weights_at_hand("ViT-B-32", str(tmp_path / "mine.pt")) == str(tmp_path / "mine.pt")
    assert weights_at_hand("ViT-B-32", str(tmp_path / "no.pt")) is None
    assert weights_at_hand(f"local-dir:{tmp_path}", "") is None
    (tmp_path / "open_clip_model.safetensors").write_text("x")
    assert weights_at_hand(f"local-dir:{tmp_path}", "") == str(tmp_path / "open_clip_model.safetensors")
    assert weights_at_hand("hf-hub:a/b", "") is None
    assert weights_at_hand("hf-hub:a:b//c", "") is None
    file = hub("a/b", "open_clip_pytorch_model.bin")
    assert weights_at_hand("hf-hub:a/b", "") == file


# The forecast


def lines_of(tmp_path, **values):
    values = {"backbone": "lite0-minilm", "pretrained": "", "views": 8, "heads": 8} | values
    return forecast(values, 600, tmp_path / "not" / "there", tmp_path / "reports" / "demo")


def test_a_folder_of_weights_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(HistoCLIPError, match="backbone: the folder 'gone' does not exist"):
        lines_of(tmp_path, backbone="local-dir:gone")


def test_heads_that_do_not_divide_the_width_are_refused(tmp_path):
    with pytest.raises(HistoCLIPError, match="heads: 7 does not divide 384"):
        lines_of(tmp_path, heads=7)


def test_a_forecast_has_the_numbers(tmp_path):
    weights, encoder, cache, reports = lines_of(tmp_path)
    assert weights == "weights   installed packages"
    assert encoder.startswith("encoder   4800 passes at most (600 patches in 8 views)")
    assert cache.startswith("cache     179 MiB at most (49 tokens of width 384); ")  # 4800 * 384 * (4 + 49 * 2) bytes
    assert str(tmp_path / "not" / "there") in cache
    assert not (tmp_path / "not").exists()
    assert f"{tmp_path / 'reports' / 'demo'}, " in reports
    assert "600 patches in 1 view)" in lines_of(tmp_path, views=1)[1]


def test_too_little_room_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(availability, "free_bytes", lambda folder: 178 * 2**20)
    assert any("TOO LITTLE" in line and "HISTOCLIP_CACHE" in line for line in lines_of(tmp_path))
    monkeypatch.setattr(availability, "free_bytes", lambda folder: 180 * 2**20)
    assert not any("TOO LITTLE" in line for line in lines_of(tmp_path))


def test_what_is_not_known_is_not_said(tmp_path, hub):
    weights, _, cache, _ = lines_of(tmp_path, backbone="hf-hub:a/b")
    assert "not on this machine" in weights
    assert "known once the model is loaded" in cache


@pytest.mark.parametrize(("backbone", "pretrained"), [("ViT-L-41", "openai"), ("ViT-L-14-quickgelu", "opnai")])
def test_a_backbone_that_open_clip_does_not_know_is_an_error(tmp_path, backbone, pretrained):
    with pytest.raises(HistoCLIPError, match=f"'{backbone if pretrained == 'openai' else pretrained}'"):
        lines_of(tmp_path, backbone=backbone, pretrained=pretrained)


def test_free_space_is_that_of_the_disk_where_a_folder_will_lie(tmp_path):
    assert free_bytes(tmp_path / "a" / "b") > 0


def test_an_encoder_that_names_no_files_is_left_to_its_own_code(monkeypatch):
    monkeypatch.setattr(ENCODERS, "_entries", dict(ENCODERS.load()))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    encoder("of-a-plugin", title="Of a plugin", licence="MIT")(lambda backbone, pretrained: None)
    assert find_encoder("of-a-plugin") == Availability("its own code")
