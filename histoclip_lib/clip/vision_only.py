"""Pathology models of images alone: UNI, UNI2-h, Virchow2, H-optimus-0 and -1, Prov-GigaPath and Phikon-v2.

The last is a DINOv2 of transformers, the others are ViTs of timm. They have no text tower, so the zero-shot methods do
not apply to them. Class, register and patch tokens come from one forward pass: the class token is the embedding, with
the mean of the patches behind it for Virchow2, and the patch tokens are kept beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from histoclip_lib.clip.registry import ENCODERS, IMAGENET, encoder
from histoclip_lib.common.errors import HistoCLIPError

if TYPE_CHECKING:
    from torch import nn

IMAGE = 224
WEIGHTS = "model.safetensors|pytorch_model.bin"
NO_SCALE = "Their model card gives no scale; 0.5 micrometres per pixel is the custom of the field."
H_OPTIMUS = {"mean": (0.707223, 0.578729, 0.703617), "std": (0.211883, 0.230117, 0.177517)}


@dataclass(frozen=True)
class Tower:
    """How timm builds an image tower.

    Attributes
    ----------
    architecture : str
        Name in timm.
    arguments : dict
        Of `timm.create_model`, as the model card has them.
    swiglu : bool
        Whether the model card asks for `SwiGLUPacked` and SiLU; architectures of DINOv2 have them already.
    with_mean : bool
        Whether the mean of the patch tokens is part of the embedding.
    interpolation : {"bicubic", "bilinear"}
        Of the resizing, as the model card has it.
    """

    architecture: str
    arguments: dict[str, object] = field(default_factory=dict)
    swiglu: bool = False
    with_mean: bool = False
    interpolation: str = "bicubic"


TOWERS = {
    "uni": Tower("vit_large_patch16_224", {"init_values": 1e-5, "dynamic_img_size": True}, interpolation="bilinear"),
    "uni2-h": Tower(
        "vit_giant_patch14_224",
        {
            "depth": 24,
            "num_heads": 24,
            "init_values": 1e-5,
            "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2,
            "no_embed_class": True,
            "reg_tokens": 8,
            "dynamic_img_size": True,
        },
        swiglu=True,
        interpolation="bilinear",
    ),
    "virchow2": Tower(
        "vit_huge_patch14_224",
        {"init_values": 1e-5, "mlp_ratio": 5.3375, "reg_tokens": 4, "global_pool": "", "dynamic_img_size": True},
        swiglu=True,
        with_mean=True,
    ),
    "h-optimus-0": Tower("vit_giant_patch14_reg4_dinov2", {"init_values": 1e-5, "dynamic_img_size": False}),
    "h-optimus-1": Tower("vit_giant_patch14_reg4_dinov2", {"init_values": 1e-5, "dynamic_img_size": False}),
    "prov-gigapath": Tower(
        "vit_giant_patch14_dinov2",
        {"patch_size": 16, "embed_dim": 1536, "depth": 40, "num_heads": 24, "mlp_ratio": 5.33334},
    ),
}


def build(tower: Tower) -> nn.Module:
    """Return an image tower of timm with random weights."""
    import timm
    from timm.layers import SwiGLUPacked
    from torch import nn

    from histoclip_lib.clip.towers import ClassTokenViT

    layers = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU} if tower.swiglu else {}
    trunk = timm.create_model(tower.architecture, img_size=IMAGE, num_classes=0, **tower.arguments, **layers)
    return ClassTokenViT(trunk, with_mean=tower.with_mean)


def _images_alone(name: str, title: str, licence: str, width: int, patch: int, **about: object) -> Callable:
    """Register an encoder without text, of which `about` gives the rest."""
    shared = {"has_text": False, "is_clip": False, "image_size": IMAGE, "patch_px": IMAGE, "mpp": (0.5,)} | IMAGENET
    shared |= {"files": (WEIGHTS,), "gated": True}
    shared["about"] = f"**Backbone: `{name}` ({title}), a model of images alone**, frozen. It has no text tower."
    shared["token_shape"] = lambda backbone, pretrained: ((IMAGE // patch) ** 2, width)
    return encoder(name, title=title, licence=licence, **(shared | about))


@_images_alone(
    "prov-gigapath",
    title="Prov-GigaPath, tile encoder",
    licence="Apache 2.0; its model card allows research only",
    width=1536,
    patch=16,
    hub="prov-gigapath/prov-gigapath",
    patch_px=256,
    tcga="no",
    tcga_source="Xu et al., Nature 2024: pretrained on slides of Providence; TCGA is for its evaluation",
    pretraining="1.3 billion H&E and IHC tiles of 256 pixels at 0.5 micrometres per pixel from 171,189 slides of the "
    "hospitals of Providence. **No TCGA slides, say its authors.**",
)
@_images_alone(
    "h-optimus-1",
    title="H-optimus-1",
    licence="CC BY-NC-ND 4.0",
    width=1536,
    patch=14,
    hub="bioptimus/H-optimus-1",
    **H_OPTIMUS,
    tcga="unknown",
    tcga_source="its model card calls the slides proprietary and does not rule TCGA out",
    pretraining="Billions of H&E tiles at 0.5 micrometres per pixel from more than a million slides of 800,000 "
    "patients, of a collection that is not public. **Whether TCGA is among them is not stated.**",
)
@_images_alone(
    "h-optimus-0",
    title="H-optimus-0",
    licence="Apache 2.0",
    width=1536,
    patch=14,
    hub="bioptimus/H-optimus-0",
    **H_OPTIMUS,
    tcga="unknown",
    tcga_source="its model card calls the slides proprietary and does not rule TCGA out",
    pretraining="Some hundred million H&E tiles at 0.5 micrometres per pixel from more than 500,000 slides of a "
    "collection that is not public. **Whether TCGA is among them is not stated.**",
)
@_images_alone(
    "virchow2",
    title="Virchow2",
    licence="CC BY-NC-ND 4.0",
    width=2560,
    patch=14,
    hub="paige-ai/Virchow2",
    mpp=(2.0, 1.0, 0.5, 0.25),
    tcga="no",
    tcga_source="Zimmermann et al., arXiv 2408.00738: slides that Memorial Sloan Kettering Cancer Center holds",
    pretraining="3.1 million H&E and IHC slides of Memorial Sloan Kettering Cancer Center and of centres that "
    "consulted it, at four magnifications. **No TCGA slides are named.**",
)
@_images_alone(
    "uni2-h",
    title="UNI2-h",
    licence="CC BY-NC-ND 4.0",
    width=1536,
    patch=14,
    hub="MahmoodLab/UNI2-h",
    tcga="no",
    tcga_source="model card of MahmoodLab/UNI2-h: no large public collection of slides",
    pretraining="More than 200 million H&E and IHC tiles from 350,000 slides of Mass General Brigham. **No TCGA "
    f"slides, say its authors.** {NO_SCALE}",
)
@_images_alone(
    "uni",
    title="UNI",
    licence="CC BY-NC-ND 4.0",
    width=1024,
    patch=16,
    hub="MahmoodLab/UNI",
    tcga="no",
    tcga_source="Chen et al., Nature Medicine 2024: Mass-100K holds slides of two hospitals and of GTEx, none of TCGA",
    pretraining="100 million H&E tiles from 100,000 slides of Massachusetts General Hospital, Brigham and Women's "
    f"Hospital and GTEx. **No TCGA slides, say its authors.** {NO_SCALE}",
)
def load(backbone: str, pretrained: str) -> tuple:
    """Load an image tower of timm; there is no tokenizer.

    Raises
    ------
    HistoCLIPError
        If a file cannot be had or does not hold the weights of this model.
    """
    from open_clip.transform import PreprocessCfg
    from timm.models.vision_transformer import checkpoint_filter_fn

    from histoclip_lib.clip.checkpoints import fill, read_weights
    from histoclip_lib.clip.text_towers import Towers
    from histoclip_lib.clip.weights import encoder_files

    entry, tower = ENCODERS[backbone], TOWERS[backbone]
    [weights] = encoder_files(entry, pretrained)
    visual = build(tower)
    fill(visual.trunk, checkpoint_filter_fn(read_weights(weights), visual.trunk), weights)
    preprocess = PreprocessCfg(size=IMAGE, mean=entry.mean, std=entry.std, interpolation=tower.interpolation)
    return Towers(visual), None, preprocess


@_images_alone(
    "phikon-v2",
    title="Phikon-v2",
    licence="Owkin's licence for non-commercial use",
    width=1024,
    patch=16,
    hub="owkin/phikon-v2",
    files=("config.json", "model.safetensors"),
    gated=False,
    tcga="yes",
    tcga_source="Filiot et al., arXiv 2409.09173: PANCAN-XL, with TCGA, CPTAC and GTEx",
    pretraining="456 million H&E tiles at 20x from 58,359 slides of more than 100 public collections. **TCGA slides "
    "are among them.**",
)
def load_phikon_v2(backbone: str, pretrained: str) -> tuple:
    """Load Phikon-v2, a DINOv2 of transformers; there is no tokenizer.

    Raises
    ------
    HistoCLIPError
        If a file cannot be had or does not hold the weights of this model.
    """
    from open_clip.transform import PreprocessCfg
    from transformers import Dinov2Config, Dinov2Model

    from histoclip_lib.clip.checkpoints import read_weights, transformers_model
    from histoclip_lib.clip.text_towers import Towers
    from histoclip_lib.clip.towers import Dinov2Tower
    from histoclip_lib.clip.weights import encoder_files

    entry = ENCODERS[backbone]
    config, weights = encoder_files(entry, pretrained)
    try:
        sizes = Dinov2Config.from_json_file(config)
    except (OSError, ValueError, TypeError) as error:
        raise HistoCLIPError(
            f"{config}: this is not the configuration of a DINOv2 ({error}). Fetch it again."
        ) from error
    dinov2 = transformers_model(Dinov2Model, sizes, read_weights(weights), weights)
    return Towers(Dinov2Tower(dinov2)), None, PreprocessCfg(size=IMAGE, mean=entry.mean, std=entry.std)
