"""For tests of pages over runs: run folders with a few patches, as `histoclip run` leaves them."""

import base64
import io

import nbformat
import numpy as np
from nbformat import v4
from PIL import Image

from histoclip_lib.common.predictions import from_probabilities
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation.artifacts import evaluate_methods, save_predictions, write_metrics
from histoclip_lib.report.executed import stamp
from histoclip_lib.report.navigation import PAGE_LABELS

CLASSES = ["tumor", "stroma", "lymphocyte"]
METHODS = ("majority", "baseline", "power_set", "linear_probe", "histoclip_global", "histoclip_patch")
N_PATCHES = 24


def make_patches(classes=CLASSES, n_patches=N_PATCHES, groups=True, files=None, labels=None):
    """Return patches without pixels; the same arguments give the same labels."""
    if labels is None:
        labels = np.random.default_rng(7).integers(0, 2, (n_patches, len(classes))).astype(np.uint8)
    files = files or [f"{k:03d}.png" for k in range(n_patches)]
    of_patch = np.array([f"patient_{k % 6}" for k in range(n_patches)]) if groups else None
    return PatchDataset("made", list(classes), files, labels, None, of_patch)


def predict(labels, seed, noise):
    """Return probabilities that are right where the noise is small."""
    shift = np.random.default_rng(seed).normal(0, noise, labels.shape)
    return from_probabilities(np.clip(0.2 + 0.6 * labels + shift, 0, 1))


def make_notebook(path, title, parameters, picture=True):
    """Write an executed notebook with a parameters cell, a heading, and a figure."""
    declared = "".join(
        f"{name}: {type(value).__name__} = {value!r}  # the {name}\n" for name, value in parameters.items()
    )
    cells = [v4.new_markdown_cell(f"# {title}\n\nText."), v4.new_code_cell(declared), v4.new_code_cell("show()")]
    cells[1].metadata["tags"] = ["parameters"]
    if picture:
        buffer = io.BytesIO()
        Image.new("RGB", (300, 100), (214, 160, 196)).save(buffer, "png")
        data = {"image/png": base64.b64encode(buffer.getvalue()).decode()}
        cells[2].outputs = [v4.new_output("display_data", data=data, metadata={"image/png": {"alt": "A figure"}})]
    cells.append(v4.new_markdown_cell("## Further\n\nSee [above](#figure-1)." if picture else "## Further"))
    nbformat.write(v4.new_notebook(cells=cells), path)


def make_run(
    reports,
    folder,
    *,
    name=None,
    seed=0,
    patches=None,
    val=None,
    steps=5,
    noise=0.25,
    same=(),
    about=None,
    **parameters,
):
    """Write the folder of a run, without its pages, and return it.

    `val` are the patches it validates on, `same` the methods that do not depend on the seed, `steps` how many notebooks
    were executed; the results come with the fourth.
    """
    path, patches = reports / folder, patches or make_patches()
    path.mkdir(parents=True)
    val = np.arange(len(patches)) if val is None else np.asarray(val)
    values = {"name": name or folder, "dataset": "folder", "data_dir": "nowhere", "split": "grouped", "seed": seed}
    values |= parameters
    for k, (stem, label) in enumerate(list(PAGE_LABELS.items())[:steps]):
        make_notebook(path / f"{stem}.ipynb", label, values)
        stamp(path / f"{stem}.ipynb", str(values["name"]), {"made": "2026-01-02 03:04 UTC", "seconds": str(k)})
    if steps < 4:
        return path
    labels = patches.labels[val]
    methods = {name: predict(labels, k if name in same else 100 * seed + k, noise) for k, name in enumerate(METHODS)}
    save_predictions(path / "predictions.parquet", methods, patches, val)
    facts = {"dataset": values["dataset"], "backbone": "ViT-L-14-quickgelu", "pretrained": "openai"}
    facts |= {"split": values["split"], "seed": seed, "n_train": 96, "n_val": len(val)} | (about or {})
    scored = evaluate_methods(methods, patches, val, 50, 0)
    write_metrics(path / "metrics.json", patches, scored, name=values["name"], **facts)
    (path / "model_card.md").write_text("# Model card")
    return path
