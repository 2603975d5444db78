"""Sensitivity of the zero-shot methods to their prompts: single templates, synonyms, and what ensembling gains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import pandas as pd

from histoclip_lib.common.arrays import unit
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.predictions import Predictions, mean_accuracy
from histoclip_lib.prompting.strategies import STRATEGIES, StrategyContext
from histoclip_lib.prompting.vocabulary import Encode, TextEncoder, Vocabulary

AS_REPORTED, SINGLE_TEMPLATE, SYNONYMS = "as reported", "single template", "synonyms"
KINDS = (AS_REPORTED, SINGLE_TEMPLATE, SYNONYMS)
MAX_NEW_PROMPTS = 256  # of one variant: a power-set of 8 classes. Forty variants may need as many
METRICS = ("mAcc", "mAP")


@dataclass(frozen=True, eq=False)
class Variants:
    """What each strategy scores with each choice of words.

    Attributes
    ----------
    table : DataFrame
        A line for each variant: `strategy` (its label), `kind` (one of KINDS), `prompt` (the template, or the names
        used), `mAcc` and `mAP` (NaN where no class has a positive patch).
    left_out : dict of str to int
        How many variants of a strategy were left out, since they needed more than MAX_NEW_PROMPTS new prompts.
    """

    table: pd.DataFrame
    left_out: dict[str, int]


class TooManyPromptsError(HistoCLIPError):
    """A variant needs more new prompts than it may encode."""


def limited_encoder(encode: TextEncoder, limit: int) -> Encode:
    """Return a function that encodes as another one and into its store, but raises TooManyPromptsError.

    That is where the calls so far need more new prompts than the limit.
    """
    left = limit

    def encode_new(prompts: list[str]) -> np.ndarray:
        nonlocal left
        left -= len(set(prompts) - encode.encoded.keys())
        if left < 0:
            raise TooManyPromptsError("a choice of words needs too many new prompts")
        return encode(prompts)

    return encode_new


def score_variants(
    pooled: np.ndarray,
    encode: TextEncoder,
    vocabulary: Vocabulary,
    labels: np.ndarray,
    context: StrategyContext,
    draws: int = 12,
    seed: int = 0,
) -> Variants:
    """Score every strategy with every single template, and with random choices among the synonyms.

    With a single template the class matrix comes from that template alone, and the strategies that use one template
    use it in place of `a photo of a {}`. With synonyms each class goes by its name or one of its synonyms, drawn at
    random, the same draws for every strategy; all else is as reported. The negative prompt stays.

    Parameters
    ----------
    pooled, vocabulary, context
        As in `score_zero_shot`, for the validation part.
    encode : TextEncoder
        Encodes each distinct prompt once. A variant that needs more than MAX_NEW_PROMPTS prompts which are not encoded
        yet is left out: the power-set has 2^N of them, and Top-k one for each beginning of a ranking that occurs.
    labels : ndarray of shape (B, N)
        0, 1, or NaN where not known.
    draws : int
        Maximum number of distinct choices of one name per class. There are none if no class has a synonym.
    seed : int
        Of the draws.
    """
    images = unit(np.asarray(pooled, dtype=np.float32))
    lines, left_out = [], Counter()
    for kind, prompt, words in _wordings(vocabulary, draws, seed):
        for strategy in STRATEGIES.load().values():
            limited = encode if kind == AS_REPORTED else limited_encoder(encode, MAX_NEW_PROMPTS)
            try:
                predictions = strategy.score(images, limited, words, context)
            except TooManyPromptsError:
                left_out[strategy.label] += 1
                continue
            precision = mean_precision(labels, predictions.scores)
            lines.append([strategy.label, kind, prompt, mean_accuracy(labels, predictions.decisions), precision])
    return Variants(pd.DataFrame(lines, columns=["strategy", "kind", "prompt", *METRICS]), dict(left_out))


def _wordings(vocabulary: Vocabulary, draws: int, seed: int) -> Iterator[tuple[str, str, Vocabulary]]:
    """Yield kind, prompt and vocabulary: first as reported, then each single template, then draws of synonyms."""
    yield AS_REPORTED, "; ".join(vocabulary.names), vocabulary
    for template in vocabulary.templates:
        yield SINGLE_TEMPLATE, template, replace(vocabulary, templates=[template], photo_of=template)
    for names in draw_names(vocabulary, draws, seed):
        yield SYNONYMS, "; ".join(names), replace(vocabulary, names=names)


def draw_names(vocabulary: Vocabulary, draws: int, seed: int) -> list[list[str]]:
    """Draw distinct choices of one name for each class among its name and synonyms, never all names as reported.

    All choices if there are at most `draws` of them; none if no class has a synonym.
    """
    words = [[name] for name in vocabulary.names]
    for own, synonyms in zip(words, vocabulary.synonyms, strict=False):
        own += synonyms
    sizes, generator = [len(own) for own in words], np.random.default_rng(seed)
    chosen: set[tuple[int, ...]] = set()
    while len(chosen) < min(draws, prod(sizes) - 1):
        places = tuple(generator.integers(sizes).tolist())
        if any(places):  # all 0: the names as reported
            chosen.add(places)
    return [[own[place] for own, place in zip(words, places, strict=True)] for places in sorted(chosen)]


def prompts_table(scored: dict[str, dict[str, Predictions]], labels: np.ndarray) -> pd.DataFrame:
    """Return as text mAcc and mAP of each strategy with each set of prompts.

    Parameters
    ----------
    scored : dict of str to dict of str to Predictions
        By the set of prompts, then by strategy; each (B, N).
    labels : ndarray of shape (B, N)
        0, 1, or NaN where not known.
    """
    lines: dict[str, dict[str, str]] = {}
    for prompts, methods in scored.items():
        for name, predictions in methods.items():
            precision = mean_precision(labels, predictions.scores)
            line = lines.setdefault(STRATEGIES[name].label, {})
            line[f"mAcc, {prompts}"] = f"{mean_accuracy(labels, predictions.decisions):.3f}"
            line[f"mAP, {prompts}"] = "—" if np.isnan(precision) else f"{precision:.3f}"
    return pd.DataFrame.from_dict(lines, orient="index")


def mean_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return mAP, the mean of average precision over the classes with a positive patch; NaN without any.

    `labels` (B, N) are 0, 1, or NaN where not known, which is left out; `scores` have the same shape.
    """
    from sklearn.metrics import average_precision_score

    known = ~np.isnan(labels)
    precisions = [
        average_precision_score(labels[own, k], scores[own, k])
        for k, own in enumerate(known.T)
        if (labels[:, k] == 1).any()
    ]
    return float(np.mean(precisions)) if precisions else np.nan


