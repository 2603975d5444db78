"""The page that compares two runs of one data set on the validation patches that they share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from IPython.display import Image as Picture
from matplotlib.figure import Figure

from histoclip_lib.comparisons import finding
from histoclip_lib.datasets import LOADED_BY, load_dataset
from histoclip_lib.datasets.base import PatchDataset
from histoclip_lib.errors import HistoCLIPError
from histoclip_lib.figures.base import as_image, short
from histoclip_lib.galleries import patch_grid
from histoclip_lib.pages.export import Parameter, render
from histoclip_lib.pages.navigation import SUMMARY_PAGE, Link
from histoclip_lib.pages.page_html import Heading
from histoclip_lib.pages.run_comparisons import Common, Disagreement, align, compare_runs, disagreements
from histoclip_lib.pages.run_notebooks import executed_notebooks, parameter_value, read_executed, run_parameters
from histoclip_lib.pages.run_predictions import read_predictions
from histoclip_lib.results import ROW_LABELS
from histoclip_lib.run_summaries import read_metrics

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
