"""The demo from its parameter file to its pages, at a smaller size, on a cluster; then the pages in a real browser."""

import json
import re
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import yaml
from local_cluster import Cluster, wait_for
from PIL import Image
from safetensors.torch import load_file
from small_demo import METHODS, SMALL, environment, histoclip, small_demo

from histoclip_lib.common.predictions import mean_accuracy
from histoclip_lib.models import train_heads
from histoclip_lib.report.notebooks import run_notebooks
from histoclip_lib.runs.chapters.base import training_options
from histoclip_lib.runs.run import open_run

pytestmark = pytest.mark.slow
STEPS = tuple(run_notebooks())


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, new_cache):
    """A folder with a small copy of the demo's parameter file, and a cache that holds the exported tower alone."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "small.yaml").write_text(yaml.safe_dump(small_demo()))
    new_cache(folder / "cache")
    return folder


@pytest.fixture(scope="module")
def finished(workplace, tmp_path_factory):
    """The output of `histoclip run small.yaml` on two workers, of which the one that trains is killed while it does."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster")).ready(2)
    try:
        run = subprocess.Popen(
            [Path(sys.executable).with_name("histoclip"), "run", "small.yaml", "--scheduler", cluster.address],
            cwd=workplace, env=environment(workplace / "cache"), text=True, stdout=PIPE, stderr=PIPE,
        )  # fmt: skip
        trains = workplace / "reports" / "demo" / ".03_train.running.ipynb"
        wait_for(lambda: run.poll() is not None or (trains.is_file() and any(map(busy, cluster.workers))))
        for worker in filter(busy, cluster.workers):
            worker.kill()
        printed, said = run.communicate(timeout=600)
        assert run.returncode == 0, said
        assert [worker.poll() is None for worker in cluster.workers].count(True) == 1
    finally:
        cluster.stop()
    return printed


def busy(worker):
    """Whether a worker executes a notebook."""
    return any("ipykernel" in " ".join(child.cmdline()) for child in psutil.Process(worker.pid).children())


@pytest.fixture(scope="module")
def run_folder(workplace, finished):
    return workplace / "reports" / "demo"


def test_run_ends_with_the_address_of_the_page(workplace, finished):
    *_, overview = finished.splitlines()
    assert Path(overview) == workplace / "reports" / "index.html"
    assert all(Path(page).is_file() for page in finished.splitlines())


def test_every_product_is_there_and_nothing_half_written(run_folder):
    products = {name for notebook in run_notebooks().values() for name in notebook.products}
    expected = products | {f"{step}.{kind}" for step in STEPS for kind in ("html", "ipynb")} | {"run.json"}
    written = {str(path.relative_to(run_folder)) for path in run_folder.rglob("*") if path.is_file()}
    assert {name for name in written if not re.match(r"\.lock|folds/|0[15]_.*_files/", name)} == expected - {"folds"}
    assert Image.open(run_folder / "thumbnail.png").format == "PNG"


def test_metrics_hold_every_method_and_its_intervals(run_folder):
    metrics = json.loads((run_folder / "metrics.json").read_text())
    assert set(metrics["methods"]) == METHODS
    assert (metrics["protocol"], metrics["folds"], metrics["n_val"]) == ("cv", SMALL["folds"], SMALL["n_patches"])
    for method in metrics["methods"].values():
        assert method["mAcc_ci"][0] <= method["mAcc"] <= method["mAcc_ci"][1]
        for metric in ("mAP", "macro_f1", "micro_f1", "auroc", "exact_match"):
            assert np.diff(method[f"{metric}_ci"]) >= 0
        assert set(method["per_class"]) == set(metrics["classes"])
    assert metrics["methods"]["all_negative"]["mAcc"] + metrics["methods"]["all_positive"]["mAcc"] == pytest.approx(1)


def test_metrics_can_be_computed_again_from_the_predictions(run_folder):
    methods = json.loads((run_folder / "metrics.json").read_text())["methods"]
    table = pd.read_parquet(run_folder / "predictions.parquet")
    for name, part in table.groupby("method", observed=True):
        wide = part.pivot(index="file", columns="class", values=["label", "predicted"]).astype(float)
        assert mean_accuracy(wide["label"].to_numpy(), wide["predicted"].to_numpy()) == pytest.approx(
            methods[name]["mAcc"]
        )


