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
# The run's model applied to whole slides. Each tile has the same field of view in micrometres as a training patch; glass and
# pen marks are excluded. The maps are scored against `<slide>_mask.png` or `<slide>_points.csv` next to the slide.

# %% [markdown]
# ## The slide
#
# Choose a class: yellow is a high probability, uncoloured tissue a low one, and lines are the outlines of the mask. Zoom
# with the wheel, two fingers or + and -; move by dragging or with the arrow keys. The tiles with the highest probability are
# below.

# %%
shown.explorer()

# %% [markdown]
# ## Maps and mask
#
# Look at whether the coloured tiles of each class match the mask below.

# %%
shown.maps()

# %% [markdown]
# AUROC measures how well probabilities rank tiles with the class above tiles without it; Dice measures how well decisions
# agree with the mask. A class that covers a few per cent of a tile counts as present, as in a patch. Intervals resample
# blocks of 8 x 8 tiles, since neighbouring tiles are alike.

# %%
shown.scores()

# %% [markdown]
# ## Tiles with the highest probability
#
# Each should show its class; if not, the model has learned something else.

# %%
shown.top_tiles()

# %% [markdown]
# ## All slides
#
# The fraction of each slide's tissue in tiles in which a class is predicted. A tile counts as a whole even if the class
# covers a small part of it, so this is not the area of the class.

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
