"""The plan of an import: what was understood of a source, what is left out, and how it becomes a folder of patches."""

from __future__ import annotations

import csv
import filecmp
import io
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from tqdm import tqdm

from histoclip_lib.common.errors import HistoCLIPError, bullet_list, printable
from histoclip_lib.common.files import replacing, write_text
from histoclip_lib.data.folder import MAX_CLASSES, is_reserved
from histoclip_lib.data.histoseg import IMAGE_SUFFIXES
from histoclip_lib.data.importers.split_files import read_split
from histoclip_lib.data.regions import Field, Region, class_map
from histoclip_lib.data.splits import groups_by_pattern, part_of

COMMON_OPTIONS = ("out", "classes", "ignore", "group_pattern", "split")
EXAMPLES = 3  # of what is left out, in a plan


@dataclass(frozen=True)
class ImportOptions:
    """How a source is to be understood; an importer takes `COMMON_OPTIONS` and those it names.

    Attributes
    ----------
    out : Path or None
        The folder to write, in which no images are looked for.
    images : Path or None
        Folder below which the images are; without it, that of the source.
    classes : tuple of str
        The classes to import, in this order: `name`, or `name=new name`; several with one new name become one class.
        Empty: all.
    ignore : tuple of str
        Classes or columns to leave out.
    unknown : tuple of str
        What stands for "not known" in a class column, such as `-1`.
    none : str or None
        The name that stands for "none of the classes"; an empty text: an empty cell does.
    min_count : int
        How many objects (or votes) make a label.
    file_column, label_column, group_column : str
        Columns that are not called as usual.
    meta : tuple of str
        Columns to keep as `meta_*`.
    group_pattern : str
        Regular expression that finds the group in the group column, or in the file name where there is none: its first
        group, or all of it.
    split : Path or None
        File that says which patch is in which part.
    slide : Path or None
        The slide or large image that patches are cut from.
    patch : int
        Side of a patch that is cut, in pixels.
    patch_um, mpp : float or None
        The field of such a patch in micrometres (without it, `patch` pixels of the slide); micrometres per pixel of
        the slide, where it does not say.
    min_coverage : float
        Share of the patch that an annotated class covers at least.
    within : str
        Class of annotation that bounds what was annotated.
    around : bool
        One patch around each point, instead of a grid.
    threshold : float
        Probability from which on a class counts as present.
    """

    out: Path | None = None
    images: Path | None = None
    classes: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    none: str | None = None
    min_count: int = 1
    file_column: str = ""
    label_column: str = ""
    group_column: str = ""
    meta: tuple[str, ...] = ()
    group_pattern: str = ""
    split: Path | None = None
    slide: Path | None = None
    patch: int = 224
    patch_um: float | None = None
    mpp: float | None = None
    min_coverage: float = 0.01
    within: str = ""
    around: bool = False
    threshold: float = 0.5

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be meant."""
        for name, low, high in (("patch", 32, 4096), ("min_count", 1, 1_000_000)):
            if not low <= getattr(self, name) <= high:
                raise HistoCLIPError(f"--{_dashed(name)}: {getattr(self, name)} must lie between {low} and {high:,}.")
        for name, high in (("min_coverage", 1.0), ("threshold", 1.0), ("patch_um", 10_000.0), ("mpp", 100.0)):
            value = getattr(self, name)
            if value is not None and not 0 < value <= high:
                raise HistoCLIPError(f"--{_dashed(name)}: {value} must be more than 0 and at most {high:g}.")
        try:
            re.compile(self.group_pattern)
        except re.error as error:
            raise HistoCLIPError(
                f"--group-pattern: {self.group_pattern!r} is not a regular expression ({error})."
            ) from error

    def changed(self) -> dict[str, object]:
        """Return the options that differ from their defaults."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) != each.default}


