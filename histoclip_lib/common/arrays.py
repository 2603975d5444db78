"""Small functions on arrays that several rooms share."""

from __future__ import annotations

import numpy as np


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors (..., d) to length 1, in their own precision; a vector of zeros stays one."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12).astype(vectors.dtype)


def nan_mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return the mean over the defined values; NaN if none is defined, without a warning."""
    with np.errstate(invalid="ignore"):
        return np.nansum(values, axis=axis) / (~np.isnan(values)).sum(axis=axis)


def agreement(labels: np.ndarray, decisions: np.ndarray) -> np.ndarray:
    """Return 1 where a decision agrees with the label, 0 where it does not, and NaN where the label is not known.

    Parameters
    ----------
    labels : ndarray of shape (...)
        0, 1, or NaN for not known.
    decisions : ndarray of shape (...)
        0 or 1.
    """
    return np.where(np.isnan(labels), np.nan, labels == decisions)


def all_right(labels: np.ndarray, decisions: np.ndarray) -> np.ndarray:
    """Return whether all known labels of a patch are right, bool (B,); the arguments have the shape (B, N)."""
    return (np.isnan(labels) | (labels == decisions)).all(axis=1)
