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
# # Evaluation
#
# Every row is scored on the same validation patches. mAcc, eq. (6), is the mean over classes of label-wise accuracy at
# $\sigma \ge 0.5$. It rewards predicting the common answer, so the rows that look at no image stand in the same
# table, and so does a linear probe: logistic regression on the same frozen features.

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
backbone: str = "lite0-minilm"  # lite0-minilm, an open_clip name, hf-hub:OWNER/NAME or local-dir:FOLDER
pretrained: str = ""  # open_clip tag or weights file; empty for the others
device: str = "auto"  # auto (CUDA where there is one), cpu, cuda or cuda:N
precision: str = "auto"  # auto (amp on CUDA, else fp32), fp32 or amp
views: int = 8  # 1 to 8: flips and rotations of each patch to encode; time and cache grow with it
encode_batch_size: int = 32  # images in one pass of the encoder
resamples: int = 1000  # bootstrap samples behind each interval
examples: int = 8  # patches in each gallery
reports_dir: str = "reports"  # folder below which each run has its own

# %%
from IPython.display import Markdown

from histoclip_lib import baselines, figures, galleries, metrics, results
from histoclip_lib.clip import load_clip
from histoclip_lib.cmm import load_cmm
from histoclip_lib.datasets import load_dataset, split_dataset
from histoclip_lib.features import encode_dataset
from histoclip_lib.files import run_folder
from histoclip_lib.training import predict

patches = load_dataset(dataset, data_dir, split, n_patches, mask_coverage, min_nuclei)
train, val = split_dataset(patches, split, seed, val_fraction)
clip = load_clip(backbone, pretrained, device, precision)
features = encode_dataset(clip, patches, views, encode_batch_size)
folder = run_folder(name, reports_dir)
rows = baselines.trivial_rows(patches.labels[train], len(val))
rows |= baselines.tissue_rows(patches, train, val)
rows |= results.load_predictions(folder / "zero_shot.parquet", patches, val)
probe = baselines.fit_linear_probe(features, patches, train, seed)
rows["linear_probe"] = probe.predict(features, val)
for kind in ("global", "patch"):
    head = load_cmm(folder / f"cmm_{kind}.safetensors", patches.classes, backbone)
    rows[f"histoclip_{kind}"] = predict(head, features, kind, val, clip.device)

# %%
results.save_predictions(folder / "predictions.parquet", rows, patches, val)
scored = results.evaluate_rows(rows, patches, val, resamples, seed)
results.write_metrics(
    folder / "metrics.json",
    patches,
    scored,
    name=name,
    dataset=dataset,
    backbone=backbone,
    pretrained=pretrained,
    split=split,
    seed=seed,
    n_train=len(train),
    n_val=len(val),
)
Markdown(results.verdict(rows, patches, val, resamples, seed))

# %% [markdown]
# ## All rows
#
# Patches of one patient or source image are alike, so whole groups are resampled where they are known. mAP and AUROC
# rank by score and ignore the threshold; a row without scores ranks all patches alike.

# %%
results.rows_table(scored, dataset)

# %%
Markdown(results.interval_note(patches, val) + " " + probe.about())

# %%
figures.show(figures.forest_plot(scored, results.ROW_LABELS))

# %% [markdown]
# ## Class by class

# %%
figures.show(figures.per_class_map(results.per_class_table(scored, "accuracy"), "accuracy"))

# %%
figures.show(figures.per_class_map(results.per_class_table(scored, "ap"), "average precision"))

# %% [markdown]
# ## Confusion
#
# With several labels on a patch there is no single confusion matrix. Each class has its own, here for HistoCLIP with
# patch keys.

# %%
truth, best = patches.labels[val], rows["histoclip_patch"]
figures.show(figures.confusion_grid(metrics.confusion(truth, best.decisions), patches.classes, "histoclip_patch"))

# %% [markdown]
# When a class is missed, what is predicted in its place? Each row takes the patches in which that class is present and
# was missed; the columns say which absent classes were predicted there.

# %%
figures.show(figures.missed_class_map(*metrics.predicted_when_missed(truth, best.decisions), patches.classes))

# %% [markdown]
# ## The most confident errors
#
# Wrong decisions of HistoCLIP with patch keys, the surest first, at most one for each patch.

# %%
figures.show(galleries.confident_errors(patches, val, best.scores, examples))
