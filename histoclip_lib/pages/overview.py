"""The pages over all runs below a folder: the overview, the comparisons of two runs, and the pages of every run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from histoclip_lib.errors import HistoCLIPError
from histoclip_lib.pages.export import render
from histoclip_lib.pages.grid_pages import grid_links
from histoclip_lib.pages.navigation import SUMMARY_PAGE, TABLE_PAGE, overview_navigation
from histoclip_lib.pages.run_notebooks import executed_notebooks, read_executed
from histoclip_lib.pages.run_pages import write_page, write_run_pages
from histoclip_lib.pages.run_pairs import ComparisonLinks, write_comparisons
from histoclip_lib.run_summaries import BrokenRun, RunSummary, find_runs, hide_folder, table_one


@dataclass(frozen=True)
class Card:
    """A run as the overview shows it: `href` leads to its summary, `made` is when it was evaluated, ISO 8601."""

    run: RunSummary
    href: str
    made: str


def write_site(reports_dir: Path) -> Path:
    """Write all pages below a folder that are missing or stale: those of every run, comparisons, table, overview.

    Nothing is executed. A run whose pages cannot be written is listed on the overview with the reason.

    Parameters
    ----------
    reports_dir : Path
        Holds a folder for each run.

    Returns
    -------
    Path
        The overview.
    """
    failures = []
    for folder in sorted(path for path in reports_dir.iterdir() if path.is_dir() and executed_notebooks(path)):
        try:
            write_run_pages(folder)
        except HistoCLIPError as error:
            failures.append(BrokenRun(folder.name, hide_folder(str(error), folder)))
    comparisons = write_comparisons(reports_dir)
    if (reports_dir / f"{TABLE_PAGE}.ipynb").is_file():
        write_page(reports_dir / f"{TABLE_PAGE}.ipynb", "HistoCLIP: all runs", overview_navigation(TABLE_PAGE))
    return write_index(reports_dir, comparisons, failures)


def write_index(
    reports_dir: Path, comparisons: ComparisonLinks | None = None, failures: list[BrokenRun] | None = None
) -> Path:
    """Write `index.html`, the overview of all runs below a folder.

    Parameters
    ----------
    reports_dir : Path
        Each `*/metrics.json` in it is a run; one that cannot be read is listed with the reason. Thumbnails are shown,
        summaries and `06_table.html` linked where they are there.
    comparisons : ComparisonLinks, optional
        The comparisons of two runs that are there.
    failures : list of BrokenRun, optional
        Runs whose pages could not be written.

    Returns
    -------
    Path
        The page that was written.
    """
    runs = find_runs(reports_dir)
    failed = {run.name: run for run in failures or []}
    cards = [_card(reports_dir, run) for run in runs if isinstance(run, RunSummary) and run.folder not in failed]
    listed = {run.name for run in runs if isinstance(run, BrokenRun)}
    broken = [run for run in runs if isinstance(run, BrokenRun)]
    broken += [run for name, run in failed.items() if name not in listed]
    index = reports_dir / "index.html"
    render(
        "index.html.j2",
        index,
        navigation=overview_navigation("index", (reports_dir / f"{TABLE_PAGE}.html").is_file()),
        table=table_one([card.run for card in cards]),
        cards=cards,
        broken=broken,
        comparisons=comparisons or ComparisonLinks([], 0),
        grids=grid_links(reports_dir),
    )
    return index


def _card(reports_dir: Path, run: RunSummary) -> Card:
    folder = reports_dir / run.folder
    summary = folder / f"{SUMMARY_PAGE}.html"
    href = quote(f"{run.folder}/{SUMMARY_PAGE}.html") if summary.is_file() else ""
    return Card(run, href, _made(folder))


def _made(folder: Path) -> str:
    """Return when a run was evaluated, ISO 8601 in UTC: as its notebook says, else as its file does."""
    try:
        made = read_executed(folder / "04_evaluate.ipynb").made
        return datetime.fromisoformat(made).astimezone(UTC).isoformat(timespec="minutes")
    except (HistoCLIPError, ValueError, OverflowError):
        changed = (folder / "metrics.json").stat().st_mtime
        return datetime.fromtimestamp(changed, UTC).isoformat(timespec="minutes")
