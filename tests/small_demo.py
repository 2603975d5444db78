"""For tests end to end: `histoclip` as a user calls it, and the demo's parameters at a smaller size."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[1]
METHODS = {
    "all_negative", "all_positive", "majority", "baseline", "one_vs_rest", "power_set", "top_k",
    "zero_shot_standardised", "zero_shot_transductive", "linear_probe", "knn", "gaussian_text", "blended_probe",
    "mlp", "histoclip_text_free", "histoclip_ensemble", "histoclip_global", "histoclip_patch",
}  # fmt: skip
SMALL = {
    "n_patches": 120, "views": 2, "epochs": 8, "warmup_epochs": 1, "resamples": 100, "examples": 2, "wordings": 1,
    "seeds": [0, 1], "draws": 1, "folds": 3, "slides": "",
}  # fmt: skip


def small_demo():
    """Return the parameters of `params/demo.yaml`, smaller."""
    return yaml.safe_load((REPOSITORY / "params" / "demo.yaml").read_text()) | SMALL


def environment(cache):
    """Return this process's environment, offline and with a cache of its own."""
    return os.environ | {"HF_HUB_OFFLINE": "1", "HISTOCLIP_CACHE": str(cache)}


def histoclip(workplace, *arguments):
    """Run `histoclip` in a folder, with a cache there."""
    return subprocess.run(
        [Path(sys.executable).with_name("histoclip"), *arguments],
        cwd=workplace, env=environment(workplace / "cache"), capture_output=True, text=True, check=False,
    )  # fmt: skip
