"""Pictures that stand on a page in the place of an explorer."""

from __future__ import annotations

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from histoclip_lib.common.predictions import THRESHOLD
from histoclip_lib.report.figures.base import CLASS_COLOURS, described, short, short_names

STEPS = 101  # thresholds from 0 to 1
DASHES = ("-", "--")  # the ten colours come round once


def threshold_curves(labels: np.ndarray, scores: np.ndarray, classes: list[str]) -> Figure:
    """Draw the accuracy and the F1 of each class, and their means, at every threshold.

    Parameters
    ----------
    labels : ndarray of shape (B, N)
        0 or 1.
    scores : ndarray of shape (B, N)
        Probabilities; a class is present at or above the threshold.
    classes : list of str
        N names.
    """
    cuts = np.linspace(0, 1, STEPS)
    curves = np.array([_accuracy_and_f1(labels[:, k], scores[:, k], cuts) for k in range(len(classes))])  # (N, 2, T)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for side, name, mean in ((0, "accuracy", "mAcc"), (1, "F1", "macro F1")):
        for k, own in enumerate(curves[:, side]):
            axes[side].plot(cuts, own, color=CLASS_COLOURS[k % 10], ls=DASHES[k // 10 % 2], lw=1.4)
        axes[side].plot(cuts, curves[:, side].mean(axis=0), color="0.15", lw=2.6)
        axes[side].axvline(THRESHOLD, color="0.5", lw=1, ls=":")
        axes[side].set(title=f"{name}; thick: {mean}", xlabel="threshold", xlim=(0, 1), ylim=(-0.02, 1.02))
    figure.tight_layout()
    columns = min(len(classes), 5)
    figure.legend(axes[0].lines[: len(classes)], short_names(classes), loc="upper center", ncols=columns,
                  bbox_to_anchor=(0.5, 0.02), frameon=False)  # fmt: skip
    at = np.searchsorted(cuts, THRESHOLD)
    listed = "; ".join(
        f"{name}: F1 {f1[at]:.2f} at {THRESHOLD}, highest {f1.max():.2f} at {cuts[f1.argmax()]:.2f}"
        for name, (_, f1) in zip(classes, curves, strict=True)
    )
    return described(figure, f"Accuracy and F1 of each class at every threshold. {listed}.")


def _accuracy_and_f1(labels: np.ndarray, scores: np.ndarray, cuts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the accuracy and F1 (T,) of one class; `labels` and `scores` (B,), `cuts` (T,)."""
    present, absent = np.sort(scores[labels == 1]), np.sort(scores[labels == 0])
    missed, rejected = np.searchsorted(present, cuts), np.searchsorted(absent, cuts)
    found, invented = len(present) - missed, len(absent) - rejected
    return (found + rejected) / len(labels), 2 * found / np.maximum(2 * found + missed + invented, 1)


def patch_cosines(
    image: np.ndarray, cosines: np.ndarray, negative: float, names: list[str], labels: np.ndarray, file: str
) -> Figure:
    """Draw a patch beside its cosines with the classes' words.

    Parameters
    ----------
    image : ndarray of shape (H, W, 3), uint8
        The patch.
    cosines : ndarray of shape (N,)
        With the class embeddings of eq. (2).
    negative : float
        The cosine with the negative prompt, a line.
    names : list of str
        The words of the N classes.
    labels : ndarray of shape (N,)
        0 or 1.
    file : str
        Of the patch.
    """
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8.4, max(3.0, 0.42 * len(names) + 1)), gridspec_kw={"width_ratios": [1, 1.5]}
    )
    left.imshow(image)
    left.set_axis_off()
    left.set_title(short(file), fontsize=10)
    colours = [CLASS_COLOURS[0] if label else "0.75" for label in labels]
    right.barh(np.arange(len(names)), cosines, color=colours)
    right.axvline(negative, color="0.2", lw=1.2, ls="--")
    right.axvline(0, color="0.2", lw=0.8)
    right.set_yticks(np.arange(len(names)), short_names(names))
    right.invert_yaxis()
    right.grid(axis="y", visible=False)
    right.set_xlabel("cosine; blue: present; dashed: the negative prompt")
    figure.tight_layout()
    listed = "; ".join(
        f"{name} ({'present' if label else 'absent'}) {cosine:.3f}"
        for name, label, cosine in zip(names, labels, cosines, strict=True)
    )
    return described(figure, f"Patch {file} and its cosines. {listed}; the negative prompt {negative:.3f}.")
