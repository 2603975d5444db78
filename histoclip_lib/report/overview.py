"""The pages over all runs: the overview, and comparisons of two."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from urllib.parse import quote

import pyarrow
from IPython.display import Image as Picture
from matplotlib.figure import Figure
from pyarrow import compute, parquet

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.data.registry import LOADED_BY, load_dataset
from histoclip_lib.evaluation.artifacts import (
    BrokenRun,
    RunSummary,
    find_runs,
    hide_folder,
    read_metrics,
    read_predictions,
    table_one,
)
from histoclip_lib.evaluation.comparisons import Common, Disagreement, align, compare_runs, disagreements, finding
from histoclip_lib.evaluation.methods import ROW_LABELS
from histoclip_lib.report.executed import executed_notebooks, parameter_value, read_executed, run_parameters
from histoclip_lib.report.export import Parameter, drawn_digest, page_digest, render
from histoclip_lib.report.figures.base import as_image, short
from histoclip_lib.report.figures.patches import patch_grid
from histoclip_lib.report.html import Heading
from histoclip_lib.report.navigation import SUMMARY_PAGE, TABLE_PAGE, Link, grid_links, overview_navigation
from histoclip_lib.report.run_pages import write_page, write_run_pages

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
    from histoclip_lib.report.overview import write_comparison  # here alone: it loads Matplotlib and PyTorch

    try:
        return write_comparison(first.folder, second.folder, page, navigation, digest)
    except HistoCLIPError:
        return False


SHOWN = 4  # patches for each run that is right
NOT_COMPARED = ("name", "reports_dir")  # parameters that say nothing of the result
SECTIONS = {
    "rows": "Row by row",
    "classes": "Class by class",
    "disagree": "Where they disagree",
    "parameters": "What was set differently",
}


@dataclass(frozen=True)
class Side:
    """One of the two runs: its letter on the page, its name, the address of its summary, its validation patches."""

    letter: str
    name: str
    href: str
    n_val: int


@dataclass(frozen=True)
class ParameterGap:
    """A parameter that differs, with both values as written; None where a run has no such parameter."""

    name: str
    first: str | None
    second: str | None
    meaning: str


def write_comparison(first: Path, second: Path, page: Path, navigation: list[Link], digest: str) -> bool:
    """Write the page that compares two runs, unless they share no validation patch with the same labels.

    Parameters
    ----------
    first, second : Path
        Folders of the runs, with `metrics.json`, `predictions.parquet` and the executed notebooks.
    page : Path
        The file to write.
    navigation : list of Link
        For the page.
    digest : str
        Of what the page is drawn from; see `export.page_digest`.

    Returns
    -------
    bool
        Whether there was something to compare.

    Raises
    ------
    HistoCLIPError
        If a file of the runs cannot be used, or the runs have different classes.
    """
    predictions = [read_predictions(folder / "predictions.parquet") for folder in (first, second)]
    common = align(*predictions)
    if common is None:
        return False
    runs = [read_metrics(folder / "metrics.json") for folder in (first, second)]
    sides = [
        Side(letter, run.name, _summary_href(folder), len(found.files))
        for letter, run, folder, found in zip("AB", runs, (first, second), predictions, strict=True)
    ]
    gaps, parameters = compare_runs(common), [_parameters(folder) for folder in (first, second)]
    found = disagreements(common, SHOWN)
    picture, reason = _pictures(common, found, parameters[0])
    render(
        "comparison.html.j2",
        page,
        sides=sides,
        dataset=runs[0].dataset,
        offline=any(run.is_offline_default for run in runs),
        common=common,
        gaps=gaps,
        finding=finding(gaps.test),
        labels=ROW_LABELS,
        found=found,
        picture=picture,
        reason=reason,
        differing=_differing(*parameters) if all(parameters) else None,
        navigation=navigation,
        headings=[Heading(2, text, key) for key, text in SECTIONS.items()],
        digest=digest,
    )
    return True


def _summary_href(folder: Path) -> str:
    page = f"{SUMMARY_PAGE}.html"
    return quote(f"{folder.name}/{page}") if (folder / page).is_file() else ""


def _parameters(folder: Path) -> dict[str, Parameter]:
    return run_parameters([read_executed(path) for path in executed_notebooks(folder).values()])


def _differing(first: dict[str, Parameter], second: dict[str, Parameter]) -> list[ParameterGap]:
    """Return the parameters with different values, as Python reads them or else as they are written."""
    gaps = []
    for name in dict.fromkeys([*first, *second]):
        one, other = first.get(name), second.get(name)
        if name not in NOT_COMPARED and _key(one) != _key(other):
            values = [parameter and parameter.value for parameter in (one, other)]
            gaps.append(ParameterGap(name, *values, (one or other).meaning))
    return gaps


def _key(parameter: Parameter | None) -> object:
    """Return what makes two values of a parameter the same: 1e-3 and 0.001 are."""
    if parameter is None:
        return None
    value = parameter_value(parameter)
    return parameter.value if value is None else value


def _pictures(
    common: Common, found: list[Disagreement], parameters: dict[str, Parameter]
) -> tuple[Picture | None, str]:
    """Return the patches on which the runs disagree as one picture, or why there is none."""
    if not found:
        return None, ""
    values = {name: parameter_value(parameters[name]) for name in LOADED_BY if name in parameters}
    if "dataset" not in values:
        return None, "the executed notebooks, which say where the data lies, are not there"
    try:
        patches = load_dataset(**values)
        return as_image(_grid(patches, common, found)), ""
    except (HistoCLIPError, OSError, SyntaxError, ValueError, KeyError, TypeError) as error:  # Pillow raises many kinds
        place = str(values.get("data_dir") or "")
        reason = str(error).splitlines()[0].rstrip(".:") if str(error) else type(error).__name__
        return None, reason.replace(place, "data_dir") if place else reason  # a page to share names no folder


def _grid(patches: PatchDataset, common: Common, found: list[Disagreement]) -> Figure:
    rows = {file: row for row, file in enumerate(patches.files)}
    places = [rows[common.first.files[case.place]] for case in found]
    captions = [
        f"{'A' if case.first_is_right else 'B'} is right: {short(common.first.classes[case.class_number])} is "
        f"{'present' if common.first.labels[case.place, case.class_number] else 'absent'}\n"
        f"A {case.first:.2f}, B {case.second:.2f}"
        for case in found
    ]
    listed = "; ".join(f"{patches.files[place]}: {text}" for place, text in zip(places, captions, strict=True))
    alternative = f"Patches on which the runs disagree. {listed}.".replace("\n", ", ")
    images = [patches.image(place) for place in places]
    return patch_grid(images, captions, alternative, [None] * len(images), patches.classes)


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
