"""For tests of pages over runs: run folders with a few patches, as `histoclip run` leaves them."""

import ast
import base64
import io

import nbformat
import numpy as np
from IPython.core.formatters import DisplayFormatter
from nbformat import v4
from PIL import Image

from histoclip_lib.common.predictions import from_probabilities
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation.artifacts import evaluate_methods, save_predictions, write_metrics
from histoclip_lib.report.executed import stamp
from histoclip_lib.report.notebooks import MODEL_FILES, run_notebooks

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


def execute_here(notebook, folder, step, values, report, workplace, title=""):
    """Do the work of `pipeline.execute_notebook` in this process: a kernel takes seconds to start."""
    tree, namespace, place = nbformat.read(notebook, as_version=4), {}, 0
    for k, cell in enumerate(tree.cells):
        if cell.cell_type != "code":
            continue
        *statements, last = ast.parse(cell.source).body
        exec(compile(ast.Module(statements, []), notebook.name, "exec"), namespace)
        if "parameters" in cell.metadata.get("tags", ()):
            exec(cell.source, namespace)
            namespace.update(values)
            place = k + 1
        elif isinstance(last, ast.Expr):
            shown = eval(compile(ast.Expression(last.value), notebook.name, "eval"), namespace)
            if shown is not None:
                data, metadata = DisplayFormatter().format(shown)
                cell.outputs = [v4.new_output("execute_result", data=data, metadata=metadata, execution_count=1)]
        else:
            exec(compile(ast.Module([last], []), notebook.name, "exec"), namespace)
    injected = v4.new_code_cell("\n".join(f"{name} = {value!r}" for name, value in values.items()))
    injected.metadata["tags"] = ["injected-parameters"]
    tree.cells.insert(place, injected)
    tree.metadata["papermill"] = {"parameters": values}
    nbformat.write(tree, folder / f"{step}.ipynb")
    stamp(folder / f"{step}.ipynb", title, {"made": "2026-01-02 03:04 UTC"})
    return 0.0


def make_run(
    reports,
    folder,
    *,
    name=None,
    seed=0,
    patches=None,
    val=None,
    steps=None,
    noise=0.25,
    same=(),
    about=None,
    **parameters,
):
    """Write the folder of a run, without its pages, and return it.

    `val` are the patches it validates on, `same` the methods that do not depend on the seed, `steps` how many notebooks
    were executed, by default all; the results come with the fourth.
    """
    path, patches = reports / folder, patches or make_patches()
    path.mkdir(parents=True)
    val = np.arange(len(patches)) if val is None else np.asarray(val)
    values = {"name": name or folder, "dataset": "folder", "data_dir": "nowhere", "split": "grouped", "seed": seed}
    values |= parameters
    for k, (stem, notebook) in enumerate(list(run_notebooks().items())[:steps]):
        make_notebook(path / f"{stem}.ipynb", notebook.label, values)
        stamp(path / f"{stem}.ipynb", str(values["name"]), {"made": "2026-01-02 03:04 UTC", "seconds": str(k)})
    if steps is not None and steps < 4:
        return path
    labels = patches.labels[val]
    methods = {name: predict(labels, k if name in same else 100 * seed + k, noise) for k, name in enumerate(METHODS)}
    save_predictions(path / "predictions.parquet", methods, patches, val)
    facts = {"dataset": values["dataset"], "backbone": "ViT-L-14-quickgelu", "pretrained": "openai"}
    facts |= {"split": values["split"], "seed": seed, "n_train": 96, "n_val": len(val)} | (about or {})
    scored = evaluate_methods(methods, patches, val, 50, 0)
    write_metrics(path / "metrics.json", patches, scored, name=values["name"], **facts)
    (path / "model").mkdir()
    for name in MODEL_FILES:
        (path / "model" / name).write_text("")
    return path
