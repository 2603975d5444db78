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
# # Encoders side by side
#
# One data set, one split, one head, several frozen encoders. The best encoder is found on the validation set, with its
# labels: its score is optimistic, and a significant difference from the next one is what counts.

# %% tags=["parameters"]
reports_dir: str = "reports"  # folder below which each run has its own
grid: str = "params/encoders.yaml"  # parameter file of a grid that varies the encoder

# %%
from histoclip_lib.runs.encoders import open_encoders

encoders = open_encoders(grid, reports_dir)
encoders.finding()

# %% [markdown]
# ## Methods by encoder
#
# Look at whether HistoCLIP is above the linear probe on the same features with every encoder, or with some only.

# %%
encoders.methods_plot()

# %%
encoders.methods_table()

# %% [markdown]
# ## Ranks
#
# Look for encoders that no black bar joins with a better one: only they are significantly worse.

# %%
encoders.rank_plot()

# %%
encoders.pairs()

# %% [markdown]
# ## What pretraining may have seen
#
# An encoder whose pretraining held the slides of the test data can score higher for that reason alone.

# %%
encoders.pretraining()

# %% [markdown]
# ## Cost

# %%
encoders.cost()

# %% [markdown]
# ## Sensitivity to prompts
#
# Look for encoders whose zero-shot results change more with the wording than they differ from each other.

# %%
encoders.prompts()

# %% [markdown]
# ## Agreement
#
# Look for encoders that decide differently at a similar score: together they know more than either.

# %%
encoders.agreement_plot()

# %% [markdown]
# Patches that no encoder gets right are hard, or labelled wrongly.

# %%
encoders.hard_patches()

# %% [markdown]
# ## Runs

# %%
encoders.runs()
