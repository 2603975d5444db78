"""All runs side by side: Table I beside the paper, and a card for each run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from IPython.display import HTML, Markdown

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.html import Node, element, html, interval
from histoclip_lib.evaluation.artifacts import BrokenRun, RunMetrics, Score, find_runs, hide_folder, read_predictions
from histoclip_lib.evaluation.comparisons import OURS, PROBE, accuracy_against, finding
from histoclip_lib.evaluation.methods import ours_first, short_label
from histoclip_lib.evaluation.text import not_clip_text, range_text
from histoclip_lib.report.executed import executed_notebooks, read_executed
from histoclip_lib.report.notebooks import DATA, RESULTS, front_page
from histoclip_lib.report.tables import TableGroup, table_one

ON_CARDS = (OURS, PROBE, "majority")


def list_runs(reports: Path) -> list[RunMetrics | BrokenRun]:
    """Return the runs below a folder; those whose results or executed notebooks cannot be read as BrokenRun."""
    faults = {run.name: run for run in _notebook_faults(reports)}
    runs = [faults.pop(run.folder, run) if isinstance(run, RunMetrics) else run for run in find_runs(reports)]
    names = {run.name for run in runs if isinstance(run, BrokenRun)}
    return runs + [fault for name, fault in faults.items() if name not in names]


def results_table(runs: list[RunMetrics], metric: str, without_runs: bool = True) -> HTML | Markdown:
    """Return Table I: mAcc or mAP of every run, the runs of a data set followed by the paper's mAcc.

    Parameters
    ----------
    runs : list of RunMetrics
        The runs.
    metric : str
        `mAcc` or `mAP`, which the paper does not report.
    without_runs : bool
        Whether to show the paper's data sets that have no run yet.
    """
    found = table_one(runs)
    names = ours_first(found.columns)
    bodies, others = [], []
    for group in found.groups:
        if (group.runs or without_runs) and (lines := _group_lines(group, metric, names)):
            (bodies if group.paper else others).append(element("tbody", *lines))
    if bodies and others:
        bodies.append(element("tbody", _line("Not in the paper", "", [()] * len(names), class_="apart")))
    bodies += others
    if not bodies:
        return Markdown(f"No run has {metric} yet.")
    caption = f"{metric} of every run with its 95% bootstrap interval" + (
        "; values in italics are from the paper, which reports one HistoCLIP." if metric == "mAcc" else "."
    )
    header = element(
        "tr", *(element("th", text, scope="col") for text in ("Run", *(found.columns[name] for name in names)))
    )
    return HTML(
        html(element("table", element("caption", caption), element("thead", header), *bodies, class_="summary"))
    )


def run_cards(runs: list[RunMetrics | BrokenRun]) -> HTML | Markdown:
    """Return a card for each run, with a link to its results; for one that is broken, the reason."""
    axis = _common_axis([run for run in runs if isinstance(run, RunMetrics)])
    cards = [_card(run, axis) if isinstance(run, RunMetrics) else _broken_card(run) for run in runs]
    if not cards:
        return Markdown("No run has been made yet. `histoclip run params/demo.yaml` makes the first.")
    legend = (
        f"The blue line is the 95% interval of HistoCLIP patch in mAcc, the dot its value, the orange tick the linear "
        f"probe, on one axis from {axis[0]:.1f} to {axis[1]:.1f} for all runs."
    )
    return HTML(html(element("p", legend, class_="legend"), element("ul", *cards, class_="cards runs")))


def _common_axis(runs: list[RunMetrics]) -> tuple[float, float]:
    """Return tenths between which the mAcc of HistoCLIP, its interval and the linear probe lie in every run."""
    scores = [run.scores[name] for run in runs for name in (OURS, PROBE) if name in run.scores]
    ends = [end for score in scores for end in (score.value, *(score.interval or ()))] or [0.0, 1.0]
    low, high = math.floor(10 * min(ends)), math.ceil(10 * max(ends))
    return low / 10, max(high, low + 1) / 10


def linked_name(name: str, folder: Path) -> Node:
    """Return the name of a run, as a link to its page where it has one; for a page beside the run's folder."""
    page = front_page(folder)
    return element("a", name, href=quote(f"{folder.name}/{page.name}")) if page else name


def _notebook_faults(reports: Path) -> list[BrokenRun]:
    """Return the runs with an executed notebook that is none; it has no page, so the others need not be read."""
    faults = []
    for folder in sorted(path for path in reports.iterdir() if path.is_dir()):
        try:
            for notebook in executed_notebooks(folder).values():
                if not notebook.with_suffix(".html").is_file():
                    read_executed(notebook)
        except HistoCLIPError as error:
            faults.append(BrokenRun(folder.name, hide_folder(str(error), folder)))
    return faults


