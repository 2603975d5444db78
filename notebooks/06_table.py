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
# # Table I, all runs
#
# mAcc of every run below the reports folder, with its 95 % interval, beside the paper's values for its three data
# sets. The paper has one HistoCLIP row; it stands beside both of ours. Runs on the offline default backbone are no
# measurement of CLIP, and their numbers say nothing of the paper's.

# %% tags=["parameters"]
reports_dir: str = "reports"  # folder below which each run has its own

# %%
from histoclip_lib.common.files import resolve
from histoclip_lib.evaluation import artifacts
from histoclip_lib.report import tables

runs = artifacts.find_runs(resolve(reports_dir))
tables.table_one_frame(runs)

# %% [markdown]
# ## What was run

# %%
tables.runs_frame(runs)
