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
# # The data

# %% tags=["parameters"]
name: str = "interactive"  # name of the run, and of its folder; a parameter file gives its own
dataset: str = "synthetic"  # synthetic, folder, bcss_wsss, luad_histoseg or pannuke
data_dir: str = ""  # folder of the data; synthetic needs none
classes: list[str] = []  # your own data: columns of labels.csv that are classes; empty: all that are not reserved
ignore: list[str] = []  # your own data: columns of labels.csv to leave out
group_pattern: str = ""  # your own data: a regular expression that finds the patient in the group or file name
follow_links: bool = False  # whether links may lead out of data_dir, as to a shared store of images
n_patches: int = 600  # synthetic: patches to paint [at least 1]
mask_coverage: float = 0.01  # BCSS, LUAD: part of the mask from which a class is present [above 0, at most 1]
min_nuclei: int = 1  # PanNuke: a class is present where it has this many nuclei [at least 1]
mpp: float = 0.0  # micrometres per pixel of the patches; 0: as the data set or its column mpp says [at least 0]
protocol: str = "cv"  # cv: each patch is held out once; split: one division, the paper's 8:2 [cv | split]
folds: int = 5  # of the cross-validation [at least 3]
split: str = "grouped"  # random (the paper's), grouped (no patient in two parts) or given [random | grouped | given]
val_fraction: float = 0.2  # fraction of patches to validate on in one division [above 0, below 1]
seed: int = 0  # of the split, the training and the bootstrap [at least 0]
examples: int = 8  # patches in each gallery [at least 1]
reports_dir: str = "reports"  # folder below which each run has its own

# %%
from histoclip_lib import open_run

run = open_run(name, reports_dir, globals())
data = run.describe_data()
data.finding()

# %% [markdown]
# What is classified, how often each class occurs, and how the patches are divided into training and validation sets. A
# patch can carry several labels at once.

# %%
data.about()

# %%
run.patches

# %% [markdown]
# ## Data quality
#
# Every image and mask was opened and checked. Review any problems listed here before trusting the numbers.

# %%
data.checked()

# %% [markdown]
# ## Training and validation
#
# In cross-validation, each fold is predicted once by models fitted on the other folds; a single split has one training set
# and one validation set. Patches from the same patient or source image look alike, so a model can gain by recognising a
# patient that appears on both sides. If groups are known, the last row of the table counts those. `split: random` follows
# the paper; `split: grouped` keeps each group on one side.

# %%
data.parts()

# %% [markdown]
# ## Prevalence
#
# Look for rare classes, and for classes that are more common in one set than in another.

# %%
data.prevalence()

# %% [markdown]
# ## Co-occurrence
#
# Look for pairs that nearly always occur together: a classifier can get one right merely by recognising the other.

# %%
data.co_occurrence()

# %% [markdown]
# ## Patches
#
# A random sample of the patches with their labels; with a single split, of the training patches. Filter the patches by
# class, group and covered area; each opens at its own resolution beside its mask, and two can be compared.

# %%
data.explorer()
