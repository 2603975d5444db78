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

# %% tags=["parameters"]
name: str = "interactive"  # name of the run, and of its folder; a parameter file gives its own
missed_share: float = 0.1  # of each class's labels that thresholds with a promise may miss [above 0, below 1]
reports_dir: str = "reports"  # folder below which each run has its own

# %%
from histoclip_lib import open_run

run = open_run(name, reports_dir, globals())
results = run.evaluate()
results.finding()

# %% [markdown]
# Every method is fitted and scored on the same patches. [mAcc](#macc), eq. (6), is the mean over classes of label-wise
# accuracy at $\sigma \ge 0.5$. It rewards predicting the common answer, so baselines that ignore the image are in the same
# table, and so are strong models on the same frozen features: a [linear probe](#linear-probe) (logistic regression), nearest
# neighbours, a Gaussian discriminant and a probe that both use the classes' words, a two-layer perceptron of the head's
# size, and the head with random queries in place of the words. [mAP](#map) judges the ranking,
# [cross-entropy](#cross-entropy) and [Brier score](#brier-score) judge probabilities; lower is better.

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
# ## Which differences are real?
#
# HistoCLIP with patch tokens minus every other method, on the same patches: the difference, its interval from the same
# bootstrap draws, and p of a permutation test that swaps the two methods' predictions for whole groups. A difference counts
# where the corrected p is below 0.05, on this page and on every other.

# %%
results.differences()

# %%
results.correction_note()

# %% [markdown]
# Any two methods in mAcc: the one of the line minus the one of the column.

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
# ## By subgroup
#
# Does it work alike everywhere? Every metric by tissue, and by each `meta_` column. Look for intervals that do not overlap;
# the test below says whether the largest difference is more than chance.

# %%
results.by_subgroup()

# %%
results.subgroup_note()

# %% [markdown]
# ## Thresholds and calibration
#
# Everything above decides at 0.5, as the paper does. Here a temperature, Platt scaling (a slope and an intercept for each
# class) and a threshold for each class are fitted on predictions inside each training set, by models that had not seen the
# patch, and applied to what is held out. A fitted threshold is not a gain by itself: on few patches it can cost.

# %%
results.thresholds()

# %% [markdown]
# Accuracy and F1 of HistoCLIP with patch tokens at every threshold. Look at how flat the curves are around 0.5.

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
# The mean of head and probe is a method of its own. Look at whether its cross-entropy is below both.

# %%
results.ensemble_note()

# %% [markdown]
# ## Thresholds with a promise
#
# Where a missed label costs more than a false alarm, a threshold can be chosen by what it misses: conformal risk control
# (Angelopoulos et al. 2024) on the out-of-fold predictions, with groups as units. Look at what is missed on the validation
# part, and at the price in false positives beside those at 0.5. The last column tries the promise on a random
# fifth of the training groups with the thresholds of the others, many times over.

# %%
results.missed_labels()

# %%
results.missed_note()

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
# the difference also contains the chance of which patches are in the two validation sets.

# %%
results.split_table()

# %%
results.split_note()

# %% [markdown]
# ## The saved model
#
# The head on patch tokens with all that it needs, in the folder `model`: `histoclip predict` applies it to new patches and
# slides. Its card says what a user must know.

# %%
results.save_model()

# %% [markdown]
# ## Files of this run
#
# The numbers, the predictions and the heads of this run, as far as they are written when this notebook is executed.

# %%
results.files()

# %% [markdown]
# ## Glossary

# %%
results.glossary()
