"""Turn executed notebooks into pages that stand alone, and the runs of a folder into their overview."""

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

from histoclip_lib.errors import HistoCLIPError
from histoclip_lib.files import write_text
from histoclip_lib.page_html import Heading, clean_output, finish_article, markdown_to_html, text_base64
from histoclip_lib.run_summaries import BrokenRun, RunSummary, find_runs, table_one

ASSETS = Path(__file__).parent / "assets"
PAGE_LABELS = {
    "01_data": "01 Data",
    "02_zero_shot": "02 Zero-shot",
    "03_train": "03 Training",
    "04_evaluate": "04 Evaluation",
    "05_attention": "05 Attention",
}
TABLE_PAGE = "06_table"
HIDDEN_TAGS = frozenset({"remove-cell", "hide"})
SHOWN_TYPES = [
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
class Link:
    """A link of the navigation; `current` marks the page that shows it."""

    label: str
    href: str
    current: bool = False


@dataclass(frozen=True)
class Parameter:
    """A line of the parameters table: the name, its value as written, and the comment beside it."""

    name: str
    value: str
    meaning: str


def run_navigation(current: str) -> list[Link]:
    """Return the links of a run's page, the overview first; `current` is a key of PAGE_LABELS."""
    pages = [Link(label, f"{stem}.html", stem == current) for stem, label in PAGE_LABELS.items()]
    return [Link("All runs", "../index.html"), *pages]


def overview_navigation(current: str) -> list[Link]:
    """Return the links of the pages over all runs; `current` is `index` or TABLE_PAGE."""
    return [
        Link("All runs", "index.html", current == "index"),
        Link("06 Table", f"{TABLE_PAGE}.html", current == TABLE_PAGE),
    ]


def export_page(notebook: Path, page: Path, title: str, navigation: list[Link], provenance: dict[str, str]) -> None:
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
    position = next((i for i, link in enumerate(navigation) if link.current), None)
    around = [None, *navigation, None]
    details = {
        "title": title,
        "assets": page_assets(),
        "navigation": navigation,
        "previous": None if position is None else around[position],
        "next": None if position is None else around[position + 2],
        "provenance": provenance,
        "footer_headings": [Heading(2, "How this page was made", "provenance")] if provenance else [],
    }
    resources = {"histoclip": details, "metadata": {"path": str(notebook.parent)}}
    html, _ = _PageExporter().from_notebook_node(tidied, resources)
    write_text(page, _encodable(html))


def write_index(reports_dir: Path) -> Path:
    """Write `index.html`, the overview of all runs below a folder.

    Parameters
    ----------
    reports_dir : Path
        Each `*/metrics.json` in it is a run; one that cannot be read is listed with the reason.
        `*/thumbnail.png` is shown, and `*/0?_*.html` and `06_table.html` are linked, where present.

    Returns
    -------
    Path
        The page that was written.
    """
    runs = find_runs(reports_dir)
    summaries = [run for run in runs if isinstance(run, RunSummary)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([ASSETS, ASSETS / "template"]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    navigation = overview_navigation("index")
    if not (reports_dir / f"{TABLE_PAGE}.html").is_file():
        navigation = navigation[:1]
    html = environment.get_template("index.html.j2").render(
        assets=page_assets(),
        navigation=navigation,
        table=table_one(summaries),
        runs=summaries,
        broken=[run for run in runs if isinstance(run, BrokenRun)],
        page_labels={**PAGE_LABELS, TABLE_PAGE: "06 Table"},
    )
    index = reports_dir / "index.html"
    write_text(index, _encodable(html))
    return index


@dataclass(frozen=True)
class PageAssets:
    """The style and the script of every page, and the policy that allows these and nothing else."""

    css: str = field(repr=False)
    script: str = field(repr=False)
    policy: str


@cache
def page_assets() -> PageAssets:
    """Return what every page carries inline; the policy makes the browser refuse any request and other script."""
    css, script = ((ASSETS / "template" / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
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


def _encodable(text: str) -> str:
    return text.encode("utf-8", errors="replace").decode("utf-8")  # JSON may hold half a surrogate pair


def _tags(cell: NotebookNode) -> frozenset[str]:
    return frozenset(cell.metadata.get("tags", ()))


def _tidy_output(output: NotebookNode) -> NotebookNode | None:
    if output.output_type == "stream" and output.name == "stdout":
        output.text = visible_text(output.text)
        return output if output.text.strip() else None
    if output.output_type in ("display_data", "execute_result"):
        return output if WIDGET not in output.data and output.data.keys() & SHOWN_TYPES else None
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
