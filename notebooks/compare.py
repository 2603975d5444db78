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
# # Two runs compared
#
# Both runs are scored on the held-out patches that they share, and resampled with the same bootstrap draws.

# %% tags=["parameters"]
first: str = "demo"  # folder of run A
second: str = "other"  # folder of run B
reports_dir: str = "reports"  # folder below which each run has its own

# %%
from histoclip_lib.runs.overview import open_comparison

compared = open_comparison(first, second, reports_dir)
compared.sides()

# %%
compared.finding()

# %%
compared.patches_note()

# %% [markdown]
# ## Method by method
#
# B minus A. Look for intervals that exclude 0.

# %%
compared.methods()

# %% [markdown]
# ## Class by class
#
# HistoCLIP with patch tokens: B minus A in accuracy and average precision, and on how many patches which run is correct.

# %%
compared.classes()

# %% [markdown]
# ## Where they disagree
#
# HistoCLIP with patch tokens, where one run is correct and the other is not: for each run the patches with the largest
# difference between the two probabilities, at most four.

# %%
compared.disagreements()

# %%
compared.patch_table()

# %% [markdown]
# ## Parameters that differ

# %%
compared.parameters()
