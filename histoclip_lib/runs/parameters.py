"""Parameter files: the notebooks' `parameters` cells are the schema, and a file is checked before anything runs."""

from __future__ import annotations

import ast
import difflib
import math
import operator
import re
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import papermill

from histoclip_lib.common.errors import HistoCLIPError, bullet_list, shown
from histoclip_lib.common.files import resolve
from histoclip_lib.common.yaml_files import read_yaml
from histoclip_lib.runs.record import PLACES

TYPES = {"str": str, "int": int, "float": float, "bool": bool, "list[int]": list[int], "list[str]": list[str]}
TYPE_NAMES = {kind: name for name, kind in TYPES.items()}
COMPARISONS = {"above": operator.gt, "at least": operator.ge, "below": operator.lt, "at most": operator.le}
LARGEST = 2**53  # the largest integer that every reader of metrics.json holds exactly


@dataclass(frozen=True)
class Parameter:
    """One parameter, as a notebook's `parameters` cell declares it: `name: type = default  # meaning [range]`.

    The range is comparisons in words (papermill reads no line with a second `=`), `[at least 0, below 1]`, or the
    values that are allowed, `[auto | cpu | cuda:N]` with N for digits.
    """

    name: str
    type: type
    default: object
    meaning: str
    range: str = ""

    def fault(self, value: object) -> str:
        """Return why a value, or one in a list, is out of range; empty where it is not."""
        if "|" in self.range:
            choices = [choice.strip() for choice in self.range.split("|")]
            patterns = "|".join(re.escape(choice).replace("N", r"\d+") for choice in choices)
            fits = value == self.default or re.fullmatch(patterns, str(value))
            return "" if fits else f"is none of {', '.join(choices)}"
        for comparison in filter(None, self.range.split(",")):
            words, bound = comparison.strip().rsplit(" ", 1)
            numbers = value if isinstance(value, list) else [value]
            if not all(COMPARISONS[words](number, float(bound)) for number in numbers):
                return f"must be {comparison.strip()}"
        return ""


Schema = dict[str, dict[str, Parameter]]  # by the notebook's stem, then by the parameter's name


def read_schema(notebooks: list[Path]) -> Schema:
    """Return the parameters that each notebook reads.

    Parameters
    ----------
    notebooks : list of Path
        The `.ipynb` files.

    Returns
    -------
    Schema
        Of these notebooks.

    Raises
    ------
    HistoCLIPError
        If a declaration lacks a type or a comment, or a notebook declares a parameter of an earlier one again.
    """
    schema = {}
    seen: dict[str, tuple[str, Parameter]] = {}
    for notebook in notebooks:
        declared = {}
        for name, entry in papermill.inspect_notebook(str(notebook)).items():
            kind = TYPES.get(entry["inferred_type_name"])
            if kind is None or not entry["help"]:
                raise HistoCLIPError(
                    f"{notebook}, parameter {name}: write `{name}: type = default  # meaning` with one of the types "
                    f"{', '.join(TYPES)}."
                )
            meaning, _, rest = entry["help"].partition(" [")
            parameter = Parameter(name, kind, kind(ast.literal_eval(entry["default"])), meaning, rest.rstrip("]"))
            where, earlier = seen.setdefault(name, (notebook.stem, parameter))
            if earlier != parameter:
                raise HistoCLIPError(f"parameter {name}: {where} and {notebook.stem} declare it differently.")
            if where != notebook.stem and name not in PLACES:
                raise HistoCLIPError(
                    f"parameter {name}: {where} declares it already, so {notebook.stem} reads it there."
                )
            declared[name] = parameter
        schema[notebook.stem] = declared
    return schema


