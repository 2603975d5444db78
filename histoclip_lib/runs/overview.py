"""What the notebooks over several runs show, and their pages: the overview, grids, and comparisons of two runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote
from xml.etree.ElementTree import Element

import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown
from pyarrow import compute, parquet

from histoclip_lib import __version__
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.files import alone_in, resolve
from histoclip_lib.common.html import as_typed, element, html, table
from histoclip_lib.evaluation import across, artifacts, comparisons
from histoclip_lib.evaluation.artifacts import BrokenRun, RunMetrics
from histoclip_lib.evaluation.methods import label_of, methods
from histoclip_lib.evaluation.text import UNDEFINED, not_clip_text, number_text, p_clause, state_text
from histoclip_lib.report.executed import executed_notebooks, parameter_value, run_parameters
from histoclip_lib.report.figures import critical_differences, short
from histoclip_lib.report.figures.base import as_image
from histoclip_lib.report.notebooks import (
    COMPARE,
    COMPARISON_PREFIX,
    ENCODERS,
    GRID_PREFIX,
    OVERVIEW,
    TABLE,
    overview_navigation,
)
from histoclip_lib.report.overview import linked_name, list_runs, results_table, run_cards, when_made
from histoclip_lib.report.run_pages import write_page, write_run_pages
from histoclip_lib.report.tables import Table
from histoclip_lib.runs.grids import GridRun, grid_table, read_grid, seed_spread, varies_encoder
from histoclip_lib.runs.papermill import executed_values
from histoclip_lib.runs.pipeline import StepEvent, execute_notebook, find_notebooks, load_schema
from histoclip_lib.runs.record import LIBRARY, PLACES, read_entry, update_record

if TYPE_CHECKING:
    from IPython.display import Image

    from histoclip_lib.report.explorers import Explorer

TITLE = "All runs"
BIBTEX = """@software{{histoclip,
  title   = {{HistoCLIP: zero-shot CLIP and Cross-Modal Matching for multi-label histopathology}},
  author  = {{{{HistoCLIP authors}}}},
  version = {{{version}}},
  license = {{MIT}}
}}"""
FEWEST_COMMON = 10  # held-out patches of both runs: fewer say nothing
MOST_PAIRS = 10  # comparisons that are written
PATIENCE = 600.0  # seconds to wait for another process that writes the overview
LONGEST_STEM = 200  # bytes of a file name
SHOWN = 4  # patches on which two runs disagree, for each run that is right


def open_runs(reports_dir: str, grid: str = "") -> AllRuns:
    """Open all runs below a folder, or those of a grid (the path of its parameter file)."""
    reports, runs = resolve(reports_dir), None
    if grid:
        runs = read_grid(Path(grid), load_schema())
    return AllRuns(reports, runs)


def open_comparison(first: str, second: str, reports_dir: str) -> TwoRuns:
    """Open two runs by the names of their folders, to compare them on the held-out patches that both have.

    Raises
    ------
    HistoCLIPError
        If a file of a run cannot be used, the classes differ, or no held-out patch has the same labels in both runs.
    """
    folders = [resolve(reports_dir) / name for name in (first, second)]
    metrics = [artifacts.read_metrics(folder / "metrics.json") for folder in folders]
    predictions = [artifacts.read_predictions(folder / "predictions.parquet") for folder in folders]
    common = comparisons.align(*predictions)
    if common is None:
        raise HistoCLIPError(f"{first} and {second} have no held-out patches in common with the same labels.")
    return TwoRuns(folders, metrics, common)


@dataclass(frozen=True, eq=False)
class AllRuns:
    """The notebook `table`: all runs below a folder, or the `grid` whose runs they are."""

    reports: Path
    grid: list[GridRun] | None = None

    @cached_property
    def found(self) -> list[RunMetrics | BrokenRun]:
        """Every run that has been evaluated, and those that cannot be read."""
        names = None if self.grid is None else {run.name for run in self.grid}
        return [run for run in list_runs(self.reports) if names is None or run.name in names]

    @property
    def runs(self) -> list[RunMetrics]:
        """The runs that can be read."""
        return [run for run in self.found if isinstance(run, RunMetrics)]

    def finding(self) -> Markdown:
        """Say how many runs there are, and what each found, the newest first; at most five."""
        if not self.runs:
            return Markdown("**No run is finished yet.** `histoclip run params/demo.yaml` makes the first.")
        newest = sorted(self.runs, key=when_made, reverse=True)[:5]
        lines = [f"- {as_typed(run.name)}: {_finding_of(run)}" for run in newest]
        count = f"{len(self.runs)} run{'s' * (len(self.runs) > 1)}"
        return Markdown(f"**{count} finished.**" + "\n\n" + "\n".join(lines) + _caveat(self.runs))

    def table_one(self, metric: str) -> HTML | Markdown:
        """Return Table I: mAcc of every run with its interval and the paper's values, or mAP."""
        return results_table(self.runs, metric, without_runs=self.grid is None)

    def list(self) -> HTML | Markdown:
        """Return a card for each run with its main numbers and a link to its results; for a grid, a table."""
        if self.grid is None:
            return run_cards(self.found)
        frame, lines = grid_table(self.grid, self.reports), []
        for name, values in frame.iterrows():
            lines.append([linked_name(name, self.reports / name), *values])
        return HTML(html(table(["Run", *frame.columns], lines, f"Every {', '.join(self.grid[0].varied)} of the grid.")))

    @cached_property
    def _of_data_sets(self) -> dict[str, artifacts.ValidationPredictions]:
        """The first run of each data set that can be compared, by the name of the run."""
        found, seen = {}, set()
        for run in self.runs:
            data = (run.dataset, str(read_entry(run.path, "parameters").get("data_dir")))
            if data in seen or not {comparisons.OURS, comparisons.PROBE} <= run.methods.keys():
                continue
            try:
                found[run.folder] = artifacts.read_predictions(run.path / "predictions.parquet")
            except HistoCLIPError:
                continue
            seen.add(data)
        return found if self.grid is None else {}

    @cached_property
    def _gaps(self) -> dict[str, across.Across]:
        runs = self._of_data_sets
        folds = {run.folder: run.folds for run in self.runs}
        return {metric: across.gaps_across(runs, comparisons.PROBE, metric, folds) for metric in ("mAcc", "mAP")}

    def across(self) -> Markdown | None:
        """Say how head and probe compare over all data sets; None with fewer than two."""
        if len(self._of_data_sets) < 2:
            return None
        return Markdown("## Across data sets\n\n" + across.across_note(self._gaps, comparisons.PROBE))

    def across_table(self) -> Table | None:
        """Return head minus probe on each data set and pooled; None with fewer than two data sets."""
        if len(self._of_data_sets) < 2:
            return None
        caption = "HistoCLIP with patch tokens minus the linear probe, in the first run of each data set."
        return Table(across.across_table(self._gaps), caption)

    @cached_property
    def _ranks(self) -> across.Ranks:
        folders = list(self._of_data_sets)
        scores = [{name: own.value for name, own in run.mean_ap.items()} for run in self.runs if run.folder in folders]
        shared = [name for name in methods() if all(name in own for own in scores)]
        return across.rank_methods({name: np.array([own[name] for own in scores]) for name in shared})

    def ranks(self) -> Image | None:
        """Draw the mean ranks of all methods over the data sets; None with fewer than two."""
        return None if len(self._of_data_sets) < 2 else as_image(critical_differences(self._ranks))

    def ranks_note(self) -> Markdown | None:
        """Say whether the ranks differ; None with fewer than two data sets."""
        return None if len(self._of_data_sets) < 2 else Markdown(across.ranks_note(self._ranks))

    def seeds(self) -> Table | None:
        """Return mean and spread over the seeds of the grid; None where it varies no seed."""
        if self.grid is None or "seed" not in self.grid[0].varied:
            return None
        return Table(seed_spread(self.grid, self.reports), "Mean and spread over the seeds, for each setting.")

    def cite(self) -> Markdown | None:
        """Return how to cite the software, as BibTeX; None for a grid, whose page is one of several."""
        if self.grid is not None:
            return None
        return Markdown(
            "## How to cite\n\nCite the paper of the method, the data sets and encoders that a run names, and this "
            f"software:\n\n```bibtex\n{BIBTEX.format(version=__version__)}\n```"
        )

    def links(self) -> HTML | None:
        """Return links to the comparisons of two runs, and to the pages of grids; None without any."""
        if self.grid is not None:
            return None
        parts = []
        if compared := _executed(self.reports, COMPARISON_PREFIX):
            text = "Two runs of the same data set, compared on the held-out patches that they share."
            if (left_out := len(find_pairs(self.reports)) - MOST_PAIRS) > 0:
                text += f" The first {MOST_PAIRS} pairs are compared, {left_out} more are not."
            named = [
                (" and ".join(str(executed_values(path).get(k)) for k in ("first", "second")), path)
                for path in compared
            ]
            parts += [element("h2", "Comparisons"), element("p", text), _link_list(named)]
        if grids := _executed(self.reports, GRID_PREFIX):
            named = [(path.stem.removeprefix(GRID_PREFIX), path) for path in grids]
            parts += [element("h2", "Grids"), _link_list(named)]
        return HTML(html(*parts)) if parts else None


