"""Fixtures of the tests of the command line."""

import json

import pytest
from typer.testing import CliRunner

from histoclip_lib.cli.app import app
from histoclip_lib.runs import pipeline
from histoclip_lib.runs.parameters import Parameter

LINE = {"mAcc": 0.8125, "mAcc_ci": [0.75, 0.875], "mAP": None}
METRICS = {
    "name": "demo",
    "dataset": "synthetic",
    "backbone": "lite0-minilm",
    "split": "grouped",
    "n_val": 40,
    "methods": {"majority": LINE, "linear_probe": LINE | {"mAP": 0.5}},
}


@pytest.fixture(scope="session")
def schema() -> dict[str, dict[str, Parameter]]:
    """The parameters of the notebooks, which take a second to read."""
    return pipeline.load_schema()


@pytest.fixture
def invoke(tmp_path, monkeypatch, schema):
    """Start the command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HISTOCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(pipeline, "load_schema", lambda: schema)
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def write(tmp_path):
    """Write a parameter file."""

    def write_params(name, text):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_params


@pytest.fixture
def write_metrics():
    """Write the `metrics.json` of a run and return its folder."""

    def write_to(folder, **more):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps(METRICS | {"name": folder.name} | more))
        return folder

    return write_to
