"""Turn executed notebooks into pages that stand alone."""

from __future__ import annotations

import ast
import base64
import hashlib
import io
import re
import tokenize
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import jinja2
import nbformat
from nbconvert import HTMLExporter
from nbconvert.filters import strip_ansi
from nbformat import NotebookNode

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.files import write_text
from histoclip_lib.common.html import EXPLORER_TYPE
from histoclip_lib.report.html import Heading, clean_output, finish_article, markdown_to_html, text_base64
from histoclip_lib.report.notebooks import Link, neighbours

ASSETS = Path(__file__).with_name("assets")
DIGEST = re.compile(rb'<meta (?=[^>]*name="histoclip-digest")[^>]*content="([0-9a-f]{64})"')
DIGEST_WITHIN = 1000  # bytes: it stands at the top of a page
HIDDEN_TAGS = frozenset({"remove-cell", "hide"})
PARAMETER_TAGS = frozenset({"parameters", "injected-parameters"})
SHOWN_TYPES = [
    EXPLORER_TYPE,
    "text/html",
    "text/markdown",
    "image/svg+xml",
    "image/png",
    "image/jpeg",
    "text/latex",
    "text/plain",
]
WIDGET = "application/vnd.jupyter.widget-view+json"
PROGRESS = re.compile(r"\d+%\|.*\||\d+it \[")  # what tqdm leaves when its carriage returns are gone


@dataclass(frozen=True)
class Parameter:
    """A line of the parameters table: the name, its value as written, and the comment beside it."""

    name: str
    value: str
    meaning: str


def page_digest(*parts: bytes) -> str:
    """Digest what a page is drawn from: `parts`, the template, and the code that fills it."""
    digest = hashlib.sha256(_own_source())
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


@cache
def _own_source() -> bytes:
    code = [Path(__file__), Path(__file__).with_name("html.py")]
    return b"\0".join(path.read_bytes() for path in (*code, *sorted(ASSETS.rglob("*"))) if path.is_file())


def drawn_digest(page: Path) -> str:
    """Return the digest that a page was drawn from; empty where it is absent or not one of these pages."""
    try:
        with page.open("rb") as file:
            found = DIGEST.search(file.read(DIGEST_WITHIN))
    except OSError:
        return ""
    return found[1].decode("ascii") if found else ""


def export_page(
    notebook: Path,
    page: Path,
    title: str,
    navigation: list[Link],
    provenance: dict[str, str],
    digest: str = "",
    as_heading: bool = False,
) -> None:
    """Turn an executed notebook into one HTML file that fetches nothing but pictures from a folder beside it.

    Code is hidden until a reader asks for it, equations are MathML, and text from users is cleaned. Tracebacks, stderr,
    widgets and progress bars are left out, as are cells tagged `remove-cell` or `hide`. The outputs of a cell whose
    metadata holds `fold` are folded away under that text until a reader opens it, or prints. In the place of the cell
    tagged `injected-parameters` (else `parameters`) stands a table of all parameters.

    Parameters
    ----------
    notebook : Path
        An `.ipynb` file; images that its Markdown names are looked for beside it.
    page : Path
        The file to write. It is replaced in one step, so a reader never meets half a page.
    title : str
        Title of the page; printed above the notebook's own first h1, or as h1 where it has none.
    navigation : list of Link
        In reading order: the neighbours of the current one become "previous" and "next".
    provenance : dict of str to str
        Name and value of each line of the table at the foot.
    digest : str
        Of what the page is drawn from; see `page_digest`.
    as_heading : bool
        Whether `title` is the h1, and the notebook's own first h1 stands above it.

    Raises
    ------
    HistoCLIPError
        If the notebook is absent, not a notebook, or names an attachment that it lacks.
    """
    tidied = _tidy(read_notebook(notebook, "Execute the notebook before it is made a page."))
    previous, following = neighbours(navigation)
    details = {
        "title": title,
        "as_heading": as_heading,
        "assets": page_assets(explorers=_has_explorers(tidied)),
        "navigation": navigation,
        "previous": previous,
        "next": following,
        "digest": digest,
        "provenance": provenance,
        "footer_headings": [Heading(2, "How this page was made", "provenance")] if provenance else [],
    }
    resources = {"histoclip": details, "metadata": {"path": str(notebook.parent)}}
    html, _ = _PageExporter().from_notebook_node(tidied, resources)
    write_text(page, _encodable(html))


def read_notebook(path: Path, remedy: str) -> NotebookNode:
    """Read an executed notebook.

    Raises
    ------
    HistoCLIPError
        If the file is absent, with `remedy`, or not a notebook.
    """
    try:
        return nbformat.read(path, as_version=4)
    except FileNotFoundError as error:
        raise HistoCLIPError(f"{path} was not found. {remedy}") from error
    except (ValueError, KeyError, TypeError, AttributeError, nbformat.ValidationError) as error:
        raise HistoCLIPError(f"{path} is not a notebook: {error}") from error