def _executed(reports: Path, prefix: str) -> list[Path]:
    """Return the executed notebooks over runs whose names begin with a prefix, without those that failed."""
    return [path for path in sorted(reports.glob(f"{prefix}*.ipynb")) if not path.name.endswith(".failed.ipynb")]


def _finding_of(run: RunMetrics) -> str:
    try:
        predictions = artifacts.read_predictions(run.path / "predictions.parquet")
    except HistoCLIPError:
        predictions = None
    return comparisons.finding_sentence(run, predictions)


def _caveat(runs: Iterable[RunMetrics]) -> str:
    names = dict.fromkeys(as_typed(run.backbone) for run in runs if not run.is_clip)
    return "".join(f"\n\n{not_clip_text(name)}" for name in names)


def _link_list(named: list[tuple[str, Path]]) -> Element:
    return element("ul", *(element("li", element("a", text, href=quote(f"{path.stem}.html"))) for text, path in named))


@dataclass(frozen=True, eq=False)
class TwoRuns:
    """The notebook `compare`: two runs, A and B, on the held-out patches that both have."""

    folders: list[Path]
    metrics: list[RunMetrics]
    common: comparisons.Common

    @cached_property
    def gaps(self) -> comparisons.RunGaps:
        """How B differs from A."""
        return comparisons.compare_runs(self.common, folds=max(run.folds for run in self.metrics))

    def finding(self) -> Markdown:
        """Say in a sentence whether HistoCLIP with patch tokens differs in mAcc."""
        test = self.gaps.test
        if next(own.same for own in self.gaps.methods if own.method == comparisons.OURS):
            sentence = "HistoCLIP with patch tokens gives the same predictions in both runs."
        else:
            sentence = (
                f"HistoCLIP with patch tokens in B {comparisons.finding(test)} that in A: mAcc {test.value:+.3f}, "
                f"95% interval {test.low:+.3f} to {test.high:+.3f}, {p_clause(test.p)}."
            )
        return Markdown(f"**{sentence}**{_caveat(self.metrics)}")

    def sides(self) -> HTML:
        """Return which run is A and which B, with links to their results."""
        cells = []
        for letter, run in zip("AB", self.metrics, strict=True):
            name = linked_name(run.name, run.path)
            cells += [element("dt", letter), element("dd", name, f", {run.n_val} held-out patches")]
        return HTML(html(element("dl", *cells, class_="sides")))

    def patches_note(self) -> Markdown:
        """Say how many patches are compared, and what the intervals resample."""
        common, n_common = self.common, len(self.common.first.files)
        text = f"The runs share {n_common} held-out patches. "
        if common.only_first or common.only_second or common.relabelled:
            text += (
                f"{common.only_first} of A's and {common.only_second} of B's patches are not held out in the other "
                f"run, and {common.relabelled} have different labels there. These are left out, so numbers can differ "
                "from those on the runs' own pages. "
            )
        return Markdown(
            f"{text}{common.first.note} Both runs use the same {self.gaps.resamples} resamples. The intervals do not "
            "include the variation between training seeds."
        )

    def methods(self) -> Table:
        """Return mAcc and mAP of each method in A and in B, and B minus A."""
        lines = {}
        for own in self.gaps.methods:
            line = {}
            for metric, gap in (("mAcc", own.macc), ("mAP", own.mean_ap)):
                line |= {f"{metric}, A": number_text(gap.first), f"{metric}, B": number_text(gap.second)}
                line[f"{metric}, B minus A"] = "same predictions" if own.same else _gap_text(gap)
            lines[label_of(own.method)] = line
        return Table(
            pd.DataFrame.from_dict(lines, orient="index"),
            "Each method in both runs, and B minus A with 95% intervals.",
        )

    def classes(self) -> Table:
        """Return accuracy and average precision of each class, B minus A, and which run is correct how often."""
        lines = {
            own.name: {
                "accuracy, B minus A": _gap_text(own.accuracy),
                "AP, B minus A": _gap_text(own.ap),
                "both correct": own.both,
                "only A correct": own.only_first,
                "only B correct": own.only_second,
                "both wrong": own.neither,
            }
            for own in self.gaps.classes
        }
        return Table(
            pd.DataFrame.from_dict(lines, orient="index"),
            f"HistoCLIP with patch tokens on {len(self.common.first.files):,} shared patches.",
        )

    @cached_property
    def found(self) -> list[comparisons.Disagreement]:
        """Where one run is correct and the other is not."""
        return comparisons.disagreements(self.common, SHOWN)

    def disagreements(self) -> Explorer | Markdown:
        """Return the patches on which the runs disagree."""
        from histoclip_lib.data.registry import load_dataset_from
        from histoclip_lib.report.explorers import noted_patches

        if not self.found:
            return Markdown("The runs never disagree about which classes are correct.")
        values = {name: parameter_value(own) for name, own in run_parameters(self.folders[0]).items()}
        files = [self.common.first.files[case.place] for case in self.found]
        notes = [self._note(case) for case in self.found]
        caption = f"The {len(self.found)} patches and classes on which the runs disagree most, with both probabilities."
        try:
            if "dataset" not in values:
                raise HistoCLIPError("the executed notebooks, which name the data, are not there")
            return noted_patches(load_dataset_from(values), files, notes, "Patches on which the runs disagree", caption)
        except (HistoCLIPError, OSError, SyntaxError, ValueError, KeyError, TypeError) as error:  # Pillow raises many
            place = str(resolve(str(values["data_dir"]))) if values.get("data_dir") else ""
            reason = str(error).splitlines()[0].rstrip(".:") if str(error) else type(error).__name__
            reason = reason.replace(place, "data_dir") if place else reason  # a page to share names no folder
            return Markdown(f"The patches are not shown: {as_typed(reason)}.")

    def patch_table(self) -> Table | None:
        """Return the patches on which the runs disagree, with both probabilities; None without any."""
        first = self.common.first
        lines = [
            {
                "class": first.classes[case.class_number],
                "truth": self._truth(case),
                "correct": "A" if case.first_is_right else "B",
                "A": f"{case.first:.2f}",
                "B": f"{case.second:.2f}",
            }
            for case in self.found
        ]
        caption = "Probabilities of HistoCLIP with patch tokens where the runs disagree most."
        frame = pd.DataFrame(lines, index=[first.files[case.place] for case in self.found])
        return Table(frame, caption) if lines else None

    def _truth(self, case: comparisons.Disagreement) -> str:
        return state_text(self.common.first.labels[case.place, case.class_number])

    def _note(self, case: comparisons.Disagreement) -> str:
        correct = "A" if case.first_is_right else "B"
        name = short(self.common.first.classes[case.class_number])
        return f"{correct} is correct: {name} is {self._truth(case)}\nA {case.first:.2f}, B {case.second:.2f}"

    def parameters(self) -> Table | Markdown:
        """Return the parameters that differ."""
        first, second = (run_parameters(folder) for folder in self.folders)
        if not (first and second):
            return Markdown("Executed notebooks are missing in one of the runs, so its parameters are not known.")
        lines = {}
        for name in dict.fromkeys([*first, *second]):
            one, other = first.get(name), second.get(name)
            if name not in PLACES and _value(one) != _value(other):
                cells = (UNDEFINED if own is None else own.value for own in (one, other))
                lines[name] = dict(zip("AB", cells, strict=True)) | {"meaning": (one or other).meaning}
        if not lines:
            return Markdown("Both runs were made with the same parameters, the name aside.")
        return Table(pd.DataFrame.from_dict(lines, orient="index"), "The parameters that differ between the runs.")


