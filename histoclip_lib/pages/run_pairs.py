"""Which runs can be compared with each other, and the pages of those comparisons."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from urllib.parse import quote

import pyarrow
from pyarrow import compute, parquet

from histoclip_lib.errors import HistoCLIPError
from histoclip_lib.pages.export import drawn_digest, page_digest
from histoclip_lib.pages.navigation import TABLE_PAGE, Link, overview_navigation
from histoclip_lib.pages.run_notebooks import executed_notebooks, read_executed, run_parameters
from histoclip_lib.run_summaries import RunSummary, find_runs

FEWEST_COMMON = 10  # validation patches of both runs: fewer say nothing
MOST_PAIRS = 10
LONGEST_STEM = 200  # bytes of a file name
PREFIX = "compare_"


@dataclass(frozen=True)
class ComparisonLink:
    """A comparison that is there: the two runs' names, their data set, and its address."""

    first: str
    second: str
    dataset: str
    href: str


@dataclass(frozen=True)
class ComparisonLinks:
    """The comparisons that are there, and how many more pairs of runs could be compared."""

    links: list[ComparisonLink]
    left_out: int


@dataclass(frozen=True, eq=False)
class Comparable:
    """A run that may be compared: its folder, its validation patches and its classes."""

    folder: Path
    summary: RunSummary
    files: frozenset[str]
    classes: frozenset[str]


def write_comparisons(reports_dir: Path) -> ComparisonLinks:
    """Write the comparisons that are missing or stale for the first MOST_PAIRS pairs; remove those of gone runs.

    Two runs are compared if they have the same data set and classes and share FEWEST_COMMON validation patches. Folders
    of one's own are the same data set if `data_dir` is the same. A run that cannot be read is passed over: the overview
    says why.

    Parameters
    ----------
    reports_dir : Path
        Holds a folder for each run.
    """
    runs = [run for found in find_runs(reports_dir) if (run := _comparable(reports_dir, found))]
    pairs = [pair for pair in combinations(runs, 2) if _overlap(*pair)]
    links, names = [], set()
    for first, second in pairs[:MOST_PAIRS]:
        stem = _stem(first.folder.name, second.folder.name, names)
        if _write(first, second, reports_dir / f"{stem}.html"):
            names.add(stem)
            one, other = first.summary, second.summary
            links.append(ComparisonLink(one.name, other.name, one.dataset, quote(f"{stem}.html")))
    for page in reports_dir.glob(f"{PREFIX}*.html"):
        if page.stem not in names and drawn_digest(page):
            page.unlink()
    return ComparisonLinks(links, max(0, len(pairs) - MOST_PAIRS))


def _comparable(reports_dir: Path, found: object) -> Comparable | None:
    if not isinstance(found, RunSummary):
        return None
    path = reports_dir / found.folder / "predictions.parquet"
    try:
        table = parquet.read_table(path, columns=["file", "class"])
    except (OSError, ValueError, KeyError):  # pyarrow's own errors are ValueErrors
        return None
    files, classes = (_names(table[column]) for column in ("file", "class"))
    return Comparable(path.parent, found, files, classes)


def _names(column: pyarrow.ChunkedArray) -> frozenset[str]:
    return frozenset(str(value) for value in compute.unique(column).to_pylist())


def _overlap(first: Comparable, second: Comparable) -> bool:
    return (
        first.summary.dataset == second.summary.dataset
        and first.classes == second.classes
        and len(first.files & second.files) >= FEWEST_COMMON
        and (first.summary.dataset != "folder" or _data_dir(first.folder) == _data_dir(second.folder))
    )


def _data_dir(folder: Path) -> str | None:
    try:
        parameters = run_parameters([read_executed(path) for path in executed_notebooks(folder).values()])
    except HistoCLIPError:
        return None
    return parameters["data_dir"].value if "data_dir" in parameters else None


def _stem(first: str, second: str, taken: set[str]) -> str:
    """Return the name of a comparison's file: with both runs' names, or a digest of them where that does not do."""
    stem = f"{PREFIX}{first}_{second}"
    if stem in taken or len(stem.encode()) > LONGEST_STEM:
        stem = PREFIX + hashlib.sha256(f"{first}\0{second}".encode(errors="surrogateescape")).hexdigest()[:16]
    return stem


def _write(first: Comparable, second: Comparable, page: Path) -> bool:
    """Write a comparison unless it is fresh; say whether there is one."""
    table_is_there = (page.parent / f"{TABLE_PAGE}.ipynb").is_file()
    navigation = [*overview_navigation(page.stem, table_is_there), Link("Comparison", quote(page.name), current=True)]
    parts = [repr(navigation).encode()]
    for run in (first, second):
        read = [run.folder / "metrics.json", run.folder / "predictions.parquet"]
        parts += [path.read_bytes() for path in (*read, *executed_notebooks(run.folder).values())]
    digest = page_digest(*parts)
    if drawn_digest(page) == digest:
        return True
    from histoclip_lib.pages.comparison_pages import write_comparison  # here alone: it loads Matplotlib and PyTorch

    try:
        return write_comparison(first.folder, second.folder, page, navigation, digest)
    except HistoCLIPError:
        return False
