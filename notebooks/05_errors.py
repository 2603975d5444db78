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
# What HistoCLIP with patch tokens confuses with what on held-out patches, in which groups and label sets its errors lie,
# and the patches themselves.

# %% [markdown]
# ## How much of a class must be there?
#
# Recall ([sensitivity](04_results.ipynb#sensitivity)) of each class against the share of the patch that it covers in the mask. Look at how steeply it falls for small
# regions.

# %%
errors.small_regions()

# %%
errors.recall_by_area()

# %%
errors.recall_table()

# %% [markdown]
# ## Sensitivity and specificity
#
# At the threshold 0.5, and below at one of your own for each class. Look at what a higher sensitivity costs in specificity.

# %%
errors.rates()

# %%
errors.threshold_explorer()

# %% [markdown]
# ## Confusion
#
# With several labels on a patch there is no single confusion matrix. Each class has its own; look at the lower left cell,
# the false negatives, and the upper right one, the false positives.

# %%
errors.confusion()

# %% [markdown]
# The multi-label confusion matrix (Heydarian et al. 2022) combines them: a missed label is counted against the labels that
# were wrongly predicted on the same patch, and where there were none, against "no predicted label". Look for large numbers
# off the diagonal.

# %%
errors.multilabel_confusion()

# %% [markdown]
# When a class is missed, what is predicted in its place? Each line takes the patches in which that class is present and
# was missed; the columns say which absent classes were predicted there.

# %%
errors.predicted_when_missed()

# %% [markdown]
# ## Does the presence of one class change the prediction of another?
#
# Among patches without the class of the column: how much more often it is predicted where the class of the line is
# present than where it is absent; and the same for recall among patches that have it. Look for the asterisks.

# %%
errors.co_occurrence_bias()

# %%
errors.bias_note()

# %% [markdown]
# ## By group and by label set
#
# Look for single patients or source images, and for combinations of labels, that hold most of the errors.

# %%
errors.by_group()

# %%
errors.by_label_set()

# %% [markdown]
# ## The most confident errors
#
# Wrong decisions, the most confident first, at most one for each patch. On the page, patches can be filtered by class,
# kind of decision, group, covered area and confidence; each opens at its own resolution with the scores of all its classes,
# and two can be compared.

# %%
errors.gallery()