def _gap_text(gap: comparisons.Gap) -> str:
    if gap.value is None:
        return UNDEFINED
    interval = "" if gap.interval is None else f" ({gap.interval[0]:+.3f} to {gap.interval[1]:+.3f})"
    return f"{gap.value:+.3f}{interval}"


def _value(parameter: object) -> object:
    """Return what makes two values of a parameter the same: 1e-3 and 0.001 are."""
    if parameter is None:
        return None
    value = parameter_value(parameter)
    return parameter.value if value is None else value


# Writing the pages


def write_overview(
    reports: Path, report: Callable[[StepEvent], None] = lambda event: None, grids: Iterable[Path] = ()
) -> list[Path]:
    """Write all pages below a folder that are missing or stale: of every run, comparisons, grids, the overview.

    The notebooks `table` and `compare` are executed where what they show has changed. A run whose pages cannot be
    written, and a pair of runs that cannot be compared, are passed over: the overview lists runs that cannot be read.

    Parameters
    ----------
    reports : Path
        Holds a folder for each run.
    report : callable
        Called with each `StepEvent`.
    grids : iterable of Path
        Parameter files of grids to write a page for; pages of other grids are brought up to date.

    Returns
    -------
    list of Path
        The pages of the grids that were given, and the overview.
    """
    with alone_in(reports, PATIENCE):
        for folder in sorted(path for path in reports.iterdir() if path.is_dir() and executed_notebooks(path)):
            try:
                write_run_pages(folder)
            except HistoCLIPError:
                continue  # the overview lists it
        notebooks = find_notebooks()
        write = partial(_write_page, reports, notebooks, report)
        _write_comparisons(reports, write)
        pages = []
        for path in grids:
            stem = f"{GRID_PREFIX}{path.stem}"
            runs_of_grid = read_grid(path, load_schema())
            shown = [reports / run.name for run in runs_of_grid]
            notebook = ENCODERS if varies_encoder(runs_of_grid) else TABLE
            pages.append(write(notebook, stem, {"grid": str(path)}, f"Grid {path.stem}", shown, path.read_bytes()))
        listed = "\0".join(sorted(path.name for path in reports.glob("*_*.ipynb")))
        runs = sorted({path.parent for path in (*reports.glob("*/metrics.json"), *reports.glob("*/0*.ipynb"))})
        pages.append(write(TABLE, OVERVIEW, {}, "", runs, listed.encode(errors="surrogateescape")))
    return pages