def read_params(path: Path, schema: Schema) -> dict[str, object]:
    """Read a parameter file and check it against the notebooks.

    Parameters
    ----------
    path : Path
        A flat YAML mapping.
    schema : dict
        As `read_schema` returns.

    Returns
    -------
    dict of str to object
        Every legal parameter: the file's values, and the notebooks' defaults for the rest.

    Raises
    ------
    HistoCLIPError
        If the file cannot be read as plain YAML (`yaml_files.read_yaml`); or listing every unknown key, with the
        nearest legal one, every key that stands there twice, every value of the wrong type or out of range, and
        `reports_dir`, which the command line gives.
    """
    given, problems = read_yaml(path)
    if not isinstance(given, dict):
        raise HistoCLIPError(f"{path} must hold `name: value` lines. Start from params/demo.yaml.")
    values, more = check_params(given, schema)
    problems += more
    if problems:
        raise HistoCLIPError(f"{path}: {len(problems)} entries cannot be used:\n{bullet_list(problems)}")
    return values


def check_params(given: dict[object, object], schema: Schema) -> tuple[dict[str, object], list[str]]:
    """Check entries against the notebooks.

    Returns
    -------
    values : dict of str to object
        Every legal parameter: the given values, and the notebooks' defaults for the rest.
    problems : list of str
        A line for each entry that cannot be used.
    """
    legal = {name: parameter for declared in schema.values() for name, parameter in declared.items()}
    problems = []
    values = {name: parameter.default for name, parameter in legal.items()}
    for key, value in given.items():
        if key not in legal:
            name = key if isinstance(key, str) else shown(key)
            nearest = difflib.get_close_matches(name, legal, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"legal names: {', '.join(sorted(legal))}"
            problems.append(f"{name[:100]}: no notebook reads it; {hint}")
            continue
        if key == "reports_dir":
            problems.append("reports_dir: is given on the command line, as --reports DIR")
            continue
        try:
            values[key] = _convert(value, legal[key].type)
        except ValueError as error:
            reason = str(error) or f"is not of type {TYPE_NAMES[legal[key].type]}"
            problems.append(f"{key}: {shown(value)} {reason} ({legal[key].meaning})")
            continue
        if reason := legal[key].fault(values[key]):
            problems.append(f"{key}: {shown(value)} {reason} ({legal[key].meaning})")
    if "name" in given and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", str(values["name"])):
        problems.append(
            f"name: {shown(given['name'])} names the run's folder: use letters, digits, '.', '_' and '-', the first "
            "one a letter or digit"
        )
    if int(values.get("warmup_epochs", 0)) >= int(values.get("epochs", 1)) >= 1:
        problems.append(f"warmup_epochs: {values['warmup_epochs']} must be below epochs, {values['epochs']}")
    words = str(values.get("prompts_file") or "")
    if words and not resolve(words).is_file():
        problems.append(f"prompts_file: {shown(words)} does not exist; give a path as seen from {Path.cwd()}")
    return values, problems


def _convert(value: object, kind: type) -> object:
    """Return a YAML value as `kind`, or raise ValueError with the reason where it is not the type alone.

    YAML reads 1e-4 as text, which is a number here.
    """
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        try:
            number = float(value)
        except (ValueError, OverflowError):
            raise ValueError from None
        if not math.isfinite(number):
            raise ValueError
        return number
    if kind is str and value is None:
        return ""  # `key:` with nothing behind it
    if kind is str and isinstance(value, str) and not _fits_a_path(value):
        raise ValueError("is longer than any name or path can be")
    (entry_kind,) = get_args(kind) or (kind,)
    entries = value if get_args(kind) and isinstance(value, list) else [value]
    if any(type(entry) is not entry_kind for entry in entries) or (get_args(kind) and entries is not value):
        raise ValueError
    if entry_kind is int and any(abs(number) > LARGEST for number in entries):
        raise ValueError("is beyond 2**53")
    return value


def _fits_a_path(text: str) -> bool:
    """Whether a file system could take a text as a path: most allow 255 bytes between slashes, and 4,096 in all."""
    encoded = text.encode()
    return len(encoded) <= 4096 and all(len(part) <= 255 for part in encoded.split(b"/"))
