"""What every figure shares: style, colours, names on axes, text alternative and caption, and how it reaches a page."""

from __future__ import annotations

import functools
import io
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import ParamSpec

import matplotlib
import numpy as np
import PIL.Image
import PIL.ImageChops
import PIL.ImageStat
import seaborn as sns
from IPython.display import Image, display
from matplotlib import font_manager
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from histoclip_lib.evaluation.methods import methods

# Matplotlib brings the first font, so that figures are the same everywhere. It lacks names in Chinese, Japanese and
# Korean: the others are what systems usually have.
FONTS = (
    "DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "Microsoft YaHei", "Malgun Gothic", "PingFang SC", "Hiragino Sans", "Arial Unicode MS",
)  # fmt: skip
# Classes: cold, yellow and dark, which stand out on the pink and violet of H&E and differ in lightness.
CLASS_COLOURS = sns.color_palette(
    ["#1965d2", "#1a9850", "#e6b800", "#333333", "#00b5c8", "#8c510a", "#e4572e", "#7b3fb8", "#9ccb3b", "#8a8a8a"]
)
# Methods: HistoCLIP in pinks and violets, what it is compared with in oranges and browns, from the last family on.
METHOD_COLOURS = sns.color_palette(
    ["#a3215d", "#df65b0", "#6a3d9a", "#b39ddb", "#b35806", "#fd8d3c", "#7f3b08", "#d6a24a", "#ef6548", "#a6761d"]
) + sns.color_palette("dark", 10)
SERIES_COLOURS = sns.color_palette("Set2")  # what is neither a class nor a method
WRONG = "#b2182b"
UNCOLOURED = "0.35"  # uninformative baselines, and lines that do not show a method
MAX_NAME, MAX_LINES = 28, 3  # letters in a line, and lines of a name on an axis
SEEN = 2.0  # of 255: root mean square by which fewer colours may change a picture

Arguments = ParamSpec("Arguments")


@functools.cache
def installed_fonts() -> tuple[str, ...]:
    """Return those of FONTS that are installed."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return tuple(name for name in FONTS if name in installed)


@contextmanager
def style() -> Iterator[None]:
    """Draw in the style of the figures, and leave Matplotlib's settings as they were."""
    own = {
        "axes.prop_cycle": matplotlib.cycler(color=SERIES_COLOURS),
        "axes.titlesize": "medium",
        "figure.dpi": 100,
        "font.family": list(installed_fonts()),
        "text.parse_math": False,  # names may hold dollar signs
    }
    with matplotlib.rc_context({**sns.axes_style("whitegrid"), **sns.plotting_context("notebook"), **own}):
        yield