def _write_page(
    reports: Path, notebooks: Path, report: Callable, notebook: str, stem: str, values: dict, label: str,
    runs: list[Path], more: bytes = b"",
) -> Path:  # fmt: skip
    """Execute a notebook over runs unless its page is fresh, and write the page."""
    digest = hashlib.sha256(_code_digest() + (notebooks / f"{notebook}.ipynb").read_bytes() + more)
    for folder in runs:
        there = (folder.name, *sorted(page.name for page in folder.glob("*.html")))
        digest.update("\0".join(there).encode(errors="surrogateescape"))
        for name in ("metrics.json", "predictions.parquet", "thumbnail.png", "run.json"):
            path = folder / name
            digest.update(hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b"-")
    key, known = digest.hexdigest(), read_entry(reports, "pages")
    path = reports / f"{stem}.ipynb"
    if known.get(stem) != key or not path.is_file():
        values = values | {"reports_dir": str(reports)}
        execute_notebook(notebooks / f"{notebook}.ipynb", reports, stem, values, report, Path.cwd(), label or TITLE)
        update_record(reports, pages=read_entry(reports, "pages") | {stem: key})
    write_page(path, label or TITLE, overview_navigation(label, quote(f"{stem}.html")), as_heading=bool(label))
    return path.with_suffix(".html")


