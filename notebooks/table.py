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
# # HistoCLIP
#
# HistoCLIP predicts which tissues or cell types an H&E patch shows, several at once, from the embeddings of a
# vision-language model whose weights stay frozen. Here zero-shot strategies and a trained matching of image and class
# embeddings are compared over all runs, beside the simplest predictors that they have to beat.

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
# mAcc is the mean over classes of the fraction of patches that are labelled correctly. Look at whether the intervals of
# HistoCLIP and of the linear probe overlap, and at the majority, which looks at no image. *Baseline* marks a class where
# its cosine is not negative: with OpenAI's CLIP every cosine is positive, so every class is marked. The paper gives one
# value for HistoCLIP and does not say whether its keys are the global embedding or patch tokens.

# %%
runs.table_one("mAcc")

# %% [markdown]
# mAP is the mean over classes of average precision, which ranks patches by score and needs no threshold. The paper does
# not report it.

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
