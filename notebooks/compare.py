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
# # Two runs compared
#
# Both runs are scored on the held-out patches that they share, with the same bootstrap resamples.

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
# Differences are B minus A. Look for intervals that exclude 0.

# %%
compared.methods()

# %% [markdown]
# ## Class by class
#
# HistoCLIP with patch tokens: B minus A in accuracy and average precision, and the number of patches on which each run is
# correct.

# %%
compared.classes()

# %% [markdown]
# ## Where they disagree
#
# Patches on which HistoCLIP with patch tokens is correct in one run but not in the other: for each run, up to four with the
# largest difference between the two probabilities.

# %%
compared.disagreements()

# %%
compared.patch_table()

# %% [markdown]
# ## Parameters that differ

# %%
compared.parameters()