@dataclass(frozen=True)
class Item:
    """One patch, as a source describes it.

    Attributes
    ----------
    name : str
        Its file as the source names it; of a patch that is cut, the name it is to have.
    labels : dict of str to (float or None)
        How often each class was found, None where that is not known; classes that are missing were not found.
    path : Path or None
        Its file, where the importer knows it.
    group, split, meta
        As the source has them; the split in any of the words of `PARTS`.
    regions : tuple of Region or None
        For its mask.
    field : Field or None
        What the mask shows of the image that `regions` lie in.
    by_coverage : bool
        Whether its labels are those of `regions` that cover enough of it, instead of `labels`.
    complete : bool
        Whether no label means that none of the classes is there; otherwise such a patch is left out.
    read : callable or None
        Returns the pixels of a patch that is cut, shape (H, W, 3), uint8.
    mpp : float or None
        Micrometres per pixel.
    """

    name: str
    labels: Mapping[str, float | None] = field(default_factory=dict)
    path: Path | None = None
    group: str = ""
    split: str = ""
    meta: Mapping[str, str] = field(default_factory=dict)
    regions: tuple[Region, ...] | None = None
    field: Field | None = None
    by_coverage: bool = False
    complete: bool = True
    read: Callable[[], np.ndarray] | None = None
    mpp: float | None = None


@dataclass
class Found:
    """What an importer found in a source.

    Attributes
    ----------
    classes : list of str
        All classes, named as in the source, in its order.
    items : list of Item
        Its patches.
    notes : list of str
        How it was understood: columns, separators, rules.
    left_out : dict of str to list of str
        What was left out, by the reason.
    """

    classes: list[str]
    items: list[Item]
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, reason: str, what: str) -> None:
        """Note that something is left out."""
        self.left_out.setdefault(reason, []).append(what)


@dataclass(frozen=True)
class PlannedPatch:
    """One patch as it will stand in `labels.csv`: the item, its file below `images/`, and a label for each class."""

    item: Item
    file: str
    labels: tuple[int | None, ...]


@dataclass(frozen=True)
class ImportPlan:
    """What an import would write.

    Attributes
    ----------
    title : str
        The form of the source.
    source : Path
        Where it was read.
    classes : list of str
        In the order of the columns.
    patches : list of PlannedPatch
        In the order of the lines.
    notes, left_out
        As in `Found`.
    options : dict
        The options that were given.
    """

    title: str
    source: Path
    classes: list[str]
    patches: list[PlannedPatch]
    notes: list[str]
    left_out: dict[str, list[str]]
    options: dict[str, object]

    @property
    def has_masks(self) -> bool:
        """Whether each patch has regions to make a mask of."""
        return all(patch.item.regions is not None for patch in self.patches)

    def counts(self) -> dict[str, Counter[int | None]]:
        """Return for each class on how many patches it is present (1), absent (0) and not known (None)."""
        columns = zip(*(patch.labels for patch in self.patches), strict=True)
        return {name: Counter(column) for name, column in zip(self.classes, columns, strict=True)}

    def describe(self) -> str:
        """Return the plan in words, for a terminal."""
        items = [patch.item for patch in self.patches]
        how = "cut from a slide" if items[0].read else "files"
        none = sum(not any(patch.labels) for patch in self.patches)
        lines = [
            f"{self.title}: {self.source}",
            f"  patches   {len(items):,} ({how}), {none:,} of them without a label",
            f"  masks     {'yes' if self.has_masks else 'no'}",
        ]
        for name, values in (("groups", [item.group for item in items]), ("split", [item.split for item in items])):
            many = Counter(values)
            text = (
                ", ".join(f"{value} {n:,}" for value, n in many.most_common()) if name == "split" else f"{len(many):,}"
            )
            lines.append(f"  {name:9} {text if all(values) else 'none'}")
        width = max(map(len, self.classes))
        lines.append(f"  classes   {len(self.classes)}")
        for name, count in self.counts().items():
            unknown = f", not known {count[None]:,}" if count[None] else ""
            odd = " (on every patch: is it a class?)" if count[1] == len(items) else ""
            odd = " (on no patch)" if not count[1] else odd
            lines.append(f"    {name:{width}}  present {count[1]:,}, absent {count[0]:,}{unknown}{odd}")
        lines += ["  understood", *(f"    {note}" for note in self.notes)]
        lines += ["  left out" if self.left_out else "  left out  nothing"]
        for reason, names in self.left_out.items():
            more = ", ..." if len(names) > EXAMPLES else ""
            lines.append(f"    {len(names):,}: {reason} ({', '.join(names[:EXAMPLES])}{more})")
        if self.options:
            given = (f"--{_dashed(name)} {_as_typed(value)}".rstrip() for name, value in self.options.items())
            lines.append(f"  options   {'; '.join(given)}")
        return "\n".join(map(printable, lines))

    def write(self, out: Path, copy: bool = False, progress: bool = False) -> None:
        """Write images, masks and, last, `labels.csv`: a folder without it is not complete.

        Parameters
        ----------
        out : Path
            Folder; made if needed. An interrupted import may be started again.
        copy : bool
            Whether to copy images where a hard link would do, which takes no space.
        progress : bool
            Whether to draw a bar.

        Raises
        ------
        HistoCLIPError
            If `out` holds a `labels.csv` already, or another image where one is to be written, or cannot be written.
        """
        if (out / "labels.csv").exists():
            raise HistoCLIPError(f"{out / 'labels.csv'} exists. Choose another folder with --out, or remove it.")
        for patch in tqdm(self.patches, desc="writing", unit="patch", disable=not progress):
            _write_image(patch.item, out / "images" / patch.file, copy)
            if self.has_masks:
                _write_png(self._mask(patch), out / "masks" / _as_png(patch.file))
        write_text(out / "labels.csv", self._table())

    def _mask(self, patch: PlannedPatch) -> np.ndarray:
        """Return the mask of a patch; a class that is not among its labels is not in its mask either."""
        drawn, _ = class_map(patch.item.regions, self.classes, patch.item.field)
        kept = np.array([0, *(k if label else 0 for k, label in enumerate(patch.labels, 1))], dtype=np.uint8)
        return kept[drawn]

    def _table(self) -> str:
        items = [patch.item for patch in self.patches]
        optional = {
            "group": [item.group for item in items],
            "split": [item.split for item in items],
            "mask": [f"masks/{_as_png(patch.file)}" for patch in self.patches] if self.has_masks else [],
            "mpp": [f"{item.mpp:.6g}" if item.mpp else "" for item in items],
        }
        metas = list(dict.fromkeys(name for item in items for name in item.meta))
        columns = {"file": [f"images/{patch.file}" for patch in self.patches]}
        columns |= {name: values for name, values in optional.items() if values and all(values)}
        columns |= {f"meta_{name}": [item.meta.get(name, "") for item in items] for name in metas}
        for place, name in enumerate(self.classes):
            columns[name] = ["" if (value := patch.labels[place]) is None else value for patch in self.patches]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        return text.getvalue()


