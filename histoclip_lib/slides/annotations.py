"""QuPath annotations of slides, cut into labelled patches with masks."""

from __future__ import annotations

from collections import defaultdict
from math import ceil, floor
from pathlib import Path

import numpy as np

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.data.importers.plan import Found, ImportOptions
from histoclip_lib.data.importers.registry import importer
from histoclip_lib.data.regions import Region, class_map
from histoclip_lib.slides.cutting import CUT_OPTIONS, Cutter, sources
from histoclip_lib.slides.exchange import Annotation, read_geojson

SUFFIXES = (".geojson",)
HALF = 0.5  # of a patch that must lie within what was annotated
NOT_A_CLASS = "*"  # with which QuPath ends the names of classes that are none, such as Region* and Ignore*


def _is_geojson(path: Path, options: ImportOptions) -> bool:
    return path.suffix.lower() in SUFFIXES or (path.is_dir() and any(path.glob("*.geojson")))


@importer(
    "qupath",
    title="QuPath annotations",
    about="a .geojson that QuPath exported, or a folder of these, with --slide",
    recognises=_is_geojson,
    options=(*CUT_OPTIONS, "min_coverage", "within", "threshold"),
)
def read_qupath(source: Path, options: ImportOptions) -> Found:
    """Cut a grid of patches where a slide is annotated.

    A patch carries each class that covers at least `min_coverage` of it. What is not annotated is not known, so that a
    patch without a class is left out, except where `within` names annotations that bound what was looked at: then every
    patch of which half lies in these is taken, without a class too. Tiles with measurements, as
    `exchange.write_qupath_geojson` writes them, are patches as they are, with the labels that they had.

    Coordinates of QuPath begin at the corner of the slide's bounds (`openslide.bounds-x` and `-y`), which are added.
    """
    found = Found([], [])
    for path, cutter in sources(source, SUFFIXES, options, found):
        annotations, others = read_geojson(path)
        for kind in others:
            found.leave_out("geometries that are not polygons", f"{path.name}: {kind}")
        if any(each.measurements for each in annotations) and not any(each.name for each in annotations):
            _add_tiles(annotations, cutter, found)
        else:
            _add_grid(_regions(annotations, path, cutter, options, found), cutter, options, found)
    if not found.classes:
        raise HistoCLIPError(f"{source}: no annotation has a class. Set the classes in QuPath, and export again.")
    return found


def _regions(
    annotations: list[Annotation], path: Path, cutter: Cutter, options: ImportOptions, found: Found
) -> list[Region]:
    """Return the annotations with a class, in level-0 pixels."""
    regions = []
    for index, each in enumerate(annotations, 1):
        if not each.name:
            found.leave_out("objects without a class", f"{path.name}, object {index}")
        elif each.name.endswith(NOT_A_CLASS) and each.name != options.within:
            found.leave_out(f"classes that end with {NOT_A_CLASS} are none in QuPath", f"{path.name}, {each.name}")
        else:
            polygons = tuple(tuple(ring + cutter.slide.bounds for ring in rings) for rings in each.polygons)
            regions.append(Region(each.name, polygons))
            if each.name not in (*found.classes, options.within):
                found.classes.append(each.name)
    if options.within and options.within not in {region.name for region in regions}:
        names = ", ".join(sorted({each.name for each in annotations})) or "none"
        raise HistoCLIPError(f"--within: {path} has no annotation of class {options.within!r}. It has: {names}.")
    return regions


def _add_grid(regions: list[Region], cutter: Cutter, options: ImportOptions, found: Found) -> None:
    rule = f"a class is present where it covers at least {options.min_coverage:g} of a patch"
    taken = f"half a patch lies in {options.within}" if options.within else "a patch has a class"
    note = f"labels: {rule}; masks: the smaller annotation lies on top; taken where {taken}"
    if note not in found.notes:
        found.notes.append(note)
    near = _near(regions, cutter.side)
    left_over = 0
    for x, y in cutter.corners():
        here = near.get((x // cutter.side, y // cutter.side), [])
        field = cutter.field(x, y)
        labelled = tuple(region for region in here if region.name != options.within)
        if options.within:
            bounding = [region for region in here if region.name == options.within]
            taken_here = class_map(bounding, [options.within], field)[1][0] >= HALF
        else:
            taken_here = bool(labelled)
        if taken_here:
            more = {"regions": labelled, "field": field, "by_coverage": True, "complete": bool(options.within)}
            found.items.append(cutter.item(x, y, {}, **more))
        else:
            left_over += 1
    if left_over:
        found.notes.append(f"{cutter.path.name}: {left_over:,} further fields of the grid are not annotated")


def _near(regions: list[Region], side: int) -> dict[tuple[int, int], list[Region]]:
    """Return the regions whose box meets each field of the grid, by column and row."""
    near = defaultdict(list)
    for region in regions:
        left, top, right, bottom = region.box
        for column in range(floor(left / side), ceil(right / side)):
            for row in range(floor(top / side), ceil(bottom / side)):
                near[column, row].append(region)
    return near


def _add_tiles(annotations: list[Annotation], cutter: Cutter, found: Found) -> None:
    threshold = cutter.options.threshold
    decided = all(each.present is not None for each in annotations)
    rule = "those stored with the tiles" if decided else f"a measurement of at least {threshold:g}"
    found.notes.append(f"{cutter.path.name}: {len(annotations):,} tiles as they are; labels: {rule}")
    for each in annotations:
        corners = np.concatenate([rings[0] for rings in each.polygons]) + cutter.slide.bounds
        x, y = corners.min(axis=0)
        width, height = corners.max(axis=0) - (x, y)
        if width != height:
            found.leave_out("tiles that are not square", f"{width:g}x{height:g} at {x:g}, {y:g}")
            continue
        names = each.present if decided else [n for n, value in each.measurements.items() if value >= threshold]
        found.classes += [name for name in (*each.measurements, *names) if name not in found.classes]
        labels = {name: float(name in names) for name in dict.fromkeys((*each.measurements, *names))}
        found.items.append(cutter.item(round(x), round(y), labels, side=round(width)))
