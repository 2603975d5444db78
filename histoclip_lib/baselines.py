"""The rows that need no text: what is reached by knowing the prevalences, the tissue, or by a linear probe."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from histoclip_lib.datasets.base import PatchDataset
from histoclip_lib.features import ImageFeatures
from histoclip_lib.metrics import Predictions, from_probabilities

PROBE_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def trivial_rows(train_labels: np.ndarray, n_patches: int) -> dict[str, Predictions]:
    """Return the rows that look at no image: `all_negative`, `all_positive` and `majority`.

    Parameters
    ----------
    train_labels : ndarray of shape (T, N)
        Labels of the training part; `majority` says of each class what most of these say.
    n_patches : int
        Number of patches to predict.
    """
    prevalence = np.broadcast_to(train_labels.mean(axis=0), (n_patches, train_labels.shape[1]))
    constant = np.zeros_like(prevalence)
    return {
        "all_negative": Predictions(constant, np.zeros(prevalence.shape, dtype=bool)),
        "all_positive": Predictions(constant, np.ones(prevalence.shape, dtype=bool)),
        "majority": from_probabilities(prevalence),
    }


def tissue_prior(train_labels: np.ndarray, train_tissue: np.ndarray, tissue: np.ndarray) -> Predictions:
    """Predict from the organ alone: the training prevalence of each class in the same tissue.

    A tissue that no training patch has gets the prevalence over all.

    Parameters
    ----------
    train_labels : ndarray of shape (T, N)
        Labels of the training part.
    train_tissue : ndarray of shape (T,)
        Tissue of each training patch.
    tissue : ndarray of shape (B,)
        Tissue of the patches to predict.
    """
    scores = np.tile(train_labels.mean(axis=0), (len(tissue), 1))
    for name in np.unique(train_tissue):
        scores[tissue == name] = train_labels[train_tissue == name].mean(axis=0)
    return from_probabilities(scores)


def tissue_rows(patches: PatchDataset, train: np.ndarray, val: np.ndarray) -> dict[str, Predictions]:
    """Return the row `tissue_prior` where the data set knows its tissues, else nothing."""
    if patches.tissue is None:
        return {}
    return {"tissue_prior": tissue_prior(patches.labels[train], patches.tissue[train], patches.tissue[val])}


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """Logistic regressions, one for each class, on standardised frozen features.

    Attributes
    ----------
    model : Pipeline
        Standardisation and one-vs-rest logistic regression.
    strength : float
        The inverse regularisation C that was chosen.
    losses : dict of float to float
        Cross-validated binary cross-entropy of each C that was tried.
    """

    model: Pipeline
    strength: float
    losses: dict[float, float]

    def predict(self, features: ImageFeatures, rows: np.ndarray) -> Predictions:
        """Predict some patches; like the heads, by the mean over their views."""
        views = [self.model.predict_proba(features.pooled.take(rows, view)) for view in range(features.n_views)]
        return from_probabilities(np.mean(views, axis=0))

    def about(self) -> str:
        """Return a sentence of Markdown on the choice of C."""
        tried = ", ".join(f"{strength:g}: {loss:.4f}" for strength, loss in self.losses.items())
        return (
            f"The linear probe's C = {self.strength:g} was chosen by cross-validation inside the training part "
            f"(cross-entropy by C: {tried})."
        )


def fit_linear_probe(
    features: ImageFeatures, patches: PatchDataset, train: np.ndarray, seed: int, folds: int = 5
) -> LinearProbe:
    """Fit a linear probe on the pooled features, its C chosen by cross-validation inside the training part.

    It sees what the heads see: every view of a patch is a training example. The choice of C uses view 0 alone, with C
    scaled by the number of views, since scikit-learn's C weighs the sum over examples.

    Parameters
    ----------
    features : ImageFeatures
        Of B patches.
    patches : PatchDataset
        Labels, and groups, which the cross-validation keeps together.
    train : ndarray of int
        The training part.
    seed : int
        Of the folds.
    folds : int
        Number of folds, fewer where there are fewer groups.
    """
    pooled, labels = features.pooled.take(train), patches.labels[train]
    groups = train if patches.groups is None else patches.groups[train]
    n_folds = min(folds, len(np.unique(groups)))
    cv = list(GroupKFold(n_folds, shuffle=True, random_state=seed).split(pooled, labels, groups))
    losses = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Label .* is present in")  # a class rarer than the folds
        for strength in PROBE_STRENGTHS:
            probabilities = cross_val_predict(_probe(strength), pooled, labels, cv=cv, method="predict_proba")
            probabilities = np.clip(probabilities, 1e-6, 1 - 1e-6)
            losses[strength] = float(-np.log(np.where(labels == 1, probabilities, 1 - probabilities)).mean())
        strength = min(losses, key=losses.get)
        views = np.concatenate([features.pooled.take(train, view) for view in range(features.n_views)])
        model = _probe(strength / features.n_views).fit(views, np.tile(labels, (features.n_views, 1)))
    return LinearProbe(model, strength, losses)


def _probe(strength: float) -> Pipeline:
    return make_pipeline(StandardScaler(), OneVsRestClassifier(LogisticRegression(C=strength, max_iter=2000)))