def make_plan(title: str, source: Path, found: Found, options: ImportOptions) -> ImportPlan:
    """Apply options to what was found: classes, files, groups and parts.

    Raises
    ------
    HistoCLIPError
        If no class or no patch is left, a class that was asked for is not there, or a group or part cannot be told.
    """
    renamed = choose_classes(found.classes, options)
    classes = list(dict.fromkeys(renamed.values()))
    reserved = [name for name in classes if is_reserved(name)]
    if reserved or not 0 < len(classes) <= MAX_CLASSES:
        many = f"{len(classes)} classes" if classes else "no class"
        problem = f"{many} of at most {MAX_CLASSES}"
        if reserved:
            problem = f"{', '.join(reserved)} cannot be the name of a class"
        raise HistoCLIPError(
            f"{source}: {problem}. Choose with --classes NAME,NAME=NEW or --ignore. Found:\n"
            + bullet_list(found.classes)
        )
    notes = [f"{options.none!r} stands for none of the classes"] if options.none in found.classes else []
    items = [_renamed(item, renamed) for item in found.items]
    found = Found(found.classes, items, found.notes + notes, dict(found.left_out))
    items = _merged(_with_files(found, source, options), found)
    patches = []
    for item, file in items:
        labels = _labels(item, classes, options)
        if not item.complete and not any(labels):
            found.leave_out("no label of the classes above", item.name)
        else:
            patches.append(PlannedPatch(item, file, labels))
    patches = _with_parts(patches, found, options)
    if not patches:
        reasons = bullet_list([f"{len(names):,}: {reason} ({names[0]})" for reason, names in found.left_out.items()])
        raise HistoCLIPError(f"{source}: no patch is left to import. Left out:\n{reasons or '  - nothing was found'}")
    patches = _with_groups(patches, found, options)
    return ImportPlan(title, source, classes, patches, found.notes, found.left_out, options.changed())


