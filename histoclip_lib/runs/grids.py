"""Grids: one parameter file that stands for many runs, and the table of what they found."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from histoclip_lib.common.errors import HistoCLIPError, bullet_list, shown
from histoclip_lib.common.yaml_files import read_yaml
from histoclip_lib.evaluation.artifacts import RunMetrics, read_metrics
from histoclip_lib.evaluation.methods import label_of
from histoclip_lib.evaluation.text import UNDEFINED, number_text, range_text
from histoclip_lib.report.tables import spread
from histoclip_lib.runs.parameters import Schema, check_params, read_params
from histoclip_lib.runs.record import PLACES

KEY = "grid"
MAX_RUNS = 1000
MAX_NAME = 100  # characters, as for any run
HEADLINE = ("linear_probe", "histoclip_global", "histoclip_patch")

Entry = dict[str, object]  # parameters that vary together, mostly one


@dataclass(frozen=True)
class GridRun:
    """One run of a grid.

    Attributes
    ----------
    values : dict of str to object
        All its parameters, as `params.read_params` returns them.
    varied : dict of str to object
        Those that the grid varies.
    """

    values: dict[str, object]
    varied: dict[str, object]

    @property
    def name(self) -> str:
        """Name of the run and of its folder."""
        return str(self.values["name"])


def read_runs(paths: list[Path], schema: Schema) -> list[tuple[Path, dict[str, object]]]:
    """Read parameter files and grids and check all of them.

    Parameters
    ----------
    paths : list of Path
        Parameter files; one with a key `grid` stands for all its runs.
    schema : dict
        As `params.read_schema` returns.

    Returns
    -------
    list of (Path, dict)
        The file and the values of each run, as `params.read_params` returns them.

    Raises
    ------
    HistoCLIPError
        For the first file that cannot be used, with all that is wrong with it; and listing every name that several runs
        have, also where only the case of letters differs, since some file systems take them for one folder.
    """
    runs = []
    for path in paths:
        if isinstance(given := read_yaml(path)[0], dict) and "name" not in given:
            raise HistoCLIPError(f"{path} has no `name`, which names the run and its folder. Add `name: {path.stem}`.")
        found = [run.values for run in read_grid(path, schema)] if is_grid(path) else [read_params(path, schema)]
        runs += [(path, values) for values in found]
    by_name: dict[str, list[str]] = {}
    for path, values in runs:
        by_name.setdefault(str(values["name"]).casefold(), []).append(f"{values['name']} ({path})")
    if twice := [" and ".join(same) for same in by_name.values() if len(same) > 1]:
        raise HistoCLIPError(f"name: each run needs a folder of its own; these have one name:\n{bullet_list(twice)}")
    return runs


def is_grid(path: Path) -> bool:
    """Whether a parameter file has the key `grid`.

    Raises
    ------
    HistoCLIPError
        If it cannot be read as plain YAML.
    """
    given, _ = read_yaml(path)
    return isinstance(given, dict) and KEY in given


def read_grid(path: Path, schema: Schema) -> list[GridRun]:
    """Read a grid: a parameter file with a key `grid`, which maps parameters to lists of values.

    There is a run for each combination of values, the last parameter varying fastest. A list of mappings varies
    several parameters together; its key is then any word::

        name: encoders
        grid:
          seed: [0, 1, 2]
          encoder:
            - {backbone: lite0-minilm}
            - {backbone: ViT-L-14-quickgelu, pretrained: openai}

    Parameters
    ----------
    path : Path
        The file.
    schema : dict
        As `params.read_schema` returns.

    Returns
    -------
    list of GridRun
        Named `<name>_<parameter>-<value>_...`; a name that is too long, or that two runs would have, ends in a digest
        of the values instead. The same file always gives the same names.

    Raises
    ------
    HistoCLIPError
        Listing everything that a parameter file could not hold, in the file or in the grid; every list that is none, is
        empty or holds a value twice; every parameter that is given twice; and for more than MAX_RUNS runs.
    """
    given, problems = read_yaml(path)
    if not isinstance(given, dict) or KEY not in given:
        raise HistoCLIPError(f"{path} has no key {KEY}. Start from params/grid.yaml.")
    given = dict(given)
    grid = given.pop(KEY)
    _, more = check_params(given, schema)
    problems += more
    axes = dict(_axes(grid, {name for declared in schema.values() for name in declared}, problems))
    for key, entries in axes.items():
        texts = []
        for entry in entries:
            values, more = check_params(entry, schema)
            problems += [f"{KEY}, {key}: {problem}" for problem in more]
            if not more:
                texts.append(json.dumps({name: values[name] for name in entry}, sort_keys=True))
        problems += [f"{KEY}, {key}: {text[:100]} stands there twice" for text, n in Counter(texts).items() if n > 1]
    varied = [name for entries in axes.values() for name in dict.fromkeys(itertools.chain(*entries))]
    problems += [f"{KEY}, {name}: stands in two lists" for name in dict.fromkeys(varied) if varied.count(name) > 1]
    problems += [f"{name}: stands there and under {KEY}" for name in dict.fromkeys(varied) if name in given]
    if (n_runs := math.prod(map(len, axes.values()))) > MAX_RUNS:
        problems.append(f"{KEY}: {n_runs:,} combinations, where {MAX_RUNS:,} runs are the most")
    if problems := list(dict.fromkeys(problems)):
        raise HistoCLIPError(f"{path}: {len(problems)} entries cannot be used:\n{bullet_list(problems)}")
    combinations = [
        {name: value for entry in entries for name, value in entry.items()}
        for entries in itertools.product(*axes.values())
    ]
    checked = [check_params(given | entry, schema)[0] for entry in combinations]
    names = _names(str(checked[0]["name"]), [{k: v[k] for k in e} for v, e in zip(checked, combinations, strict=True)])
    return [
        GridRun(values | {"name": name}, {key: values[key] for key in varied})
        for name, values in zip(names, checked, strict=True)
    ]


def varies_encoder(runs: list[GridRun]) -> bool:
    """Whether the runs of a grid have several encoders."""
    return len({(run.values.get("backbone"), run.values.get("pretrained")) for run in runs}) > 1


def grid_table(runs: list[GridRun], reports: Path) -> pd.DataFrame:
    """Return what the runs of a grid found, as text.

    Parameters
    ----------
    runs : list of GridRun
        As `read_grid` returns them.
    reports : Path
        The folder below which each has its own.

    Returns
    -------
    DataFrame
        A line for each run: what varies; mAcc with its interval, and mAP, of the rows in HEADLINE; and whether it is
        finished. Dashes where it is not, or where a number is not defined.
    """
    lines = {}
    for run, summary in zip(runs, _summaries(runs, reports), strict=True):
        line = {name: _value_text(value) for name, value in run.varied.items()}
        for row in HEADLINE:
            of_run = isinstance(summary, RunMetrics)
            score, average = (summary.scores.get(row), summary.mean_ap.get(row)) if of_run else (None, None)
            line[f"{label_of(row)}: mAcc"] = number_text(score.value if score else None)
            line[f"{label_of(row)}: 95%"] = range_text(score.interval if score else None) or UNDEFINED
            line[f"{label_of(row)}: mAP"] = number_text(average.value if average else None)
        line["state"] = summary if isinstance(summary, str) else "finished" if summary.is_current else "started again"
        lines[run.name] = line
    return pd.DataFrame.from_dict(lines, orient="index")


def seed_spread(runs: list[GridRun], reports: Path) -> pd.DataFrame:
    """Return mean and spread over the seeds of a grid, for each combination of the other parameters, as text.

    Parameters
    ----------
    runs, reports
        As for `grid_table`.

    Returns
    -------
    DataFrame
        A line for each combination: the other parameters, how many seeds are finished, and for mAcc of each row in
        HEADLINE the mean, the standard deviation of the sample (n - 1), and the lowest and highest value. Dashes where
        no seed is finished, or one has no deviation.
    """
    groups: dict[str, list[tuple[GridRun, RunMetrics | str]]] = {}
    for run, summary in zip(runs, _summaries(runs, reports), strict=True):
        groups.setdefault(json.dumps(_other(run), sort_keys=True), []).append((run, summary))
    lines = []
    for group in groups.values():
        finished = [summary for _, summary in group if isinstance(summary, RunMetrics) and summary.is_current]
        line = {name: _value_text(value) for name, value in _other(group[0][0]).items()}
        line["seeds"] = f"{len(finished)} of {len(group)}"
        for row in HEADLINE:
            values = [summary.scores[row].value for summary in finished if row in summary.scores]
            mean, deviation, both_ends = spread(values).values()
            line |= {f"{label_of(row)}: mAcc, mean": mean, f"{label_of(row)}: s.d.": deviation}
            line[f"{label_of(row)}: range"] = both_ends
        lines.append(line)
    return pd.DataFrame(lines)


def _axes(grid: object, legal: set[str], problems: list[str]) -> Iterator[tuple[str, list[Entry]]]:
    """Yield each key of a grid with its entries as mappings; what is none goes to `problems`."""
    if not isinstance(grid, dict) or not grid:
        problems.append(f"{KEY}: {shown(grid)} maps no parameter to a list of values")
        return
    for key, entries in grid.items():
        place = f"{KEY}, {key if isinstance(key, str) else shown(key)}"[:100]
        if not isinstance(entries, list) or not entries:
            problems.append(f"{place}: {shown(entries)} is not a list of values")
            continue
        if all(isinstance(entry, dict) and entry for entry in entries) and key not in legal:
            pass
        elif any(isinstance(entry, dict) for entry in entries):
            problems.append(f"{place}: mappings, and nothing but mappings, stand under a key that is not a parameter")
            continue
        else:
            entries = [{key: value} for value in entries]
        fixed = [name for name in PLACES if any(name in entry for entry in entries)]
        problems += [f"{place}: {name} cannot vary; it follows from the other parameters" for name in fixed]
        if not fixed:
            yield str(key), entries


def _names(base: str, combinations: list[Entry]) -> list[str]:
    """Return a name for each combination, as a folder may be called."""
    long = [
        base + "".join(f"_{name}-{_safe(value)}" for name, value in combination.items()) for combination in combinations
    ]
    folded = [name.casefold() for name in long]
    return [
        name
        if len(name) <= MAX_NAME and folded.count(name.casefold()) == 1
        else f"{name[: MAX_NAME - 13]}-{_digest(combination)}"
        for name, combination in zip(long, combinations, strict=True)
    ]


def _safe(value: object) -> str:
    text = re.sub(r"[^A-Za-z0-9.]+", "-", _value_text(value)).strip("-")
    return text or "none"


def _digest(combination: Entry) -> str:
    return hashlib.sha256(json.dumps(combination, sort_keys=True).encode()).hexdigest()[:12]


def _value_text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _other(run: GridRun) -> dict[str, object]:
    return {name: value for name, value in run.varied.items() if name != "seed"}


def _summaries(runs: list[GridRun], reports: Path) -> list[RunMetrics | str]:
    """Return what each run found, or why there is nothing."""
    found = []
    for run in runs:
        path = reports / run.name / "metrics.json"
        try:
            found.append(read_metrics(path) if path.is_file() else "not finished")
        except HistoCLIPError as error:
            found.append(str(error).splitlines()[0].replace(f"{path.parent}/", ""))
    return found
