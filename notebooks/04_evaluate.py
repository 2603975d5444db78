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
# table, and so do strong models on the same frozen features: a linear probe (logistic regression), nearest neighbours, a
# two-layer perceptron of the head's size, and the head with random queries in place of the classes' words.

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
epochs: int = 100  # passes over the training part; the paper's 800 overfit a few hundred patches
warmup_epochs: int = 5  # of these, with a rising learning rate
learning_rate: float = 1e-3  # highest learning rate
resamples: int = 1000  # bootstrap samples behind each interval
examples: int = 8  # patches in each gallery
reports_dir: str = "reports"  # folder below which each run has its own

# %%
from IPython.display import Markdown, display

from histoclip_lib.clip.encoder import load_clip
from histoclip_lib.common.files import run_folder
from histoclip_lib.data.registry import load_dataset
from histoclip_lib.data.splits import split_dataset
from histoclip_lib.evaluation import artifacts, calibration, comparisons, confusion, leakage, methods, uncertainty
from histoclip_lib.evaluation import leakage as split_gap
from histoclip_lib.evaluation import studies as study_tables
from histoclip_lib.features.encode import encode_dataset
from histoclip_lib.models import baselines
from histoclip_lib.models.cmm import load_cmm
from histoclip_lib.models.studies import load_studies
from histoclip_lib.models.training import predict
from histoclip_lib.report import explore, figures, page_explorers, tables
from histoclip_lib.report import tables as paper
from histoclip_lib.report.figures import patches as galleries
from histoclip_lib.report.model_card import write_model_card

# %%
patches = load_dataset(dataset, data_dir, split, n_patches, mask_coverage, min_nuclei)
train, val = split_dataset(patches, split, seed, val_fraction)
clip = load_clip(backbone, pretrained, device, precision)
features = encode_dataset(clip, patches, views, encode_batch_size)
folder = run_folder(name, reports_dir)
rows = baselines.trivial_rows(patches.labels[train], len(val))
rows |= baselines.tissue_rows(patches, train, val)
rows |= artifacts.load_predictions(folder / "zero_shot.parquet", patches, val)
probe = baselines.fit_linear_probe(features, patches, train, seed)
neighbours = baselines.fit_knn(features, patches, train, seed)
rows |= {"linear_probe": probe.predict(features, val), "knn": neighbours.predict(features, val)}
finished = load_studies(folder / "studies.parquet", patches)
rows |= study_tables.rows_of(finished)
for kind in ("global", "patch"):
    head = load_cmm(folder / f"cmm_{kind}.safetensors", patches.classes, backbone)
    rows[f"histoclip_{kind}"] = predict(head, features, kind, val, clip.device)

