"""Patches cut out of slides and large images, for the importers: which slide, which squares, and their pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from histoclip_lib.common.errors import HistoCLIPError, shown
from histoclip_lib.data.importers.plan import Found, ImportOptions, Item
from histoclip_lib.data.regions import Field
from histoclip_lib.slides.reading import is_dicom_slide

if TYPE_CHECKING:
    from histoclip_lib.slides.reading import Slide

PLAIN = (".png", ".jpg", ".jpeg", ".bmp")  # they have no micrometres per pixel of their own
CUT_OPTIONS = ("slide", "patch", "patch_um", "mpp")


@lru_cache(maxsize=1)  # patches are read slide by slide
def opened(path: Path, mpp: float | None, in_pixels: bool) -> Slide:
    """Return a slide; the mpp of a plain image is not needed, and None, where fields are given in pixels.

    Raises
    ------
    HistoCLIPError
        If it cannot be read, or its mpp is needed and not known.
    """
    from histoclip_lib.slides.reading import open_slide

    if in_pixels and mpp is None and path.suffix.lower() in PLAIN:
        return replace(open_slide(path, 1.0), mpp=None)
    return open_slide(path, mpp)


@dataclass(frozen=True)
class Cutter:
    """Cuts the patches of one slide.

    Attributes
    ----------
    path : Path
        The slide.
    options : ImportOptions
        With the size of patches.
    """

    path: Path
    options: ImportOptions

    @property
    def slide(self) -> Slide:
        """The slide, opened."""
        return opened(self.path, self.options.mpp, self.options.patch_um is None)

    @property
    def side(self) -> int:
        """Of a field, in level-0 pixels."""
        um = self.options.patch_um
        return self.options.patch if um is None else max(1, round(um / self.slide.mpp))

    def about(self) -> str:
        """Say what is cut, in words."""
        pixels, slide, side = self.options.patch, self.slide, self.side
        um = f" ({side * slide.mpp:.4g} um)" if slide.mpp else ""
        size = f"{slide.width:,}x{slide.height:,} pixels"
        return f"{self.path.name}: {size}; a patch shows {side}x{side} of them{um} as {pixels}x{pixels}"

    def corners(self) -> Iterator[tuple[int, int]]:
        """Yield the upper left corners of all fields of the grid that lie within the slide."""
        for y in range(0, self.slide.height - self.side + 1, self.side):
            for x in range(0, self.slide.width - self.side + 1, self.side):
                yield x, y

    def is_inside(self, x: int, y: int) -> bool:
        """Whether a field lies within the slide."""
        return 0 <= x <= self.slide.width - self.side and 0 <= y <= self.slide.height - self.side

    def field(self, x: int, y: int) -> Field:
        """Return a field as its patch shows it."""
        return Field(x, y, self.options.patch / self.side, self.options.patch, self.options.patch)

    def item(self, x: int, y: int, labels: dict[str, float | None], side: int = 0, **more: object) -> Item:
        """Return the patch at (x, y); `side` level-0 pixels where it is not the usual field."""
        side = side or self.side
        mpp = side * self.slide.mpp / self.options.patch if self.slide.mpp else None
        return Item(
            f"{self.path.stem}_x{x}_y{y}",
            labels,
            group=self.path.stem,
            read=lambda: self.slide.read_field(x, y, side, self.options.patch),
            mpp=mpp,
            **more,
        )


def sources(
    source: Path, suffixes: tuple[str, ...], options: ImportOptions, found: Found
) -> Iterator[tuple[Path, Cutter]]:
    """Yield each file of labels with its slide.

    Where `source` or `--slide` is a folder, a file belongs to the slide whose name, without suffix, is the longest that
    its own name begins with; no letter or digit follows, so that `patient10.csv` does not belong to `patient1.svs`.

    Raises
    ------
    HistoCLIPError
        If `--slide` is not given or not there, or no file has a slide.
    """
    if options.slide is None:
        raise HistoCLIPError("--slide: name the slide that the labels belong to, or a folder of slides.")
    if not options.slide.exists():
        raise HistoCLIPError(f"--slide: {options.slide} does not exist.")
    files = [source] if source.is_file() else [f for f in sorted(source.iterdir()) if f.name.lower().endswith(suffixes)]
    slides = [options.slide]
    if not _is_slide(options.slide):
        here = [path for path in sorted(options.slide.iterdir()) if _is_slide(path) and not path.name.startswith(".")]
        slides = sorted((f for f in here if not f.name.lower().endswith(suffixes)), key=lambda f: -len(f.stem))
    used = 0
    for path in files:
        only = slides == [options.slide] and source.is_file()
        slide = next((slide for slide in slides if only or _is_of(path.name, slide.stem)), None)
        if slide is None:
            found.leave_out(f"no slide of that name in {options.slide}", path.name)
            continue
        used += 1
        cutter = Cutter(slide, options)
        found.notes.append(cutter.about())
        yield path, cutter
    if not used:
        names = shown([slide.name for slide in slides], 300)
        raise HistoCLIPError(f"{source}: no file of labels has a slide in {options.slide}. Slides there: {names}.")


def _is_of(name: str, slide: str) -> bool:
    return name.startswith(slide) and not name[len(slide) :][:1].isalnum()


def _is_slide(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and is_dicom_slide(path))
