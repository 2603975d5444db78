"""Which method is ahead of which, within a run and between two runs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.predictions import Predictions
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation.artifacts import RunResults, Score, ValidationPredictions
from histoclip_lib.evaluation.methods import ROW_LABELS
from histoclip_lib.evaluation.uncertainty import (
    LEVEL,
    Comparison,
    Difference,
    Draws,
    accuracy_gap,
    bootstrap_units,
    compare,
    draw_units,
    holm,
    mean_gap_p,
    resampled_metrics,
    smallest_p,
)

OURS = "histoclip_patch"
RIVALS = {
    "linear_probe": "the linear probe on the same features",
    "knn": "the nearest neighbours on the same features",
    "mlp": "the two-layer MLP on the same features",
    "histoclip_text_free": "the head with random queries",
    "tissue_prior": "the tissue prior",
    "majority": "the majority row",
}
METRICS = {"mAcc": "macc", "mAP": "map"}  # of a Comparison
ALPHA = 0.05


def against_every_row(
    rows: dict[str, Predictions], patches: PatchDataset, val: np.ndarray, resamples: int, seed: int
) -> dict[str, Comparison]:
    """Compare HistoCLIP with patch keys with each other row, in the order of ROW_LABELS.

    Parameters
    ----------
    rows : dict of str to Predictions
        For the patches `val`; one of them is `histoclip_patch`.
    patches : PatchDataset
        The data set.
    val : ndarray of int
        Its validation part.
    resamples, seed : int
        See `uncertainty.compare`.
    """
    units = bootstrap_units(patches, val)
    return {
        name: compare(patches.labels[val], rows[OURS], rows[name], units, resamples, seed)
        for name in ROW_LABELS
        if name in rows and name != OURS
    }


def verdict(comparisons: dict[str, Comparison], units: np.ndarray) -> str:
    """Say in Markdown how HistoCLIP stands against the RIVALS among the rows compared, flattering or not.

    A row is ahead or behind where the 95 % interval of the difference leaves out 0 and p is below 0.05. These p are
    each of one comparison; the last line says which rows still differ by p corrected over all rows compared.

    Parameters
    ----------
    comparisons : dict of str to Comparison
        As `against_every_row` returns.
    units : ndarray of shape (B,)
        What the tests swapped, as `results.bootstrap_units` returns: with few of them no corrected p can be small.
    """
    lines = []
    for name, label in RIVALS.items():
        if name in comparisons:
            macc, mean_ap = comparisons[name].macc, comparisons[name].map
            lines.append(
                f"- HistoCLIP with patch keys **{finding(macc)}** {label} in mAcc ({_in_words(macc)}), and "
                f"**{finding(mean_ap)}** it in mAP ({_in_words(mean_ap)})."
            )
    if lines:
        lines.append(_corrected(comparisons, units))
    return "\n".join(lines)


def _corrected(comparisons: dict[str, Comparison], units: np.ndarray) -> str:
    found = []
    for metric, key in METRICS.items():
        p = holm(np.array([getattr(comparison, key).p for comparison in comparisons.values()]))
        labels = [ROW_LABELS[name] for name, adjusted in zip(comparisons, p, strict=True) if adjusted < ALPHA]
        found.append(f"in {metric} {'; '.join(labels) or 'no row'}")
    number = "the one row" if len(comparisons) == 1 else f"all {len(comparisons)} rows"
    text = (
        f"- Each p above is of its comparison alone. With Holm's correction over {number} compared, p stays below "
        f"{ALPHA} against: {', and '.join(found)}."
    )
    if (smallest := smallest_p(units)) * len(comparisons) >= ALPHA:
        text += f" It could not: with {len(np.unique(units))} groups no p falls below {smallest:.4f} before correction."
    return text


def _in_words(gap: Difference) -> str:
    if np.isnan(gap.value):
        return "not defined: no class is present"
    return f"{gap.value:+.4f}, 95 % interval {gap.low:+.4f} to {gap.high:+.4f}, p = {gap.p:.4f}"


def finding(gap: Difference) -> str:
    """Say what a difference of two rows lets one say; interval and test must agree."""
    if gap.p < ALPHA and gap.low > 0:
        return "is ahead of"
    if gap.p < ALPHA and gap.high < 0:
        return "is behind"
    return "cannot be told from"


def differences_table(comparisons: dict[str, Comparison]) -> pd.DataFrame:
    """Return HistoCLIP with patch keys minus each other row as text, with 95 % interval; p is Holm's over the lines."""
    table = pd.DataFrame(index=[ROW_LABELS[name] for name in comparisons])
    for metric, key in METRICS.items():
        gaps = [getattr(comparison, key) for comparison in comparisons.values()]
        table[metric] = [_text("{:+.4f} ({:+.3f} to {:+.3f})", gap.value, gap.low, gap.high) for gap in gaps]
        table[f"p, {metric}"] = [_text("{:.4f}", p) for p in holm(np.array([gap.p for gap in gaps]))]
    return table


