"""Real patches from end to end: CoNSeP in the folder format."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from small_demo import METHODS, SMALL, histoclip

pytestmark = pytest.mark.slow


def test_real_patches_in_the_folder_format(tmp_path, shared_data):
    """A part of CoNSeP, by a parameter file: every method is filled and the head is above the majority."""
    data = tmp_path / "consep"
    table = pd.read_csv(shared_data / "consep" / "labels.csv")
    table = table.groupby("split").sample(90, random_state=0)
    for column in ("file", "mask"):
        (data / Path(table[column].iloc[0]).parent).mkdir(parents=True)
        for name in table[column]:
            shutil.copyfile(shared_data / "consep" / name, data / name)
    table.to_csv(data / "labels.csv", index=False)
    params = {"name": "consep", "dataset": "folder", "data_dir": "consep", "split": "given", **SMALL, "studies": False}
    (tmp_path / "consep.yaml").write_text(yaml.safe_dump(params))
    result = histoclip(tmp_path, "run", "consep.yaml")
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "reports" / "consep" / "metrics.json").read_text())
    assert set(metrics["methods"]) == METHODS
    assert metrics["n_train"] == metrics["n_val"] == 90
    assert metrics["methods"]["histoclip_patch"]["mAP"] > metrics["methods"]["majority"]["mAP"] + 0.05
