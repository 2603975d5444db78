"""The procedural H&E data set: regions of four tissues laid out by chance, painted, labelled and cached."""

from __future__ import annotations

import csv
import hashlib
import inspect
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.special import expit, logit
from tqdm import tqdm

from histoclip_lib.common.cache import cache_dir as default_cache_dir
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.files import temporary_beside
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.data.registry import dataset
from histoclip_lib.data.synthetic import painting, tissue

CLASSES = ("tumor", "stroma", "lymphocyte", "necrosis")
MIN_COVERAGE = 0.02  # a class is present where it covers at least this fraction of the patch

# How often a class is present in the median patient, and how much patients differ, in logits.
_FREQUENCY = np.array([0.62, 0.80, 0.36, 0.21])
_SPREAD_BETWEEN_PATIENTS = 1.1
MASK_COLOURS = np.array([[255, 255, 255], [128, 64, 160], [240, 160, 190], [50, 60, 160], [220, 110, 60]])
_GRID = 4  # pixels in one cell of the grid on which regions are laid out


@dataset(
    "synthetic",
    title="Synthetic H&E",
    licence="Painted by this software; no licence applies.",
    about=(
        "**Synthetic H&E.** Procedural patches, painted on this machine: tumor nests, stroma, lymphocytes and necrosis "
        "under a Beer-Lambert model of hematoxylin and eosin, with the stain, scale and scanner of synthetic patients. "
        "It exists so that the whole report can run where nothing can be downloaded. Scores on it say that the "
        "software works, and nothing about tissue."
    ),
    options=("n_patches",),
    needs_folder=False,
    mpp=painting.MPP,
    tcga="no",
    present=f"A class is present if it covers at least {MIN_COVERAGE:.0%} of the patch.",
)
def load_synthetic(n_patches: int = 600, seed: int = 0, cache_dir: str | Path | None = None) -> PatchDataset:
    """Load the procedural H&E data set, and paint it first where the cache does not hold it.

    Parameters
    ----------
    n_patches : int
        B patches, from 40 patients.
    seed : int
        Decides everything.
    cache_dir : str or Path, optional
        Where to keep the patches; by default HistoCLIP's cache. They are in `synthetic/<key>`, where the key depends on
        the arguments and on the source of the generator.

    Returns
    -------
    PatchDataset
        224x224 patches with the classes tumor, stroma, lymphocyte and necrosis, groups (patients) and masks.
    """
    from histoclip_lib.data import folder

    root = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    data_dir = root / "synthetic" / _key(n_patches=n_patches, seed=seed)
    if not data_dir.exists():
        try:
            write_synthetic(data_dir, n_patches=n_patches, seed=seed)
        except (OSError, HistoCLIPError):
            if not data_dir.exists():  # unless another process has just written the same patches
                raise
    with suppress(OSError):  # a cache that others own can still be read
        os.utime(data_dir)  # when it was last used
    return replace(folder.load(data_dir), name="synthetic", labels_follow_masks=True, generated=True)


