"""Real patches from table to scores: CoNSeP in the folder format, through the library alone."""

from dataclasses import replace

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score
from torch import device

from histoclip_lib import encode_dataset, load_dataset, load_vocabulary, score_zero_shot, split_dataset
from histoclip_lib.features.reader import FeatureReader
from histoclip_lib.models import TrainingOptions, predict, train_head
from histoclip_lib.models.training import new_head
from histoclip_lib.prompting.strategies import StrategyContext
from histoclip_lib.prompting.vocabulary import TextEncoder, class_embeddings


def part_of(patches, index):
    """Return some of the patches of a data set whose patches are files."""
    files = [patches.files[i] for i in index]
    source = replace(patches.source, image_paths=[patches.source.image_paths[i] for i in index], mask_paths=[])
    return replace(
        patches, files=files, labels=patches.labels[index], source=source, groups=patches.groups[index],
        parts=patches.parts[index], has_masks=False,
    )  # fmt: skip


def test_the_head_is_above_the_prevalence_on_real_patches_and_every_strategy_scores_them(shared_data, lite0, tmp_path):
    patches = load_dataset("folder", str(shared_data / "consep"))
    drawn = pd.Series(patches.parts).groupby(patches.parts).sample(90, random_state=0).index.to_numpy()
    patches = part_of(patches, drawn)
    train, val = split_dataset(patches, "given", 0)
    features = encode_dataset(lite0, patches, workers=0, cache=tmp_path, progress=False)
    vocabulary, encode = load_vocabulary("folder", patches.classes), TextEncoder(lite0)
    head = new_head(class_embeddings(encode, vocabulary), {}, features.tokens, train, seed=0)
    reader = FeatureReader(features.tokens, device("cpu"))
    train_head(head, reader, patches.labels, train, val, TrainingOptions(epochs=12, warmup_epochs=2), progress=False)
    found = predict(head, features, "patch", val, device("cpu"))
    labels = patches.labels[val]
    held = labels.any(axis=0) & ~labels.all(axis=0)
    precision = average_precision_score(labels[:, held], found.scores[:, held])
    assert precision > labels[:, held].mean() + 0.05
    context = StrategyContext(patches.labels[train].mean(axis=0))
    for scores in score_zero_shot(features.pooled.take(val), encode, vocabulary, context).values():
        assert scores.decisions.shape == labels.shape
        assert np.isfinite(scores.scores).all()
