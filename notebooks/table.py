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
# # HistoCLIP
#
# HistoCLIP predicts which tissues or cell types are present in an H&E patch, often several at once, from the embeddings of a
# frozen vision-language model. This page compares zero-shot strategies, a trained head that matches image and class
# embeddings, and the simple baselines that they have to beat, in all runs.

# %% tags=["parameters"]
reports_dir: str = "reports"  # folder below which each run has its own
grid: str = ""  # parameter file of a grid, whose runs alone are shown

# %%
from histoclip_lib.runs.overview import open_runs

runs = open_runs(reports_dir, grid)
runs.finding()

# %% [markdown]
# ## Table I
#
# mAcc is the mean over classes of the fraction of patches that are labelled correctly. Compare HistoCLIP with the linear
# probe and with the majority, which ignores the image. *Baseline* predicts a class if its cosine is not negative; with
# OpenAI's CLIP every cosine is positive, so it predicts every class. The paper gives one value for HistoCLIP and does not say
# whether its keys are the global embedding or patch tokens.

# %%
runs.table_one("mAcc")

# %% [markdown]
# mAP is the mean over classes of average precision, which measures ranking and needs no threshold. The paper does not
# report it.

# %%
runs.table_one("mAP")

# %% [markdown]
# ## Runs

# %%
runs.list()

# %%
runs.seeds()

# %%
runs.across()

# %%
runs.across_table()

# %%
runs.ranks()

# %%
runs.ranks_note()

# %%
runs.links()

# %%
runs.cite()