def test_studies_hold_every_question_and_each_predicts_whole_patches(run_folder):
    studies = pd.read_parquet(run_folder / "studies.parquet")
    assert set(studies["purpose"]) == {"method", "fold", "split", "size", "hidden"}
    assert studies["score"].between(0, 1).all()
    fold = pd.read_csv(run_folder / "split.csv", index_col="file")["fold"]
    by_purpose = {purpose: set(part["file"]) for purpose, part in studies.groupby("purpose", observed=True)}
    assert by_purpose["fold"] == by_purpose["method"] == set(fold.index)
    assert by_purpose["hidden"] == by_purpose["size"] == set(fold.index[fold == 1])


def test_model_card_says_what_a_user_must_know(run_folder):
    card = (run_folder / "model" / "README.md").read_text()
    for words in ("Not for diagnosis", "is not CLIP", "Linear probe", "tumor", "No tissue"):
        assert words in card


def test_pages_answer_whether_it_is_better_and_leave_no_warning(run_folder):
    text = (run_folder / "04_results.html").read_text()
    for words in ("linear probe on the same features", "permutation", "near-duplicate", "Model details"):
        assert words in text
    for step in STEPS:
        assert "Warning" not in (run_folder / f"{step}.html").read_text(), step
        assert (run_folder / f"{step}.html").stat().st_size < 4_000_000


def test_no_patient_is_in_two_folds(run_folder):
    split = pd.read_csv(run_folder / "split.csv")
    assert (split.groupby("group")["fold"].nunique() == 1).all()
    assert split["fold"].value_counts(normalize=True)[1] == pytest.approx(1 / SMALL["folds"], abs=0.08)


def test_head_learns_more_than_the_majority(run_folder):
    methods = json.loads((run_folder / "metrics.json").read_text())["methods"]
    assert methods["histoclip_patch"]["mAcc"] > methods["majority"]["mAcc"] + 0.03
    assert methods["histoclip_patch"]["mAP"] > methods["baseline"]["mAP"] + 0.1


def test_the_heads_are_those_that_one_process_trains(workplace, run_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HISTOCLIP_CACHE", str(workplace / "cache"))
    run = open_run("demo", workplace / "reports")
    train_heads(
        run.class_matrix, run.head_options, run.features, run.patches, run.folds, training_options(run),
        run.compute, tmp_path, workers=1,
    )  # fmt: skip
    for path in (run_folder / "cmm_patch.safetensors", run_folder / "folds" / "global_2.safetensors"):
        ours, theirs = load_file(tmp_path / path.relative_to(run_folder)), load_file(path)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_run_that_was_overwritten_by_hand_is_mended_without_training_again(workplace, run_folder):
    """As by a notebook that was executed in JupyterLab with other parameters: the products do not belong together."""
    metrics = (run_folder / "metrics.json").read_bytes()
    (run_folder / "metrics.json").write_bytes(metrics.replace(b'"n_val": ', b'"n_val": 1'))
    result = histoclip(workplace, "run", "small.yaml")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("skipped") == len(STEPS) - 1
    assert (run_folder / "metrics.json").read_bytes() == metrics


@pytest.mark.browser
def test_pages_open_without_request_or_error(workplace, run_folder, visit):
    for path in [workplace / "reports" / "index.html", *(run_folder / f"{step}.html" for step in STEPS)]:
        page = visit(path)
        assert page.locator("h1").count() == 1
        images = page.locator("img[src]").evaluate_all(
            "all => all.map(i => [i.complete && i.naturalWidth > 0, i.alt || i.closest('button')?.innerText])"
        )
        assert all(loaded and described for loaded, described in images)
        assert "Traceback" not in page.content()
        for link in page.locator("a[href]").evaluate_all("all => all.map(a => a.getAttribute('href'))"):
            target, _, fragment = link.partition("#")
            assert not target or (path.parent / target).is_file(), link
            assert target or page.locator(f'[id="{fragment}"]').count() == 1, link