def figure(draw: Callable[Arguments, Figure | None]) -> Callable[Arguments, Figure | None]:
    """Make a function draw in the style of the figures; what it returns must be `described`."""

    @functools.wraps(draw)
    def styled(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure | None:
        with style():
            drawn = draw(*args, **kwargs)
        if drawn is not None:
            if not (drawn.alternative and drawn.caption):
                raise ValueError(f"{draw.__name__}: a figure needs a text alternative and a caption.")
            plt.close(drawn)  # a notebook shows those that pyplot knows below the cell, once more
        return drawn

    return styled


def described(figure: Figure, alternative: str, caption: str) -> Figure:
    """Attach a text alternative, which says the numbers, and a caption, which says what to look for."""
    figure.alternative, figure.caption = alternative, caption
    return figure


def show(figure: Figure | None) -> None:
    """Display a figure in double resolution with its text alternative and caption; a gallery of nothing is None."""
    if figure is not None:
        display(as_image(figure))


def as_image(figure: Figure) -> Image:
    """Return a figure as a page shows it; text alternative, caption and width are in the metadata of the output.

    Charts are PNG, of 256 colours where these are enough; figures that hold photographs are JPEG.
    """
    pictures = (image for axes in figure.axes for image in axes.images)
    kind = "picture" if any(np.ndim(image.get_array()) == 3 for image in pictures) else "chart"
    image = _rendered(figure)
    data = encoded(image, "jpeg", quality=70) if kind == "picture" else encoded(_few_colours(image), "png")
    metadata = {"caption": figure.caption, "kind": kind}
    return Image(data=data, alt=figure.alternative, width=image.width // 2, metadata=metadata)


def _rendered(figure: Figure) -> PIL.Image.Image:
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, dpi=200, bbox_inches="tight", pil_kwargs={"compress_level": 1})
    return PIL.Image.open(buffer).convert("RGB")


def _few_colours(image: PIL.Image.Image) -> PIL.Image.Image:
    """Return a picture with a palette, a third of its size as PNG, or the same one where that could be seen."""
    reduced = image.quantize(256, PIL.Image.Quantize.MEDIANCUT, dither=PIL.Image.Dither.NONE)
    error = PIL.ImageStat.Stat(PIL.ImageChops.difference(image, reduced.convert("RGB"))).rms
    return image if max(error) > SEEN else reduced


def encoded(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    """Return an image as the bytes of a file; `options` as of Pillow's writer for this kind."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def class_colour(k: int) -> tuple[float, float, float]:
    """Return the colour of the k-th class; the eleventh has that of the first."""
    return CLASS_COLOURS[k % len(CLASS_COLOURS)]


def method_colour(name: str) -> tuple[float, float, float] | str:
    """Return the colour of a method, the same in every figure: grey for one that is uninformative or not registered."""
    coloured = [method for method in reversed(methods().values()) if method.family != "uninformative"]
    names = [method.name for method in coloured]
    return METHOD_COLOURS[names.index(name) % len(METHOD_COLOURS)] if name in names else UNCOLOURED


def short(name: str) -> str:
    """Return a name in one line, cut after MAX_NAME letters: names from users can be of any length."""
    name = " ".join(name.split())
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"


def wrapped(name: str, width: int = MAX_NAME) -> str:
    """Break a name into at most MAX_LINES lines of `width` letters, or of half as many ideographs."""
    wide = any(unicodedata.east_asian_width(sign) in "WF" for sign in name)
    return "\n".join(textwrap.wrap(name, width // 2 if wide else width, max_lines=MAX_LINES, placeholder="…"))


def width_of(names: Iterable[str]) -> float:
    """Return about how many inches of an axis the longest line of some wrapped names takes."""
    lines = [line for name in names for line in name.splitlines()]
    signs = [sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in line) for line in lines]
    return 0.3 + 0.075 * max(signs)


def panel_grid(
    number: int, columns: int, width: float, height: float, more: float = 0.0, **options: object
) -> tuple[Figure, list[Axes]]:
    """Return a figure of `number` panels, at most `columns` in a line, each of `width` by `height` inches.

    `more` inches of height are for what stands above or below all panels; `options` as of `pyplot.subplots`.
    """
    columns = min(columns, number)
    lines = -(-number // columns)
    size = (width * columns, height * lines + more)
    drawn, grid = plt.subplots(lines, columns, figsize=size, squeeze=False, **options)
    for axes in grid.flat[number:]:
        axes.set_axis_off()
    return drawn, list(grid.flat[:number])


def heat_map(
    axes: Axes,
    values: np.ndarray,
    rows: list[str],
    columns: list[str],
    label: str,
    low: float,
    high: float,
    cmap: str = "rocket_r",
) -> None:
    """Draw values (R, C) as an annotated heat map from `low` to `high`, with `label` at the colour bar."""
    sns.heatmap(
        values, vmin=low, vmax=high, annot=True, fmt=".2f", cmap=cmap, xticklabels=[wrapped(name) for name in columns],
        yticklabels=[wrapped(name) for name in rows], linewidths=1, cbar_kws={"label": label}, ax=axes,
    )  # fmt: skip
    axes.tick_params(axis="x", rotation=30)
    axes.tick_params(axis="y", rotation=0)
    for tick in axes.get_xticklabels():
        tick.set_horizontalalignment("right")


def confusion_heat_map(
    axes: Axes, fractions: np.ndarray, text: np.ndarray, rows: list[str], columns: list[str], **options: object
) -> None:
    """Draw fractions (R, C) in blue from 0 to 1 with `text` in the cells; `options` as of `seaborn.heatmap`."""
    sns.heatmap(
        fractions, vmin=0, vmax=1, annot=text, fmt="", cmap="Blues", square=True, linewidths=1, ax=axes,
        xticklabels=columns, yticklabels=rows, **options,
    )  # fmt: skip


def listed(names: Iterable[str], values: Iterable[float], digits: int = 2) -> str:
    """Write names with their values, for a text alternative."""
    return ", ".join(f"{name} {value:.{digits}f}" for name, value in zip(names, values, strict=True))
