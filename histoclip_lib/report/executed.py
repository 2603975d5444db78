"""What executed notebooks say of themselves: title, origin, parameters."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import nbformat

from histoclip_lib.common.files import replacing
from histoclip_lib.report.export import Parameter, declared_parameters, read_notebook
from histoclip_lib.report.notebooks import run_notebooks

AGAIN = "Run its step again."


@dataclass(frozen=True)
class Executed:
    """What one executed notebook says of itself.

    Attributes
    ----------
    title : str
        Title of its page; empty where none was stamped on it.
    provenance : dict of str to str
        Name and value of each line of the table at the foot of its page.
    parameters : dict of str to Parameter
        By name: the values it was executed with, each with the meaning that its declaration gives.
    made : str
        When its execution ended, ISO 8601 in UTC; empty where that is not known.
    """

    title: str
    provenance: dict[str, str]
    parameters: dict[str, Parameter]
    made: str


def stamp(notebook: Path, title: str, provenance: dict[str, str]) -> None:
    """Write into an executed notebook what its page needs, so that the page can be drawn again.

    Parameters
    ----------
    notebook : Path
        The executed notebook; it is replaced in one step.
    title : str
        Title of the page.
    provenance : dict of str to str
        Name and value of each line of the table at the foot of the page.
    """
    tree = read_notebook(notebook, AGAIN)
    # pairs, since a notebook's JSON is written with its keys sorted
    pairs = [list(line) for line in provenance.items()]
    tree.metadata["histoclip"] = {"title": title, "provenance": pairs}
    with replacing(notebook) as temporary:
        nbformat.write(tree, temporary)


def read_executed(notebook: Path) -> Executed:
    """Read what an executed notebook says of itself; missing or garbled metadata counts as not said.

    Raises
    ------
    HistoCLIPError
        If the file is absent or not a notebook.
    """
    tree = read_notebook(notebook, AGAIN)
    stamped, executed = (_mapping(tree.metadata.get(key)) for key in ("histoclip", "papermill"))
    lines = stamped.get("provenance")
    pairs = [line for line in lines if isinstance(line, list) and len(line) == 2] if isinstance(lines, list) else []
    return Executed(
        title=str(stamped.get("title") or ""),
        provenance={str(name): str(value) for name, value in pairs},
        parameters=declared_parameters(tree),
        made=str(executed.get("end_time") or ""),
    )


def executed_notebooks(folder: Path) -> dict[str, Path]:
    """Return the executed notebooks of a run, by their stems and in their order."""
    paths = {stem: folder / f"{stem}.ipynb" for stem in run_notebooks()}
    return {stem: path for stem, path in paths.items() if path.is_file()}


def run_parameters(folder: Path) -> dict[str, Parameter]:
    """Return the parameters of a run, by name: all that its notebooks were executed with.

    Raises
    ------
    HistoCLIPError
        If one of them is not a notebook.
    """
    notebooks = map(read_executed, executed_notebooks(folder).values())
    return {name: parameter for notebook in notebooks for name, parameter in notebook.parameters.items()}


def parameter_value(parameter: Parameter) -> object:
    """Return the value of a parameter that is written as a literal, else None."""
    try:
        return ast.literal_eval(parameter.value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _mapping(value: object) -> dict:
    return value if isinstance(value, dict) else {}
