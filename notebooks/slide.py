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
# # Slide
#
# One whole slide under a saved model. What lies beside the slide as `<slide>_mask.png` or `<slide>_points.csv` is what the maps
# are scored against.

# %% tags=["parameters"]
folder: str = "predictions"  # where `histoclip predict` wrote
slide: str = ""  # folder of the slide below it

# %%
from histoclip_lib.runs.slides_chapter import open_slides

shown = open_slides(folder, slide)
shown.finding()

# %% [markdown]
# ## The slide
#
# Choose a class: yellow is a high probability, tissue without colour a low one, lines are the outlines of the mask. Wheel,
# two fingers and + and - zoom, dragging and arrow keys move. Below are the tiles with the highest probability.

# %%
shown.explorer()

# %% [markdown]
# ## The map against the mask
#
# Look at whether the coloured tiles of each class lie where the mask, below, has it.

# %%
shown.maps()

# %% [markdown]
# AUROC says how well probabilities rank tiles with the class above those without, Dice how well decisions agree. A class
# that covers a few per cent of a tile counts as present, as it does in a patch. Intervals resample blocks of 8 x 8 tiles,
# since neighbours are alike.

# %%
shown.scores()

# %% [markdown]
# ## The highest tiles
#
# Each should show its class. Where it does not, the model has learned something else.

# %%
shown.top_tiles()

# %% [markdown]
# ## Files

# %%
shown.files()
