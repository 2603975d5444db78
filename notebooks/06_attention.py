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
name: str = "interactive"  # name of the run, and of its folder; a parameter file gives its own
reports_dir: str = "reports"  # folder below which each run has its own

# %%
from histoclip_lib import open_run

run = open_run(name, reports_dir)
attention = run.map_attention()
attention.finding()

# %% [markdown]
# ## Over the patches
#
# Choose a patch and a class: bright is much attention, the line is the outline of the class in the mask, ✗ marks a wrong
# decision. Patches without an error come first, then the most confident errors.

# %%
attention.explorer()

# %% [markdown]
# All classes side by side, on held-out patches in which they are present and most confidently found. Look at whether the
# maps of different classes differ.

# %%
attention.overlays()

# %% [markdown]
# ## Against the masks
#
# Three measures, each for the patches in which the class is present. *Pointing game*: how often the brightest point lies
# inside the class's mask. *Mass*: the fraction of the attention that falls there. *AP*: average precision of the map as
# a classifier of pixels. The references know less: the head before training, the similarity of each token to the class's
# words, a spot in the centre, and uniform attention, which scores the fraction of the patch that the mask covers.

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
# ## The best and the worst
#
# Patches in which AP is furthest above and below the fraction that the mask covers.

# %%
attention.best_and_worst()
