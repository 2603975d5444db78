"""How the head was chosen: cross-validation inside the training part, one choice changed at a time.

    python benchmarks/head_study.py                                   # on synthetic H&E
    python benchmarks/head_study.py --data FOLDER --json study.json   # also on a folder with labels.csv

The validation part is never looked at. Each line divides the training part into four folds by group; every patch is
predicted by a head that has not seen its group.
"""

from __future__ import annotations

import argparse
import json
import os
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest.mock import patch

import joblib
import numpy as np
import pandas as pd
import torch

from histoclip_lib.clip.encoder import load_clip
from histoclip_lib.common.predictions import cross_entropy, from_probabilities
from histoclip_lib.data.registry import load_dataset
from histoclip_lib.data.splits import grouped_folds, split_dataset
from histoclip_lib.evaluation.metrics import point_metrics
from histoclip_lib.features.encode import encode_dataset
from histoclip_lib.features.reader import FeatureReader
from histoclip_lib.models import cmm
from histoclip_lib.models.baselines import fit_linear_probe
from histoclip_lib.models.training import TrainingOptions, new_head, predict_probabilities, train_head
from histoclip_lib.prompting.vocabulary import TextEncoder, class_embeddings, load_vocabulary

FOLDS = 4


@dataclass(frozen=True)
class Choice:
    """One change: options of the head or the training, a constant, or a part of the initialisation left out."""

    name: str
    head: dict[str, object] = field(default_factory=dict)
    training: dict[str, object] = field(default_factory=dict)
    constants: dict[str, float] = field(default_factory=dict)  # of the module cmm
    left_out: tuple[str, ...] = ()  # methods of CMMLayer that do nothing
    kind: str = "patch"


CHOICES = (
    Choice("as chosen"),
    Choice("hidden units not assigned to classes", left_out=("assign_units",)),
    Choice("projections start at random, not as the identity", left_out=("start_from_similarity",)),
    Choice("query scale 5", constants={"QUERY_SCALE": 5.0}),
    Choice("all tokens in every step", training={"token_dropout": 0.0}),
    Choice("no mixup", training={"mixup": 0.0}),
    Choice("weight decay 1", training={"weight_decay": 1.0}),
    Choice("weight decay 75", training={"weight_decay": 75.0}),
    Choice("learning rate 3e-4", training={"learning_rate": 3e-4}),
    Choice("50 epochs", training={"epochs": 50}),
    Choice("200 epochs", training={"epochs": 200}),
    Choice("one global key", kind="global"),
    Choice(
        "none of it: 100 epochs at 3e-4, plain head",
        training={"learning_rate": 3e-4, "token_dropout": 0.0, "mixup": 0.0, "weight_decay": 1.0},
        constants={"QUERY_SCALE": 1.0},
        left_out=("assign_units", "start_from_similarity"),
    ),
)


def predict_fold(choice, embeddings, features, labels, fit, held_out):
    """Train on one fold's patches and return the probabilities of the others."""
    torch.set_num_threads(1)
    with ExitStack() as changes:
        for name, value in choice.constants.items():
            changes.enter_context(patch.object(cmm, name, value))
        for method in choice.left_out:
            changes.enter_context(patch.object(cmm.CMMLayer, method, lambda *arguments: None))
        reader = FeatureReader(features.of_kind(choice.kind), torch.device("cpu"), share=8)
        options = replace(TrainingOptions(), **choice.training)
        head = new_head(embeddings, {"heads": 8, **choice.head}, reader.features, fit, options.seed)
        train_head(head, reader, labels, fit, fit[:0], options, progress=False)
        return predict_probabilities(head, reader, held_out)


def probe_fold(features, patches, fit, held_out):
    """Fit a linear probe on one fold's patches and return the probabilities of the others."""
    return fit_linear_probe(features, patches, fit, seed=0).predict(features, held_out).scores


def study(name, dataset, data_dir, split):
    """Return one line for each choice, and one for the linear probe, on one data set's training part."""
    patches = load_dataset(dataset, data_dir, split)
    train, _ = split_dataset(patches, split, 0)
    clip = load_clip()
    features = encode_dataset(clip, patches, views=8)
    embeddings = class_embeddings(TextEncoder(clip), load_vocabulary(dataset, patches.classes))
    folds = grouped_folds(patches, train, FOLDS, seed=0)
    tasks = [
        joblib.delayed(predict_fold)(choice, embeddings, features, patches.labels, train[fit], train[held_out])
        for choice in CHOICES
        for fit, held_out in folds
    ]
    tasks += [
        joblib.delayed(probe_fold)(features, replace(patches, source=None), train[fit], train[held_out])
        for fit, held_out in folds
    ]
    found = iter(joblib.Parallel(n_jobs=os.cpu_count(), verbose=10)(tasks))
    lines, labels = [], patches.labels[train]
    for choice in (*[choice.name for choice in CHOICES], "linear probe"):
        probabilities = np.empty(labels.shape)
        for _, held_out in folds:
            probabilities[held_out] = next(found)
        points = point_metrics(labels, from_probabilities(probabilities), patches.classes)
        loss = cross_entropy(labels, probabilities)
        lines.append(
            {"data": name, "choice": choice, "mAcc": points["mAcc"], "mAP": points["mAP"], "cross-entropy": loss}
        )
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with labels.csv, whose column `split` says what is train")
    parser.add_argument("--json", type=Path, help="write the lines there")
    arguments = parser.parse_args()
    lines = study("synthetic H&E", "synthetic", "", "grouped")
    if arguments.data:
        lines += study(arguments.data.name, "folder", str(arguments.data), "given")
    table = pd.DataFrame(lines).pivot(index="choice", columns="data", values=["mAcc", "mAP", "cross-entropy"])
    print(table.loc[[line["choice"] for line in lines if line["data"] == lines[0]["data"]]].round(4).to_string())
    if arguments.json:
        arguments.json.write_text(json.dumps(lines, indent=1))
