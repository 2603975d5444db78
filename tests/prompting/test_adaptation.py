"""Strategies that see unlabelled images: the planted answer is found, and words that say nothing leave chance."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import average_precision_score

from histoclip_lib.common.arrays import unit
from histoclip_lib.prompting.adaptation import standardised, transductive
from histoclip_lib.prompting.strategies import StrategyContext, baseline
from histoclip_lib.prompting.vocabulary import Vocabulary

NAMES = ["tumor", "stroma", "necrosis"]
VOCABULARY = Vocabulary(NAMES, ["{}"])


def planted(n=600, d=32, seed=0, informed=0.3, shift=1.0):
    """Images in which present classes add a direction of their own, and words that point `informed` of the way to it.

    All cosines are shifted by a direction that images and words share, as those of CLIP are.
    """
    random = np.random.default_rng(seed)
    axes = np.linalg.qr(random.normal(size=(d, d)))[0].T
    labels = (random.random((n, 3)) < [0.5, 0.3, 0.6]).astype(int)
    rest = np.eye(d) - np.outer(axes[3], axes[3])  # all but the shared direction
    images = unit(1.5 * labels @ axes[:3] + 0.25 * random.normal(size=(n, d)) @ rest) + 2 * axes[3]
    noise = unit(random.normal(size=(3, d)) @ rest)
    words = unit(unit(informed * axes[:3] + (1 - informed) * noise) + shift * axes[3])
    return labels, unit(images), lambda prompts: words[[NAMES.index(prompt) for prompt in prompts]]


def context(images):
    return StrategyContext(np.full(3, 0.5), unlabelled=images)


def test_standardised_scores_are_those_of_the_unlabelled_images():
    _, images, encode = planted()
    found = standardised(images[:50], encode, VOCABULARY, context(images[100:]))
    cosines = images @ encode(NAMES).T
    expected = (cosines[:50] - cosines[100:].mean(axis=0)) / cosines[100:].std(axis=0)
    np.testing.assert_allclose(found.scores, expected, atol=1e-4)
    assert np.array_equal(found.decisions, expected > 0)
    alone = standardised(images[:50], encode, VOCABULARY, StrategyContext(np.full(3, 0.5)))
    np.testing.assert_allclose(alone.scores.mean(axis=0), 0, atol=1e-6)


def test_both_find_what_is_planted_where_the_baseline_marks_everything():
    labels, images, encode = planted()
    val, unlabelled = images[:200], context(images[200:])
    truth = labels[:200]
    accuracy = {f.__name__: (f(val, encode, VOCABULARY, unlabelled).decisions == truth).mean() for f in
                (baseline, standardised, transductive)}  # fmt: skip
    assert baseline(val, encode, VOCABULARY, unlabelled).decisions.all()
    assert accuracy["standardised"] > accuracy["baseline"] + 0.15
    assert accuracy["transductive"] > max(accuracy["standardised"] + 0.02, 0.88)


def test_the_mixture_does_not_fall_behind_its_prior_where_the_text_is_right():
    for seed in range(5):
        labels, images, encode = planted(seed=seed, informed=0.5)
        precision = [
            average_precision_score(labels[:200], f(images[:200], encode, VOCABULARY, context(images[200:])).scores)
            for f in (standardised, transductive)
        ]
        assert precision[1] > precision[0]


@pytest.mark.parametrize("method", [standardised, transductive])
def test_words_that_say_nothing_leave_chance(method):
    """Over many draws of words the mean accuracy of balanced decisions is one half, within its interval."""
    correct = []
    for seed in range(60):
        labels, images, encode = planted(n=300, seed=seed, informed=0.0)
        decisions = method(images[:100], encode, VOCABULARY, context(images[100:])).decisions
        truth = labels[:100] == 1
        correct.append(np.mean([decisions[truth].mean(), 1 - decisions[~truth].mean()]))
    assert np.mean(correct) > 0.5 - 1.96 * np.std(correct) / 60**0.5


def test_the_mixture_is_expectation_maximisation():
    """Its posterior is a fixed point: the means that it implies give it back, with the covariance of all images."""
    _, images, encode = planted()
    found = expit(transductive(images, encode, VOCABULARY, context(images)).scores)
    x = images - images.mean(axis=0)
    _, spread, axes = np.linalg.svd(x, full_matrices=False)
    x = x @ axes[:16].T / spread[:16] * len(x) ** 0.5
    prior = standardised(images, encode, VOCABULARY, context(images)).scores
    for k in range(3):
        present, absent = (np.average(x, axis=0, weights=w) for w in (found[:, k], 1 - found[:, k]))
        ratio = ((x - absent) ** 2).sum(axis=1) / 2 - ((x - present) ** 2).sum(axis=1) / 2
        np.testing.assert_allclose(found[:, k], expit(ratio + prior[:, k]), atol=0.02)
