"""From tiles to slides: how much of the tissue is positive, and what that says beside the metadata of the slides."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import rankdata, t

from histoclip_lib.common.csv_tables import Table, read_table
from histoclip_lib.common.errors import HistoCLIPError, bullet_list, shown
from histoclip_lib.data.folder import LABELS, MAX_NAME
from histoclip_lib.evaluation.uncertainty import (
    LEVEL,
    MIN_GROUPS,
    bootstrap_interval,
    draw_units,
    percentile_interval,
)
from histoclip_lib.slides.prediction import read_slide_result, read_tiles
from histoclip_lib.slides.scoring import BLOCK_TILES, resampled_auroc, spatial_blocks

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("slide", "group", "mpp", "target")
META = "meta_"
FORMAT = (
    "slides.csv needs a column `slide` with a file for each slide; `group` (patient), `mpp` (micrometres per pixel), "
    "`target` (0 or 1) and columns that begin with `meta_` are optional."
)
TOP = 10  # tiles of the top-j mean
MIN_SLIDES = 20  # with fewer, nothing is fitted
MIN_OF_A_KIND = 5  # slides with target 1, and with 0
FOLDS, REPEATS = 5, 10  # of the cross-validation
PENALTY = 1.0  # scikit-learn's C, on standardised columns
RESAMPLES, PERMUTATIONS = 2000, 9999
MAX_LEVELS = 8  # numbers of a metadata column; a column with more is divided at its median
METADATA, BURDENS, BOTH = "metadata", "class burdens", "metadata and class burdens"


@dataclass(frozen=True, eq=False)
class SlideTable:
    """The slides of `slides.csv`.

    Attributes
    ----------
    paths : list of Path
        Of the S slides, as seen from the current folder.
    groups : ndarray of str, shape (S,)
        Patients; the slide itself where the table has no groups.
    mpp : ndarray of float, shape (S,)
        NaN where it is left to the slide.
    target : ndarray of float, shape (S,)
        0, 1, or NaN where it is not known.
    metadata : DataFrame of str
        Columns `meta_*`; an empty cell is not known.
    """

    paths: list[Path]
    groups: np.ndarray
    mpp: np.ndarray
    target: np.ndarray
    metadata: pd.DataFrame


@dataclass(frozen=True)
class TargetStudy:
    """Whether what was seen on the slides tells more of a target than the metadata do.

    Attributes
    ----------
    scores : DataFrame of `model`, `columns`, `auroc`, `low`, `high`
        Of the cross-validated predictions, with the 95% percentile interval of a bootstrap over groups; no lines where
        nothing was fitted.
    tests : DataFrame of `model`, `against`, `difference`, `low`, `high`, `p`
        Differences in AUROC: interval of the same bootstrap, two-sided p of a permutation test that swaps the
        predictions of whole groups.
    n_slides, n_groups, n_positive : int
        Slides with a target that were read to their end.
    note : str
        How it was done, or why nothing was fitted.
    """

    scores: pd.DataFrame
    tests: pd.DataFrame
    n_slides: int
    n_groups: int
    n_positive: int
    note: str


def read_slide_table(path: str | Path) -> SlideTable:
    """Read `slides.csv`.

    Parameters
    ----------
    path : str or Path
        A table as `csv_tables.read_table` takes it; its paths are relative to its folder. A target may also be written
        as yes or no, true or false.

    Raises
    ------
    HistoCLIPError
        For what `read_table` refuses and a table without lines; listing every column that is none of a slide's, every
        slide that does not exist or is named twice, every empty group, and every `mpp` and target that is not one.
    """
    path = Path(path)
    try:
        table = read_table(path, "slide")
    except HistoCLIPError as error:
        raise HistoCLIPError(f"{error}\n{FORMAT}") from error
    if not table.lines:
        raise HistoCLIPError(f"{path} has no rows. {FORMAT}")
    _check_columns(path, table)
    paths = _slide_paths(path, table)
    groups = table.columns.get("group", [str(slide) for slide in paths])
    _refuse(path, table, "group", "a name on every line", [not 0 < len(g) <= MAX_NAME for g in groups], groups)
    import pandas as pd

    metadata = {name: cells for name, cells in table.columns.items() if name.startswith(META)}
    return SlideTable(
        paths=paths,
        groups=np.array(groups, dtype=str),
        mpp=_numbers(path, table),
        target=_targets(path, table),
        metadata=pd.DataFrame(metadata, index=range(len(paths)), dtype=str),
    )


def _check_columns(path: Path, table: Table) -> None:
    odd = [name for name in table.columns if name not in COLUMNS and not (name.startswith(META) and name != META)]
    if odd:
        offenders = [
            f"write {name.casefold()!r} for {name!r}"
            if name.casefold() in COLUMNS
            else f"{shown(name)}: call it {META + name!r} if it is metadata, or remove it"
            for name in odd
        ]
        raise HistoCLIPError(f"{path}: unknown columns:\n{bullet_list(offenders)}\n{FORMAT}")


def _slide_paths(path: Path, table: Table) -> list[Path]:
    paths, offenders, lines = [], [], {}
    for line, name in zip(table.lines, table.columns["slide"], strict=True):
        slide = path.parent / name
        try:
            found = bool(name) and slide.exists()
        except (OSError, ValueError):  # too long, or with a null character
            found = False
        if not found:
            offenders.append(f"line {line}: {shown(name, 300) if name else 'empty'} does not exist")
        else:
            lines.setdefault(os.path.realpath(slide), []).append(line)
        paths.append(slide)
    offenders += [
        f"lines {', '.join(map(str, at))}: {os.path.basename(real)} is named {len(at)} times"
        for real, at in lines.items()
        if len(at) > 1
    ]
    if offenders:
        raise HistoCLIPError(
            f"{path}, column slide: a line names one slide, seen from {path.parent}. Correct:\n{bullet_list(offenders)}"
        )
    return paths


def _numbers(path: Path, table: Table) -> np.ndarray:
    import pandas as pd

    cells = table.columns.get("mpp", [""] * len(table.lines))
    values = pd.to_numeric(pd.Series(cells), errors="coerce").to_numpy(np.float64)
    wrong = [bool(cell) and not (np.isfinite(value) and value > 0) for cell, value in zip(cells, values, strict=True)]
    _refuse(path, table, "mpp", "a number above 0, with a point, or nothing", wrong, cells)
    return values


def _targets(path: Path, table: Table) -> np.ndarray:
    cells = table.columns.get("target", [""] * len(table.lines))
    values = [LABELS.get(cell.casefold()) for cell in cells]
    wrong = [bool(cell) and value is None for cell, value in zip(cells, values, strict=True)]
    _refuse(path, table, "target", "0, 1 or nothing", wrong, cells)
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _refuse(path: Path, table: Table, column: str, expected: str, wrong: list[bool], cells: list[str]) -> None:
    offenders = [
        f"line {line}: {shown(cell)}" for line, cell, bad in zip(table.lines, cells, wrong, strict=True) if bad
    ]
    if offenders:
        raise HistoCLIPError(f"{path}, column {column}: expected {expected}, found:\n{bullet_list(offenders)}")


def class_burdens(table: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """Summarise the tiles of a slide.

    Parameters
    ----------
    table : DataFrame
        As `prediction.read_tiles` gives it, of n tiles.
    classes : list of str
        The N classes.

    Returns
    -------
    DataFrame of N lines: `class`, `share`, `share_low`, `share_high`, `mean`, `top_mean`
        `share` is the part of the tissue that lies in positive tiles, each tile counted with its tissue. Its 95%
        interval is Wilson's for the number of independent tiles that the variation between blocks of `BLOCK_TILES` x
        `BLOCK_TILES` tiles leaves, since neighbours are alike; NaN with fewer than `MIN_GROUPS` blocks. `mean` is that
        of the probabilities, counted alike, and `top_mean` of the `TOP` highest.

    References
    ----------
    Dean and Pagano, Evaluating confidence interval methods for binomial proportions in clustered surveys, Journal of
    Survey Statistics and Methodology 3, 2015 (Wilson's interval with an effective sample size).

    Examples
    --------
    >>> import pandas as pd
    >>> tiles = pd.DataFrame({"x": range(0, 4000, 100), "y": 0, "width": 100, "tissue": 1.0})
    >>> tiles = tiles.assign(prob_tumor=0.9, present_tumor=[True] * 10 + [False] * 30)
    >>> print(class_burdens(tiles, ["tumor"]).round(2).to_string(index=False))
    class  share  share_low  share_high  mean  top_mean
    tumor   0.25       0.03        0.77   0.9       0.9
    """
    import pandas as pd

    weights = table.tissue.fillna(1.0).to_numpy(np.float64)
    block = spatial_blocks(table.x.to_numpy(), table.y.to_numpy(), BLOCK_TILES * table.width.max())
    lines = []
    for name in classes:
        scores, present = table[f"prob_{name}"].to_numpy(np.float64), table[f"present_{name}"].to_numpy(np.float64)
        share = float(np.average(present, weights=weights))
        low, high = _share_interval(present, share, weights, block)
        top = np.sort(scores)[-TOP:].mean()
        lines.append((name, share, low, high, float(np.average(scores, weights=weights)), float(top)))
    return pd.DataFrame(lines, columns=["class", "share", "share_low", "share_high", "mean", "top_mean"])


def _share_interval(present: np.ndarray, share: float, weights: np.ndarray, block: np.ndarray) -> tuple[float, float]:
    n_blocks = block.max() + 1
    if n_blocks < MIN_GROUPS:
        return np.nan, np.nan
    rest = np.bincount(block, weights=weights * (present - share))
    variance = n_blocks / (n_blocks - 1) * (rest**2).sum() / weights.sum() ** 2
    # Without variation, as where no tile is positive, a block counts as one tile.
    n = min(share * (1 - share) / variance, len(present)) if variance > 0 else n_blocks
    z = t.ppf((1 + LEVEL) / 2, n_blocks - 1)
    centre, half = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return float((centre - half) / (1 + z**2 / n)), float((centre + half) / (1 + z**2 / n))


def aggregate_slides(table: SlideTable, folders: list[Path], errors: Sequence[str] | None = None) -> pd.DataFrame:
    """Return one line for each slide: what `slides.parquet` holds.

    Parameters
    ----------
    table : SlideTable
        The slides.
    folders : list of Path
        Where `prediction.predict_slide` has written; a folder that is not finished gives a line without numbers.
    errors : sequence of str, optional
        Why slides failed, empty where they did not. A result that an earlier call left of such a slide does not count.

    Returns
    -------
    DataFrame
        `slide`, `folder`, `group`, `target`, `meta_*`, `n_tiles`, `n_predicted`, `n_ood`, `error` (empty where the
        slide was read to its end), and for each class `share_<class>`, `share_low_<class>`, `share_high_<class>`,
        `mean_<class>` and `top_mean_<class>`: see `class_burdens`.

    Raises
    ------
    HistoCLIPError
        If slides were predicted by different models.
    """
    import pandas as pd

    lines, models = [], {}
    for path, folder, failure in zip(table.paths, folders, errors or [""] * len(folders), strict=True):
        line = {"slide": path.name, "folder": str(folder)}
        try:
            result = read_slide_result(folder)
            if failure and failure != result.error:
                raise HistoCLIPError(failure)
        except HistoCLIPError as error:
            lines.append({**line, "error": failure or str(error)})
            continue
        models.setdefault(result.model, path.name)
        line |= {"n_tiles": result.n_tiles, "n_predicted": result.n_predicted, "n_ood": result.n_ood}
        line["error"] = result.error or ""
        if result.n_predicted:
            for burden in class_burdens(read_tiles(folder), result.classes).to_dict("records"):
                name = burden.pop("class")
                line |= {f"{key}_{name}": value for key, value in burden.items()}
        lines.append(line)
    if len(models) > 1:
        raise HistoCLIPError(
            f"slides were predicted by {len(models)} different models, the first slide of each: "
            f"{', '.join(models.values())}. Predict all of them with one."
        )
    about = {"group": table.groups, "target": table.target, **dict(table.metadata.items())}
    found = pd.DataFrame(lines)
    return pd.concat([found[["slide", "folder"]], pd.DataFrame(about), found.drop(columns=["slide", "folder"])], axis=1)


def study_target(slides: pd.DataFrame, classes: list[str], seed: int = 0) -> TargetStudy:
    """Ask whether class burdens say more of a 0/1 target than the metadata do.

    Logistic regressions on the metadata alone, on the shares of the classes alone, and on both are cross-validated:
    `FOLDS` folds that keep groups together, `REPEATS` times, the predictions of a slide averaged. Words
    become one column for each value; columns are standardised, and gaps filled, with the numbers of the training part.

    Parameters
    ----------
    slides : DataFrame
        From `aggregate_slides`.
    classes : list of str
        Of the model.
    seed : int
        Of the folds, the bootstrap and the permutations.

    Returns
    -------
    TargetStudy
        Nothing is fitted, and the note says why, with fewer than `MIN_SLIDES` slides that have a target, fewer than
        `MIN_OF_A_KIND` of either kind, or in either kind fewer groups than 2 or in all than `MIN_GROUPS`.
    """
    import pandas as pd

    known = slides[slides.target.notna() & (slides.error == "")].reset_index(drop=True)
    target, groups = known.target.to_numpy(int), known.group.to_numpy(str)
    counts = (len(known), len(np.unique(groups)), int(target.sum()))
    scores = pd.DataFrame(columns=["model", "columns", "auroc", "low", "high"])
    tests = pd.DataFrame(columns=["model", "against", "difference", "low", "high", "p"])
    if reason := _too_few(target, groups):
        return TargetStudy(scores, tests, *counts, f"Nothing was fitted: {reason}")
    meta = [name for name in known if name.startswith(META) and known[name].replace("", np.nan).nunique() > 1]
    columns = {METADATA: meta, BURDENS: [f"share_{name}" for name in classes]}
    columns[BOTH] = columns[METADATA] + columns[BURDENS]
    if not meta:
        columns = {BURDENS: columns[BURDENS]}
    predicted = {model: _cross_validated(known[names], target, groups, seed) for model, names in columns.items()}
    draws = draw_units(groups, RESAMPLES, seed)
    areas = {model: resampled_auroc(target, values, draws) for model, values in predicted.items()}
    lines = [
        (model, len(names), _auroc(target, predicted[model][None])[0], *percentile_interval(areas[model]))
        for model, names in columns.items()
    ]
    pairs = [(BOTH, METADATA), (BOTH, BURDENS), (BURDENS, METADATA)] if meta else []
    compared = []
    for one, other in pairs:
        gap, p = _difference(target, predicted[one], predicted[other], groups, seed)
        compared.append((one, other, gap, *percentile_interval(areas[one] - areas[other]), p))
    note = (
        f"Logistic regression (L2, C = {PENALTY:g}), {REPEATS} times {FOLDS}-fold cross-validation with groups kept "
        f"together; intervals by bootstrap over the {counts[1]} groups, p by swapping the predictions of whole groups."
    )
    if not meta:
        note += " No metadata column has two values, so there is nothing to compare with."
    if left_out := int((slides.target.notna() & (slides.error != "")).sum()):
        note += f" {left_out} slides that were not read to their end are left out."
    return TargetStudy(
        pd.DataFrame(lines, columns=scores.columns), pd.DataFrame(compared, columns=tests.columns), *counts, note
    )


def _too_few(target: np.ndarray, groups: np.ndarray) -> str:
    """Say why a target cannot be studied; nothing where it can."""
    if len(target) < MIN_SLIDES:
        return f"{len(target)} slides have a target and were read to their end, and {MIN_SLIDES} are the fewest."
    positive = int(target.sum())
    if min(positive, len(target) - positive) < MIN_OF_A_KIND:
        return f"{positive} of {len(target)} slides have target 1, and {MIN_OF_A_KIND} of either kind are the fewest."
    n_groups = [len(np.unique(groups[target == value])) for value in (0, 1)]
    if min(n_groups) < 2 or len(np.unique(groups)) < MIN_GROUPS:
        return (
            f"the slides come from {len(np.unique(groups))} groups, {n_groups[1]} of them with target 1 and "
            f"{n_groups[0]} with 0; {MIN_GROUPS} and 2 of either kind are the fewest."
        )
    return ""


def _cross_validated(features: pd.DataFrame, target: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Return the mean of the held-out probabilities of each slide."""
    import pandas as pd
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features = features.replace("", np.nan)
    words = [name for name in features if not _is_numeric(features[name])]
    values = pd.get_dummies(features, columns=words).to_numpy(np.float64)
    fill = SimpleImputer(strategy="median", keep_empty_features=True)
    model = make_pipeline(fill, StandardScaler(), LogisticRegression(C=PENALTY, max_iter=1000))
    fewest = min(len(np.unique(groups[target == value])) for value in (0, 1))
    total = np.zeros(len(target))
    for repeat in range(REPEATS):
        folds = StratifiedGroupKFold(min(FOLDS, fewest), shuffle=True, random_state=seed + repeat)
        for train, held_out in folds.split(values, target, groups):
            if len(np.unique(target[train])) < 2:  # large groups may leave a fold with one kind
                total[held_out] += target[train].mean()
                continue
            total[held_out] += model.fit(values[train], target[train]).predict_proba(values[held_out])[:, 1]
    return total / REPEATS


def _is_numeric(column: pd.Series) -> bool:
    import pandas as pd

    return bool(pd.to_numeric(column.dropna(), errors="coerce").notna().all())


def _auroc(target: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the AUROC of each line of scores (P, S), by the ranks of the positives (Mann and Whitney)."""
    positive = target == 1
    n_positive, n_negative = positive.sum(), (~positive).sum()
    ranks = rankdata(scores, axis=1)[:, positive].sum(axis=1)
    return (ranks - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)


def _difference(
    target: np.ndarray, first: np.ndarray, second: np.ndarray, groups: np.ndarray, seed: int
) -> tuple[float, float]:
    """Return the difference in AUROC, and the p of swapping the two predictions of whole groups.

    The predictions are ranked before, since probabilities of two models are not on one scale.
    """
    one, other = rankdata(first), rankdata(second)
    _, unit = np.unique(groups, return_inverse=True)
    swapped = np.random.default_rng(seed).integers(0, 2, (PERMUTATIONS, unit.max() + 1), dtype=bool)[:, unit]
    observed = float((_auroc(target, one[None]) - _auroc(target, other[None]))[0])
    gaps = _auroc(target, np.where(swapped, other, one)) - _auroc(target, np.where(swapped, one, other))
    return observed, float((1 + (np.abs(gaps) >= abs(observed) - 1e-12).sum()) / (1 + PERMUTATIONS))


def burdens_by_metadata(slides: pd.DataFrame, classes: list[str], seed: int = 0) -> pd.DataFrame:
    """Return the mean share of each class for each value of each metadata column.

    Parameters
    ----------
    slides : DataFrame
        From `aggregate_slides`; those that were not read to their end are left out.
    classes : list of str
        Of the model.
    seed : int
        Of the bootstrap.

    Returns
    -------
    DataFrame of `column`, `value`, `class`, `n_slides`, `n_groups`, `mean`, `low`, `high`
        With the 95% interval of a bootstrap over groups, NaN with fewer than `MIN_GROUPS` of them. A column of more
        than `MAX_LEVELS` different numbers is divided at its median. Cells that are empty are left out.
    """
    import pandas as pd

    complete, lines = slides[slides.error == ""], []
    for column in [name for name in complete if name.startswith(META)]:
        for value, part in complete.groupby(_levels(complete[column].replace("", np.nan)), sort=True):
            n_groups = part.group.nunique()
            for name in classes:
                shares, interval = part[f"share_{name}"].to_numpy(np.float64), (np.nan, np.nan)
                if n_groups >= MIN_GROUPS:
                    interval = bootstrap_interval(shares, part.group.to_numpy(str), seed=seed)
                lines.append((column, value, name, len(part), n_groups, float(shares.mean()), *interval))
    return pd.DataFrame(lines, columns=["column", "value", "class", "n_slides", "n_groups", "mean", "low", "high"])


def _levels(column: pd.Series) -> pd.Series:
    """Return the value of each slide, NaN where it is not known; many numbers become two halves."""
    if not _is_numeric(column) or column.nunique() <= MAX_LEVELS:
        return column
    numbers = column.astype(float)
    median = numbers.median()
    halves = np.where(numbers <= median, f"up to {median:g}", f"above {median:g}")
    return column.where(column.isna(), halves)
