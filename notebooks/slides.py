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
#
# Predictions of a saved HistoCLIP model for whole slides. Each tile covers the same field in micrometres as a training patch;
# glass and pen marks are left out. For research only: nothing here is a diagnosis.

# %% tags=["parameters"]
folder: str = "predictions"  # where `histoclip predict` wrote

# %%
from histoclip_lib.runs.chapters.slides import open_slides

shown = open_slides(folder)
shown.finding()

# %% [markdown]
# ## Pages of the slides
#
# Each has a viewer, the map of each class and the tiles with the highest probability.

# %%
shown.pages()

# %% [markdown]
# ## Over slides
#
# The fraction of each slide's tissue that lies in tiles in which a class is predicted; a tile counts as a whole, so this is
# not the area of the class. First look at slides with many out-of-distribution tiles: their fractions are the least
# reliable.

# %%
shown.burdens()

# %%
shown.table()

# %%
shown.failed()

# %%
shown.by_metadata()

# %%
shown.target()

# %% [markdown]
# ## Files

# %%
shown.files()
