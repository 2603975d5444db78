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
# # The data
#
# What is classified, how often each class occurs, and how the patches are divided into a training and a validation
# part. Every patch can carry several labels at once.

# %% tags=["parameters"]
name: str = "demo"  # name of the run, and of its folder
dataset: str = "synthetic"  # synthetic, folder, bcss_wsss, luad_histoseg or pannuke
data_dir: str = ""  # folder of the data; synthetic needs none
n_patches: int = 600  # synthetic: patches to paint
mask_coverage: float = 0.01  # BCSS and LUAD, val and test: a class is present where it covers this fraction of the mask
min_nuclei: int = 1  # PanNuke: a class is present where it has this many nuclei
split: str = "grouped"  # random (the paper's), grouped (no patient on both sides) or given
val_fraction: float = 0.2  # fraction of patches to validate on, for random and grouped
seed: int = 0  # of the split, the training and the bootstrap
examples: int = 8  # patches in each gallery
reports_dir: str = "reports"  # folder below which each run has its own

# %%
from IPython.display import Markdown

from histoclip_lib.common.files import run_folder
from histoclip_lib.data import registry as about
from histoclip_lib.data.checks import check_images
from histoclip_lib.data.registry import load_dataset
from histoclip_lib.data.splits import split_dataset
from histoclip_lib.evaluation import artifacts
from histoclip_lib.report import explore, figures, tables
from histoclip_lib.report.figures import patches as galleries

patches = load_dataset(dataset, data_dir, split, n_patches, mask_coverage, min_nuclei)
train, val = split_dataset(patches, split, seed, val_fraction)
check_images(patches)
folder = run_folder(name, reports_dir)
artifacts.save_split(folder / "split.csv", patches, train, val)
Markdown(about(dataset))

# %%
patches

# %% [markdown]
# ## The two parts
#
# Patches of one patient or source image look alike. Where such a group stands on both sides of the split, a model can
# score by recognising it; the last line of the table counts these groups. `split: random` is what the paper does,
# `split: grouped` keeps each group on one side.

# %%
tables.dataset_table(patches, train, val).T

# %% [markdown]
# ## How often each class is present

# %%
figures.show(figures.prevalence_bars(patches.labels, train, val, patches.classes))

# %% [markdown]
# ## Which classes occur together
#
# Where two classes nearly always occur together, a classifier can be right about one for the sake of the other.

# %%
figures.show(figures.co_occurrence_map(patches.labels, patches.classes))

# %% [markdown]
# ## Patches
#
# Drawn at random from the training part, with their labels and, where there are masks, the outlines of the classes. In
# JupyterLab every patch can be looked at, by class and group.

# %%
explore.patches(patches, static=galleries.sample_patches(patches, train, examples, seed))
