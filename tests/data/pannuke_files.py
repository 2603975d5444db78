"""Small PanNuke files, written for tests."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from histoclip_lib.data.pannuke.layouts import load_pannuke


def png(array: np.ndarray) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write_fold(root: Path, fold: int = 1, n: int = 3, **replaced: np.ndarray) -> Path:
    folder = root / f"fold{fold}"
    folder.mkdir(parents=True, exist_ok=True)
    stored = {
        "images": np.full((n, 32, 32, 3), 200.0),
        "masks": np.zeros((n, 32, 32, 6)),
        "types": np.array(["Breast"] * n),
    } | replaced
    for name, array in stored.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=True)
    return folder


def load_small(root: Path, **options):
    return load_pannuke(root, cache_dir=root / "cache", **options)
