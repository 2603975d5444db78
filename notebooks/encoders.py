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
# # Encoders side by side
#
# One data set, one split and one head with several frozen encoders. The best encoder is picked on the patches that it is
# scored on, so its score is optimistic. What counts is whether it differs significantly from the next one.

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
# Look at whether HistoCLIP scores higher than the linear probe with every encoder, or only with some.

# %%
encoders.methods_plot()

# %%
encoders.methods_table()

# %% [markdown]
# ## Ranks
#
# Encoders joined by a black bar are not significantly different.

# %%
encoders.rank_plot()

# %%
encoders.pairs()

# %% [markdown]
# ## What pretraining may have seen
#
# An encoder that has seen the test slides in pretraining may score higher for that reason alone.

# %%
encoders.pretraining()

# %% [markdown]
# ## Cost

# %%
encoders.cost()

# %% [markdown]
# ## Sensitivity to prompts
#
# Look for encoders whose zero-shot scores vary more with the wording than between encoders.

# %%
encoders.prompts()

# %% [markdown]
# ## Agreement
#
# Look for encoders with similar scores and different decisions: combining them may help.

# %%
encoders.agreement_plot()

# %% [markdown]
# Patches that every encoder gets wrong are hard, or mislabelled.

# %%
encoders.hard_patches()

# %% [markdown]
# ## Runs

# %%
encoders.runs()