def extremes_table(variants: Variants) -> pd.DataFrame:
    """Return as text which words, a template or names, give each strategy its lowest and its highest mAP."""
    lines = {}
    for strategy, own in variants.table.groupby("strategy", sort=False):
        ranked = own.dropna(subset="mAP").sort_values("mAP", kind="stable")
        line = {}
        for label, place in (("lowest mAP", 0), ("highest mAP", -1)):
            line[label] = "—" if ranked.empty else f"{ranked['mAP'].iloc[place]:.3f}"
            line[f"words of the {label.split()[0]}"] = "—" if ranked.empty else ranked["prompt"].iloc[place]
        lines[strategy] = line
    return pd.DataFrame.from_dict(lines, orient="index")


def _range(values: pd.Series) -> str:
    low, high = (f"{value:.3f}" for value in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def ensembling_note(variants: Variants) -> str:
    """Say in Markdown what the mean over templates, eq. (2), gains the Baseline over one template alone."""
    own = variants.table[variants.table["strategy"] == STRATEGIES["baseline"].label]
    single = own[own["kind"] == SINGLE_TEMPLATE]
    if len(single) == 1:
        return "With a single template, the Baseline has no ensemble over templates."
    sentences = []
    for metric in ("mAP", "mAcc"):
        together, alone = own.loc[own["kind"] == AS_REPORTED, metric].item(), single[metric]
        if np.isnan(together):
            sentences.append(f"Its {metric} is not defined: no class has a positive patch.")
        elif np.ptp([together, *alone]) < 1e-9:
            sentences.append(f"Its {metric} is {together:.3f} with every template, alone or together.")
        else:
            beaten = int((together > alone).sum())
            sentences.append(
                f"Its {metric} is {together:.3f} with all {len(single)} templates; with a single template it is "
                f"{alone.mean():.3f} on average ({alone.min():.3f} to {alone.max():.3f}). The ensemble differs from "
                f"this mean by {together - alone.mean():+.3f} and is better than {beaten} of the {len(single)} "
                "templates."
            )
    return f"**Ensembling, eq. (2), and the Baseline.** {' '.join(sentences)}"


def spread_note(variants: Variants) -> str:
    """Say in Markdown how mAcc and mAP of each strategy vary with the words, and what was left out."""
    lines = []
    for strategy, own in variants.table.groupby("strategy", sort=False):
        parts = []
        for metric in METRICS:
            reported = own.loc[own["kind"] == AS_REPORTED, metric].item()
            ranges = [
                f"{_range(part)} over {len(part)} {what}"
                for kind, what in ((SINGLE_TEMPLATE, "single templates"), (SYNONYMS, "choices of synonyms"))
                if len(part := own.loc[own["kind"] == kind, metric].dropna())
            ]
            if not np.isnan(reported):
                parts.append(", ".join([f"{metric} {reported:.3f} as reported", *ranges]))
            alone = own.loc[own["kind"] == SINGLE_TEMPLATE, metric].dropna()
            if len(alone) > 1 and alone.min() > reported:
                parts.append(f"**every single template has a higher {metric} than the prompts as reported**")
        lines.append(f"- {strategy}: {'; '.join(parts)}.")
    note = "\n".join(lines)
    if SYNONYMS not in set(variants.table["kind"]):
        note += "\n\nNo synonyms were tried: `prompts_file` may list some."
    if variants.left_out:
        listed = ", ".join(f"{count} of {strategy}" for strategy, count in variants.left_out.items())
        note += (
            f"\n\nLeft out, since each would need more than {MAX_NEW_PROMPTS} prompts that no other variant needs: "
            f"{listed}."
        )
    return (
        note + "\n\nThe best wording could only be chosen with the held-out labels, so no method in the tables uses it."
    )
