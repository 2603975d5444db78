"""COCO JSON: categories per image, and masks where each annotation has polygons or run lengths."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from histoclip_lib.common.errors import HistoCLIPError, shown
from histoclip_lib.common.files import read_json
from histoclip_lib.data.importers.plan import Found, ImportOptions, Item
from histoclip_lib.data.importers.registry import importer
from histoclip_lib.data.regions import Field, Region, as_ring, from_run_lengths

MAX_BYTES = 2**31
MAX_SIDE = 100_000  # pixels: a run length or mask of more is a mistake
KEYS = ("images", "annotations", "categories")


def _is_coco(path: Path, options: ImportOptions) -> bool:
    return path.suffix.lower() == ".json" and all(isinstance(_content(path).get(key), list) for key in KEYS)


def _content(path: Path) -> dict[str, object]:
    content = read_json(path, MAX_BYTES)
    return content if isinstance(content, dict) else {}


@importer(
    "coco",
    title="COCO JSON",
    about="a .json with images, annotations and categories; boxes, polygons or run lengths",
    recognises=_is_coco,
    options=("images", "min_count", "none"),
)
def read_coco(source: Path, options: ImportOptions) -> Found:
    """Read COCO annotations: an image has a category's label if it has an annotation of it.

    Images without annotations are patches without a label. Masks are drawn if every annotation has an outline; a box
    alone is not an outline.
    """
    content = _content(source)
    try:
        return _read(source, content)
    except (KeyError, TypeError, AttributeError) as error:
        raise HistoCLIPError(
            f"{source}: is not COCO JSON as expected ({type(error).__name__}: {shown(str(error))}). It needs images "
            "with id and file_name, annotations with image_id and category_id, and categories with id and name."
        ) from error


def _read(source: Path, content: dict[str, object]) -> Found:
    names = {category["id"]: str(category["name"]) for category in content["categories"]}
    images = {image["id"]: image for image in content["images"]}
    annotations: dict[object, list[dict]] = {key: [] for key in images}
    found = Found(list(dict.fromkeys(names.values())), [])
    for annotation in content["annotations"]:
        place = f"annotation {annotation.get('id', '?')}"
        if annotation["image_id"] not in images:
            found.leave_out("annotations of an image that is not listed", place)
        elif annotation["category_id"] not in names:
            found.leave_out("annotations of a category that is not listed", place)
        else:
            annotations[annotation["image_id"]].append(annotation)
    outlined = all(annotation.get("segmentation") for several in annotations.values() for annotation in several)
    for key, image in images.items():
        counts = Counter(names[annotation["category_id"]] for annotation in annotations[key])
        item = Item(str(image["file_name"]), dict(counts))
        if outlined:
            height, width = _side(image["height"], source), _side(image["width"], source)
            regions = tuple(_region(each, names, height, width, source) for each in annotations[key])
            item = Item(item.name, item.labels, regions=regions, field=Field(0, 0, 1, height, width))
        found.items.append(item)
    n_annotations = sum(map(len, annotations.values()))
    found.notes.append(f"{n_annotations:,} annotations in {len(images):,} images; an image without any has no label")
    if not outlined:
        found.notes.append("masks: none, since some annotations are boxes without an outline")
    return found


def _side(value: object, source: Path) -> int:
    if not isinstance(value, int | float) or not 0 < value <= MAX_SIDE:
        raise HistoCLIPError(f"{source}: {shown(value)} is not an image size in pixels.")
    return int(value)


def _region(annotation: dict, names: dict[object, str], height: int, width: int, source: Path) -> Region:
    """Return the outline of an annotation; a polygon is a flat list x, y, x, y, ... without holes."""
    name, outline = names[annotation["category_id"]], annotation["segmentation"]
    place = f"{source}, annotation {annotation.get('id', '?')}"
    if isinstance(outline, dict):
        return from_run_lengths(name, outline.get("counts"), height, width, place)
    return Region(name, tuple((as_ring(_corners(flat), place),) for flat in outline))


def _corners(flat: object) -> object:
    if not isinstance(flat, list) or len(flat) % 2:
        return flat  # not a ring
    return list(zip(flat[::2], flat[1::2], strict=True))