def choose_classes(names: Sequence[str], options: ImportOptions) -> dict[str, str]:
    """Return the new name of each class that is imported, by its old one, in the order of `--classes`.

    Raises
    ------
    HistoCLIPError
        If `--classes` names one that is not there.
    """
    wanted = dict(_old_and_new(text) for text in options.classes) or {name: name for name in names}
    if absent := [name for name in wanted if name not in names]:
        raise HistoCLIPError(f"--classes: {', '.join(absent)} not found. The source has:\n{bullet_list(list(names))}")
    return {old: new for old, new in wanted.items() if old not in options.ignore and old != options.none}


def _old_and_new(text: str) -> tuple[str, str]:
    old, _, new = text.partition("=")
    return old.strip(), (new or old).strip()


def _renamed(item: Item, renamed: Mapping[str, str]) -> Item:
    """Return an item with the chosen classes only; what becomes one class is added up."""
    values: dict[str, list[float | None]] = {}
    for old, value in item.labels.items():
        if old in renamed:
            values.setdefault(renamed[old], []).append(value)
    labels = {new: _either(parts) for new, parts in values.items()}
    regions = item.regions
    if regions is not None:
        regions = tuple(replace(region, name=renamed[region.name]) for region in regions if region.name in renamed)
    return replace(item, labels=labels, regions=regions)


def _either(values: Sequence[float | None]) -> float | None:
    """Return the sum of what was counted; not known where only what is not known could be present."""
    total = sum(value for value in values if value is not None)
    return None if not total and None in values else total


def _labels(item: Item, classes: Sequence[str], options: ImportOptions) -> tuple[int | None, ...]:
    if item.by_coverage:
        _, coverage = class_map(item.regions, classes, item.field)
        return tuple(int(share >= options.min_coverage) for share in coverage)
    values = [item.labels.get(name, 0) for name in classes]
    return tuple(None if value is None else int(value >= options.min_count) for value in values)


def image_files(root: Path, without: Path | None = None) -> list[Path]:
    """Return all images below a folder, sorted by name, but for those below another, however it is spelled."""
    left_out, found = None if without is None else os.path.realpath(without), []
    for folder, subfolders, names in os.walk(root, followlinks=True):
        if left_out is not None and Path(os.path.realpath(folder)).is_relative_to(left_out):
            subfolders.clear()
        else:
            images = (name for name in names if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."))
            found += [Path(folder, name) for name in images]
    return sorted(found)


def _with_files(found: Found, source: Path, options: ImportOptions) -> Iterable[tuple[Item, str]]:
    """Yield items with their files, and what each is to be called below `images/`."""
    root = options.images or (source if source.is_dir() else source.parent)
    if any(item.path is None and item.read is None for item in found.items):
        index = _index(root, options.out)
        found.notes.append(f"images: {len(index[0]):,} files below {root}")
    for item in found.items:
        path = item.path
        if item.read is not None:
            yield item, _as_png(item.name)
            continue
        if path is None:
            path, problem = _looked_up(item.name, index)
            if path is None:
                found.leave_out(f"{problem} below {root}", item.name)
                continue
        if item.field is not None and (size := _size(path)) != (item.field.width, item.field.height):
            found.leave_out(f"the image has another size, {size[0]}x{size[1]}, than its annotations", item.name)
            continue
        inside = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
        yield replace(item, path=path), inside.as_posix()


Index = list[dict[str, Path | None]]


def _index(root: Path, without: Path | None) -> Index:
    """Return the images below a folder by path, by path without suffix, by name and by stem, all in lower case.

    None stands where several have it.
    """
    index: Index = [{}, {}, {}, {}]
    for path in image_files(root, without):
        inside = PurePosixPath(path.relative_to(root).as_posix())
        keys = (str(inside), str(inside.with_suffix("")), inside.name, inside.stem)
        for found, key in zip(index, keys, strict=True):
            found[key.casefold()] = None if key.casefold() in found else path
    return index


def _looked_up(name: str, index: Index) -> tuple[Path | None, str]:
    """Return the image that a source means, and what is wrong where there is none."""
    path = PurePosixPath(name.replace("\\", "/").casefold())
    for found, key in zip(index, (str(path), str(path), path.name, path.name), strict=True):
        if key in found:
            return found[key], "several images of that name"
    return None, "no image of that name"


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, ValueError, Image.DecompressionBombError):
        return 0, 0


