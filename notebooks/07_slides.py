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
# # Slides

# %% tags=["parameters"]
name: str = "interactive"  # name of the run, and of its folder; a parameter file gives its own
reports_dir: str = "reports"  # folder below which each run has its own
slides: str = ""  # a slide, a folder of slides or a slides.csv; `painted` paints one; empty: none
least_cover: float = 0.02  # share of a tile from which a class in a slide's mask counts as present [above 0, at most 1]

# %%
from histoclip_lib import open_run

run = open_run(name, reports_dir, globals())
shown = run.predict_slides()
shown.finding()

# %% [markdown]
# Whole slides under the run's model. Each tile shows the field of a training patch in micrometres; glass and pen marks are
# left out before. What lies beside a slide as `<slide>_mask.png` or `<slide>_points.csv` is what the maps are scored
# against.

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
# ## Over slides
#
# The share of each slide's tissue that lies in positive tiles.

# %%
shown.burdens()

# %%
shown.table()

# %%
shown.failed()

# %% [markdown]
# ## Files

# %%
shown.files()