@dataclass(frozen=True)
class PageAssets:
    """The style and the scripts of every page, and the policy that allows these and nothing else."""

    css: str = field(repr=False)
    script: str = field(repr=False)
    module: str = field(repr=False)
    policy: str


@cache
def page_assets(explorers: bool = False) -> PageAssets:
    """Return what every page carries inline; the policy makes the browser refuse any request and other script.

    With `explorers` the page carries the ES module for figures that a reader can move through, and may load pictures
    from where it lies itself.
    """

    def read(*names: str) -> str:
        return "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in names)

    css, script = read("template/page.css"), read("template/page.js")
    more, module = (read("explorers.css"), read("explorers.js")) if explorers else ("", "")
    images = "data: 'self'" if explorers else "data:"
    digests = [hashlib.sha256(own.encode("utf-8")).digest() for own in (script, module) if own]
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode('ascii')}'" for digest in digests)
    policy = (
        f"default-src 'none'; img-src {images}; style-src 'unsafe-inline'; script-src {allowed}; "
        "base-uri 'none'; form-action 'none'"
    )
    return PageAssets(css + more, script, module, policy)


class _PageExporter(HTMLExporter):
    """nbconvert's HTML exporter with the template and the filters of these pages."""

    def __init__(self) -> None:
        super().__init__(template_name="template", extra_template_basedirs=[str(ASSETS)])

    @property
    def default_config(self):
        config = super().default_config
        config.NbConvertBase.display_data_priority = SHOWN_TYPES
        return config

    @jinja2.pass_context
    def markdown2html(self, context: jinja2.runtime.Context, source: str) -> str:
        folder = context.get("resources", {}).get("metadata", {}).get("path", "")
        return markdown_to_html(source, folder, context.get("cell", {}).get("attachments"))

    def default_filters(self):
        yield from super().default_filters()
        yield "article", finish_article
        yield "clean_output", clean_output
        yield "text_base64", text_base64


def _tidy(notebook: NotebookNode) -> NotebookNode:
    """Return the notebook without what a reader should not see, its parameters ready for the table."""
    parameters, table_cell = list(declared_parameters(notebook).values()), None
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(_tidy_output, cell.outputs) if output is not None]
            table_cell = cell if PARAMETER_TAGS & _tags(cell) else table_cell
    if table_cell is not None:
        table_cell.metadata["histoclip_parameters"] = parameters
    notebook.cells = [cell for cell in notebook.cells if not HIDDEN_TAGS & _tags(cell)]
    return notebook


def _has_explorers(notebook: NotebookNode) -> bool:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return any(EXPLORER_TYPE in output.get("data", {}) for output in outputs)


def _encodable(text: str) -> str:
    return text.encode("utf-8", errors="replace").decode("utf-8")  # JSON may hold half a surrogate pair


def _tags(cell: NotebookNode) -> frozenset[str]:
    return frozenset(cell.metadata.get("tags", ()))


def _tidy_output(output: NotebookNode) -> NotebookNode | None:
    if output.output_type == "stream" and output.name == "stdout":
        output.text = visible_text(output.text)
        return output if output.text.strip() else None
    if output.output_type in ("display_data", "execute_result"):
        if output.data.pop(WIDGET, None) is not None:
            output.data.pop("text/plain", None)  # the widget's own; a progress bar has nothing else
        return output if output.data.keys() & SHOWN_TYPES else None
    return None  # stderr and tracebacks


def visible_text(text: str) -> str:
    """Return printed text without colour codes and without the lines that progress bars leave."""
    lines = strip_ansi(text.replace("\r\n", "\n")).split("\n")
    return "\n".join(line for line in lines if "\r" not in line and not PROGRESS.search(line))


def declared_parameters(notebook: NotebookNode) -> dict[str, Parameter]:
    """Return the parameters of a notebook by name: the values injected last, with the meanings of the declarations."""
    found: dict[str, Parameter] = {}
    for cell in notebook.cells:
        if cell.cell_type == "code" and PARAMETER_TAGS & _tags(cell):
            for given in read_parameters(cell.source):
                declared = found.get(given.name, given)  # papermill injects values without their comments
                found[given.name] = replace(given, meaning=declared.meaning or given.meaning)
    return found


def read_parameters(source: str) -> list[Parameter]:
    """Return the assignments in a parameters cell, each with the comment on its line, else just above it.

    A cell that is not valid Python gives none; statements other than `name = value` are passed over.
    """
    try:
        statements = ast.parse(source).body
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, ValueError, RecursionError, tokenize.TokenError):
        return []
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    parameters = []
    for statement in statements:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.expr() as value):
                pass
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                pass
            case _:
                continue
        above = statement.lineno
        while above - 1 in comments and source.splitlines()[above - 2].lstrip().startswith("#"):
            above -= 1
        block = " ".join(comments[line] for line in range(above, statement.lineno))
        meaning = comments.get(statement.end_lineno, block)
        parameters.append(Parameter(name, ast.get_source_segment(source, value) or "", meaning))
    return parameters