def _code_digest() -> bytes:
    """Return a digest of what the numbers on pages over runs come from; how they look is up to the exporter."""
    rooms = [*sorted((LIBRARY / "evaluation").glob("*.py")), *sorted((LIBRARY / "report" / "figures").glob("*.py"))]
    sources = [Path(__file__), LIBRARY / "report" / "overview.py", LIBRARY / "report" / "tables.py", *rooms]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).digest()


def _write_comparisons(reports: Path, write: Callable[..., Path]) -> None:
    """Compare the first MOST_PAIRS pairs of runs that can be; remove the comparisons of gone runs."""
    stems: set[str] = set()
    for first, second in find_pairs(reports)[:MOST_PAIRS]:
        stem = _stem(first.folder, second.folder, stems)
        try:
            write(
                COMPARE,
                stem,
                {"first": first.folder, "second": second.folder},
                f"{first.name} and {second.name}",
                [first.path, second.path],
            )
            stems.add(stem)
        except HistoCLIPError:
            continue
    written = read_entry(reports, "pages").keys()  # not a file of the user's that is called alike
    for stem in (stem for stem in written - stems if stem.startswith(COMPARISON_PREFIX)):
        for ending in ("html", "ipynb", "failed.ipynb"):
            (reports / f"{stem}.{ending}").unlink(missing_ok=True)


