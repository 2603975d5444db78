# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Attention
#
# Where each class finds its evidence. The softmax weights of the patch head's last decoder layer say what was read;
# multiplied by the gradient of the class's logit, negative values cut off, they keep what spoke for the class
# (Chefer et al. 2021). One map for each class and patch, the mean over heads and views, on the encoder's token grid.

# %% tags=["parameters"]
name: str = "demo"  # name of the run, and of its folder
dataset: str = "synthetic"  # synthetic, folder, bcss_wsss, luad_histoseg or pannuke
data_dir: str = ""  # folder of the data; synthetic needs none
n_patches: int = 600  # synthetic: patches to paint
mask_coverage: float = 0.01  # BCSS and LUAD, val and test: a class is present where it covers this fraction of the mask
min_nuclei: int = 1  # PanNuke: a class is present where it has this many nuclei
split: str = "grouped"  # random (the paper's), grouped (no patient on both sides) or given
val_fraction: float = 0.2  # fraction of patches to validate on, for random and grouped
seed: int = 0  # of the split, the training and the bootstrap
backbone: str = "lite0-minilm"  # lite0-minilm, an open_clip name, hf-hub:OWNER/NAME or local-dir:FOLDER
pretrained: str = ""  # open_clip tag or weights file; empty for the others
device: str = "auto"  # auto (CUDA where there is one), cpu, cuda or cuda:N
precision: str = "auto"  # auto (amp on CUDA, else fp32), fp32 or amp
views: int = 8  # 1 to 8: flips and rotations of each patch to encode; time and cache grow with it
encode_batch_size: int = 32  # images in one pass of the encoder
resamples: int = 1000  # bootstrap samples behind each interval
examples: int = 8  # patches in each gallery
reports_dir: str = "reports"  # folder below which each run has its own

# %%
from IPython.display import Markdown, display

from histoclip_lib.clip.encoder import load_clip
from histoclip_lib.common.files import run_folder
from histoclip_lib.data.registry import load_dataset
from histoclip_lib.data.splits import split_dataset
from histoclip_lib.evaluation import localisation as attention_scores
from histoclip_lib.evaluation import uncertainty
from histoclip_lib.features.encode import encode_dataset
from histoclip_lib.features.reader import FeatureReader
from histoclip_lib.models.attention import attention_maps, maps_to_compare
from histoclip_lib.models.cmm import load_cmm
from histoclip_lib.models.training import predict
from histoclip_lib.report import explore, figures, page_explorers
from histoclip_lib.report.figures import patches as galleries
from histoclip_lib.report.figures.patches import save_thumbnail

patches = load_dataset(dataset, data_dir, split, n_patches, mask_coverage, min_nuclei)
train, val = split_dataset(patches, split, seed, val_fraction)
clip = load_clip(backbone, pretrained, device, precision)
features = encode_dataset(clip, patches, views, encode_batch_size)
folder = run_folder(name, reports_dir)
head = load_cmm(folder / "cmm_patch.safetensors", patches.classes, backbone)
probabilities = predict(head, features, "patch", val, clip.device).scores
reader = FeatureReader(features.tokens, clip.device)
maps = attention_maps(head, reader, val)
Markdown(f"The map of a patch has {features.grid} x {features.grid} cells.")

# %% [markdown]
# ## Over the patches
#
# Choose a patch and a class to see where the class finds its evidence: bright is much, the line is the outline of the
# class in the mask, ✗ marks a wrong decision. Patches without an error come first, then the most confident errors; in
# JupyterLab any validation patch can be chosen.

# %%
explored = page_explorers.choose_to_explore(patches.labels[val], probabilities)
on_page = page_explorers.attention_explorer(patches, val, maps, probabilities, explored)
explore.attention(patches, val, maps, probabilities, explored, static=on_page)

# %% [markdown]
# All classes side by side, on validation patches in which they are present and most surely found.

# %%
chosen = galleries.choose_for_attention(patches.labels[val], probabilities, (examples + 1) // 2)
save_thumbnail(folder / "thumbnail.png", patches, val, maps, probabilities, chosen)
for overlay in galleries.attention_figures(patches, val, maps, probabilities, chosen):
    figures.show(overlay)

# %% [markdown]
# ## Against the masks
#
# Three measures, each for the patches in which the class is present. *Pointing game*: how often the brightest place lies
# inside the class's mask. *Mass*: the fraction of the attention that falls there. *AP*: average precision of the map as
# a classifier of pixels. Beside the trained head stand maps that know less: the head before training, the similarity of
# each token to the class's words, a spot in the centre, and uniform attention, which scores the fraction of the patch
# that the mask covers.

# %%
if patches.has_masks:
    compared = maps_to_compare(head, reader, val, seed)
    scores = attention_scores.score_maps(compared, patches, val)
    units = uncertainty.bootstrap_units(patches, val)
    display(Markdown(attention_scores.attention_verdict(scores, units, resamples, seed)))
    figures.show(figures.map_agreement(scores, patches.classes))
else:
    display(Markdown("This data set has no masks, so attention can only be looked at."))

# %%
if patches.has_masks:
    display(attention_scores.agreement_table(scores, units, resamples, seed))

# %%
if patches.has_masks:
    display(attention_scores.agreement_by_class(scores, patches.classes, "ap").round(3))

# %% [markdown]
# ## The best and the worst
#
# Patches where AP is furthest above and below the share that the mask covers.

# %%
if patches.has_masks:
    for cases in attention_scores.best_and_worst(scores.gain(), (examples + 1) // 2):
        figures.show(galleries.attention_cases(patches, val, compared, scores, probabilities, cases))
