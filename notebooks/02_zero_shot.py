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
# # Zero-shot: four ways to ask a frozen CLIP
#
# No label is used here except to score. An image embedding $z$ is compared with the embeddings of prompts.
#
# 1. **Baseline**: the cosine of $z$ and each class embedding, decided by eq. (6) as it stands,
#    $\sigma(\cos) \ge 0.5$, that is $\cos \ge 0$. A CLIP whose cosines are all positive marks every label.
# 2. **One-vs-Rest**: a class is present where "a photo of a {class}" is nearer than "a photo with nothing in it."
# 3. **Power-set**: one prompt for each of the $2^N$ subsets of classes; the nearest one gives the labels.
# 4. **Top-k**: the classes are ranked for each image; "a photo of a Top-1, ..., a photo of a Top-k" is compared for
#    every $k$, and the empty set.

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
compiled: bool = False  # torch.compile for encoder and training: a slower start, for large data on a GPU
views: int = 8  # 1 to 8: flips and rotations of each patch to encode; time and cache grow with it
encode_batch_size: int = 32  # images in one pass of the encoder
prompts_file: str = ""  # YAML file with your own class names, synonyms, templates and negative prompt
wordings: int = 12  # draws of one name for each class among its synonyms
baseline_rule: str = "sigmoid"  # how the Baseline decides: sigmoid (the paper's), softmax, argmax or prevalence
reports_dir: str = "reports"  # folder below which each run has its own

# %%
from IPython.display import Markdown

from histoclip_lib.clip.encoder import load_clip
from histoclip_lib.common.files import run_folder
from histoclip_lib.data.registry import load_dataset
from histoclip_lib.data.splits import split_dataset
from histoclip_lib.evaluation import artifacts, methods
from histoclip_lib.features.encode import encode_dataset
from histoclip_lib.prompting import sensitivity as prompt_sensitivity
from histoclip_lib.prompting import strategies as zero_shot
from histoclip_lib.prompting.vocabulary import TextEncoder, class_embeddings, load_vocabulary
from histoclip_lib.report import explore, figures, tables

patches = load_dataset(dataset, data_dir, split, n_patches, mask_coverage, min_nuclei)
train, val = split_dataset(patches, split, seed, val_fraction)
clip = load_clip(backbone, pretrained, device, precision, compiled)
features = encode_dataset(clip, patches, views, encode_batch_size)
Markdown(clip.about())

# %%
features

# %% [markdown]
# ## Words
#
# Each class in words, and the templates over which its embedding is averaged, eq. (2):
# $c = \mathrm{Norm}\left(\frac{1}{M} \sum_{i=1}^{M} e_i^c\right)$.

# %%
vocabulary = load_vocabulary(dataset, patches.classes, prompts_file)
encode = TextEncoder(clip)
class_matrix = class_embeddings(encode, vocabulary)
Markdown(vocabulary.about(patches.classes))

# %% [markdown]
# How alike the class embeddings are: where two are nearly the same, no zero-shot strategy can tell the classes apart.

# %%
figures.show(figures.similarity_map((class_matrix @ class_matrix.T).cpu().numpy(), vocabulary.names))

# %% [markdown]
# ## What the four strategies say
#
# mAcc on the validation part, which every row of the later table uses, and on all patches; and, under the name of each
# class, how often it is predicted, beside the truth.

# %%
pooled = features.pooled.take(range(len(patches)))
rows = zero_shot.score_all(pooled, encode, vocabulary, patches.labels[train].mean(axis=0), baseline_rule)
folder = run_folder(name, reports_dir)
artifacts.save_predictions(folder / "zero_shot.parquet", rows, patches, range(len(patches)))
tables.whole_set_table(rows, patches, val)

# %%
Markdown(zero_shot.baseline_note(rows["baseline"], patches.labels, baseline_rule))

# %% [markdown]
# ## Do the scores separate present from absent?
#
# Each strategy's score for patches in which the class is present and in which it is absent. A strategy can rank well
# and still decide badly, when its threshold (the dashed line) lies in the wrong place.

# %%
named = {methods.strategy_name(row): predictions for row, predictions in rows.items()}
figures.show(figures.score_distributions(named, patches.labels, patches.classes))

# %% [markdown]
# ## How much hangs on the words
#
# Every strategy asked again with each template alone and, where synonyms are known, with each class under another of
# its names. Eq. (2) averages over the templates; what that gains is said below.

# %%
variants = prompt_sensitivity.score_variants(
    pooled[val],
    encode,
    vocabulary,
    patches.labels[val],
    patches.labels[train].mean(axis=0),
    baseline_rule,
    draws=wordings,
    seed=seed,
)
figures.show(figures.prompt_spread(variants.table))

# %%
Markdown(prompt_sensitivity.ensembling_note(variants) + "\n\n" + prompt_sensitivity.spread_note(variants))

# %%
prompt_sensitivity.extremes_table(variants)

# %% [markdown]
# ## Other words
#
# A validation patch, and its cosines with the words for the classes. In JupyterLab the words can be changed, and the
# strategies answer again. Words picked here would be picked on the validation part: no row of the table uses them.

# %%
explore.prompts(encode, vocabulary, features, patches, val, patches.labels[train].mean(axis=0), baseline_rule)

# %%
Markdown(f"{len(encode.encoded)} distinct prompts were encoded, each once, for {len(patches)} patches.")
