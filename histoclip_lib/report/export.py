"""Turn executed notebooks and filled templates into pages that stand alone."""

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
from IPython.display import Image
from nbconvert import HTMLExporter
from nbconvert.filters import strip_ansi
from nbformat import NotebookNode

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.files import write_text
from histoclip_lib.report.html import Heading, clean_output, finish_article, markdown_to_html, text_base64
from histoclip_lib.report.navigation import Link, neighbours

LIBRARY = Path(__file__).parents[1]
ASSETS = Path(__file__).with_name("assets")
DIGEST = re.compile(rb'<meta (?=[^>]*name="histoclip-digest")[^>]*content="([0-9a-f]{64})"')
DIGEST_WITHIN = 1000  # bytes: it stands at the top of a page
HIDDEN_TAGS = frozenset({"remove-cell", "hide"})
EXPLORER_TYPES = ["application/vnd.histoclip.attention+json", "application/vnd.histoclip.gallery+json"]
SHOWN_TYPES = [
    *EXPLORER_TYPES,
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
    """Digest what a page is drawn from: `parts`, and the templates and the code that draw them."""
    digest = hashlib.sha256(_library_source())
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


@cache
def _library_source() -> bytes:
    sources = [path for path in sorted(LIBRARY.rglob("*")) if path.suffix in (".py", ".j2", ".css", ".js")]
    return b"\0".join(path.read_bytes() for path in sources)


def drawn_digest(page: Path) -> str:
    """Return the digest that a page was drawn from; empty where it is absent or not one of these pages."""
    try:
        with page.open("rb") as file:
            found = DIGEST.search(file.read(DIGEST_WITHIN))
    except OSError:
        return ""
    return found[1].decode("ascii") if found else ""


def render(template: str, page: Path, **details: object) -> None:
    """Fill a template of `assets` and write it to `page`; its text is escaped, its script and style are inline."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([ASSETS, ASSETS / "template"]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["address"] = _address
    write_text(page, _encodable(environment.get_template(template).render(assets=page_assets("site"), **details)))


def _address(picture: Image) -> str:
    """Return an image, PNG or JPEG, as a data address."""
    kind = "png" if picture.data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture.data).decode('ascii')}"


def export_page(
    notebook: Path, page: Path, title: str, navigation: list[Link], provenance: dict[str, str], digest: str = ""
) -> None:
    """Turn an executed notebook into one HTML file that fetches nothing.

    Code is folded away, equations are MathML, and text from users is cleaned. Tracebacks, stderr, widgets and
    progress bars are left out, as are cells tagged `remove-cell` or `hide`. The cell tagged
    `injected-parameters` (else `parameters`) is followed by a table of all parameters.

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

    Raises
    ------
    HistoCLIPError
        If the notebook is absent, not a notebook, or names an attachment that it lacks.
    """
    try:
        tidied = _tidy(nbformat.read(notebook, as_version=4))
    except FileNotFoundError as error:
        raise HistoCLIPError(f"{notebook} was not found. Execute the notebook before it is made a page.") from error
    except (ValueError, KeyError, TypeError, AttributeError, nbformat.ValidationError) as error:
        raise HistoCLIPError(f"{notebook} is not a notebook: {error}") from error
    previous, following = neighbours(navigation)
    details = {
        "title": title,
        "assets": page_assets(*(["explorers"] if _has_explorers(tidied) else [])),
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


@dataclass(frozen=True)
class PageAssets:
    """The style and the script of every page, and the policy that allows these and nothing else."""

    css: str = field(repr=False)
    script: str = field(repr=False)
    policy: str


@cache
def page_assets(*more: str) -> PageAssets:
    """Return what every page carries inline; the policy makes the browser refuse any request and other script.

    `more` names further styles and scripts: `site` for the pages that sum up runs, `explorers` for those with figures
    that a reader can move through.
    """
    css, script = (
        "\n".join((ASSETS / "template" / f"{name}{suffix}").read_text(encoding="utf-8") for name in ("page", *more))
        for suffix in (".css", ".js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return PageAssets(css, script, policy)


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
    parameters: dict[str, Parameter] = {}
    table_cell = None
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in map(_tidy_output, cell.outputs) if output is not None]
        if {"parameters", "injected-parameters"} & _tags(cell):
            for given in read_parameters(cell.source):
                declared = parameters.get(given.name, given)  # papermill injects values without their comments
                parameters[given.name] = replace(given, meaning=declared.meaning or given.meaning)
            table_cell = cell
    if table_cell is not None:
        table_cell.metadata["histoclip_parameters"] = list(parameters.values())
    notebook.cells = [cell for cell in notebook.cells if not HIDDEN_TAGS & _tags(cell)]
    return notebook


def _has_explorers(notebook: NotebookNode) -> bool:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return any(output.get("data", {}).keys() & EXPLORER_TYPES for output in outputs)


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


def read_parameters(source: str) -> list[Parameter]:
    """Return the assignments in a parameters cell, each with the comment on its line, else just above it.

    A cell that is no valid Python gives none; statements other than `name = value` are passed over.
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
