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
# # Results
#
# Every method is fitted and scored on the same patches. mAcc, eq. (6), is the mean over classes of label-wise accuracy at
# $\sigma \ge 0.5$. It rewards predicting the common answer, so methods that look at no image are in the same table, and so
# are strong models on the same frozen features: a linear probe (logistic regression), nearest neighbours, a two-layer
# perceptron of the head's size, and the head with random queries in place of the classes' words.

# %% tags=["parameters"]
name: str = "interactive"  # name of the run, and of its folder; a parameter file gives its own
reports_dir: str = "reports"  # folder below which each run has its own

# %%
from histoclip_lib import open_run

run = open_run(name, reports_dir)
results = run.evaluate()
results.finding()

# %% [markdown]
# ## All methods
#
# Look at whether the interval of HistoCLIP reaches beyond the dashed line, the linear probe on the same features.

# %%
results.forest_plot()

# %%
results.table()

# %%
results.interval_note()

# %% [markdown]
# ## Is one method better than another?
#
# HistoCLIP with patch keys minus every other method, on the same patches: the difference, its interval from the same
# bootstrap draws, and a permutation test that swaps the two methods' predictions for whole groups.

# %%
results.differences()

# %%
results.correction_note()

# %% [markdown]
# Any two methods in mAcc: the one of the line minus the one of the column. Look for the asterisks, which mark a corrected
# p below 0.05.

# %%
results.all_pairs()

# %% [markdown]
# ## Beside the paper

# %%
results.beside_the_paper()

# %%
results.paper_note()

# %% [markdown]
# ## Class by class
#
# Look for classes in which HistoCLIP is below the majority's accuracy, and for those that no method ranks well.

# %%
results.per_class("accuracy")

# %%
results.per_class("ap")

# %% [markdown]
# ## Thresholds and calibration
#
# Everything above decides at 0.5, as the paper does. Here a temperature and a threshold for each class are fitted on
# predictions inside each training part, by models that had not seen the patch, and applied to what is held out. A fitted
# threshold is not a gain by itself: on few patches it can cost.

# %%
results.thresholds()

# %% [markdown]
# Accuracy and F1 of HistoCLIP with patch keys at every threshold. Look at how flat the curves are around 0.5.

# %%
results.threshold_explorer()

# %% [markdown]
# Look at how far the points are from the diagonal: above it the method is underconfident, below it overconfident.

# %%
results.reliability()

# %%
results.calibration()

# %%
results.temperature_note()

# %% [markdown]
# Precision against recall of each class. Look at the distance from the dashed line, the prevalence, which a method without
# skill reaches.

# %%
results.precision_recall()

# %% [markdown]
# ## Leakage
#
# Does a patch that is scored have a copy, or nearly one, among those that its models were fitted on? The frozen features find the nearest training
# patch, the pixels decide.

# %%
results.leakage_note()

# %% [markdown]
# Look for mass to the right of the dashed line: those pairs count as near-duplicates.

# %%
results.leakage_histogram()

# %%
results.leakage_table()

# %%
results.leakage_pairs()

# %% [markdown]
# The same models under the other way to split. Patches of one patient in both parts inflate the scores of a random split;
# the difference also contains the chance of which patches are in the two validation parts.

# %%
results.split_table()

# %%
results.split_note()

# %% [markdown]
# ## Model card
#
# What a user of the two heads must know; also written as `model_card.md`.

# %%
results.model_card()

# %% [markdown]
# ## Files of this run
#
# The numbers, the predictions and the heads of this run, as far as they are written when this notebook is executed.

# %%
results.files()
