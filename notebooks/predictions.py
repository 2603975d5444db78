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
# # Predictions
#
# Predictions of a saved HistoCLIP model for new images. For research only: nothing here is a diagnosis.

# %% tags=["parameters"]
folder: str = "predictions"  # where `histoclip predict` wrote

# %%
from histoclip_lib.runs.prediction import open_predictions

found = open_predictions(folder)
found.finding()

# %% [markdown]
# ## Classes
#
# Two decisions are shown: at 0.5, and at the threshold fitted on the training patches. Look for classes in which they
# disagree.

# %%
found.by_class()

# %%
found.scores()

# %% [markdown]
# ## Where the evidence lies
#
# The most confident images of each class, followed by those that the model is least sure of. Bright regions raised the
# probability of the class.

# %%
found.explorer()

# %% [markdown]
# ## Unlike the training patches
#
# The out-of-distribution score is the mean cosine distance to the five nearest training patches. Glass, pen marks, another
# stain or another magnification raise it. No prediction is hidden because of it.

# %%
found.unlike_training()

# %%
found.skipped()

# %% [markdown]
# ## Files

# %%
found.files()
