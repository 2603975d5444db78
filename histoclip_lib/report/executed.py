"""What the executed notebooks of a run say of themselves: title, origin, parameters, a picture."""

from __future__ import annotations

import ast
import base64
import io
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from PIL import Image, ImageOps

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.files import replacing
from histoclip_lib.report.export import Parameter, read_parameters
from histoclip_lib.report.navigation import PAGE_LABELS

PICTURE_SIZE = (360, 240)  # pixels


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
    picture : str
        Its first picture as a data address, made small; empty where it has none.
    """

    title: str
    provenance: dict[str, str]
    parameters: dict[str, Parameter]
    made: str
    picture: str


def stamp(notebook: Path, title: str, provenance: dict[str, str]) -> None:
    """Write the title and the origin of its page into an executed notebook, so that the page can be drawn again."""
    tree = _read(notebook)
    # pairs, since a notebook's JSON is written with its keys sorted
    tree.metadata["histoclip"] = {"title": title, "provenance": [list(line) for line in provenance.items()]}
    with replacing(notebook) as temporary:
        nbformat.write(tree, temporary)


def read_executed(notebook: Path) -> Executed:
    """Read what an executed notebook says of itself; what is missing or garbled in its metadata counts as not said.

    Raises
    ------
    HistoCLIPError
        If the file is absent or not a notebook.
    """
    tree = _read(notebook)
    stamped, executed = (_mapping(tree.metadata.get(key)) for key in ("histoclip", "papermill"))
    lines = stamped.get("provenance")
    pairs = [line for line in lines if isinstance(line, list) and len(line) == 2] if isinstance(lines, list) else []
    return Executed(
        title=str(stamped.get("title") or ""),
        provenance={str(name): str(value) for name, value in pairs},
        parameters=_parameters(tree),
        made=str(executed.get("end_time") or ""),
        picture=_first_picture(tree),
    )


def executed_notebooks(folder: Path) -> dict[str, Path]:
    """Return the executed notebooks of a run, by their stems and in their order."""
    paths = {stem: folder / f"{stem}.ipynb" for stem in PAGE_LABELS}
    return {stem: path for stem, path in paths.items() if path.is_file()}


def run_parameters(notebooks: list[Executed]) -> dict[str, Parameter]:
    """Return the parameters of a run, by name: all that its notebooks were executed with."""
    return {name: parameter for notebook in notebooks for name, parameter in notebook.parameters.items()}


def parameter_value(parameter: Parameter) -> object:
    """Return the value of a parameter that is written as a literal, else None."""
    try:
        return ast.literal_eval(parameter.value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _read(notebook: Path) -> NotebookNode:
    try:
        return nbformat.read(notebook, as_version=4)
    except FileNotFoundError as error:
        raise HistoCLIPError(f"{notebook} was not found. Run its step again.") from error
    except (ValueError, KeyError, TypeError, AttributeError, nbformat.ValidationError) as error:
        raise HistoCLIPError(f"{notebook} is not a notebook: {error}") from error


def _mapping(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _parameters(tree: NotebookNode) -> dict[str, Parameter]:
    """Return the declared parameters with the values that papermill injected below them."""
    found: dict[str, Parameter] = {}
    for cell in tree.cells:
        if cell.cell_type == "code" and {"parameters", "injected-parameters"} & set(cell.metadata.get("tags", ())):
            for given in read_parameters(cell.source):
                meaning = found[given.name].meaning if given.name in found else given.meaning
                found[given.name] = Parameter(given.name, given.value, meaning)
    return found


def _first_picture(tree: NotebookNode) -> str:
    """Return the first PNG or JPEG among the outputs, whole, on white, as a small JPEG."""
    for cell in tree.cells:
        for output in cell.get("outputs", ()):
            for kind in ("image/png", "image/jpeg"):
                if kind in output.get("data", {}):
                    return _small(output.data[kind])
    return ""


def _small(data: str) -> str:
    try:
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            image.draft("RGB", (2 * PICTURE_SIZE[0], 2 * PICTURE_SIZE[1]))
            opaque = Image.new("RGBA", image.size, "white")
            opaque.alpha_composite(image.convert("RGBA"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what base64 and Pillow raise
        return ""
    buffer = io.BytesIO()
    ImageOps.pad(opaque.convert("RGB"), PICTURE_SIZE, color="white").save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
