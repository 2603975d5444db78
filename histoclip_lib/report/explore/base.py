"""What every explorer shares: the object that a cell shows, and its controls and views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ipywidgets
from matplotlib import colors
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from histoclip_lib.common.html import Node, element, html
from histoclip_lib.report.figures.base import CLASS_COLOURS, as_image, short

STYLE = {"description_width": "7em"}
WIDE, BESIDE = "26em", {"margin": "0 1.5em 0 0"}


@dataclass(frozen=True, eq=False)
class Explorer:
    """A widget and the picture that stands in its place on a page.

    JupyterLab shows the richest part of what a cell gives, the widget. A page has no kernel: there the same cell
    shows the picture.

    Attributes
    ----------
    widget : ipywidgets.Widget
        The box with all controls and views.
    controls : dict of str to ipywidgets.Widget
        What can be moved; a program may set `.value` as a reader would.
    views : dict of str to ipywidgets.HTML
        What follows; `.value` is its HTML.
    static : Figure or object with `_repr_mimebundle_`
        What a page shows; a figure brings its text alternative.
    """

    widget: ipywidgets.Widget
    controls: dict[str, ipywidgets.Widget]
    views: dict[str, ipywidgets.HTML]
    static: object

    def __post_init__(self) -> None:
        """Close the figure: a notebook shows those that are left open below the cell, once more."""
        if isinstance(self.static, Figure):
            plt.close(self.static)

    def _repr_mimebundle_(self, **kwargs: object) -> tuple[dict, dict]:
        """Return the widget's view and the picture in one bundle; the front end takes what it can show."""
        picture = as_image(self.static) if isinstance(self.static, Figure) else self.static
        bundle = picture._repr_mimebundle_()
        drawn, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return self.widget._repr_mimebundle_() | drawn, metadata


def choice(description: str, names: Sequence[str], tooltip: str, first: str | None = None) -> ipywidgets.Dropdown:
    """Return a list to choose from, whose value is a position in `names`, or -1 for the entry `first` before them."""
    options = [(short(name), position) for position, name in enumerate(names)]
    if first is not None:
        options.insert(0, (first, -1))
    return ipywidgets.Dropdown(
        options=options, value=options[0][1], description=description, tooltip=tooltip, style=STYLE,
        layout={"width": WIDE},
    )  # fmt: skip


def counter(description: str, count: int, tooltip: str) -> ipywidgets.IntSlider:
    """Return a slider over the positions 1 to `count`."""
    return ipywidgets.IntSlider(
        value=1, min=1, max=max(1, count), description=description, tooltip=tooltip, style=STYLE,
        layout={"width": WIDE},
    )  # fmt: skip


def set_quietly(values: dict[ipywidgets.Widget, object], follow: Callable[[], None]) -> None:
    """Set several controls that `follow` observes, and call it once instead of after each."""
    for control in values:
        control.unobserve(follow, "value")
    for control, value in values.items():
        control.value = value
    for control in values:
        control.observe(follow, "value")
    follow()


def write(view: ipywidgets.HTML, *nodes: Node) -> None:
    """Fill a view; JupyterLab's style for rendered HTML gives its tables their look."""
    view.value = html(element("div", *nodes, class_="jp-RenderedHTMLCommon"))


def beside(*widgets: ipywidgets.Widget) -> ipywidgets.Box:
    """Return widgets side by side, below each other where there is no room."""
    return ipywidgets.Box(widgets, layout={"flex_flow": "row wrap", "align_items": "flex-start"})


def swatch(k: int) -> Node:
    """Return a square in the colour of class `k`."""
    return element("span", "■", style=f"color: {colors.to_hex(CLASS_COLOURS[k % 10])}")
