"""One run as text: which parameters differ from the defaults, whether it is current, its pages and files."""

from __future__ import annotations

from pathlib import Path

from histoclip_lib.execution import executed_values
from histoclip_lib.params import Parameter
from histoclip_lib.runs import STEPS, finished_steps

PLACES = ("name", "reports_dir")  # parameters that say where a run lies, not what it does


def run_names(reports: Path) -> list[str]:
    """Return the names of the runs below a folder, finished or not, in alphabetical order."""
    return sorted({path.parent.name for kind in ("metrics", "steps") for path in reports.glob(f"*/{kind}.json")})


def parameters_of(folder: Path) -> dict[str, object]:
    """Return the parameters that a run's notebooks were executed with; those that were not add none."""
    return {name: value for step in STEPS for name, value in executed_values(folder / f"{step}.ipynb").items()}


def details(folder: Path, schema: dict[str, dict[str, Parameter]]) -> list[str]:
    """Say in lines of text what a run was made with, whether it is current, and where its pages and files are.

    Parameters
    ----------
    folder : Path
        The run's.
    schema : dict
        As `params.read_schema` returns.
    """
    values = parameters_of(folder)
    defaults = {name: parameter.default for declared in schema.values() for name, parameter in declared.items()}
    changed = [
        f"{name}: {value}"
        for name, value in sorted(values.items())
        if name not in PLACES and value != defaults.get(name)
    ]
    pages = sorted(folder.glob("*.html"), key=lambda page: (page.stem != "index", page.name))
    files = sorted(path.name for path in folder.iterdir() if path.suffix != ".html" and not path.name.startswith("."))
    return [
        f"parameters that differ from the defaults: {', '.join(changed) or 'none'}",
        _state(folder, values, defaults, schema),
        "pages",
        *(f"  {page.resolve()}" for page in pages),
        f"files in {folder.resolve()}",
        f"  {', '.join(files)}",
    ]


def _state(folder: Path, values: dict, defaults: dict, schema: dict[str, dict[str, Parameter]]) -> str:
    if values.keys() != defaults.keys():
        return "not current: some steps were never finished, or the notebooks read other parameters now"
    given = values | {"name": folder.name, "reports_dir": defaults["reports_dir"]}  # as a parameter file leaves it
    finished = finished_steps(given, schema, folder.parent)
    again = [step for step in STEPS if step not in finished]
    if not again:
        return "current: a run with these parameters would execute nothing again"
    return f"not current: inputs or the library have changed, so a run would execute {', '.join(again)}"
