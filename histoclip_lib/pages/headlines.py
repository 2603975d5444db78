"""A run's result in words: how HistoCLIP stands against the linear probe and the simplest rows, flattering or not."""

from __future__ import annotations

from dataclasses import dataclass

from histoclip_lib.comparisons import OURS, finding
from histoclip_lib.pages.run_predictions import ValidationPredictions
from histoclip_lib.pages.run_results import RunResults
from histoclip_lib.results import ROW_LABELS
from histoclip_lib.run_summaries import Score
from histoclip_lib.uncertainty import Difference, accuracy_gap

RESAMPLES = 1000
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
