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
# # All runs
#
# mAcc of every run below the reports folder, with its 95 % interval, beside the paper's values for its three data sets. The
# paper reports one HistoCLIP; its value is in the columns of both of ours.

# %% tags=["parameters"]
reports_dir: str = "reports"  # folder below which each run has its own
grid: str = ""  # parameter file of a grid, whose runs alone are shown

# %%
from histoclip_lib.runs.overview import open_runs

runs = open_runs(reports_dir, grid)
runs.finding()

# %%
runs.grid_table()

# %%
runs.seeds()

# %% [markdown]
# ## Table I
#
# mAcc is the mean over classes of label-wise accuracy. Look at whether the intervals of HistoCLIP and of the linear probe
# overlap, and at the majority, which looks at no image.

# %%
runs.table_one()

# %% [markdown]
# ## Runs
#
# Each links to its results.

# %%
runs.cards()

# %% [markdown]
# ## Comparisons
#
# Runs of one data set, on the validation patches that both have, and the pages of grids.

# %%
runs.links()

# %% [markdown]
# ## Settings

# %%
runs.settings()
