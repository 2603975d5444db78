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
#
# What a saved HistoCLIP model says of whole slides. Each tile shows the field of a training patch in micrometres; glass and pen
# marks are left out before. It is for research: nothing here is a diagnosis.

# %% tags=["parameters"]
folder: str = "predictions"  # where `histoclip predict` wrote

# %%
from histoclip_lib.runs.slides_chapter import open_slides

shown = open_slides(folder)
shown.finding()

# %% [markdown]
# ## Pages of the slides
#
# Each with a viewer, the map of each class and the highest tiles.

# %%
shown.pages()

# %% [markdown]
# ## Over slides
#
# The share of each slide's tissue that lies in positive tiles. Look at slides of which many tiles are unlike the training
# patches first: there the shares mean least.

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
