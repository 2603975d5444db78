"""CLIPs of pathology in layouts that open_clip and transformers read: PLIP, QuiltNet, BiomedCLIP, PathGen-CLIP."""

from __future__ import annotations

from collections.abc import Callable

from histoclip_lib.clip.registry import ENCODERS, OPENAI, encoder
from histoclip_lib.clip.weights import TRANSFORMERS_FILES, encoder_files

IMAGE = 224
OPEN_CLIP_FILES = ("open_clip_config.json", "open_clip_model.safetensors|open_clip_pytorch_model.bin")
BERT_FILES = (*OPEN_CLIP_FILES, "tokenizer.json|vocab.txt")
FROM_VIDEOS = (
    "Quilt-1M: about a million pairs of histology images and text, mostly frames of educational videos, with pairs "
    "from publications, Twitter and the web. **TCGA images may be among them.** Magnifications are mixed."
)


def _clip(name: str, patch: int, **about: object) -> Callable:
    """Register a CLIP with OpenAI's preprocessing and a joint space of width 512, of which `about` gives the rest."""
    tokens = (IMAGE // patch) ** 2
    shared = {"image_size": IMAGE, "token_shape": lambda backbone, pretrained: (tokens, 512)} | OPENAI
    return encoder(name, **(shared | about))


@_clip(
    "plip",
    patch=32,
    title="PLIP, CLIP ViT-B/32",
    licence="Not stated on its model card; its repository is for research",
    hub="vinid/plip",
    files=TRANSFORMERS_FILES,
    templates="plip",
    tcga_source="Huang et al., Nature Medicine 2023: posts of pathologists and web images, whose origin is not traced",
    pretraining="OpenPath: 208,414 pairs of pathology images and text from Twitter and from LAION, on which OpenAI's "
    "CLIP was trained further. **TCGA images may be among them.** Magnifications are mixed.",
)
def load_plip(backbone: str, pretrained: str) -> tuple:
    """Load PLIP from its repository, a local folder or a weights file beside its configuration."""
    from histoclip_lib.clip.transformers_family import load_transformers

    return load_transformers(backbone, pretrained)


def _load_open_clip(backbone: str, pretrained: str) -> tuple:
    from histoclip_lib.clip.open_clip_family import load_from_files

    config, weights, *_ = encoder_files(ENCODERS[backbone], pretrained)
    return load_from_files(backbone, config, weights)


def _quilt(name: str, title: str, hub: str, patch: int, files: tuple[str, ...]) -> None:
    _clip(
        name,
        patch,
        title=title,
        licence="MIT",
        hub=hub,
        files=files,
        templates="quiltnet",
        tcga_source="Ikezogwo et al., NeurIPS 2023: frames of videos and web images, whose origin is not traced",
        pretraining=FROM_VIDEOS,
    )(_load_open_clip)


_quilt("quiltnet-b-32", "QuiltNet, CLIP ViT-B/32", "wisdomik/QuiltNet-B-32", 32, OPEN_CLIP_FILES)
_quilt("quiltnet-b-16", "QuiltNet, CLIP ViT-B/16", "wisdomik/QuiltNet-B-16", 16, OPEN_CLIP_FILES)
_quilt("quiltnet-b-16-pmb", "QuiltNet, ViT-B/16 and PubMedBERT", "wisdomik/QuiltNet-B-16-PMB", 16, BERT_FILES)

_clip(
    "biomedclip",
    patch=16,
    title="BiomedCLIP, ViT-B/16 and PubMedBERT",
    licence="MIT; its model card allows research only",
    hub="microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
    files=BERT_FILES,
    templates="biomedclip",
    tcga_source="Zhang et al., 2023: figures of PubMed Central, some of which show TCGA slides in all likelihood",
    pretraining="PMC-15M: 15 million figures of biomedical publications with their captions, histology among many "
    "other kinds of images. **TCGA images may be among them.** Magnifications are mixed.",
)(_load_open_clip)


@_clip(
    "pathgen-clip",
    patch=16,
    title="PathGen-CLIP, CLIP ViT-B/16",
    licence="CC BY 2.0, by its model card",
    about="**Backbone: `pathgen-clip` (PathGen-CLIP, ViT-B/16)**, frozen. Its weights lie on no hub: `pretrained` "
    "names the file that the repository of PathGen-1.6M links to.",
    files=("pathgenclip.pt|pathgen-clip.pt",),
    templates="pathgen",
    tcga="yes",
    tcga_source="Sun et al., 2024 (arXiv 2407.00203): PathGen-1.6M is cut from TCGA slides",
    pretraining="PathGen-1.6M: 1.6 million patches of TCGA slides with generated captions, and earlier collections of "
    "pairs. **TCGA slides are among them, and so may those of BCSS-WSSS and PanNuke be.**",
)
def load_pathgen(backbone: str, pretrained: str) -> tuple:
    """Load PathGen-CLIP from its weights file.

    It is the ViT-B/16 with GELU that its model card names, unless a configuration beside the file says QuickGELU; where
    there is none, loading warns that the activation is not known.
    """
    from histoclip_lib.clip.open_clip_family import load as load_open_clip
    from histoclip_lib.clip.open_clip_family import quick_gelu_of_file

    [weights] = encoder_files(ENCODERS[backbone], pretrained)
    return load_open_clip("ViT-B-16-quickgelu" if quick_gelu_of_file(weights) else "ViT-B-16", str(weights))