def find_pairs(reports: Path) -> list[tuple[RunMetrics, RunMetrics]]:
    """Return the pairs of runs of one data set, with the same classes, that share FEWEST_COMMON held-out patches.

    Folders of one's own are the same data set if `data_dir` is the same. Runs that cannot be read are passed over.
    """
    runs = [run for run in artifacts.find_runs(reports) if isinstance(run, RunMetrics)]
    there = {run.folder: found for run in runs if (found := _validated(run))}
    readable = [run for run in runs if run.folder in there]
    return [
        (first, second)
        for first, second in combinations(readable, 2)
        if there[first.folder][1:] == there[second.folder][1:]
        and len(there[first.folder][0] & there[second.folder][0]) >= FEWEST_COMMON
    ]


def _validated(run: RunMetrics) -> tuple[frozenset[str], frozenset[str], str, object] | None:
    """Return the held-out patches of a run, its classes, data set and folder of data; None where unreadable."""
    try:
        table = parquet.read_table(run.path / "predictions.parquet", columns=["file", "class"])
        files, classes = (frozenset(map(str, compute.unique(table[c]).to_pylist())) for c in ("file", "class"))
        place = run_parameters(run.path).get("data_dir") if run.dataset == "folder" else None
    except (HistoCLIPError, OSError, ValueError, KeyError):  # pyarrow's own errors are ValueErrors
        return None
    return files, classes, run.dataset, place and place.value


def _stem(first: str, second: str, taken: set[str]) -> str:
    """Return the name of a comparison's file: with both runs' names, or a digest of them where that does not do."""
    stem = f"{COMPARISON_PREFIX}{first}_{second}".replace(".", "-")
    if stem in taken or len(stem.encode()) > LONGEST_STEM:
        both = f"{first}\0{second}".encode(errors="surrogateescape")
        stem = COMPARISON_PREFIX + hashlib.sha256(both).hexdigest()[:16]
    return stem