def write_synthetic(
    out_dir: str | Path,
    n_patches: int = 600,
    seed: int = 0,
    n_patients: int = 40,
    size: int = 224,
    workers: int | None = None,
) -> Path:
    """Write the procedural H&E data set in the folder format.

    Patch i depends on `seed`, `n_patients`, `size` and i only, so that a larger set begins with the smaller one.

    Parameters
    ----------
    out_dir : str or Path
        Must not exist or be empty. It appears at the end, complete; a killed run leaves only a folder beside it whose
        name ends in `.partial`, which `histoclip_lib.common.files.sweep` removes.
    n_patches : int
        Number of patches; patch i is of patient i modulo `n_patients`.
    seed : int
        Decides everything.
    n_patients : int
        Number of groups.
    size : int
        Height and width in pixels.
    workers : int, optional
        Number of worker processes; by default one for each core. It does not change a pixel.

    Returns
    -------
    Path
        `out_dir`.

    Raises
    ------
    HistoCLIPError
        If a number is out of range or `out_dir` is not empty.
    """
    import joblib

    for name, value, least in (("n_patches", n_patches, 1), ("n_patients", n_patients, 1), ("size", size, 64)):
        if value < least:
            raise HistoCLIPError(f"{name}: {value} is too small for the synthetic data set. Use {least} or more.")
    if seed < 0:
        raise HistoCLIPError(f"seed: {seed} is negative. Use 0 or more.")
    out_dir = Path(out_dir)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise HistoCLIPError(f"{out_dir} is not an empty folder. Name a new one, or remove it first.")
    partial = temporary_beside(out_dir, ".partial")
    try:
        for kind in ("images", "masks"):
            (partial / kind).mkdir(parents=True)
        paint = joblib.delayed(_write_patch)
        jobs = (paint(partial, index, seed, n_patients, size) for index in range(n_patches))
        # joblib's processes, unlike multiprocessing's, start safely in a notebook and in an unguarded script.
        n_jobs = max(1, min(workers if workers is not None else joblib.cpu_count(), n_patches // 16))
        lines = joblib.Parallel(n_jobs=n_jobs, return_as="generator", batch_size=8)(jobs)
        bar = tqdm(lines, total=n_patches, desc="painting patches", unit="patch")
        _write_table(partial / "labels.csv", list(bar))
        os.replace(partial, out_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out_dir


def draw_patch(index: int, seed: int, n_patients: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one patch.

    Returns
    -------
    image : ndarray of shape (size, size, 3), uint8
        RGB.
    class_map : ndarray of shape (size, size), uint8
        k for the k-th of `CLASSES`, 0 for none.
    """
    class_map = draw_class_map(index, seed, n_patients, size)
    appearance = painting.draw_appearance(_stream(seed, "appearance", index % n_patients))
    return tissue.paint(class_map, appearance, _stream(seed, "paint", index)), class_map


def draw_class_map(index: int, seed: int, n_patients: int, size: int) -> np.ndarray:
    """Draw the regions of one patch, shape (size, size), uint8: k for the k-th of `CLASSES`, 0 for none."""
    shift = _stream(seed, "mix", index % n_patients).normal(0, _SPREAD_BETWEEN_PATIENTS, len(CLASSES))
    rng = _stream(seed, "regions", index)
    return _lay_out(_draw_areas(expit(logit(_FREQUENCY) + shift), rng), size, rng)


def _stream(seed: int, purpose: str, index: int) -> np.random.Generator:
    """Return an independent random generator for each purpose and each patch or patient."""
    return np.random.default_rng([seed, ("mix", "appearance", "regions", "paint").index(purpose), index])


def labels_of(class_map: np.ndarray) -> np.ndarray:
    """Return which classes cover at least `MIN_COVERAGE` of a class map, shape (4,), uint8."""
    coverage = np.bincount(class_map.ravel(), minlength=len(CLASSES) + 1)[1:] / class_map.size
    return (coverage >= MIN_COVERAGE).astype(np.uint8)


def _draw_areas(frequency: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the fraction of the patch for nothing and each class, shape (5,), sum 1.

    Most present classes are large; some are little above the threshold and some absent ones little below.
    """
    present = rng.uniform(size=len(CLASSES)) < frequency
    small = present & (rng.uniform(size=len(CLASSES)) < 0.18)
    trace = ~present & (rng.uniform(size=len(CLASSES)) < 0.3)
    large = np.append(rng.uniform() < 0.22, present & ~small)
    if not large[1:].any():
        large[0 if rng.uniform() < 0.4 or not small.any() else rng.choice(1 + np.flatnonzero(small))] = True
        small &= ~large[1:]
    areas = large * rng.gamma(3.0, size=large.shape) * [0.25, 1, 1, 0.8, 1]
    minor = np.append(0, small * rng.uniform(0.025, 0.07, len(CLASSES)) + trace * rng.uniform(0.002, 0.013, 4))
    return minor + areas * (1 - minor.sum()) / areas.sum()


def _lay_out(areas: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a class map with organic borders whose classes cover about `areas`, shape (size, size), uint8.

    Each pixel goes to the class with the highest random field; an offset on each field sets its area.
    """
    cells = (size - 1) // _GRID + 2
    scales = rng.uniform([12, 10, 14, 9, 12], [30, 34, 40, 24, 30]) / _GRID
    scales[areas < 0.08] = rng.uniform(6, 12) / _GRID
    fields = np.stack([painting.smooth_noise(rng, cells, scale) for scale in scales])
    # Infiltrates follow the stroma, and nests die from their middle.
    fields[tissue.LYMPHOCYTE] += 0.5 * fields[tissue.STROMA]
    fields[tissue.NECROSIS] += 0.5 * fields[tissue.TUMOR]
    offsets = np.where(areas > 0, 0.0, -99.0).astype(np.float32)[:, None, None]
    for _ in range(25):
        covered = np.bincount(np.argmax(fields + offsets, axis=0).ravel(), minlength=len(areas)) / cells**2
        offsets += 0.4 * np.log((areas + 2e-3) / (covered + 2e-3))[:, None, None]
    fields = painting.enlarge(fields + offsets, _GRID, size)
    ripple = np.stack([painting.smooth_noise(rng, size, 3.5) for _ in areas])
    return np.argmax(fields + 0.09 * ripple, axis=0).astype(np.uint8)


def _write_patch(root: Path, index: int, seed: int, n_patients: int, size: int) -> list:
    """Write one image and its mask and return its line of the table."""
    image, class_map = draw_patch(index, seed, n_patients, size)
    group = f"patient_{index % n_patients:03d}"
    name = f"{group}_{index:05d}.png"
    Image.fromarray(image).save(root / "images" / name, compress_level=1)
    mask = Image.fromarray(class_map)
    mask.putpalette(MASK_COLOURS.astype(np.uint8).tobytes())
    mask.save(root / "masks" / name)
    return [f"images/{name}", f"masks/{name}", group, *labels_of(class_map).tolist()]


def _write_table(path: Path, lines: list[list]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([["file", "mask", "group", *CLASSES], *lines])


def _key(**arguments: int) -> str:
    """Return a name that changes with the arguments and with the source of the generator."""
    source = [Path(inspect.getfile(module)).read_bytes() for module in (painting, tissue)]
    source.append(Path(__file__).read_bytes())
    return hashlib.blake2b(repr(arguments).encode() + b"\0".join(source), digest_size=8).hexdigest()
