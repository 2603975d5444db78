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
# # Slide
#
# The predictions of a saved model for one whole slide. The maps are scored against `<slide>_mask.png` or
# `<slide>_points.csv` if one of them is beside the slide.

# %% tags=["parameters"]
folder: str = "predictions"  # where `histoclip predict` wrote
slide: str = ""  # folder of the slide below it

# %%
from histoclip_lib.runs.chapters.slides import open_slides

shown = open_slides(folder, slide)
shown.finding()

# %% [markdown]
# ## The slide
#
# Choose a class. Yellow marks a high probability, and lines are the outlines of the mask. Zoom with the wheel, two fingers or
# + and -; move by dragging or with the arrow keys. The tiles with the highest probability are listed below.

# %%
shown.explorer()

# %% [markdown]
# ## The map against the mask
#
# Look at whether the coloured tiles of each class lie where the mask below shows it.

# %%
shown.maps()

# %% [markdown]
# AUROC measures how well the probabilities rank tiles with the class above those without; Dice measures how well the
# decisions agree. As in a patch, a class counts as present if it covers a few per cent of a tile. Intervals resample blocks
# of 8 x 8 tiles, since neighbouring tiles are alike.

# %%
shown.scores()

# %% [markdown]
# ## Tiles with the highest probability
#
# Each should show its class. If it does not, the model has learned something else.

# %%
shown.top_tiles()

# %% [markdown]
# ## Files

# %%
shown.files()
