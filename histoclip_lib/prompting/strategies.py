"""The four zero-shot strategies: Baseline, One-vs-Rest, Power-set and Top-k.

Every strategy compares unit image embeddings with prompts. Besides its decisions each gives scores, for metrics that
rank: the cosine for the Baseline, and for the others the margin by which the best prompt with the class beats the
best prompt without it, so that a positive score means that the class was chosen.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch
from torch.nn import functional

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.predictions import Predictions, mean_accuracy
from histoclip_lib.prompting.vocabulary import TextEncoder, Vocabulary, class_embeddings

BASELINE_RULES = ("sigmoid", "softmax", "argmax", "prevalence")
MAX_POWER_SET = 16


def score_all(
    pooled: np.ndarray,
    encode: TextEncoder,
    vocabulary: Vocabulary,
    train_prevalence: np.ndarray,
    baseline_rule: str = "sigmoid",
) -> dict[str, Predictions]:
    """Run the four strategies.

    Parameters
    ----------
    pooled : ndarray of shape (B, d)
        Image embeddings, of any length.
    encode : TextEncoder
        Encodes the prompts.
    vocabulary : Vocabulary
        The N classes in words.
    train_prevalence : ndarray of shape (N,)
        Used by the rule `prevalence` alone.
    baseline_rule : str
        See `baseline`.

    Returns
    -------
    dict
        `baseline`, `one_vs_rest`, `power_set` and `top_k`, in this order.
    """
    images = functional.normalize(torch.from_numpy(np.asarray(pooled, dtype=np.float32)), dim=-1)
    return {
        "baseline": baseline(images, encode, vocabulary, baseline_rule, train_prevalence),
        "one_vs_rest": one_vs_rest(images, encode, vocabulary),
        "power_set": power_set(images, encode, vocabulary),
        "top_k": top_k(images, encode, vocabulary),
    }


def baseline(
    images: torch.Tensor,
    encode: TextEncoder,
    vocabulary: Vocabulary,
    rule: str = "sigmoid",
    train_prevalence: np.ndarray | None = None,
) -> Predictions:
    """Cosine of image and class embeddings (eq. 2), decided by a rule.

    Parameters
    ----------
    images : tensor of shape (B, d)
        Unit rows.
    encode, vocabulary
        As in `score_all`.
    rule : {"sigmoid", "softmax", "argmax", "prevalence"}
        `sigmoid` is eq. (6) as it stands: sigma(cos) >= 0.5, that is cos >= 0. `softmax`: softmax over the classes,
        at the model's temperature (untrained, 1/0.07, in the offline default), above 1/N. `argmax`: the nearest class
        alone. `prevalence`: for each class the nearest patches, as many as its training prevalence asks for.
    train_prevalence : ndarray of shape (N,), optional
        Needed by `prevalence`.
    """
    cosines = images @ class_embeddings(encode, vocabulary).cpu().T
    n_classes = len(vocabulary.names)
    if rule == "sigmoid":
        decisions = cosines >= 0
    elif rule == "softmax":
        scale = encode.clip.model.logit_scale.exp().item()
        decisions = (scale * cosines).softmax(dim=1) > 1 / n_classes
    elif rule == "argmax":
        decisions = functional.one_hot(cosines.argmax(dim=1), n_classes).bool()
    elif rule == "prevalence":
        ranks = cosines.argsort(dim=0, descending=True).argsort(dim=0)
        decisions = ranks < torch.from_numpy(np.round(train_prevalence * len(images)))
    else:
        raise HistoCLIPError(f"baseline_rule: {rule!r} is not known. Use one of {', '.join(BASELINE_RULES)}.")
    return Predictions(cosines.numpy(), decisions.numpy())


def one_vs_rest(images: torch.Tensor, encode: TextEncoder, vocabulary: Vocabulary) -> Predictions:
    """Choose a class where `a photo of a {class}` is nearer than the negative prompt; `images` (B, d), unit rows."""
    prompts = [vocabulary.photo_of.replace("{}", name) for name in vocabulary.names]
    margins = images @ encode(prompts).cpu().T - images @ encode([vocabulary.negative_prompt]).cpu().T
    return Predictions(margins.numpy(), (margins > 0).numpy())


def power_set(images: torch.Tensor, encode: TextEncoder, vocabulary: Vocabulary) -> Predictions:
    """Choose the best of the 2^N subsets of classes, one prompt each; `images` (B, d), unit rows.

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
    cosines = images @ encode([subset_prompt(subset, vocabulary) for subset in subsets]).cpu().T  # (B, 2^N)
    member = torch.zeros(len(subsets), n_classes, dtype=torch.bool)
    for row, subset in enumerate(subsets):
        member[row, list(subset)] = True
    decisions = member[cosines.argmax(dim=1)]
    margins = [cosines[:, member[:, k]].amax(dim=1) - cosines[:, ~member[:, k]].amax(dim=1) for k in range(n_classes)]
    return Predictions(torch.stack(margins, dim=1).numpy(), decisions.numpy())


