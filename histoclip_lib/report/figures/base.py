"""What every figure shares: style, colours, text alternatives, and how one reaches the page."""

from __future__ import annotations

import io

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

# For names in Chinese, Japanese and Korean, which the first font lacks: what systems usually have.
MORE_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
    "Microsoft YaHei", "Malgun Gothic", "PingFang SC", "Hiragino Sans", "Arial Unicode MS",
)  # fmt: skip
INSTALLED_FONTS = {font.name for font in font_manager.fontManager.ttflist}

sns.set_theme(style="whitegrid", context="notebook", palette="colorblind")
matplotlib.rcParams.update(
    {
        "text.parse_math": False,
        "figure.dpi": 100,
        "axes.titlesize": "medium",
        "font.family": ["sans-serif", *(name for name in MORE_FONTS if name in INSTALLED_FONTS)],
    }
)

CLASS_COLOURS = sns.color_palette("colorblind", 10)
MAX_NAME = 28
LARGE_PNG = 400_000  # bytes
SEEN = 2.0  # of 255: root mean square by which fewer colours may change a picture


def described(figure: Figure, alternative: str) -> Figure:
    """Attach a text alternative to a figure; `show` hands it to the page."""
    figure.alternative = alternative
    return figure


def show(figure: Figure | None) -> None:
    """Display a figure in double resolution with its text alternative, and close it; a gallery of nothing is None."""
    if figure is not None:
        display(as_image(figure))


def as_image(figure: Figure) -> Image:
    """Return a figure as `show` displays it, and close it.

    As PNG of 256 colours where these are enough, which they are for all but photographs; else as PNG, or as JPEG where
    PNG takes more than LARGE_PNG bytes.
    """
    data = _few_colours(_rendered(figure, format="png"))
    width = int.from_bytes(data[16:20], "big") // 2  # the PNG header holds the width in pixels
    if len(data) > LARGE_PNG:
        data = _rendered(figure, format="jpeg", pil_kwargs={"quality": 70})
    plt.close(figure)
    return Image(data=data, alt=figure.alternative, width=width)


def _rendered(figure: Figure, **options: object) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=200, bbox_inches="tight", **options)
    return buffer.getvalue()


def _few_colours(png: bytes) -> bytes:
    """Return a PNG with a palette, a third of the size, or the same one where that could be seen."""
    image = PIL.Image.open(io.BytesIO(png)).convert("RGB")
    reduced = image.quantize(256, PIL.Image.Quantize.MEDIANCUT, dither=PIL.Image.Dither.NONE)
    error = PIL.ImageStat.Stat(PIL.ImageChops.difference(image, reduced.convert("RGB"))).rms
    if max(error) > SEEN:
        return png
    buffer = io.BytesIO()
    reduced.save(buffer, "png")
    return buffer.getvalue()


def short(name: str) -> str:
    """Return a name that fits on an axis: names from users can be of any length."""
    name = " ".join(name.split())
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"


def short_names(classes: list[str]) -> list[str]:
    """Return names that fit on an axis."""
    return [short(name) for name in classes]


def heat_map(
    axes: Axes,
    values: np.ndarray,
    rows: list[str],
    columns: list[str],
    label: str,
    low: float,
    high: float,
    fmt: str = ".2f",
    cmap: str = "rocket_r",
) -> None:
    """Draw values (R, C) as an annotated heat map from `low` to `high`, with `label` at the colour bar."""
    sns.heatmap(
        values,
        vmin=low,
        vmax=high,
        annot=True,
        fmt=fmt,
        cmap=cmap,
        xticklabels=columns,
        yticklabels=rows,
        linewidths=1,
        cbar_kws={"label": label},
        ax=axes,
    )
    axes.tick_params(axis="x", rotation=30)
    axes.tick_params(axis="y", rotation=0)
    for tick in axes.get_xticklabels():
        tick.set_horizontalalignment("right")
