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
# # Results

# %% tags=["parameters"]
name: str = "interactive"  # name of the run, and of its folder; a parameter file gives its own
missed_share: float = 0.1  # false-negative rate that risk-controlled thresholds may have [above 0, below 1]
reports_dir: str = "reports"  # folder below which each run has its own

# %%
from histoclip_lib import open_run

run = open_run(name, reports_dir, globals())
results = run.evaluate()
results.finding()

# %% [markdown]
# All methods are scored on the same held-out patches, and those that are trained are trained on the same training patches.
# [mAcc](#macc), eq. (6), is the mean over classes of label-wise accuracy at $\sigma \ge 0.5$. It rewards predicting the more
# frequent label, so the comparison includes baselines that ignore the image, and strong models on the same frozen features:
# a [linear probe](#linear-probe) (logistic regression), nearest neighbours, a Gaussian discriminant and a probe that can
# both use the class names, a two-layer perceptron of the same size as the head, and the head with random queries instead of
# class names. [mAP](#map) measures ranking; [cross-entropy](#cross-entropy) and [Brier score](#brier-score) measure the
# quality of probabilities, and lower is better.

# %% [markdown]
# ## All methods
#
# The dashed line is the linear probe on the same features; the next section tests whether HistoCLIP differs from it.

# %%
results.forest_plot()

# %%
results.table()

# %%
results.interval_note()

# %% [markdown]
# ## Which differences are significant?
#
# HistoCLIP with patch tokens minus each other method on the same patches: the difference, its bootstrap interval, and p from
# a permutation test that swaps the predictions of the two methods for whole groups (single patches if groups are unknown). A
# difference is called significant if its corrected p is below 0.05; if no p is shown, on this and other pages, if its 95%
# interval excludes 0.

# %% fold="HistoCLIP against every other method"
results.differences()

# %%
results.correction_note()

# %% fold="All pairwise differences"
results.all_pairs()

# %% [markdown]
# ## Comparison with the paper

# %%
results.beside_the_paper()

# %%
results.paper_note()

# %% [markdown]
# ## Class by class
#
# Look for classes in which HistoCLIP is less accurate than the majority, and for classes that no method ranks well.

# %%
results.per_class("accuracy")

# %% fold="Average precision of every method and class"
results.per_class("ap")

# %% [markdown]
# ## By subgroup
#
# Is performance the same in all subgroups? Every metric by tissue and by each `meta_` column. Look for intervals that do not
# overlap; the test below says whether the largest difference is significant.

# %%
results.by_subgroup()

# %%
results.subgroup_note()

# %% [markdown]
# ## Thresholds and calibration
#
# Everything above uses a threshold of 0.5, as the paper does. Here a temperature, Platt scaling (a slope and an intercept for
# each class) and a threshold for each class are fitted on out-of-fold predictions within each training set, and applied to
# the held-out patches. Fitted thresholds do not always help: with few patches they can lower the scores.

# %% fold="Scores at 0.5 and at fitted thresholds"
results.thresholds()

# %% fold="Results at other thresholds"
results.threshold_explorer()

# %% fold="Reliability diagrams"
results.reliability()

# %% fold="Calibration errors before and after"
results.calibration()

# %% fold="The fitted temperatures"
results.temperature_note()

# %%
results.ensemble_note()

# %% [markdown]
# ## Thresholds that limit false negatives
#
# If a false negative costs more than a false positive, the threshold can be chosen to limit the false-negative rate:
# conformal risk control (Angelopoulos et al. 2024) on the out-of-fold predictions, with groups as units if known. The table
# compares both rates with those at 0.5; its last column tests the guarantee on random fifths of the training groups.

# %% fold="False-negative and false-positive rates"
results.missed_labels()

# %% fold="What is guaranteed"
results.missed_note()

# %% fold="Precision-recall curves"
results.precision_recall()

# %% [markdown]
# ## Leakage
#
# Does any scored patch have a copy or a near-copy among the patches its models were fitted on? The frozen features find the
# nearest training patch; the pixels decide.

# %%
results.leakage_note()

# %% fold="Similarity of nearest patches"
results.leakage_histogram()

# %% fold="The most similar pairs, listed"
results.leakage_table()

# %% fold="The most similar pairs, shown"
results.leakage_pairs()

# %% [markdown]
# The same models with the other type of split. Patches of one patient on both sides inflate the scores of a random split; the
# difference also reflects chance, as the two splits do not score the same patches.

# %% fold="Scores with a random and with a grouped split"
results.split_table()

# %% fold="Differences between the splits"
results.split_note()

# %% [markdown]
# ## The saved model
#
# The folder `model` holds the head on patch tokens and everything it needs; `histoclip predict` applies it to new patches and
# slides. Read its model card before use.

# %% fold="Model card"
results.save_model()

# %% [markdown]
# ## Files of this run
#
# The numbers, predictions and heads of this run that existed when this notebook was executed.

# %% fold="List of files"
results.files()

# %% [markdown]
# ## Glossary

# %% fold="What the terms mean"
results.glossary()
