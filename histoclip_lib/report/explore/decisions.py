"""Explorer of thresholds: what each class's threshold does to the confusion counts and to what is made of them."""

from __future__ import annotations

import numpy as np
from ipywidgets import HTML, Button, FloatSlider, VBox

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.html import Node, element, table
from histoclip_lib.common.predictions import THRESHOLD
from histoclip_lib.evaluation.confusion import confusion
from histoclip_lib.report.explore.base import BESIDE, STYLE, WIDE, Explorer, beside, set_quietly, write
from histoclip_lib.report.figures.base import short
from histoclip_lib.report.figures.exploring import threshold_curves

ABBREVIATIONS = {
    "TP": "present and found",
    "FP": "absent and invented",
    "FN": "present and missed",
    "TN": "absent and not found",
}


def thresholds(labels: np.ndarray, scores: np.ndarray, classes: list[str], static: object = None) -> Explorer:
    """Return an explorer in which the threshold of each class can be moved.

    Parameters
    ----------
    labels : ndarray of shape (B, N)
        0 or 1.
    scores : ndarray of shape (B, N)
        Probabilities; a class is present at or above its threshold.
    classes : list of str
        N names.
    static : Figure or object with `_repr_mimebundle_`, optional
        What a page shows; by default accuracy and F1 at every threshold.

    Returns
    -------
    Explorer
        Controls `threshold 0` to `threshold N-1`, `all` and `reset`; views `summary` and `counts`.

    Raises
    ------
    HistoCLIPError
        If a score is no probability.
    """
    if not ((scores >= 0) & (scores <= 1)).all():
        raise HistoCLIPError(
            f"explore.thresholds: scores lie between {scores.min():.3g} and {scores.max():.3g}, thresholds between 0 "
            "and 1. Give probabilities."
        )
    sliders = [_slider(short(name), f"Present at or above this probability: {name}") for name in classes]
    controls = {f"threshold {k}": slider for k, slider in enumerate(sliders)}
    controls["all"] = _slider("all at", "One threshold for all classes")
    controls["reset"] = Button(description=f"Reset to {THRESHOLD}", tooltip="Decide as eq. (6) does")
    views = {"summary": HTML(), "counts": HTML()}
    as_reported = confusion(labels, scores >= THRESHOLD)

    def draw(_: object = None) -> None:
        counts = confusion(labels, scores >= [slider.value for slider in sliders])
        write(views["summary"], _summary(counts, as_reported))
        write(views["counts"], _count_table(counts, classes))

    def move_all(value: float) -> None:
        set_quietly(dict.fromkeys(sliders, value), draw)

    def reset(_: object) -> None:
        controls["all"].value = THRESHOLD
        move_all(THRESHOLD)  # moves nothing by itself where "all at" stood there already

    for slider in sliders:
        slider.observe(draw, "value")
    controls["all"].observe(lambda change: move_all(change["new"]), "value")
    controls["reset"].on_click(reset)
    draw()
    box = beside(VBox([controls["all"], *sliders, controls["reset"]], layout=BESIDE), VBox(list(views.values())))
    return Explorer(box, controls, views, static or threshold_curves(labels, scores, classes))


def _slider(description: str, tooltip: str) -> FloatSlider:
    return FloatSlider(
        value=THRESHOLD, min=0, max=1, step=0.01, description=description, tooltip=tooltip,
        style=STYLE | {"description_width": "10em"}, layout={"width": WIDE},
    )  # fmt: skip


def rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return accuracy, precision, recall and F1 of each class, shape (N,), from its 2x2 counts (N, 2, 2).

    NaN where nothing was called present (precision) or nothing is (recall); F1 is 0 there, as in the other tables.
    """
    (tn, fp), (fn, tp) = np.moveaxis(counts.astype(float), 0, 2)
    with np.errstate(invalid="ignore"):
        return {
            "accuracy": (tp + tn) / counts.sum(axis=(1, 2)),
            "precision": tp / (tp + fp),
            "recall": tp / (tp + fn),
            "F1": 2 * tp / np.maximum(2 * tp + fp + fn, 1),
        }


def _summary(counts: np.ndarray, as_reported: np.ndarray) -> Node:
    """Return mAcc and macro F1 now and at 0.5."""
    lines = []
    for name, rate in (("mAcc", "accuracy"), ("macro F1", "F1")):
        now, before = (rates(cells)[rate].mean() for cells in (counts, as_reported))
        lines.append([name, f"{now:.3f}", f"{before:.3f}", f"{now - before:+.3f}"])
    return table(["", "now", f"at {THRESHOLD}", "change"], lines)


def _count_table(counts: np.ndarray, classes: list[str]) -> Node:
    measured = rates(counts)
    lines = []
    for k, (name, ((tn, fp), (fn, tp))) in enumerate(zip(classes, counts, strict=True)):
        numbers = (f"{values[k]:.3f}" if np.isfinite(values[k]) else "—" for values in measured.values())
        lines.append([name, *(f"{count:,}" for count in (tp, fp, fn, tn)), *numbers])
    header = [element("abbr", letters, title=words) for letters, words in ABBREVIATIONS.items()]
    return table(["class", *header, *measured], lines)
