"""The frozen encoder: its features are open_clip's, it loads what it says, and errors name what is missing."""

import warnings
from dataclasses import replace
from functools import partial

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg
from PIL import Image
from tiny_clip import clip_of, config, images_for, save_local_dir, tiny_clip, tiny_model

from histoclip_lib.clip.encoder import load_clip
from histoclip_lib.common.errors import HistoCLIPError


@pytest.fixture
def no_hub(tmp_path, monkeypatch):
    """The hub cannot be reached and nothing was fetched before."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_amp_changes_features_a_little_and_gives_float32():
    clip, images = clip_of("vit"), images_for("vit")
    exact, rough = clip.encode_images(images), replace(clip, amp_dtype=torch.bfloat16).encode_images(images)
    for one, other in zip(exact, rough, strict=True):
        assert other.dtype == torch.float32
        assert not torch.equal(one, other)
        torch.testing.assert_close(one, other, rtol=0.1, atol=0.1)


def test_images_that_were_normalised_already_are_refused():
    image = clip_of("vit").preprocess(Image.new("RGB", (40, 40)))
    with pytest.raises(HistoCLIPError, match=r"torch.float32 was given; expected uint8"):
        clip_of("vit").encode_images(image[None])


# Text features


def test_text_features_are_open_clips_of_unit_length():
    clip = clip_of("vit")
    prompts = ["a photo of a tumor", "stroma", "a photo of a tumor"]
    with torch.inference_mode():
        expected = clip.model.encode_text(clip.tokenizer(prompts), normalize=True)
    for batch_size in (1, 256):
        torch.testing.assert_close(clip.encode_text(prompts, batch_size), expected, rtol=1e-4, atol=1e-5)


def test_each_distinct_prompt_is_tokenised_once():
    seen = []
    clip = clip_of("vit")

    def tokenizer(prompts):
        seen.extend(prompts)
        return clip.tokenizer(prompts)

    features = replace(clip, tokenizer=tokenizer).encode_text(["b", "a", "b", "b"])
    assert sorted(prompt for prompt in seen if prompt) == ["a", "b"]
    assert torch.equal(features[0], features[2])
    assert not torch.equal(features[0], features[1])


@pytest.mark.parametrize("which", ["default", "vit"])
def test_prompts_that_fill_the_context_warn_and_others_do_not(which, lite0):
    clip = lite0 if which == "default" else clip_of("vit")
    length = clip.tokenizer(["x"]).shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip.encode_text(["tumor " * (length - 4)])
    with pytest.warns(UserWarning, match=rf"1 of 2 prompts fill the {length} tokens that {clip.backbone} reads"):
        clip.encode_text(["tumor " * length, "tumor"])


# Loading


@pytest.fixture(scope="module")
def local_dir(tmp_path_factory):
    return save_local_dir(tmp_path_factory.mktemp("clip"), tiny_model(), mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])


def test_default_is_frozen_in_eval_mode_and_says_that_it_is_not_clip(lite0):
    assert lite0.backbone == "lite0-minilm"
    assert not lite0.is_clip
    assert "not CLIP" in lite0.about()
    assert not any(module.training for module in lite0.model.modules())
    assert not any(parameter.requires_grad for parameter in lite0.model.parameters())


def test_local_dir_gives_the_saved_model_frozen_and_its_preprocessing(local_dir):
    clip = load_clip(local_dir, device="cpu")
    expected = replace(clip_of("vit"), preprocess_cfg=clip.preprocess_cfg).encode_images(images_for("vit"))
    for one, other in zip(clip.encode_images(images_for("vit")), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(clip.encode_text(["tumor"]), clip_of("vit").encode_text(["tumor"]))
    assert clip.is_clip
    assert local_dir in clip.about()
    assert not any(module.training for module in clip.model.modules())
    assert not any(parameter.requires_grad for parameter in clip.model.parameters())
    assert clip.preprocess_cfg.size == (32, 32)
    gray = Image.fromarray(np.full((48, 48, 3), 51, np.uint8))
    pixel = clip.preprocess(gray)[:, 0, 0]
    torch.testing.assert_close(pixel, (0.2 - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.4, 0.5, 0.6]))


def test_weights_file_of_an_open_clip_name(tmp_path, monkeypatch):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-vit", config())
    path = tmp_path / "weights.pt"
    torch.save(tiny_model(seed=3).state_dict(), path)
    clip = load_clip("tiny-vit", str(path), device="cpu")
    expected = tiny_clip(seed=3).encode_images(images_for("vit"))
    torch.testing.assert_close(clip.encode_images(images_for("vit")), expected, rtol=1e-4, atol=1e-5)
    assert f"`tiny-vit`** with the weights `{path}`" in clip.about().replace("Backbone: ", "")


@pytest.mark.parametrize(("precision", "dtype"), [("auto", None), ("fp32", None), ("amp", torch.bfloat16)])
def test_precision_on_a_cpu(local_dir, precision, dtype):
    assert load_clip(local_dir, device="cpu", precision=precision).amp_dtype is dtype


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "ViT-L-41"}, r"backbone: 'ViT-L-41' is not known. Use lite0-minilm, an open_clip name"),
        ({"backbone": "hub:owner/name"}, "backbone: 'hub:owner/name' is not known"),
        ({"backbone": "ViT-B-32"}, r"pretrained: ViT-B-32 needs a tag \(openai, .*\) or the path of a weights file"),
        (
            {"backbone": "RN50", "pretrained": "opanai"},
            "'opanai' is neither a file nor a tag of RN50. Its tags: openai, yfcc15m",
        ),
        ({"pretrained": "openai"}, "pretrained: 'openai' has no meaning for lite0-minilm"),
        ({"backbone": "hf-hub:a/b", "pretrained": "openai"}, "pretrained: 'openai' has no meaning for hf-hub:a/b"),
        ({"device": "gpu"}, "device: 'gpu' is not a torch device"),
        ({"device": "cuda:99"}, "device: torch sees no 'cuda:99' on this machine"),
        ({"precision": "fp16"}, "precision: 'fp16' is not known. Use one of auto, fp32, amp"),
    ],
)
def test_unknown_values_are_refused_with_the_remedy(options, message):
    with pytest.raises(HistoCLIPError, match=message):
        load_clip(**options)


@pytest.mark.parametrize(
    ("backbone", "pretrained", "looked_for"),
    [
        ("ViT-L-14-quickgelu", "openai", "timm/vit_large_patch14_clip_224.openai"),
        ("ViT-B-32", "laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
        ("hf-hub:nobody/nothing", "", "open_clip_config.json and the weights of hf-hub:nobody/nothing"),
        ("local-dir:no_such_folder", "", "open_clip_config.json and the weights of local-dir:no_such_folder"),
    ],
)
@pytest.mark.usefixtures("no_hub")
def test_weights_that_cannot_be_had_name_model_file_and_offline_default(backbone, pretrained, looked_for):
    with pytest.raises(HistoCLIPError) as raised:
        load_clip(backbone, pretrained)
    message = str(raised.value)
    assert f"backbone {backbone}, pretrained {pretrained or '(none)'}" in message
    assert f"Looked for {looked_for}" in message
    assert "`backbone: lite0-minilm`" in message


@pytest.mark.usefixtures("no_hub")
def test_unusable_weights_and_tokenizers_are_the_same_error(tmp_path, monkeypatch):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-vit", config())
    (tmp_path / "weights.pt").write_bytes(b"no weights")
    with pytest.raises(HistoCLIPError, match=r"Looked for .*weights\.pt\. Reason"):
        load_clip("tiny-vit", str(tmp_path / "weights.pt"))

    with_hub_tokenizer = config() | {"text_cfg": config()["text_cfg"] | {"hf_tokenizer_name": "nobody/nothing"}}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-vit", with_hub_tokenizer)
    torch.save(tiny_model().state_dict(), tmp_path / "good.pt")
    with pytest.raises(HistoCLIPError, match=r"Looked for .*good\.pt and the tokenizer of nobody/nothing\. Reason"):
        load_clip("tiny-vit", str(tmp_path / "good.pt"))

    folder = tmp_path / "no_weights"
    save_local_dir(folder, tiny_model())
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(HistoCLIPError, match=r"no_weights has no open_clip_model\.safetensors and no"):
        load_clip(f"local-dir:{folder}")


@pytest.mark.parametrize(
    ("backbone", "pretrained", "message"),
    [
        ("ViT-L-14", "openai", "trained with QuickGELU, so the features will be off. Use ViT-L-14-quickgelu."),
        ("roberta-ViT-B-32", "laion2b_s12b_b32k", "trained without QuickGELU, so the features will be off.$"),
    ],
)
@pytest.mark.usefixtures("no_hub")
def test_quick_gelu_mismatch_warns(backbone, pretrained, message):
    with pytest.warns(UserWarning, match=message), pytest.raises(HistoCLIPError):
        load_clip(backbone, pretrained)


@pytest.mark.parametrize(
    ("backbone", "pretrained"), [("ViT-L-14-quickgelu", "openai"), ("ViT-B-32", "laion2b_s34b_b79k")]
)
@pytest.mark.usefixtures("no_hub")
def test_matching_activation_does_not_warn(backbone, pretrained):
    with warnings.catch_warnings(), pytest.raises(HistoCLIPError):
        warnings.simplefilter("error")
        load_clip(backbone, pretrained)


# Fingerprint


def test_fingerprint_follows_all_that_changes_image_features():
    clip = tiny_clip()
    other_weight = tiny_clip()
    other_weight.model.visual.positional_embedding.data[0, 0] += 1e-6
    fingerprints = {
        name: other.fingerprint()
        for name, other in {
            "itself": clip,
            "one weight": other_weight,
            "mean": replace(clip, preprocess_cfg=PreprocessCfg(size=32, mean=(0.5, 0.5, 0.5))),
            "size": replace(clip, preprocess_cfg=PreprocessCfg(size=48)),
            "precision": replace(clip, amp_dtype=torch.bfloat16),
            "half precision": replace(clip, amp_dtype=torch.float16),
        }.items()
    }
    assert len(set(fingerprints.values())) == len(fingerprints)
    assert tiny_clip().fingerprint() == fingerprints["itself"]


def test_fingerprint_tells_towers_apart_that_share_their_weights():
    plain, quick = tiny_clip(), tiny_clip(quick_gelu=True)
    quick.model.load_state_dict(plain.model.state_dict())
    assert not torch.allclose(plain.encode_images(images_for("vit"))[0], quick.encode_images(images_for("vit"))[0])
    assert plain.fingerprint() != quick.fingerprint()


def test_fingerprint_does_not_depend_on_the_text_tower():
    clip, other = tiny_clip(), tiny_clip()
    other.model.token_embedding.weight.data += 1
    assert clip.fingerprint() == other.fingerprint()


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("size", [(40, 50), (32, 32)])
def test_resize_and_normalize_are_preprocess_in_two_steps(mode, size):
    clip = replace(tiny_clip("vit"), preprocess_cfg=PreprocessCfg(size=32, resize_mode=mode))
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    resized = clip.resize(Image.fromarray(pixels))
    assert resized.dtype == torch.uint8
    assert torch.equal(clip.tower.normalize(resized[None])[0], clip.preprocess(Image.fromarray(pixels)))


def test_compiled_tower_has_the_same_features(monkeypatch):
    """As torch traces it: the code that it generates from a trace takes a minute to compile."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    images = images_for("vit", 5)
    compiled = replace(clip_of("vit"), compiled=True).encode_images(images)
    for one, other in zip(compiled, clip_of("vit").encode_images(images), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert replace(clip_of("timm_cnn"), compiled=True).fast_tower is None