# %%
artifacts.save_predictions(folder / "predictions.parquet", rows, patches, val)
scored = artifacts.evaluate_rows(rows, patches, val, resamples, seed)
artifacts.write_metrics(
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
against = comparisons.against_every_row(rows, patches, val, resamples, seed)
verdict = comparisons.verdict(against, uncertainty.bootstrap_units(patches, val))
Markdown(verdict)

# %% [markdown]
# ## All rows
#
# Patches of one patient or source image are alike, so whole groups are resampled where they are known. mAP and AUROC
# rank by score and ignore the threshold; a row without scores ranks all patches alike.

# %%
tables.rows_table(scored, dataset)

# %%
figures.show(figures.forest_plot(scored, methods.ROW_LABELS))

# %%
Markdown(f"{uncertainty.interval_note(patches, val)} {probe.about()} {neighbours.about()}")

# %% [markdown]
# ## Is one row better than another?
#
# HistoCLIP with patch keys against every other row, on the same patches: the difference, its interval from the same
# bootstrap draws, and a permutation test that swaps the two rows' answers for whole groups. p is corrected by Holm's
# method for the number of lines.

# %%
comparisons.differences_table(against)

# %% [markdown]
# Any two rows in mAcc: the row minus the column, marked where p, corrected for all pairs, is below 0.05.

# %%
figures.show(figures.comparison_map(*comparisons.all_pairs(rows, patches, val, seed)))

# %% [markdown]
# ## Beside the paper

# %%
if (beside := paper.paper_table(scored, dataset)) is not None:
    display(beside, Markdown(paper.paper_note(dataset, backbone, split)))
else:
    display(Markdown("The paper has no numbers for this data set."))

# %% [markdown]
# ## Class by class

# %%
figures.show(figures.per_class_map(tables.per_class_table(scored, "accuracy"), "accuracy"))

# %%
figures.show(figures.per_class_map(tables.per_class_table(scored, "ap"), "average precision"))

# %% [markdown]
# ## Thresholds and calibration
#
# Everything above decides at 0.5, as the paper does. Here a temperature and a threshold for each class are fitted on the
# training part, on predictions of models that have not seen the patch (cross-validation by group), and tried on the
# validation part. A fitted threshold is no gain by itself: on few patches it can cost.

# %%
truth, ours = patches.labels[val], rows["histoclip_patch"]
out_of_fold = {
    "linear_probe": probe.out_of_fold,
    "histoclip_patch": study_tables.out_of_fold(finished, len(patches), train),
}
fits = {
    row: calibration.fit_calibration(patches.labels[train], probabilities)
    for row, probabilities in out_of_fold.items()
    if probabilities is not None
}
calibration.threshold_table(truth, rows, fits, patches.classes, methods.ROW_LABELS)

# %% [markdown]
# Accuracy and F1 of HistoCLIP with patch keys at every threshold. In JupyterLab the threshold of each class can be moved,
# and the counts follow.

# %%
explore.thresholds(truth, ours.scores, patches.classes)

# %%
figures.show(figures.reliability_diagrams(truth, rows, fits, patches.classes, methods.ROW_LABELS))

# %%
calibration.calibration_table(truth, rows, fits, patches.classes, methods.ROW_LABELS)

# %%
Markdown(calibration.temperature_note(fits, methods.ROW_LABELS))

# %%
shown = {row: rows[row] for row in ("baseline", "power_set", "linear_probe", "histoclip_patch")}
figures.show(figures.precision_recall_curves(truth, shown, fits, patches.classes, methods.ROW_LABELS))

# %% [markdown]
# ## Confusion
#
# With several labels on a patch there is no single confusion matrix. Each class has its own, here for HistoCLIP with
# patch keys.

# %%
figures.show(figures.confusion_grid(confusion.confusion(truth, ours.decisions), patches.classes, "histoclip_patch"))

# %% [markdown]
# The multi-label confusion matrix (Heydarian et al. 2022) puts them into one: a missed label is set against the labels
# that were wrongly predicted on the same patch, and where nothing was, against "no predicted label".

# %%
together = confusion.multilabel_confusion(truth, ours.decisions)
figures.show(figures.multilabel_confusion_map(together, patches.classes, "histoclip_patch"))

# %% [markdown]
# When a class is missed, what is predicted in its place? Each row takes the patches in which that class is present and
# was missed; the columns say which absent classes were predicted there.

# %%
figures.show(figures.missed_class_map(*confusion.predicted_when_missed(truth, ours.decisions), patches.classes))

# %% [markdown]
# ## Does it predict one class because another is there?
#
# Among patches without the class of the column: how much more often it is predicted where the class of the row is
# present than where it is absent; and the same for being found among patches that have it.

# %%
units = uncertainty.bootstrap_units(patches, val)
biases = {
    methods.ROW_LABELS[row]: confusion.co_occurrence_bias(truth, rows[row].decisions, units, resamples, seed)
    for row in ("histoclip_patch", "linear_probe")
}
figures.show(figures.co_occurrence_bias_map(biases, patches.classes))

# %%
Markdown("\n\n".join(confusion.bias_note(bias, patches.classes, row) for row, bias in biases.items()))

# %% [markdown]
# ## Where the errors are
#
# By group (patient or source image) and by the set of labels that a patch carries.

# %%
if patches.groups is not None:
    by_group = confusion.errors_by_group(truth, ours.decisions, patches.groups[val])
    figures.show(figures.group_error_plot(by_group))

# %%
figures.show(figures.label_set_bars(confusion.errors_by_label_set(truth, ours.decisions, patches.classes)))

# %% [markdown]
# ## The most confident errors
#
# Wrong decisions of HistoCLIP with patch keys, the surest first, at most one for each patch. On the page, patches can be
# filtered by class, by kind of decision and by confidence, and each opens with the scores of all its classes.

# %%
page_explorers.patch_gallery(patches, val, ours.scores, examples, seed)

# %% [markdown]
# ## Leakage
#
# Does a validation patch have a copy, or nearly one, in the training part? The frozen features name the nearest
# training patch, the pixels decide.

# %%
duplicates = leakage.find_near_duplicates(features.pooled, patches, train, val, seed)
Markdown(leakage.near_duplicate_note(patches, duplicates))

# %%
figures.show(figures.similarity_histogram(duplicates))

# %%
leakage.near_duplicate_table(patches, duplicates, examples)

# %%
figures.show(galleries.near_duplicate_pairs(patches, duplicates, min(examples, 4)))

# %% [markdown]
# The same models under the other way to split. Patches of one patient on both sides flatter a random split; the gap
# between the two validation parts also holds the chance of which patches they are.

# %%
if (splits := study_tables.two_splits(finished, rows, patches, split, val)) is not None:
    gaps = split_gap.split_gaps(*splits, resamples, seed)
    display(split_gap.split_gap_table(gaps), Markdown(split_gap.split_gap_note(gaps)))
else:
    display(Markdown("This data set cannot be split both by patch and by group, or `studies` is off."))

# %% [markdown]
# ## Model card
#
# What a user of the two heads must know; also written as `model_card.md`.

# %%
card = write_model_card(
    folder / "model_card.md",
    patches,
    train,
    val,
    scored,
    name=name,
    dataset=dataset,
    backbone=backbone,
    pretrained=pretrained,
    split=split,
    seed=seed,
    views=views,
    training={"epochs": epochs, "warm-up epochs": warmup_epochs, "learning rate": learning_rate},
    findings=verdict,
)
_, _, text = card.partition("\n\n")  # the page has a heading of its own
Markdown(text.replace("\n## ", "\n### ").replace("## ", "### ", 1))
