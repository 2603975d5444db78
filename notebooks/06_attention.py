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
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Attention

# %% tags=["parameters"]
name: str = "interactive"  # name of the run, and of its folder; a parameter file gives its own
refine_maps: bool = False  # refine maps by a guided filter before they are scored as segmentation; needs kornia
reports_dir: str = "reports"  # folder below which each run has its own

# %%
from histoclip_lib import open_run

run = open_run(name, reports_dir, globals())
attention = run.map_attention()
attention.finding()

# %% [markdown]
# Which regions support each class? The softmax weights of the patch head's last decoder layer are multiplied by the gradient
# of the class's logit, and negative values are set to 0 (Chefer et al. 2021). Tokens are first scaled to unit length, so
# that a few tokens of large norm do not dominate every map. Each class and patch has one map on the encoder's token grid,
# the mean over heads and views. Unit length was chosen from about twenty variants using the masks of the demo and of CoNSeP,
# so agreement on these two data sets is optimistic; the row *Trained head, raw tokens* is the map without this choice.

# %% [markdown]
# ## Attention on patches
#
# Open a patch and choose a class: bright regions receive more attention, the line is the outline of the class in the mask,
# and ✗ marks an error; the map of the linear probe is beside it. Patches without errors come first, with typical rather than
# hand-picked maps (the median gain in AP if masks are available), then the most confident errors.

# %%
attention.explorer()

# %% [markdown]
# All classes side by side, on held-out patches chosen by the same rule. Look at whether the classes have different maps.

# %%
attention.overlays()

# %% [markdown]
# ## Agreement with the masks
#
# Three measures, each on the patches in which the class is present. [*Pointing game*](04_results.ipynb#pointing-game): how
# often the brightest point lies inside the mask of the class. *Mass*: the fraction of the attention inside the mask. *AP*:
# average precision of the map as a classifier of pixels. The strongest reference is the linear probe applied to single
# tokens, raw or of unit length. The others are the head before training, the similarity of each token to the class name (for
# a ViT also with its last block corrected as in ClearCLIP), a spot in the centre, and uniform attention, whose AP is the
# fraction of the patch covered by the mask. Where the encoder's grid is coarse, as the 7 x 7 of most CNNs, *shifted images*
# double it: each patch is encoded four times, moved by a quarter of a cell, and the four maps are interleaved.

# %% fold="Every comparison in numbers"
attention.verdict()

# %% [markdown]
# Compare the trained head, the filled circle, with the linear probe and with the head before training.

# %%
attention.agreement()

# %% fold="Agreement in numbers"
attention.agreement_table()

# %% fold="Average precision class by class"
attention.agreement_by_class()

# %% [markdown]
# ## Does the head rely on the regions that the map highlights?
#
# The tokens that a map ranks highest, a tenth to a half of them, are removed and the head scores the rest. Values above 0
# mean that the logit falls further than after removing random tokens. If the row *raw tokens* is higher, the head relies on
# tokens of large norm, which the map of unit-length tokens plays down.

# %%
attention.deletion()

# %% [markdown]
# ## Maps as segmentation
#
# As is usual for weakly supervised segmentation, every annotated pixel is assigned to one of the classes predicted for the
# patch, with thresholds fitted on training patches. IoU and Dice pool all pixels, and fwIoU weights the classes by area.
# *Alone* is the IoU of each class by itself over all pixels. Look at how far the maps are above *Uniform*, which fills the
# whole patch with the predicted classes; *One class everywhere* fills it with the most common class.

# %%
attention.segmentation()

# %% [markdown]
# ## Best and worst maps
#
# The patches whose AP is furthest above and below the fraction covered by the mask.

# %% fold="The maps with the best and the worst agreement"
attention.best_and_worst()
