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
# # Zero-shot classification with a frozen CLIP

# %% tags=["parameters"]
name: str = "interactive"  # name of the run, and of its folder; a parameter file gives its own
backbone: str = "lite0-minilm"  # lite0-minilm, an open_clip name, hf-hub:OWNER/NAME or local-dir:FOLDER
pretrained: str = ""  # open_clip tag or weights file; empty for the others
text_encoder: str = ""  # for a backbone of images alone: an encoder whose class embeddings, mapped, are the queries
text_pretrained: str = ""  # its weights, as pretrained
device: str = "auto"  # auto (CUDA where there is one), cpu, cuda or cuda:N [auto | cpu | cuda | cuda:N | mps]
precision: str = "auto"  # auto (amp on CUDA, else fp32), fp32 or amp [auto | fp32 | amp]
compiled: bool = False  # torch.compile for encoder and training: a slower start, for large data on a GPU
views: int = 8  # flips and rotations of each patch to encode; time and cache grow with it [at least 1, at most 8]
tokens: str = "all"  # none: the pooled embedding stands in for patch tokens, for large data [all | none]
token_grid: int = 0  # side of the grid to which patch tokens are averaged, such as 7; 0 keeps all [at least 0]
match_mpp: bool = False  # resample patches to the resolution that the encoder was trained at
encode_batch_size: int = 32  # images in one pass of the encoder [at least 1]
prompts: str = "paper"  # templates: paper, encoder (its authors', where known), pathology or another set
prompts_file: str = ""  # YAML file with your own class names, synonyms, templates and negative prompt
wordings: int = 12  # draws of one name for each class among its synonyms [at least 0]
baseline_rule: str = "sigmoid"  # how the Baseline decides [sigmoid | softmax | argmax | prevalence]
reports_dir: str = "reports"  # folder below which each run has its own

# %%
from histoclip_lib import open_run

run = open_run(name, reports_dir, globals())
zero_shot = run.score_zero_shot()
zero_shot.finding()

# %% [markdown]
# Labels are used only for scoring (unless `baseline_rule` is `prevalence`, which uses that of the training set). An image
# embedding $z$ is compared with the embeddings of prompts; here are the paper's, those of this run are listed below.
#
# 1. **Baseline**: the cosine of $z$ and each class embedding, decided by eq. (6) as it stands,
#    $\sigma(\cos) \ge 0.5$, that is $\cos \ge 0$. A CLIP whose cosines are all positive marks every label.
# 2. **One-vs-Rest**: a class is present if "a photo of a {class}" is closer than "a photo with nothing in it."
# 3. **Power-set**: one prompt for each of the $2^N$ subsets of classes; the closest one gives the labels.
# 4. **Top-k**: the classes are ranked for each image; "a photo of a Top-1, ..., a photo of a Top-k" is compared for
#    every $k$, and the empty set.
#
# Two further strategies see the training images, but not their labels. **Standardised**: the Baseline's cosines, centred
# and scaled by their mean and standard deviation over these images, with a threshold of 0. **Transductive**: a mixture of
# two Gaussians for each class on these images, with the standardised score as prior.

# %%
zero_shot.about_encoder()

# %%
run.features

# %% [markdown]
# ## Prompts
#
# The name used for each class, and the templates over which its embedding is averaged, eq. (2):
# $c = \mathrm{Norm}\left(\frac{1}{M} \sum_{i=1}^{M} e_i^c\right)$.

# %%
zero_shot.words()

# %% [markdown]
# No zero-shot strategy can separate two classes whose embeddings are nearly the same.

# %% fold="Similarity of the class embeddings"
zero_shot.class_similarity()

# %% [markdown]
# ## Predictions of the strategies
#
# [mAcc](04_results.ipynb#macc) on the held-out patches, as in all later tables, and how often each class is predicted, with
# the true prevalence in the last row.

# %%
zero_shot.table()

# %%
zero_shot.baseline_note()

# %% [markdown]
# The same strategies with a second set of prompts: those recommended for the encoder if this run uses the paper's, and vice
# versa. Look for strategies whose result depends on the wording.

# %%
zero_shot.both_prompts()

# %% [markdown]
# ## Do the scores separate present from absent?
#
# Overlapping boxes mean that the score does not separate the class. A strategy can rank patches well and still classify
# them badly if its threshold (the dashed line) is in the wrong place.

# %%
zero_shot.score_distributions()

# %% [markdown]
# ## Sensitivity to prompts
#
# Every strategy with each template alone and, for classes with known synonyms, with other names. Look at how far the dots
# spread around the diamond, the reported result. In cross-validation, Standardised and Transductive are adapted here to the
# training images of the first fold alone, so their diamonds can differ slightly from the tables.

# %%
zero_shot.prompt_spread()

# %% fold="Sensitivity of each strategy in numbers"
zero_shot.prompt_notes()

# %% fold="The best and the worst wording of each strategy"
zero_shot.prompt_extremes()

# %% [markdown]
# ## Try other words
#
# One held-out patch and its cosine similarity to the name of each class. In JupyterLab the words can be changed. No table
# uses them, because they would be chosen on held-out patches.

# %%
zero_shot.explorer()