def _group_lines(group: TableGroup, metric: str, columns: list[str]) -> list[Node]:
    """Return the lines of one data set in Table I; in mAP only of runs that have it."""
    lines = []
    for run in group.runs:
        if not (scores := run.scores if metric == "mAcc" else run.mean_ap):
            continue
        about = f"{group.dataset}, {split_text(run)}, {run.backbone}{'' if run.is_clip else ' (not CLIP)'}"
        lines.append(_line(run.name, about, [_number(scores.get(name)) for name in columns]))
    if group.paper and metric == "mAcc":
        about = "reported in the paper" + ("" if group.runs else "; no run yet")
        cells = [_number(Score(group.paper[name], None) if name in group.paper else None) for name in columns]
        lines.append(_line(group.dataset, about, cells, class_="paper"))
    return lines


def split_text(run: RunMetrics) -> str:
    """Return how the patches of a run were divided: `grouped split, 5 folds`."""
    return f"{run.split} split" + (f", {run.folds} folds" if run.folds > 1 else "")


def _line(name: str, about: str, cells: Sequence[Sequence[Node]], **attributes: str) -> Node:
    heading = element("th", f"{name} ", element("small", about), scope="row")
    return element("tr", heading, *(element("td", *cell) for cell in cells), **attributes)


def _number(score: Score | None) -> tuple[Node, ...]:
    if score is None:
        return ("–",)
    if score.interval is None:
        return (f"{score.value:.3f}",)
    low, high = score.interval
    return (f"{score.value:.3f} ", element("span", f"[{low:.3f}, {high:.3f}]", class_="interval"))


def _card(run: RunMetrics, axis: tuple[float, float]) -> Node:
    data: Node = run.dataset
    if (run.path / f"{DATA}.html").is_file():
        data = element("a", run.dataset, href=quote(f"{run.folder}/{DATA}.html"), title="The data of this run")
    facts: list[tuple[str, Sequence[Node], str]] = [
        ("Data set", (data, f", {split_text(run)}"), "dataset"),
        ("Encoder", (", ".join(filter(None, (run.backbone, run.pretrained))),), "backbone"),
        *((short_label(name), _number(run.scores[name]), f"score {name}") for name in ON_CARDS if name in run.scores),
        ("Evaluated", (when_made(run),), "made"),
    ]
    if drawn := _drawn_interval(run, axis):
        facts.insert(2, ("mAcc", (drawn,), "drawn"))
    name = linked_name(run.name, run.path)
    parts: list[Node] = []
    if run.thumbnail:
        parts.append(element("img", src=run.thumbnail, alt=f"Thumbnail of the run {run.name}"))
    parts.append(element("p", name, class_="name"))
    rows = [(element("dt", label), element("dd", *value, class_=kind)) for label, value, kind in facts]
    parts.append(element("dl", *(cell for row in rows for cell in row)))
    if not run.is_current:
        said = "These are the results of an earlier run: it was started again and has not finished."
        parts.append(element("p", said, class_="caveat"))
    if said := _beside_probe(run):
        parts.append(element("p", said))
    if not run.is_clip:
        parts.append(element("p", not_clip_text(run.backbone), class_="caveat"))
    return element("li", *parts, class_="card" if name == run.name else "card linked")


def _drawn_interval(run: RunMetrics, axis: tuple[float, float]) -> Node | None:
    """Draw the interval of HistoCLIP with patch tokens in mAcc and the linear probe's value; nothing without it."""
    ours, probe = run.scores.get(OURS), run.scores.get(PROBE)
    if ours is None or ours.interval is None:
        return None
    said = f"HistoCLIP patch {ours.value:.3f}, 95% interval {range_text(ours.interval)}"
    said += f", linear probe {probe.value:.3f}" if probe else ""
    return interval(ours.value, *ours.interval, probe.value if probe else None, axis, said)


def _beside_probe(run: RunMetrics) -> str:
    """Say how HistoCLIP with patch tokens compares with the linear probe; nothing where that cannot be tested."""
    try:
        gaps = accuracy_against(read_predictions(run.path / "predictions.parquet"), run.seed, run.folds)
    except (HistoCLIPError, KeyError):  # unreadable, or without the head
        return ""
    return f"HistoCLIP {finding(gaps[PROBE])} the linear probe." if PROBE in gaps else ""


def _broken_card(run: BrokenRun) -> Node:
    reason = element("p", f"The results of this run cannot be shown. {run.reason}")
    return element("li", element("p", run.name, class_="name"), reason, class_="card broken")


def when_made(run: RunMetrics) -> str:
    """Return when a run was evaluated, in UTC: as its notebook says, else as its file does."""
    try:
        made = datetime.fromisoformat(read_executed(run.path / f"{RESULTS}.ipynb").made).astimezone(UTC)
    except (HistoCLIPError, ValueError, OverflowError):
        made = datetime.fromtimestamp((run.path / "metrics.json").stat().st_mtime, UTC)
    return f"{made:%Y-%m-%d %H:%M} UTC"
