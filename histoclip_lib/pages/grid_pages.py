"""The page of a grid: what each of its runs found, and how far that depends on the seed."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from histoclip_lib.grids import GridRun, grid_table, read_grid, seed_spread
from histoclip_lib.pages.export import render
from histoclip_lib.pages.navigation import SUMMARY_PAGE, TABLE_PAGE, Link, overview_navigation
from histoclip_lib.pages.page_html import Heading
from histoclip_lib.params import Parameter

PREFIX = "grid_"


def write_grid_page(path: Path, schema: dict[str, dict[str, Parameter]], reports: Path) -> Path:
    """Write the page of a grid beside the overview, with what its runs have found by now.

    Parameters
    ----------
    path : Path
        The grid's file; the page is named after it.
    schema : dict
        As `params.read_schema` returns.
    reports : Path
        Holds a folder for each run.

    Raises
    ------
    HistoCLIPError
        As `grids.read_grid` does.
    """
    runs = read_grid(path, schema)
    page = reports / f"{PREFIX}{path.stem}.html"
    table_is_there = (reports / f"{TABLE_PAGE}.html").is_file()
    sections = [("runs", "Every run", grid_table(runs, reports))]
    if "seed" in runs[0].varied:
        sections.append(("seeds", "Over the seeds", seed_spread(runs, reports)))
    render(
        "grid.html.j2",
        page,
        digest="",
        title=path.stem,
        navigation=[*overview_navigation(page.stem, table_is_there), Link(path.stem, quote(page.name), current=True)],
        headings=[Heading(2, text, identifier) for identifier, text, _ in sections],
        sections=sections,
        varied=list(runs[0].varied),
        summaries={run.name: href for run in runs if (href := _summary_of(run, reports))},
    )
    return page


def grid_links(reports: Path) -> list[Link]:
    """Return links to the pages of grids that are there."""
    pages = sorted(reports.glob(f"{PREFIX}*.html"))
    return [Link(page.stem.removeprefix(PREFIX), quote(page.name)) for page in pages]


def _summary_of(run: GridRun, reports: Path) -> str:
    there = (reports / run.name / f"{SUMMARY_PAGE}.html").is_file()
    return quote(f"{run.name}/{SUMMARY_PAGE}.html") if there else ""
