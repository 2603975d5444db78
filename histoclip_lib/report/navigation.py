"""Which pages there are, and the links from each to the others."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

SUMMARY_PAGE = "index"
PAGE_LABELS = {  # of the notebooks of a run
    "01_data": "01 Data",
    "02_zero_shot": "02 Zero-shot",
    "03_train": "03 Training",
    "04_evaluate": "04 Evaluation",
    "05_attention": "05 Attention",
}
TABLE_PAGE = "06_table"
GRID_PREFIX = "grid_"


@dataclass(frozen=True)
class Link:
    """A link of the navigation; `current` marks the page that shows it."""

    label: str
    href: str
    current: bool = False


def run_navigation(current: str, there: Collection[str]) -> list[Link]:
    """Return the links of a run's page: the overview, the summary, then the notebooks' pages.

    Parameters
    ----------
    current : str
        Stem of the page that shows them.
    there : collection of str
        Stems of the run's pages that are there; the others are not linked.
    """
    labels = {SUMMARY_PAGE: "Summary", **PAGE_LABELS}
    pages = [Link(label, f"{stem}.html", stem == current) for stem, label in labels.items() if stem in there]
    return [Link("All runs", "../index.html"), *pages]


def overview_navigation(current: str, table_is_there: bool = True) -> list[Link]:
    """Return the links of the pages over all runs; `current` is the stem of the page that shows them."""
    table = [Link("06 Table", f"{TABLE_PAGE}.html", current == TABLE_PAGE)] if table_is_there else []
    return [Link("All runs", "index.html", current == "index"), *table]


def neighbours(navigation: list[Link]) -> tuple[Link | None, Link | None]:
    """Return the links before and after the current one."""
    position = next((i for i, link in enumerate(navigation) if link.current), None)
    around = [None, *navigation, None]
    return (None, None) if position is None else (around[position], around[position + 2])


def grid_links(reports: Path) -> list[Link]:
    """Return links to the pages of grids that are there."""
    pages = sorted(reports.glob(f"{GRID_PREFIX}*.html"))
    return [Link(page.stem.removeprefix(GRID_PREFIX), quote(page.name)) for page in pages]
