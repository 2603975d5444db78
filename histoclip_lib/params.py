"""Parameter files: the notebooks' `parameters` cells are the schema, and a file is checked before anything runs."""

from __future__ import annotations

import ast
import difflib
import math
import re
from dataclasses import dataclass
from pathlib import Path

import papermill
import yaml

from histoclip_lib.errors import HistoCLIPError, bullet_list

TYPES = {"str": str, "int": int, "float": float, "bool": bool, "list[int]": list}
TYPE_NAMES = {kind: name for name, kind in TYPES.items()}


@dataclass(frozen=True)
class Parameter:
    """One parameter, as a notebook's `parameters` cell declares it: `name: type = default  # meaning`."""

    name: str
    type: type
    default: object
    meaning: str


def read_schema(notebooks: list[Path]) -> dict[str, dict[str, Parameter]]:
    """Return the parameters that each notebook reads.

    Parameters
    ----------
    notebooks : list of Path
        The `.ipynb` files.

    Returns
    -------
    dict of str to dict of str to Parameter
        By the notebook's stem, then by the parameter's name.

    Raises
    ------
    HistoCLIPError
        If a declaration lacks a type or a comment, or two notebooks declare the same name differently.
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
            parameter = Parameter(name, kind, kind(ast.literal_eval(entry["default"])), entry["help"])
            where, earlier = seen.setdefault(name, (notebook.stem, parameter))
            if earlier != parameter:
                raise HistoCLIPError(f"parameter {name}: {where} and {notebook.stem} declare it differently.")
            declared[name] = parameter
        schema[notebook.stem] = declared
    return schema


def read_params(path: Path, schema: dict[str, dict[str, Parameter]]) -> dict[str, object]:
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
        If the file cannot be read as YAML; or listing every unknown key, with the nearest legal one, every key that
        stands there twice, every value of the wrong type, and `reports_dir`, which the command line gives.
    """
    legal = {name: parameter for declared in schema.values() for name, parameter in declared.items()}
    try:
        text = path.read_text(encoding="utf-8")
        given = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise HistoCLIPError(f"{path} cannot be read ({error}).") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: such as a date that does not exist
        raise HistoCLIPError(f"{path} is not YAML: {error}") from error
    if not isinstance(given, dict):
        raise HistoCLIPError(f"{path} must hold `name: value` lines. Start from params/demo.yaml.")
    values = {name: parameter.default for name, parameter in legal.items()}
    keys = [key.value for key, _ in yaml.compose(text, Loader=yaml.SafeLoader).value]
    problems = [f"{key}: stands there {keys.count(key)} times" for key in dict.fromkeys(keys) if keys.count(key) > 1]
    for key, value in given.items():
        if key not in legal:
            nearest = difflib.get_close_matches(str(key), legal, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"legal names: {', '.join(sorted(legal))}"
            problems.append(f"{key}: no notebook reads it; {hint}")
            continue
        if key == "reports_dir":
            problems.append("reports_dir: is given on the command line, as --reports DIR")
            continue
        try:
            values[key] = _convert(value, legal[key].type)
        except ValueError:
            problems.append(f"{key}: {value!r} is no {TYPE_NAMES[legal[key].type]} ({legal[key].meaning})")
    if "name" in given and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", str(given["name"])):
        problems.append(
            f"name: {given['name']!r} names the run's folder: use letters, digits, '.', '_' and '-', the first one a "
            "letter or digit"
        )
    if problems:
        raise HistoCLIPError(f"{path}: {len(problems)} entries cannot be used:\n{bullet_list(problems)}")
    return values


def _convert(value: object, kind: type) -> object:
    """Return a YAML value as `kind`. YAML reads 1e-4 as text, which is a number here."""
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        try:
            number = float(value)
        except OverflowError as error:
            raise ValueError from error
        if not math.isfinite(number):
            raise ValueError
        return number
    if kind is str and value is None:
        return ""  # `key:` with nothing behind it
    if type(value) is not kind or (kind is list and any(type(entry) is not int for entry in value)):
        raise ValueError
    return value
