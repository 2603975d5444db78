"""Kill a run again and again, at random moments, and hold what it ends with to a run that nobody disturbed.

    python benchmarks/soak.py                # 50 kills, each some 100 s on two cores
    python benchmarks/soak.py --kills 200 --json soak.json

Each kill is a SIGKILL, in turn to everything, to the command alone (its notebook is left behind for a moment), and to
the notebook's process alone. The time to each is drawn anew, a quarter of a run on average, so that a run is hit in all
its parts: painting and encoding, text, training, studies, notebooks and pages. After each kill every file that stands
under its final name must be readable as a whole. When a run gets to its end its results must be, number by number,
those of the undisturbed run, and no temporary file may be left; then everything is thrown away and the next run starts
from nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import yaml
from safetensors.numpy import load_file

HITS = 4  # kills, on average, in the time of a whole run
VICTIMS = ("everything", "command", "notebook")
PARAMS = {
    "name": "soak", "dataset": "synthetic", "protocol": "split", "split": "grouped", "n_patches": 60, "views": 2,
    "epochs": 60, "studies": False, "resamples": 50, "examples": 2, "wordings": 2, "batch_size": 16,
}  # fmt: skip


def start(folder: Path) -> subprocess.Popen:
    """Start `histoclip run` in a folder of its own, with a cache below it."""
    environment = os.environ | {"HISTOCLIP_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [Path(sys.executable).with_name("histoclip"), "run", "soak.yaml"]
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


def kill(process: subprocess.Popen, victim: str) -> bool:
    """Send SIGKILL to the command, to the notebook it executes, or to all; say whether the victim was there."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
        kernels = [child for child in family if any("ipykernel" in word for word in child.cmdline())]
    except psutil.NoSuchProcess:
        return False
    targets = {"everything": [*family, process], "command": [process], "notebook": kernels}[victim]
    for target in targets:
        try:
            target.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    process.wait()  # without its notebook, the command ends by itself
    psutil.wait_procs(family, timeout=60)  # a notebook without its command, too
    return bool(targets)


def read_everything(folder: Path) -> int:
    """Read every file that stands under its final name, as a whole; return their number. Any damage raises."""
    count = 0
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if path.suffix in (".json", ".ipynb"):
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".parquet":
            pd.read_parquet(path)
        elif path.suffix == ".npy":
            np.load(path)
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".csv":
            pd.read_csv(path)
        elif path.suffix == ".html" and not path.read_text(encoding="utf-8").rstrip().endswith("</html>"):
            raise AssertionError(f"{path} is not a whole page")
        else:
            continue
        count += 1
    return count


def results(folder: Path) -> dict[str, object]:
    """Return what a run found: metrics, predictions, history, heads and split."""
    run = folder / "reports" / "soak"
    found = {"metrics": json.loads((run / "metrics.json").read_text(encoding="utf-8"))}
    for name in ("predictions.parquet", "zero_shot.parquet", "studies.parquet"):
        found[name] = pd.read_parquet(run / name).to_csv()
    for name in ("history.csv", "split.csv"):
        found[name] = (run / name).read_text(encoding="utf-8")
    for kind in ("global", "patch"):
        weights = load_file(run / f"cmm_{kind}.safetensors")
        found[kind] = {name: value.tobytes() for name, value in weights.items()}
    return found


def leftovers(folder: Path) -> list[str]:
    """Return the temporary files that are still there."""
    names = [str(path.relative_to(folder)) for path in folder.rglob(".*") if path.name != ".lock"]
    return sorted(name for name in names if not name.endswith(".lock"))


def clear(folder: Path) -> None:
    """Throw away what a run has made."""
    for name in ("reports", "cache"):
        shutil.rmtree(folder / name, ignore_errors=True)


def soak(folder: Path, kills: int, seed: int, say: object = print) -> dict[str, int]:
    """Kill `kills` times; return the counts. Raises AssertionError at the first thing that is not as it must be."""
    (folder / "soak.yaml").write_text(yaml.safe_dump(PARAMS), encoding="utf-8")
    began = time.monotonic()
    if start(folder).wait():
        raise AssertionError(f"the undisturbed run failed:\n{(folder / 'log.txt').read_text(errors='replace')[-3000:]}")
    duration = time.monotonic() - began
    expected, complete = results(folder), read_everything(folder)
    say(f"undisturbed: {duration:.0f} s, {complete} files; left over: {leftovers(folder) or 'nothing'}")
    clear(folder)
    draw, counts = random.Random(seed), Counter({"kills": 0, "runs completed": 0, "files read": 0})
    while True:
        process = start(folder)
        if counts["kills"] < kills:
            deadline = time.monotonic() + draw.expovariate(HITS / duration)
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
        else:
            process.wait()
        victim = VICTIMS[counts["kills"] % len(VICTIMS)]
        if process.poll() is None:
            if kill(process, victim):
                counts["kills"] += 1
                counts[f"kills of {victim}"] += 1
                done = sorted(path.stem for path in (folder / "reports" / "soak").glob("0?_*.html"))
                say(f"kill {counts['kills']}, {victim}, after {done[-1] if done else 'nothing'}")
            counts["files read"] += read_everything(folder)
            continue
        if process.returncode:
            tail = (folder / "log.txt").read_text(errors="replace")[-3000:]
            raise AssertionError(f"a run that was not killed ended with {process.returncode}:\n{tail}")
        found = results(folder)
        wrong = [name for name, value in expected.items() if found[name] != value]
        if wrong or leftovers(folder):
            raise AssertionError(f"after {dict(counts)}: differs in {wrong}; left over: {leftovers(folder)}")
        counts["files read"] += read_everything(folder)
        counts["runs completed"] += 1
        say(f"run {counts['runs completed']} is the undisturbed one, to the last bit")
        if counts["kills"] >= kills:
            return dict(counts)
        clear(folder)


def main() -> None:
    """Kill as often as asked and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how many processes to kill")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = soak(Path(folder), options.kills, options.seed)
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))
    if options.json:
        options.json.write_text(json.dumps(counts, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
