"""The zero-shot strategies of the paper: Baseline, One-vs-Rest, Power-set and Top-k; `adaptation` and plugins add more.

Every strategy compares unit image embeddings with prompts. Besides its decisions each gives scores, for metrics that
rank: the cosine for the Baseline, and for the others the margin by which the best prompt with the class beats the
best prompt without it, so that a positive score means that the class was chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.special import softmax

from histoclip_lib.common.arrays import unit
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.predictions import Predictions, mean_accuracy
from histoclip_lib.common.registry import Registry, register_method
from histoclip_lib.prompting.vocabulary import Encode, Vocabulary, class_embeddings

BASELINE_RULES = ("sigmoid", "softmax", "argmax", "prevalence")
MAX_POWER_SET = 16


@dataclass(frozen=True, eq=False)
class StrategyContext:
    """What a strategy may use besides images and words.

    Attributes
    ----------
    train_prevalence : ndarray of shape (N,)
        Fraction of the training patches in which each class is present.
    baseline_rule : {"sigmoid", "softmax", "argmax", "prevalence"}
        How the Baseline decides; see `baseline`.
    temperature : float
        By which the model divides cosines before a softmax: `TextEncoder.temperature`.
    unlabelled : ndarray of shape (T, d), optional
        Unit embeddings of the training images, whose labels no strategy sees; by default the images to score.
    """

    train_prevalence: np.ndarray
    baseline_rule: str = "sigmoid"
    temperature: float = 0.07
    unlabelled: np.ndarray | None = None


@dataclass(frozen=True)
class Strategy:
    """A registered strategy: its label, and `score(images, encode, vocabulary, context) -> Predictions`."""

    label: str
    score: Callable[[np.ndarray, Encode, Vocabulary, StrategyContext], Predictions]


STRATEGIES: Registry[Strategy] = Registry("strategy", modules=(__name__, "histoclip_lib.prompting.adaptation"))


def strategy(name: str, label: str, in_table_one: bool = False, paper: str = "") -> Callable[[Callable], Callable]:
    """Register the decorated function as a zero-shot strategy, and as a method of the tables.

    Parameters
    ----------
    name : str
        In files, such as `one_vs_rest`.
    label : str
        In tables and figures, such as `One-vs-Rest`.
    in_table_one : bool
        Whether Table I has a column for it.
    paper : str
        Its name among the paper's numbers; empty where the paper has none.

    Examples
    --------
    >>> from histoclip_lib import strategy
    >>> @strategy("nothing", label="Nothing")
    ... def nothing(images, encode, vocabulary, context):
    ...     scores = images @ class_embeddings(encode, vocabulary).T
    ...     return Predictions(scores, scores > 2)
    """

    def register(score: Callable) -> Callable:
        STRATEGIES.add(name, Strategy(label, score))
        register_method(name, f"Zero-shot: {label}", "zero-shot", label, in_table_one, paper)
        return score

    return register


def score_zero_shot(
    pooled: np.ndarray, encode: Encode, vocabulary: Vocabulary, context: StrategyContext
) -> dict[str, Predictions]:
    """Run every registered strategy.

    Parameters
    ----------
    pooled : ndarray of shape (B, d)
        Image embeddings, of any length.
    encode : callable
        From P prompts to unit embeddings (P, d): a `TextEncoder`.
    vocabulary : Vocabulary
        The N classes in words.
    context : StrategyContext
        What else a strategy may use.

    Returns
    -------
    dict of str to Predictions
        By strategy, in the order of their registration; scores and decisions have the shape (B, N).

    Examples
    --------
    >>> import numpy as np
    >>> from histoclip_lib.prompting import StrategyContext, Vocabulary, score_zero_shot
    >>> vectors = {"a photo with nothing in it.": [0.0, 1.0]}
    >>> encode = lambda prompts: np.array([vectors.get(prompt, [1.0, 0.0]) for prompt in prompts])
    >>> vocabulary = Vocabulary(names=["tumor"], templates=["tissue with {}"])
    >>> methods = score_zero_shot(np.array([[1.0, 0.0]]), encode, vocabulary, StrategyContext(np.array([0.5])))
    >>> methods["one_vs_rest"].decisions
    array([[ True]])
    """
    images = unit(np.asarray(pooled, dtype=np.float32))
    return {name: own.score(images, encode, vocabulary, context) for name, own in STRATEGIES.load().items()}


@strategy("baseline", label="Baseline", in_table_one=True, paper="baseline")
def baseline(images: np.ndarray, encode: Encode, vocabulary: Vocabulary, context: StrategyContext) -> Predictions:
    """Cosine of unit image embeddings (B, d) and class embeddings (eq. 2), decided by `context.baseline_rule`.

    `sigmoid` is eq. (6) as it stands: sigma(cos) >= 0.5, that is cos >= 0. `softmax`: softmax over the classes, at the
    model's temperature (untrained, 0.07, in the offline default), above 1/N. `argmax`: the nearest class alone.
    `prevalence`: for each class the nearest patches, as many as its training prevalence asks for.

    Raises
    ------
    HistoCLIPError
        If the rule is not known.
    """
    cosines = images @ class_embeddings(encode, vocabulary).T  # (B, N)
    n_patches, n_classes = cosines.shape
    rule = context.baseline_rule
    if rule == "sigmoid":
        decisions = cosines >= 0
    elif rule == "softmax":
        decisions = softmax(cosines / context.temperature, axis=1) > 1 / n_classes
    elif rule == "argmax":
        decisions = np.arange(n_classes) == cosines.argmax(axis=1)[:, None]
    elif rule == "prevalence":
        ranks = (-cosines).argsort(axis=0, kind="stable").argsort(axis=0)
        decisions = ranks < np.round(context.train_prevalence * n_patches)
    else:
        raise HistoCLIPError(f"baseline_rule: {rule!r} is not known. Use one of {', '.join(BASELINE_RULES)}.")
    return Predictions(cosines, decisions)


@strategy("one_vs_rest", label="One-vs-Rest", in_table_one=True, paper="one_vs_rest")
def one_vs_rest(images: np.ndarray, encode: Encode, vocabulary: Vocabulary, context: StrategyContext) -> Predictions:
    """Choose a class where `a photo of a {class}` is nearer than the negative prompt; unit `images` (B, d)."""
    prompts = [vocabulary.photo_of.replace("{}", name) for name in vocabulary.names]
    margins = images @ encode(prompts).T - images @ encode([vocabulary.negative_prompt]).T
    return Predictions(margins, margins > 0)


@strategy("power_set", label="Power-set", in_table_one=True, paper="power_set")
def power_set(images: np.ndarray, encode: Encode, vocabulary: Vocabulary, context: StrategyContext) -> Predictions:
    """Choose the best of the 2^N subsets of classes, one prompt each; unit `images` (B, d).

    Raises
    ------
    HistoCLIPError
        For more than 16 classes.
    """
    n_classes = len(vocabulary.names)
    if n_classes > MAX_POWER_SET:
        raise HistoCLIPError(
            f"power-set: {n_classes} classes have 2^{n_classes} subsets and as many prompts; at most {MAX_POWER_SET} "
            "classes are scored. Merge or drop class columns."
        )
    subsets = [subset for size in range(n_classes + 1) for subset in combinations(range(n_classes), size)]
    cosines = images @ encode([subset_prompt(subset, vocabulary) for subset in subsets]).T  # (B, 2^N)
    member = np.array([[k in subset for k in range(n_classes)] for subset in subsets])  # (2^N, N)
    margins = [cosines[:, with_k].max(axis=1) - cosines[:, ~with_k].max(axis=1) for with_k in member.T]
    return Predictions(np.stack(margins, axis=1), member[cosines.argmax(axis=1)])


def subset_prompt(subset: tuple[int, ...], vocabulary: Vocabulary) -> str:
    """Return the prompt of a subset of classes: its names with commas, or the negative prompt for the empty one."""
    if not subset:
        return vocabulary.negative_prompt
    return vocabulary.photo_of.replace("{}", ", ".join(vocabulary.names[k] for k in subset))


@strategy("top_k", label="Top-k", in_table_one=True, paper="top_k")
def top_k(images: np.ndarray, encode: Encode, vocabulary: Vocabulary, context: StrategyContext) -> Predictions:
    """Rank the classes of each image, then choose how many of them to keep; unit `images` (B, d).

    The candidates for an image are the negative prompt and, for k = 1..N, the prompt that names its k nearest
    classes in their order. Only prompts that occur are encoded.
    """
    n_classes = len(vocabulary.names)
    class_cosines = images @ encode([vocabulary.photo_of.replace("{}", name) for name in vocabulary.names]).T
    ranking = (-class_cosines).argsort(axis=1, kind="stable")  # (B, N)
    cosines = np.empty((len(images), n_classes + 1), dtype=images.dtype)  # column k: the k nearest classes
    cosines[:, 0] = images @ encode([vocabulary.negative_prompt])[0]
    for k in range(1, n_classes + 1):
        prefixes, prefix_of_image = np.unique(ranking[:, :k], axis=0, return_inverse=True)
        prompts = encode([prefix_prompt(tuple(prefix), vocabulary) for prefix in prefixes])
        cosines[:, k] = (images * prompts[prefix_of_image.ravel()]).sum(axis=1)
    kept = cosines.argmax(axis=1)  # how many classes each image keeps
    rank_of_class = ranking.argsort(axis=1)  # (B, N): 0 for the nearest class
    up_to = np.maximum.accumulate(cosines, axis=1)  # best candidate with at most k classes
    beyond = np.maximum.accumulate(cosines[:, ::-1], axis=1)[:, ::-1]  # best candidate with at least k classes
    margins = np.take_along_axis(beyond, rank_of_class + 1, axis=1) - np.take_along_axis(up_to, rank_of_class, axis=1)
    return Predictions(margins, rank_of_class < kept[:, None])


def prefix_prompt(ranked: tuple[int, ...], vocabulary: Vocabulary) -> str:
    """Return the prompt that names ranked classes: `a photo of a Top-1, a photo of a Top-2, ...`."""
    return ", ".join(vocabulary.photo_of.replace("{}", vocabulary.names[k]) for k in ranked)


def baseline_note(predictions: Predictions, labels: np.ndarray, rule: str) -> str:
    """Say in Markdown what the Baseline amounts to; `predictions` and `labels` are of the same patches (B, N)."""
    if rule != "sigmoid":
        return f"The Baseline is decided by the rule `{rule}`, not by the paper's eq. (6)."
    share = predictions.decisions.mean()
    always = mean_accuracy(labels, np.ones_like(labels))
    note = f"The rule cos ≥ 0 marks {share:.1%} of all labels as present; marking every label scores {always:.3f}."
    if share == 1:
        note += " **Here the Baseline is that constant answer**: every cosine is positive, whatever the image."
    return note
