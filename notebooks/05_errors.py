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
# # Errors

# %% tags=["parameters"]
name: str = "interactive"  # name of the run, and of its folder; a parameter file gives its own
reports_dir: str = "reports"  # folder below which each run has its own

# %%
from histoclip_lib import open_run

run = open_run(name, reports_dir)
errors = run.find_errors()
errors.finding()

# %% [markdown]
# Which classes HistoCLIP with patch tokens confuses on held-out patches, which groups and label combinations hold its errors,
# and the patches themselves.

# %% [markdown]
# ## Small regions
#
# [Sensitivity](04_results.ipynb#sensitivity) for each class against the area of the patch that it covers in the mask. Look at
# how steeply it falls for small regions.

# %%
errors.small_regions()

# %%
errors.recall_by_area()

# %% fold="Sensitivity by covered area in numbers"
errors.recall_table()

# %% [markdown]
# ## Sensitivity and specificity
#
# At a threshold of 0.5, and below at thresholds that you can move. Look at what a higher sensitivity costs in specificity.

# %%
errors.rates()

# %%
errors.threshold_explorer()

# %% [markdown]
# ## Confusion
#
# Patches with several labels have no single confusion matrix, so each class has its own. Look at the lower left cell, the
# false negatives, and the upper right cell, the false positives.

# %%
errors.confusion()

# %% [markdown]
# The multi-label confusion matrix (Heydarian et al. 2022) combines them: a false negative is counted against each false
# positive on the same patch, or against "no predicted label" if the patch has none; a false positive on a patch without false
# negatives is counted against every true label. Look for large numbers off the diagonal.

# %% fold="Multi-label confusion matrix"
errors.multilabel_confusion()

# %% [markdown]
# Which class is predicted instead of a false negative? Each row shows the patches in which that class is a false negative;
# the columns show which absent classes were predicted there.

# %% fold="Predictions instead of each false negative"
errors.predicted_when_missed()

# %% [markdown]
# ## Does the presence of one class change the prediction of another?
#
# Among patches without the class of the column: how much more often it is predicted if the class of the row is present than
# if it is absent; and the same for sensitivity among patches with it. Asterisks mark significant differences.

# %%
errors.co_occurrence_bias()

# %%
errors.bias_note()

# %% [markdown]
# ## By group and label combination
#
# Look for single patients, source images or label combinations that account for most of the errors.

# %%
errors.by_group()

# %% fold="Exact match by label combination"
errors.by_label_set()

# %% [markdown]
# ## The most confident errors
#
# Errors, the most confident first, at most one per patch. Filter the patches by class, type of decision, group, covered area
# and confidence; each opens at its own resolution with the scores of all classes, and two can be compared.

# %%
errors.gallery()