def _text(template: str, *values: float) -> str:
    return "—" if np.isnan(values).any() else template.format(*values)


def all_pairs(
    rows: dict[str, Predictions], patches: PatchDataset, val: np.ndarray, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare every row with every other in mAcc.

    Parameters
    ----------
    rows, patches, val
        As for `against_every_row`.
    seed : int
        Of the permutations; see `uncertainty.mean_gap_p`.

    Returns
    -------
    differences, p : DataFrame
        Square, the rows in the order of ROW_LABELS under their readable names: mAcc of the row minus mAcc of the
        column, and the p of its permutation test with Holm's correction over all pairs. NaN on the diagonal.
    """
    names = [name for name in ROW_LABELS if name in rows]
    correct = [(patches.labels[val] == rows[name].decisions).mean(axis=1) for name in names]
    differences, p = np.full((2, len(names), len(names)), np.nan)
    pairs = list(combinations(range(len(names)), 2))
    if pairs:
        first, second = np.array(pairs).T
        gaps = np.stack([correct[i] - correct[j] for i, j in pairs], axis=1)
        differences[first, second], differences[second, first] = gaps.mean(axis=0), -gaps.mean(axis=0)
        p[first, second] = p[second, first] = holm(mean_gap_p(gaps, bootstrap_units(patches, val), seed))
    labels = [ROW_LABELS[name] for name in names]
    return pd.DataFrame(differences, labels, labels), pd.DataFrame(p, labels, labels)


RESAMPLES = 1000
FEWEST_RESAMPLES = 200
MOST_CELLS = 3e8  # resamples x patches x classes over all rows that are ranked


@dataclass(frozen=True, eq=False)
class Common:
    """What two runs can be compared on.

    Attributes
    ----------
    first, second : ValidationPredictions
        Of the same patches, in the same order, with the same classes in the same order.
    only_first, only_second : int
        Validation patches that the other run does not validate on.
    relabelled : int
        Common patches to which the two runs give different labels; they are left out.
    """

    first: ValidationPredictions
    second: ValidationPredictions
    only_first: int
    only_second: int
    relabelled: int


@dataclass(frozen=True)
class Gap:
    """A metric of two runs: both values, the second minus the first, and its interval; None where not defined."""

    first: float | None
    second: float | None
    value: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class RowGaps:
    """One row of the table in two runs; `same` where its answers are the same on every patch."""

    row: str
    same: bool
    macc: Gap
    mean_ap: Gap


@dataclass(frozen=True)
class ClassGaps:
    """One class in HistoCLIP with patch keys: accuracy, average precision, and on how many patches who is right."""

    name: str
    accuracy: Gap
    ap: Gap
    both: int
    only_first: int
    only_second: int
    neither: int


@dataclass(frozen=True)
class RunGaps:
    """How the second run differs from the first, over `resamples` bootstrap samples.

    `test` is the difference in mAcc of HistoCLIP with patch keys with its p.
    """

    rows: list[RowGaps]
    classes: list[ClassGaps]
    test: Difference
    resamples: int


@dataclass(frozen=True)
class Disagreement:
    """A patch and a class in which one run is right and the other is not, with both probabilities."""

    place: int
    class_number: int
    first: float
    second: float
    first_is_right: bool


def align(first: ValidationPredictions, second: ValidationPredictions) -> Common | None:
    """Bring two runs to the validation patches that they share; None where they share none with the same labels.

    Raises
    ------
    HistoCLIPError
        If the runs have different classes, or one lacks HistoCLIP with patch keys.
    """
    if set(first.classes) != set(second.classes):
        raise HistoCLIPError("The runs have different classes.")
    if OURS not in first.rows or OURS not in second.rows:
        raise HistoCLIPError(f"A run has no row {OURS}. Run 04_evaluate again.")
    _, mine, theirs = np.intersect1d(first.files, second.files, assume_unique=True, return_indices=True)
    one, other = first.take(mine), _reordered(second.take(theirs), first.classes)
    alike = (one.labels == other.labels).all(axis=1)
    if not alike.any():
        return None
    places = np.flatnonzero(alike)
    only_first, only_second = len(first.files) - len(mine), len(second.files) - len(theirs)
    return Common(one.take(places), other.take(places), only_first, only_second, int((~alike).sum()))


def _reordered(predictions: ValidationPredictions, classes: list[str]) -> ValidationPredictions:
    columns = [predictions.classes.index(name) for name in classes]
    rows = {
        name: Predictions(row.scores[:, columns], row.decisions[:, columns]) for name, row in predictions.rows.items()
    }
    return ValidationPredictions(predictions.files, classes, predictions.labels[:, columns], predictions.groups, rows)


def compare_runs(common: Common, seed: int = 0) -> RunGaps:
    """Compare two runs row by row, and class by class in HistoCLIP with patch keys.

    Both runs are resampled with the same draws; the percentiles of the difference give its interval. With many patches
    there are fewer resamples than RESAMPLES, so that a comparison takes seconds.

    Parameters
    ----------
    common : Common
        As `align` returns.
    seed : int
        Of the bootstrap and of the permutation test.
    """
    first, second = common.first, common.second
    names = [name for name in ROW_LABELS if name in first.rows and name in second.rows]
    same = {name: _same(first.rows[name], second.rows[name]) for name in names}
    n_ranked = 2 * max(1, sum(not same[name] for name in names))
    resamples = int(np.clip(MOST_CELLS / (first.labels.size * n_ranked), FEWEST_RESAMPLES, RESAMPLES))
    draws = draw_units(first.units, resamples, seed)
    whole = np.ones((1, draws.counts.shape[1]), dtype=draws.counts.dtype)
    draws = Draws(draws.unit, np.concatenate([whole, draws.counts]))  # the first sample is the patches themselves
    rows, ours = [], {}
    for name in names:
        values = [resampled_metrics(first.labels, first.rows[name], draws)]
        values.append(values[0] if same[name] else resampled_metrics(first.labels, second.rows[name], draws))
        rows.append(RowGaps(name, same[name], _gap(values, "mAcc"), _gap(values, "mAP")))
        if name == OURS:
            ours = values
    test = accuracy_gap(first.labels, second.rows[OURS], first.rows[OURS], first.units, RESAMPLES, seed)
    return RunGaps(rows, _class_gaps(common, ours), test, resamples)


def _same(one: Predictions, other: Predictions) -> bool:
    return np.array_equal(one.decisions, other.decisions) and np.array_equal(one.scores, other.scores, equal_nan=True)


def _gap(values: list[dict[str, np.ndarray]], metric: str, column: int | None = None) -> Gap:
    one, other = (value[metric] if column is None else value[metric][:, column] for value in values)
    first, second = (None if np.isnan(points[0]) else float(points[0]) for points in (one, other))
    if first is None or second is None:
        return Gap(first, second, None, None)
    drawn = (other - one)[1:]
    drawn = drawn[~np.isnan(drawn)]
    low_high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist() if len(drawn) else None
    return Gap(first, second, second - first, low_high and tuple(low_high))


def _class_gaps(common: Common, ours: list[dict[str, np.ndarray]]) -> list[ClassGaps]:
    one, other = (run.rows[OURS].decisions == run.labels for run in (common.first, common.second))
    return [
        ClassGaps(
            name,
            _gap(ours, "accuracy", k),
            _gap(ours, "ap", k),
            both=int((one & other)[:, k].sum()),
            only_first=int((one & ~other)[:, k].sum()),
            only_second=int((~one & other)[:, k].sum()),
            neither=int((~one & ~other)[:, k].sum()),
        )
        for k, name in enumerate(common.first.classes)
    ]


def disagreements(common: Common, count: int) -> list[Disagreement]:
    """Return where one run is right and the other is not in HistoCLIP with patch keys, the widest gaps first.

    Parameters
    ----------
    common : Common
        As `align` returns.
    count : int
        At most so many for each run that is right, and no patch twice for the same run.
    """
    one, other = common.first.rows[OURS], common.second.rows[OURS]
    truth = common.first.labels.astype(bool)
    width = np.abs(other.scores - one.scores)
    found = []
    for first_is_right in (True, False):
        right, wrong = (one, other) if first_is_right else (other, one)
        split = (right.decisions == truth) & (wrong.decisions != truth)
        chosen: dict[int, int] = {}
        for place in np.argsort(-np.where(split, width, -1), axis=None, kind="stable"):
            patch, k = divmod(int(place), truth.shape[1])
            if not split[patch, k] or len(chosen) == count:
                break
            chosen.setdefault(patch, k)
        found += [
            Disagreement(patch, k, float(one.scores[patch, k]), float(other.scores[patch, k]), first_is_right)
            for patch, k in chosen.items()
        ]
    return found


ZERO_SHOT = ("baseline", "one_vs_rest", "power_set", "top_k")


@dataclass(frozen=True)
class Standing:
    """HistoCLIP with patch keys against one row in mAcc; without predictions `gap` is None and `finding` empty."""

    label: str
    score: Score
    gap: Difference | None
    finding: str


@dataclass(frozen=True)
class Headline:
    """The result in a sentence, the rows it stands against, and what the intervals resample."""

    sentence: str
    against: list[Standing]
    note: str


def headline(results: RunResults, predictions: ValidationPredictions | None) -> Headline | None:
    """Say in words how HistoCLIP with patch keys came out; None where the run lacks that row.

    Parameters
    ----------
    results : RunResults
        The numbers.
    predictions : ValidationPredictions or None
        What they were computed from; without them nothing is tested.
    """
    if OURS not in results.rows:
        return None
    best = best_zero_shot(results)
    labels = {"linear_probe": "Linear probe on the same features", "majority": ROW_LABELS["majority"]}
    labels |= {best: f"{ROW_LABELS[best]}, the best of the four"} if best else {}
    standings = {
        name: _standing(name, label, results, predictions) for name, label in labels.items() if name in results.rows
    }
    ours = results.rows[OURS]["mAcc"]
    interval = "" if ours.interval is None else " (95 % interval {:.3f} to {:.3f})".format(*ours.interval)
    sentence = f"HistoCLIP with patch keys reaches an mAcc of {ours.value:.3f}{interval}. "
    sentence += _against_probe(standings.get("linear_probe"), ours)
    return Headline(sentence, list(standings.values()), predictions.note if predictions else "")


def best_zero_shot(results: RunResults) -> str | None:
    """Return the zero-shot row with the highest mAcc, None where there is none."""
    there = [name for name in ZERO_SHOT if name in results.rows]
    return max(there, key=lambda name: results.rows[name]["mAcc"].value) if there else None


def _standing(name: str, label: str, results: RunResults, predictions: ValidationPredictions | None) -> Standing:
    gap = None
    if predictions and {name, OURS} <= predictions.rows.keys():
        one, other = predictions.rows[OURS], predictions.rows[name]
        gap = accuracy_gap(predictions.labels, one, other, predictions.units, RESAMPLES, 0)
    return Standing(label, results.rows[name]["mAcc"], gap, finding(gap) if gap else "")


def _against_probe(probe: Standing | None, ours: Score) -> str:
    if probe is None:
        return "No linear probe stands beside it."
    value = f"{probe.score.value:.3f}"
    if probe.finding == "is ahead of":
        return f"It is ahead of the linear probe on the same features, which reaches {value}."
    if probe.finding == "cannot be told from":
        return f"It does not beat the linear probe on the same features: with {value}, the two cannot be told apart."
    if probe.finding or probe.score.value >= ours.value:
        return f"It does not beat the linear probe on the same features, which reaches {value}."
    return f"The linear probe on the same features reaches {value}; whether it is behind was not tested."
