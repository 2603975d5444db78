"""What every data set gives: labels, classes, groups and images that are read one at a time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from histoclip_lib.common.arrays import nan_mean
from histoclip_lib.common.errors import HistoCLIPError, bullet_list, is_unicode
from histoclip_lib.common.html import bar, element, html, picture, table, thumbnail

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

SHOWN_PATCHES, THUMBNAIL_SIDE = 6, 72  # in a notebook; pixels
NOTED = 3  # examples in a note


class PatchSource(Protocol):
    """Where the pixels of a data set come from. Must be picklable: worker processes read through it."""

    def image(self, index: int) -> np.ndarray:
        """Return patch `index` as RGB, shape (H, W, 3), uint8, or raise HistoCLIPError where it cannot be read."""

    def mask(self, index: int) -> np.ndarray | None:
        """Return the class map of patch `index`, shape (H, W), uint8: k for the k-th class, 0 for none."""

    def digest(self, index: int) -> str:
        """Return a hex digest that changes whenever the pixels of patch `index` may have changed."""


@dataclass(frozen=True)
class Note:
    """Something that was found in the data: what, in how many places, and a few of them."""

    what: str
    count: int
    examples: tuple[str, ...] = ()

    @classmethod
    def of(cls, what: str, found: list[str]) -> tuple[Note, ...]:
        """Return a note with the first examples of what was found, none where nothing was."""
        return (cls(what, len(found), tuple(found[:NOTED])),) if found else ()

    def __str__(self) -> str:
        """Return the note in one line."""
        if not self.examples:
            return self.what
        more = ", ..." if self.count > len(self.examples) else ""
        return f"{self.what}: {self.count:,} ({', '.join(self.examples)}{more})"


@dataclass(frozen=True, eq=False)
class PatchDataset:
    """Patches that carry several labels at once.

    Attributes
    ----------
    name : str
        Name of the data set, as in the parameter `dataset`.
    classes : list of str
        The N class names, in column order.
    files : list of str
        B distinct identifiers, relative to the data folder; they name a patch in every table.
    labels : ndarray of shape (B, N)
        1 where the class is present, 0 where it is not; NaN, in an array of floats, where it is not known. Unknown
        labels are left out of the loss, of baselines and of every metric.
    source : PatchSource
        Reads images and masks lazily, by their index in `files`.
    groups : ndarray of shape (B,), str, or None
        Patient or source image; patches of one group look alike and must not be on both sides of a grouped split.
    parts : ndarray of shape (B,), str, or None
        The official part of each patch: `train`, `val` or `test`.
    tissue : ndarray of shape (B,), str, or None
        Organ, where it is known.
    meta : dict of str to ndarray of shape (B,), str
        What else is known of each patch, by name (site, scanner, sex, ...); an empty text is unknown.
    has_masks : bool
        Whether `source.mask` gives masks.
    patch_mpp : ndarray of shape (B,), float, or None
        Micrometres per pixel of each patch; NaN where it is not known.
    notes : tuple of Note
        What the loader understood though it is written otherwise, and what may be wrong.
    remedies : dict of str to str
        A sentence on what to do where `groups` or `parts` are lacking.
    labels_follow_masks : bool
        Whether a rule makes the labels from the masks, so that neither can contradict the other.
    generated : bool
        Whether software painted the patches; each picture of one says so.

    Raises
    ------
    HistoCLIPError
        If the data set is empty, `labels` has the wrong shape or a value other than 0, 1 or NaN, there are not as
        many groups (or parts, tissues, mpp, metadata) as patches, a file is repeated, or a name is not valid Unicode.

    Examples
    --------
    >>> import numpy as np
    >>> from histoclip_lib import PatchDataset
    >>> labels = np.array([[1, 0], [1, 1]], dtype=np.uint8)
    >>> PatchDataset("mine", ["tumor", "stroma"], ["a.png", "b.png"], labels, source=None).prevalence
    array([1. , 0.5])
    """

    name: str
    classes: list[str]
    files: list[str]
    labels: np.ndarray
    source: PatchSource
    groups: np.ndarray | None = None
    parts: np.ndarray | None = None
    tissue: np.ndarray | None = None
    has_masks: bool = False
    patch_mpp: np.ndarray | None = None
    meta: dict[str, np.ndarray] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()
    remedies: dict[str, str] = field(default_factory=dict)
    labels_follow_masks: bool = False
    generated: bool = False

    def __post_init__(self) -> None:
        """Refuse what the rest of the library could not work with."""
        shape = (len(self.files), len(self.classes))
        if self.labels.shape != shape:
            raise HistoCLIPError(f"{self.name}: labels have shape {self.labels.shape}, expected {shape}.")
        if not self.files:
            raise HistoCLIPError(f"{self.name}: no patches were found. Check data_dir.")
        about = {"groups": self.groups, "parts": self.parts, "tissue": self.tissue, "patch_mpp": self.patch_mpp}
        about |= {f"meta {name}": values for name, values in self.meta.items()}
        about = {name: values for name, values in about.items() if values is not None}
        wrong = np.flatnonzero(~(np.isin(self.labels, (0, 1)) | np.isnan(self.labels)).all(axis=1))
        names = [
            *self.meta,
            *self.classes,
            *self.files,
            *(str(name) for values in about.values() for name in np.unique(values)),  # numbers, too, may name groups
        ]
        times = Counter(self.files)
        for problem, offenders in (
            (
                f"each of the {len(self)} patches needs one value, but there are",
                [f"{name}: {len(values)}" for name, values in about.items() if len(values) != len(self)],
            ),
            (
                "labels must be 0, 1 or, where they are not known, NaN; these patches have others",
                [f"{self.files[i]}: {self.labels[i].tolist()}" for i in wrong],
            ),
            (
                "these names are not valid Unicode and cannot be written to a table. Rename",
                [name for name in names if not is_unicode(name)],
            ),
            (
                "each file may be listed once; these appear several times",
                [f"{name} ({count} times)" for name, count in times.items() if count > 1],
            ),
        ):
            if offenders:
                raise HistoCLIPError(f"{self.name}: {problem}:\n{bullet_list(offenders)}")

    def __len__(self) -> int:
        """Return the number of patches."""
        return len(self.files)

    def image(self, index: int) -> np.ndarray:
        """Return patch `index` as RGB, shape (H, W, 3), uint8."""
        return self.source.image(int(index))

    def picture(self, index: int) -> np.ndarray:
        """Return patch `index` as people are shown it: stamped "painted" where software painted it."""
        image = self.image(index)
        return stamped(image) if self.generated else image

    def mask(self, index: int) -> np.ndarray | None:
        """Return the class map of patch `index`, shape (H, W), uint8 (0 = none), or None without masks."""
        return self.source.mask(int(index)) if self.has_masks else None

    def covered_areas(self, index: np.ndarray) -> np.ndarray:
        """Return the share of each of the patches `index` that each class covers in the mask, shape (B, N).

        NaN where a patch has no mask.
        """
        areas = np.full((len(index), len(self.classes)), np.nan)
        for line, i in zip(areas, index, strict=True):
            if (mask := self.mask(i)) is not None:
                line[:] = coverage(mask, len(self.classes))
        return areas

    @property
    def subgroups(self) -> dict[str, np.ndarray]:
        """What divides the patches into subgroups, each of shape (B,): `meta`, and the tissue where it is known."""
        return self.meta | ({} if self.tissue is None else {"tissue": self.tissue})

    @property
    def prevalence(self) -> np.ndarray:
        """Fraction of patches in which each class is present, of those where it is known, shape (N,)."""
        return nan_mean(self.labels, axis=0)

    @property
    def known(self) -> np.ndarray:
        """Where labels are known, bool (B, N)."""
        return ~np.isnan(self.labels)

    @property
    def mpp(self) -> float | None:
        """Micrometres per pixel, where all patches have the same; None where not, or where it is not known."""
        same = self.patch_mpp is not None and np.ptp(self.patch_mpp) == 0
        return float(self.patch_mpp[0]) if same else None

    def _repr_html_(self) -> str:
        """Show sizes, prevalences and six of the patches in a notebook."""
        facts = [["patches", f"{len(self):,}"], ["masks", "yes" if self.has_masks else "no"]]
        if unknown := int((~self.known).sum()):
            facts.append(["labels not known", f"{unknown:,} of {self.labels.size:,}"])
        if self.groups is not None:
            sizes = np.unique(self.groups, return_counts=True)[1]
            spread = " to ".join(f"{size:,}" for size in sorted({sizes.min(), sizes.max()}))
            facts.append(["groups", f"{len(sizes):,}, of {spread} patches"])
        for name, values in (("parts", self.parts), ("tissue", self.tissue)):
            if values is not None:
                facts.append([name, ", ".join(f"{value} {count:,}" for value, count in Counter(values).most_common())])
        classes = [
            [name, f"{count:,}", f"{share:.1%}", bar(share, f"{share:.0%} of the patches")]
            for name, count, share in zip(self.classes, (self.labels == 1).sum(axis=0), self.prevalence, strict=True)
        ]
        shown = np.unique(np.linspace(0, len(self) - 1, SHOWN_PATCHES).astype(int))
        return html(
            table([], facts, f"The data set {self.name}: its size, masks and groups."),
            table(
                ["class", "present in", "prevalence", ""],
                classes,
                f"Prevalence of each class in {len(self):,} patches.",
            ),
            element("p", *(part for index in shown for part in (self._thumbnail(index), " "))),
        )

    def _thumbnail(self, index: int) -> Element | str:
        """Return patch `index` made small, or its name where it cannot be read: `check_images` says why."""
        try:
            return picture(thumbnail(self.picture(index), THUMBNAIL_SIDE), f"patch {self.files[index]}")
        except (OSError, ValueError):
            return f"{self.files[index]} cannot be read"


def coverage(class_map: np.ndarray, n_classes: int) -> np.ndarray:
    """Return the share of a class map (H, W), uint8, that each of N classes covers, shape (N,)."""
    return np.bincount(class_map.ravel(), minlength=n_classes + 1)[1 : n_classes + 1] / class_map.size


def stamped(image: np.ndarray) -> np.ndarray:
    """Return an image (H, W, 3), uint8, with the word "painted" in its lower left corner."""
    picture = Image.fromarray(image)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(min(max(10, len(image) // 18), 40))
    corner = (3, len(image) - 3)
    left, top, right, bottom = draw.textbbox(corner, "painted", font, anchor="lb")
    draw.rectangle((left - 3, top - 2, right + 2, bottom + 2), fill="white")
    draw.text(corner, "painted", "black", font, anchor="lb")
    return np.asarray(picture)