def subset_prompt(subset: tuple[int, ...], vocabulary: Vocabulary) -> str:
    """Return the prompt of a subset of classes: its names with commas, or the negative prompt for none."""
    if not subset:
        return vocabulary.negative_prompt
    return vocabulary.photo_of.replace("{}", ", ".join(vocabulary.names[k] for k in subset))


def top_k(images: torch.Tensor, encode: TextEncoder, vocabulary: Vocabulary) -> Predictions:
    """Rank the classes of each image, then choose how many of them to keep; `images` (B, d), unit rows.

    The candidates for an image are the negative prompt and, for k = 1..N, the prompt that names its k nearest
    classes in their order. Only prompts that occur are encoded.
    """
    n_classes = len(vocabulary.names)
    class_cosines = images @ encode([vocabulary.photo_of.replace("{}", name) for name in vocabulary.names]).cpu().T
    ranking = class_cosines.argsort(dim=1, descending=True, stable=True).numpy()  # (B, N)
    cosines = np.empty((len(images), n_classes + 1), dtype=np.float32)
    cosines[:, 0] = (images @ encode([vocabulary.negative_prompt]).cpu().T)[:, 0]
    for k in range(1, n_classes + 1):
        prefixes, prefix_of_image = np.unique(ranking[:, :k], axis=0, return_inverse=True)
        prompts = encode([prefix_prompt(tuple(prefix), vocabulary) for prefix in prefixes]).cpu()
        cosines[:, k] = (images * prompts[prefix_of_image.ravel()]).sum(dim=1)
    kept = cosines.argmax(axis=1)  # how many classes each image keeps
    rank_of_class = ranking.argsort(axis=1)  # (B, N): 0 for the nearest class
    decisions = rank_of_class < kept[:, None]
    up_to = np.maximum.accumulate(cosines, axis=1)  # best candidate with at most k classes
    beyond = np.maximum.accumulate(cosines[:, ::-1], axis=1)[:, ::-1]  # best candidate with at least k classes
    rows = np.arange(len(images))[:, None]
    margins = beyond[rows, rank_of_class + 1] - up_to[rows, rank_of_class]
    return Predictions(margins, decisions)


def prefix_prompt(ranked: tuple[int, ...], vocabulary: Vocabulary) -> str:
    """Return the prompt that names ranked classes: `a photo of a Top-1, a photo of a Top-2, ...`."""
    return ", ".join(vocabulary.photo_of.replace("{}", vocabulary.names[k]) for k in ranked)


def baseline_note(predictions: Predictions, labels: np.ndarray, rule: str) -> str:
    """Say in Markdown what the Baseline amounts to; `predictions` and `labels` for all patches (B, N)."""
    if rule != "sigmoid":
        return f"The Baseline is decided by the rule `{rule}`, not by the paper's eq. (6)."
    share = predictions.decisions.mean()
    always = mean_accuracy(labels, np.ones_like(labels))
    note = f"The rule cos ≥ 0 marks {share:.1%} of all labels as present; marking every label scores {always:.4f}."
    if share == 1:
        note += " **Here the Baseline is that constant answer**: every cosine is positive, and no image is told apart."
    return note