def _merged(items: Iterable[tuple[Item, str]], found: Found) -> list[tuple[Item, str]]:
    """Unite the items of one file: labels are added up, what one knows counts, and the regions of all are drawn."""
    merged: dict[str, tuple[Item, str]] = {}
    several, unlike = set(), set()
    for item, file in items:
        if file in merged:
            several.add(file)
            first = merged[file][0]
            if (item.group, item.split) != (first.group, first.split):
                unlike.add(file)
            labels = dict(first.labels)
            for name, value in item.labels.items():
                known = [v for v in (labels.get(name, 0.0), value) if v is not None]
                labels[name] = sum(known) if known else None
            no_outline = first.regions is None or item.regions is None
            regions = None if no_outline else first.regions + item.regions
            item = replace(first, labels=labels, regions=regions, complete=first.complete and item.complete)
        merged[file] = item, file
    if several:
        found.notes.append(f"images with several lines: {len(several):,}; a label is present if any line has it")
    if unlike:
        found.notes.append(f"images whose lines differ in group or part: {len(unlike):,}; the first line counts")
    return list(merged.values())


def _with_parts(patches: list[PlannedPatch], found: Found, options: ImportOptions) -> list[PlannedPatch]:
    if options.split is not None:
        parts = read_split(options.split)
        found.notes.append(f"split: {len(parts):,} names in {options.split}")
        rest = "train" if "train" not in parts.values() else ""
    placed = []
    for patch in patches:
        item = patch.item
        if options.split is not None:
            paths = PurePosixPath(item.name), PurePosixPath(patch.file)
            names = [item.name, *(name for path in paths for name in (str(path), path.name, path.stem)), item.group]
            part = next((parts[name] for name in names if name in parts), rest)
        else:
            part = part_of(item.split)
        if not part and (options.split is not None or item.split):
            found.leave_out("in none of the parts train, val and test", f"{item.name}: {item.split}".rstrip(": "))
        else:
            placed.append(replace(patch, item=replace(item, split=part)))
    if placed and len({bool(patch.item.split) for patch in placed}) == 2:
        found.notes.append("split: not every patch has one, so there is none")
        placed = [replace(patch, item=replace(patch.item, split="")) for patch in placed]
    return placed


def _with_groups(patches: list[PlannedPatch], found: Found, options: ImportOptions) -> list[PlannedPatch]:
    if not options.group_pattern:
        if len({bool(patch.item.group) for patch in patches}) == 2:
            found.notes.append("groups: not every patch has one, so there are none")
        return patches
    texts = [patch.item.group or patch.file for patch in patches]
    groups = groups_by_pattern(options.group_pattern, texts, "--group-pattern")
    found.notes.append(f"groups: --group-pattern makes {len(set(groups)):,} of {len(set(texts)):,} names")
    return [replace(patch, item=replace(patch.item, group=group)) for patch, group in zip(patches, groups, strict=True)]


def _write_image(item: Item, target: Path, copy: bool) -> None:
    if item.read is not None:
        _write_png(item.read(), target)
        return
    if target.exists():
        if not filecmp.cmp(item.path, target, shallow=False):
            raise _another_image(target)
        if not (copy and target.samefile(item.path)):
            return
    if not copy:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(os.path.realpath(item.path), target)
            return
        except OSError:  # another disk, or a file system without hard links
            pass
    with replacing(target, durable=False) as temporary:
        shutil.copyfile(item.path, temporary)


def _write_png(pixels: np.ndarray, target: Path) -> None:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    if not target.exists():
        with replacing(target, durable=False) as temporary:
            temporary.write_bytes(content.getvalue())
    elif target.read_bytes() != content.getvalue():
        raise _another_image(target)


def _another_image(target: Path) -> HistoCLIPError:
    """Return the error for a file that no interrupted import has left, so that it is not overwritten."""
    return HistoCLIPError(
        f"{target} exists and is another image. Choose another folder with --out, or remove the file."
    )


def _as_png(file: str) -> str:
    return file if file.lower().endswith(".png") else f"{file}.png"  # a.jpg and a.png have masks of their own


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _as_typed(value: object) -> str:
    if value is True:
        return ""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value) or "''"
