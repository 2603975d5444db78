"""Zero-shot strategies that look at unlabelled training images: standardised scores, and a mixture for each class."""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from histoclip_lib.common.predictions import Predictions
from histoclip_lib.prompting.strategies import StrategyContext, strategy
from histoclip_lib.prompting.vocabulary import Encode, Vocabulary, class_embeddings

COMPONENTS = 16  # principal components of the unlabelled images on which mixtures are fitted
STEPS = 30  # of expectation maximisation
TINY = 1e-6


@strategy("zero_shot_standardised", label="Standardised")
def standardised(images: np.ndarray, encode: Encode, vocabulary: Vocabulary, context: StrategyContext) -> Predictions:
    """Choose a class where its cosine is above the mean over the unlabelled training images; unit `images` (B, d).

    Cosines of one class lie in a narrow band whose place says nothing: CLIP's are all positive. Less their mean and
    divided by their deviation over images without labels they can be compared, and decided at 0, which takes a class to
    be present in about half of the images. (Standardisation as in Miller et al., SPARC, CVPR 2025.)
    """
    scores = _standardised(images, encode, vocabulary, context)
    return Predictions(scores, scores > 0)


def _standardised(images: np.ndarray, encode: Encode, vocabulary: Vocabulary, context: StrategyContext) -> np.ndarray:
    """Return the cosines (B, N) with the class embeddings, standardised over the unlabelled images."""
    classes = class_embeddings(encode, vocabulary).T  # (d, N)
    known = _unlabelled(images, context) @ classes  # (T, N)
    return (images @ classes - known.mean(axis=0)) / (known.std(axis=0) + TINY)


def _unlabelled(images: np.ndarray, context: StrategyContext) -> np.ndarray:
    return images if context.unlabelled is None else context.unlabelled


@strategy("zero_shot_transductive", label="Transductive")
def transductive(images: np.ndarray, encode: Encode, vocabulary: Vocabulary, context: StrategyContext) -> Predictions:
    """Choose a class by a mixture of two Gaussians on the unlabelled images, the text score as prior.

    For each class by itself the unlabelled training images are divided into those with and those without it, by
    expectation maximisation: two means and the covariance of all images, which both share. The prior log-odds of an
    image are its standardised text score, which also starts the division; scores are the posterior ones.

    In the spirit of Histo-TransCLIP (Zanella et al., Boosting vision-language models for histopathology classification,
    2024), whose classes exclude each other: here there is no softmax over them, and no affinity between images.
    Unit `images` (B, d) are predicted by the mixture of the unlabelled ones.
    """
    known = _unlabelled(images, context)
    centre = known.mean(axis=0)
    _, spread, axes = np.linalg.svd(known - centre, full_matrices=False)
    kept = min(COMPONENTS, int((spread > TINY * spread.max(initial=TINY)).sum()))
    whiten = axes[:kept].T / (spread[:kept] / len(known) ** 0.5)  # (d, P)
    x, new = (known - centre) @ whiten, (images - centre) @ whiten
    prior, new_prior = (_standardised(part, encode, vocabulary, context) for part in (known, images))  # log-odds
    posterior = expit(prior)  # (T, N)
    for _ in range(STEPS):
        means = [(weights.T @ x) / (weights.sum(axis=0)[:, None] + TINY) for weights in (posterior, 1 - posterior)]
        posterior = expit(_log_odds(x, *means) + prior)
    scores = _log_odds(new, *means) + new_prior
    return Predictions(scores, scores > 0)


def _log_odds(x: np.ndarray, present: np.ndarray, absent: np.ndarray) -> np.ndarray:
    """Return log N(x; present, 1) - log N(x; absent, 1), shape (B, N), of x (B, P) and means (N, P)."""
    return x @ (present - absent).T - ((present**2).sum(axis=1) - (absent**2).sum(axis=1)) / 2
