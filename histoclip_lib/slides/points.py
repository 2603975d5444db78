"""Labelled points and tiles of a large image or slide, cut into patches: coordinates in a table, wsinfer's results."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from histoclip_lib.common.errors import HistoCLIPError, bullet_list
from histoclip_lib.data.importers.cells import SUFFIXES, Cells, is_number, plain, read_cells
from histoclip_lib.data.importers.plan import Found, ImportOptions
from histoclip_lib.data.importers.registry import importer
from histoclip_lib.data.importers.tables import NOT_CLASSIFIED, label_column
from histoclip_lib.slides.cutting import CUT_OPTIONS, sources
from histoclip_lib.slides.exchange import classes_of, read_wsinfer_csv

# Names of columns, as `cells.plain` writes them; the first pair or box that a table has is used.
POINTS = (("pixelx", "pixely"), ("centroidx", "centroidy"), ("xcenterabs", "ycenterabs"), ("xcenter", "ycenter"))
POINTS += (("x", "y"), ("col", "row"), ("column", "row"))
BOXES = (("x0", "y0", "x1", "y1"), ("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"))
BOXES += (("minx", "miny", "maxx", "maxy"),)


def _first(path: Path) -> Path:
    """Return a file, or the first table in a folder."""
    tables = [file for file in sorted(path.iterdir()) if file.name.lower().endswith(SUFFIXES)] if path.is_dir() else []
    return tables[0] if tables else path


def _is_wsinfer(path: Path, options: ImportOptions) -> bool:
    try:
        return _first(path).suffix == ".csv" and bool(len(read_wsinfer_csv(_first(path))))
    except HistoCLIPError:  # most tables are other tables, of which the reason says nothing
        return False


@importer(
    "wsinfer",
    title="wsinfer CSV",
    about="a .csv with minx, miny, width, height and prob_<class>, or a folder of these, with --slide",
    recognises=_is_wsinfer,
    options=(*CUT_OPTIONS, "threshold"),
)
def read_wsinfer(source: Path, options: ImportOptions) -> Found:
    """Cut the tiles that wsinfer scored; a class is present from `threshold` on."""
    rule = f"labels: a probability of at least {options.threshold:g}: the decisions of another model, not of a person"
    found = Found([], [], [rule])
    for path, cutter in sources(source, (".csv",), options, found):
        tiles = read_wsinfer_csv(path)
        classes = classes_of(tiles)
        found.classes += [name for name in classes if name not in found.classes]
        present = tiles[[f"prob_{name}" for name in classes]].to_numpy() >= options.threshold
        boxes = tiles[["x", "y", "width", "height"]].to_numpy(float)
        for (x, y, width, height), labels in zip(boxes.tolist(), present.tolist(), strict=True):
            if width == height:
                decided = {name: float(there) for name, there in zip(classes, labels, strict=True)}
                found.items.append(cutter.item(round(x), round(y), decided, side=round(width)))
            else:
                found.leave_out("tiles that are not square", f"{path.name}: {width:g}x{height:g} at {x:g}, {y:g}")
    return found


def _is_coordinates(path: Path, options: ImportOptions) -> bool:
    cells = read_cells(_first(path))
    try:
        cells.file_column(options.file_column)
    except HistoCLIPError:  # with files it is a table of images
        return bool(_columns(cells, options))
    return False


@importer(
    "coordinates",
    title="Coordinates with classes",
    about="a table with x, y and class (or boxes; without a header: row, column, class), or a folder, with --slide",
    recognises=_is_coordinates,
    options=(*CUT_OPTIONS, "around", "min_count", "label_column"),
)
def read_coordinates_table(source: Path, options: ImportOptions) -> Found:
    """Cut patches where points are; a class is present from `min_count` points within the patch on.

    Patches are the fields of a grid that hold a point, or with `around` one centred at each point. Coordinates are
    level-0 pixels.
    """
    found = Found([], [])
    for path, cutter in sources(source, SUFFIXES, options, found):
        cells = read_cells(path)
        points, names, how = _points(path, cells, options, found)
        found.notes.append(f"{path.name}: {len(points):,} points; {how}")
        found.classes += [name for name in dict.fromkeys(names.tolist()) if name not in found.classes]
        fields = (_fields_around if options.around else _fields_of_grid)(points, names, cutter.side)
        for (x, y), counts in fields.items():
            if cutter.is_inside(x, y):
                found.items.append(cutter.item(x, y, dict(counts), complete=False))
            else:
                found.leave_out("fields beyond the edge of the image", f"{cutter.path.name}, {x}, {y}")
    found.classes.sort(key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0))
    where = "one around each point" if options.around else "the fields of a grid with a point"
    rule = f"a class is present where a patch holds {options.min_count} or more of its points"
    found.notes.append(f"labels: {rule}; patches: {where}")
    return found


def _columns(cells: Cells, options: ImportOptions) -> tuple[str, ...]:
    """Return the columns x, y (or left, top, right, bottom) and, last, the class; nothing where they are not there."""
    if not cells.has_header and len(cells.columns) == 3:
        row, column, label = cells.columns
        numbers = all(map(is_number, cells.columns[row] + cells.columns[column]))
        return (column, row, label) if numbers else ()
    by_name = {plain(name): name for name in cells.columns}
    label = label_column(cells, options.label_column)
    for wanted in (*POINTS, *BOXES) if label else ():
        if all(name in by_name for name in wanted):
            return (*(by_name[name] for name in wanted), label)
    return ()


def _points(path: Path, cells: Cells, options: ImportOptions, found: Found) -> tuple[np.ndarray, np.ndarray, str]:
    """Return the points, shape (P, 2), their classes, shape (P,), and how they were found."""
    columns = _columns(cells, options)
    if not columns:
        raise HistoCLIPError(
            f"{path}: no columns x, y and class were found (--label-column names the class). It has "
            f"{', '.join(cells.columns)}."
        )
    *places, label = columns
    values, names = [], []
    for row, name in enumerate(cells.columns[label]):
        cell = [cells.columns[column][row] for column in places]
        if not all(map(is_number, cell)):
            found.leave_out("lines without numbers for coordinates", f"{path.name}, line {cells.lines[row]}")
        elif not name or name.casefold() in NOT_CLASSIFIED:
            found.leave_out("points without a class", f"{path.name}, line {cells.lines[row]}")
        else:
            values.append([float(value) for value in cell])
            names.append(name)
    if not values:
        reasons = bullet_list([f"{len(lines):,} {reason}" for reason, lines in found.left_out.items()])
        raise HistoCLIPError(f"{path}: no line has coordinates and a class:\n{reasons or '  - there is no line'}")
    boxes = np.array(values).reshape(len(values), -1, 2)
    what = "the middle of boxes" if boxes.shape[1] == 2 else "x and y"
    how = f"{what} from columns {', '.join(places)}, class from {label}, {cells.about().partition(': ')[2]}"
    return boxes.mean(axis=1), np.array(names, dtype=object), how


def _fields_of_grid(points: np.ndarray, names: np.ndarray, side: int) -> dict[tuple[int, int], Counter[str]]:
    """Return how many points of each class lie in each field of the grid that holds any, row by row."""
    fields: dict[tuple[int, int], Counter[str]] = {}
    for (column, row), name in zip((points // side).astype(int).tolist(), names, strict=True):
        fields.setdefault((row * side, column * side), Counter())[name] += 1
    return {(x, y): counts for (y, x), counts in sorted(fields.items())}


def _fields_around(points: np.ndarray, names: np.ndarray, side: int) -> dict[tuple[int, int], Counter[str]]:
    """Return the same of the fields whose centres are points."""
    from scipy.spatial import cKDTree

    corners = np.unique(np.rint(points - side / 2).astype(int), axis=0)
    within = cKDTree(points).query_ball_point(corners + side / 2, side / 2, p=np.inf)
    return {(x, y): Counter(names[near].tolist()) for (x, y), near in zip(corners.tolist(), within, strict=True)}
