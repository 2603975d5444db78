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
# # Predictions
#
# What a saved HistoCLIP model says of images that it was not trained on. It is for research: nothing here is a diagnosis.

# %% tags=["parameters"]
folder: str = "predictions"  # where `histoclip predict` wrote

# %%
from histoclip_lib.runs.prediction import open_predictions

found = open_predictions(folder)
found.finding()

# %% [markdown]
# ## Classes
#
# A class is present where its probability is at least 0.5, or at least the threshold that was fitted on the training
# patches. Look at where the two disagree.

# %%
found.by_class()

# %%
found.scores()

# %% [markdown]
# ## Where the evidence lies
#
# The most confident images of each class, then those on which the model is least sure. Bright places raised the probability
# of the class.

# %%
found.explorer()

# %% [markdown]
# ## Unlike the training patches
#
# The out-of-distribution score is the mean cosine distance to the five nearest training patches. Glass, pen marks, another
# stain or another magnification raise it. No prediction is hidden for it.

# %%
found.unlike_training()

# %%
found.skipped()

# %% [markdown]
# ## Files

# %%
found.files()
