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
# # Training the Cross-Modal Matching head

# %% tags=["parameters"]
name: str = "interactive"  # name of the run, and of its folder; a parameter file gives its own
epochs: int = 100  # passes over the training set; the paper's 800 overfit a few hundred patches [at least 1]
warmup_epochs: int = 5  # of these, with a rising learning rate [at least 0]
learning_rate: float = 1e-3  # highest learning rate [above 0]
weight_decay: float = 25.0  # of AdamW, times the root of batch_size / (training patches * epochs) [at least 0]
batch_size: int = 64  # patches in one training step [at least 1]
heads: int = 8  # attention heads; divides the width of the encoder's joint space [at least 1]
layers: int = 1  # decoder layers [at least 1]
hidden: int = 256  # width of the feed-forward network [at least 1]
dropout: float = 0.3  # dropout in the head [at least 0, below 1]
token_dropout: float = 0.75  # fraction of the patch tokens left out in each training step [at least 0, below 1]
mixup: float = 0.3  # Beta parameter by which patches are mixed in training; 0 for none [at least 0]
studies: bool = True  # fit the models that show what the result depends on: seeds, splits, designs, numbers of patches
seeds: list[int] = [0, 1, 2]  # of the training, for its spread on a single split [at least 0]
draws: int = 3  # subsets of the training set for each number of patches [at least 1]
resamples: int = 1000  # bootstrap samples behind each interval [at least 10]
reports_dir: str = "reports"  # folder below which each run has its own

# %%
from histoclip_lib import open_run

run = open_run(name, reports_dir, globals())
training = run.train_heads()
training.finding()

# %% [markdown]
# The encoder stays frozen. The class embeddings $C$ are the queries of a Transformer decoder and the image features its
# keys and values, eq. (3): $\mathrm{softmax}\left(QK^\top / \sqrt{d}\right)V$, with residuals and a two-layer
# feed-forward network; the mean over the feature dimension gives the logit of each class, eq. (4). The loss is binary
# cross-entropy, eq. (5).
#
# The paper writes the image as one global embedding. With a single key the softmax is always 1, so attention cannot select
# a region. Both readings are therefore trained: **global** (one key) and **patch** (one key for each patch token).
# Features are encoded once and cached; each epoch draws one *view* (flip or rotation) of each patch.

# %%
training.features_note()

# %% [markdown]
# ## Training curves
#
# With a single split, the curves are those of the heads as reported; in cross-validation, of the first fold. The last epoch
# is reported. A validation loss that rises while the training loss falls means that the head overfits. The best epoch is an
# oracle: it is chosen with the labels that it is scored on.

# %%
training.curves()

# %%
training.last_and_best()

# %% [markdown]
# ## How the defaults of the head were chosen
#
# Trained as in the paper, a decoder overfits a few hundred patches within 50 of the 800 epochs. The defaults were chosen by
# grouped cross-validation within two training sets: the official one of CoNSeP (432 real patches) and that of the demo. One
# choice, whether the projections shared by all classes should learn more slowly, was made with the scores on the official
# CoNSeP test set in view. CoNSeP is therefore not an independent test of the defaults, nor is the demo, whose
# cross-validation also scores the patches on which they were chosen. The defaults are:
#
# - **Separate hidden units for each class at the start.** Eq. (4) treats all classes alike, so only the active units of the
#   feed-forward network separate them.
# - **Projections initialised to the identity**, which is eq. (3) as written.
# - **Token dropout, mixup and weight decay.** Each step sees a quarter of a patch's tokens and patches mixed in pairs;
#   weights are pulled towards 0.
# - **Views.** Each epoch draws one flip or rotation of each patch; predictions are averaged over all of them.
# - **Features** are centred and divided by one number; class queries are scaled by twice the square root of their width.
#
# Each row of the table changes one choice of the first row, which was trained for 100 epochs; the last two are a head with
# none of these choices and the linear probe (four folds by group). Differences below about 0.01 are within chance, so the
# table supports few of the choices on their own. It is the same in every run and comes from `benchmarks/head_study.py`.

# %% fold="How each choice changes the scores"
training.head_study()

# %% [markdown]
# ## Further models
#
# A two-layer perceptron of the same size as the head and a head with random queries are trained on the same patches; the head
# on patch tokens is also cross-validated within each training set, for thresholds and calibration. Training is repeated with
# the other type of split, with fewer patches and with some labels hidden; on a single split also with other seeds and design
# choices. `studies: false` fits only what the evaluation needs.

# %%
training.fit_studies()

# %% [markdown]
# ## Design
#
# The reported head, and variants with one choice changed; in cross-validation only those that are fitted in every fold. A
# change with a corrected p of 0.05 or more is within chance.

# %%
training.design_plot()

# %%
training.design_table()

# %% [markdown]
# ## Label efficiency
#
# Each dot is a model fitted on a random subset of the training patches (of the first fold), the last one on all of them;
# lines are means. Two few-shot methods that start from the class names are shown as well: a Gaussian discriminant with text
# (Wang et al. 2024) and a probe blended with text (LP++, Huang et al. 2024). Look at where the lines cross the horizontal
# lines: two zero-shot strategies, and the majority, which needs only the prevalence of each class.

# %%
training.label_efficiency()

# %% [markdown]
# ## Missing labels
#
# The same training patches with some labels hidden at random; missing labels enter neither the loss nor the metrics.

# %%
training.hidden_labels()

# %% [markdown]
# ## Variability
#
# In cross-validation, the variation from fold to fold; on a single split, the variation over random seeds, which set the
# initial weights, the order of the patches, the views and the dropout.

# %% fold="Mean, standard deviation and range of every method"
training.seeds()
