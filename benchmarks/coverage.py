"""Do 95% intervals of a cross-validation hold the truth in 95% of data sets? A simulation with patients and labels.

A data set has G patients with PER_GROUP patches each. The features of two encoders are equally informative and
independent given the labels; each gets a ridge classifier, cross-validated by patient. The performance of its models is
known from a large sample of further patients. Printed is how often an interval holds the performance of the models that
were fitted, and the one expected over data sets; and how often two encoders that are equally good are told apart.

    python benchmarks/coverage.py [--data-sets N]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from common import print_table, write_json
from sklearn.model_selection import GroupKFold

from histoclip_lib.common.predictions import Predictions
from histoclip_lib.evaluation.uncertainty import (
    accuracy_gap,
    draw_units,
    percentile_interval,
    resampled_metrics,
)

PER_GROUP, N_CLASSES, WIDTH, FOLDS, RESAMPLES = 15, 3, 150, 5, 500
STRENGTH = 2.7  # length of the direction in which a class moves the features, in standard deviations of their noise
FURTHER = 400  # patients on whom the fitted models are judged


def draw(groups: int, generator: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Return labels (B, N), the features (B, d) of both encoders, and the patient of each patch."""
    unit = np.repeat(np.arange(groups), PER_GROUP)
    logits = generator.normal(0, 1, (groups, N_CLASSES))[unit] + generator.normal(-0.3, 1, (len(unit), N_CLASSES))
    labels = (logits > 0).astype(np.uint8)
    views = []
    for encoder in range(2):
        directions = np.linalg.qr(np.random.default_rng(encoder).normal(size=(WIDTH, N_CLASSES)))[0].T * STRENGTH
        patient = generator.normal(0, 0.7, (groups, WIDTH))[unit]  # stain and scanner
        views.append(labels @ directions + patient + generator.normal(0, 1, (len(unit), WIDTH)))
    return labels, views, unit


def fit(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return weights (d, N) and thresholds (N,) of a ridge classifier."""
    mean, prior = features.mean(axis=0), labels.mean(axis=0)
    centred = features - mean
    weights = np.linalg.solve(centred.T @ centred + 100 * np.eye(WIDTH), centred.T @ (labels - prior))
    return weights, 0.5 - prior + mean @ weights


def decide(features: np.ndarray, model: tuple[np.ndarray, np.ndarray]) -> Predictions:
    """Return what a model says; the scores are above 0 where it decides for a class."""
    scores = features @ model[0] - model[1]
    return Predictions(scores, scores >= 0)


def trial(groups: int, seed: int, further: tuple) -> list[dict]:
    """Return one line for each quantity: estimate, both intervals, and the mean performance of the fitted models."""
    labels, views, unit = draw(groups, np.random.default_rng([7, seed]))
    further_labels, further_views, _ = further
    draws = draw_units(unit, RESAMPLES, seed)
    whole = draw_units(np.zeros(len(further_labels)), 1, 0)
    parts = list(GroupKFold(FOLDS, shuffle=True, random_state=seed).split(views[0], groups=unit))
    resampled, points, judged, methods = [], [], [], []
    once = draw_units(np.zeros(len(labels)), 1, 0)
    for features, beyond in zip(views, further_views, strict=True):
        found = Predictions(np.empty(labels.shape), np.empty(labels.shape, bool))
        truths = []
        for train, val in parts:
            model = fit(features[train], labels[train])
            mine = decide(features[val], model)
            found.scores[val], found.decisions[val] = mine.scores, mine.decisions
            truths.append(resampled_metrics(further_labels, decide(beyond, model), whole))
        resampled.append(resampled_metrics(labels, found, draws))
        points.append(resampled_metrics(labels, found, once))
        judged.append({key: np.mean([own[key] for own in truths]) for key in ("mAcc", "mAP")})
        methods.append(found)
    p, corrected = (accuracy_gap(labels, *methods, unit, RESAMPLES, seed, folds).p for folds in (1, FOLDS))
    lines = []
    for metric in ("mAcc", "mAP"):
        for name, values, point, truth in (
            (metric, resampled[0][metric], points[0][metric][0], judged[0][metric]),
            (
                f"{metric}, difference",
                resampled[0][metric] - resampled[1][metric],
                points[0][metric][0] - points[1][metric][0],
                judged[0][metric] - judged[1][metric],
            ),
        ):
            plain = percentile_interval(values)
            wide = percentile_interval(values, point, FOLDS)
            lines.append(
                {
                    "quantity": name,
                    "point": point,
                    "truth": truth,
                    "plain": plain,
                    "wide": wide,
                    "p": p,
                    "corrected": corrected,
                }
            )
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-sets", type=int, default=300, help="how many are drawn for each number of patients")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    further = draw(FURTHER, np.random.default_rng(0))
    rows: dict[str, dict[str, float]] = {}
    for groups in (10, 20, 40):
        lines = pd.DataFrame([line for seed in range(arguments.data_sets) for line in trial(groups, seed, further)])
        for quantity, own in lines.groupby("quantity", sort=False):
            expected = own["truth"].mean()
            row = rows[f"{quantity}, {groups} patients"] = {"bias": (own["point"] - own["truth"]).mean()}
            for kind in ("plain", "wide"):
                low, high = np.array(own[kind].tolist()).T
                row[f"{kind}, fitted models"] = ((low <= own["truth"]) & (own["truth"] <= high)).mean()
                row[f"{kind}, expected"] = ((low <= expected) & (expected <= high)).mean()
                row[f"{kind}, width"] = (high - low).mean()
            row["p < 0.05 (mAcc)"] = (own["p"] < 0.05).mean()
            row["corrected p < 0.05 (mAcc)"] = (own["corrected"] < 0.05).mean()
    print_table("share of data sets whose interval holds the truth", rows)
    write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
