"""HTML and Markdown from untrusted text, which is always escaped."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from xml.etree import ElementTree

import numpy as np
from PIL import Image

ACCENT, REFERENCE = "#4c7fb8", "#c2651a"  # readable on white and on black
WIDTH, BINS, AXIS_WIDTH = 120, 24, 200  # of a bar or histogram, in pixels; of a histogram; of the axis of an interval
JPEG_QUALITY = 85
EXPLORER_TYPE = "application/vnd.histoclip.explorer+json"  # of outputs of which a page makes an explorer
Node = ElementTree.Element | str


def element(tag: str, *children: Node, **attributes: object) -> ElementTree.Element:
    """Return an element of HTML; texts among the children and attributes are escaped when it is written.

    In names of attributes a trailing underscore is dropped (`class_`) and others become hyphens.
    """
    named = {name.rstrip("_").replace("_", "-"): str(value) for name, value in attributes.items()}
    node = ElementTree.Element(tag, named)
    last = None
    for child in children:
        if isinstance(child, ElementTree.Element):
            node.append(child)
            last = child
        elif last is None:
            node.text = (node.text or "") + child
        else:
            last.tail = (last.tail or "") + child
    return node


def html(*nodes: Node) -> str:
    """Write elements and texts as HTML, in their order."""
    # As XML, since the HTML writer does not escape `<` in attributes. HTML has no end tag for an image.
    written = ElementTree.tostring(element("div", *nodes), encoding="unicode", short_empty_elements=False)
    return written.removeprefix("<div>").removesuffix("</div>").replace("></img>", ">")


def table(header: Sequence[Node], lines: Sequence[Sequence[Node]], caption: str = "") -> ElementTree.Element:
    """Return a table; the first cell of each line is its heading, and the header may be empty."""
    parts = [element("caption", caption)] if caption else []
    if header:
        parts.append(element("thead", element("tr", *(element("th", cell, scope="col") for cell in header))))
    body = [
        element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in rest))
        for first, *rest in lines
    ]
    return element("table", *parts, element("tbody", *body))


def picture(image: np.ndarray, alternative: str) -> ElementTree.Element:
    """Return an image (H, W, 3), uint8, as a JPEG inside the HTML, a CSS pixel for each of its own."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return element("img", src=f"data:image/jpeg;base64,{data}", alt=alternative, width=image.shape[1])


def thumbnail(image: np.ndarray, side: int) -> np.ndarray:
    """Return an image (H, W, 3), uint8, shrunk to fit a square of `side` pixels."""
    small = Image.fromarray(image)
    small.thumbnail((side, side))
    return np.asarray(small)


def bar(fraction: float, alternative: str) -> ElementTree.Element:
    """Return a horizontal bar that is filled up to `fraction`, from 0 to 1."""
    whole = _box(0, 0, WIDTH, 10, fill=ACCENT, fill_opacity=0.2)
    filled = _box(0, 0, WIDTH * min(max(fraction, 0.0), 1.0), 10, fill=ACCENT)
    return _drawing(alternative, WIDTH, 10, whole, filled)


def histogram(values: np.ndarray, alternative: str) -> ElementTree.Element:
    """Return a small histogram of values of any shape; those that are not finite are left out."""
    finite = np.asarray(values, dtype=float).ravel()
    finite = finite[np.isfinite(finite)]
    counts = np.zeros(BINS, dtype=int)
    if len(finite) and np.ptp(finite) <= 1e-9 * np.abs(finite).max():  # np.histogram refuses what is nearly one value
        counts[BINS // 2] = len(finite)
    elif len(finite):
        counts = np.histogram(finite, BINS)[0]
    step, highest = WIDTH / BINS, max(1, counts.max())
    bars = [
        _box(k * step, 24 * (1 - count / highest), step * 0.85, 24 * count / highest, fill=ACCENT)
        for k, count in enumerate(counts)
    ]
    return _drawing(alternative, WIDTH, 25, *bars, _box(0, 24, WIDTH, 1, fill=ACCENT))


def interval(
    value: float, low: float, high: float, reference: float | None, axis: tuple[float, float], alternative: str
) -> ElementTree.Element:
    """Return a dot on the line of its interval, and a reference as a tick, on an axis from one number to another."""

    def x(number: float) -> float:
        return 4 + (AXIS_WIDTH - 8) * (number - axis[0]) / (axis[1] - axis[0])

    tick = [] if reference is None else [_box(x(reference) - 1, 0, 2, 14, fill=REFERENCE)]
    return _drawing(
        alternative,
        AXIS_WIDTH,
        14,
        _box(0, 6.5, AXIS_WIDTH, 1, fill=ACCENT, fill_opacity=0.3),
        *tick,
        _box(x(low), 5, x(high) - x(low), 4, fill=ACCENT, fill_opacity=0.6),
        element("circle", cx=f"{x(value):.2f}", cy=7, r=4, fill=ACCENT),
    )


def _drawing(alternative: str, width: int, height: int, *shapes: Node) -> ElementTree.Element:
    drawing = element("svg", *shapes, width=width, height=height, role="img", xmlns="http://www.w3.org/2000/svg")
    drawing.set("viewBox", f"0 0 {width} {height}")
    drawing.set("aria-label", alternative)
    return drawing


def _box(x: float, y: float, width: float, height: float, **attributes: object) -> ElementTree.Element:
    return element("rect", x=f"{x:.2f}", y=f"{y:.2f}", width=f"{width:.2f}", height=f"{height:.2f}", **attributes)


def as_typed(text: str) -> str:
    """Return text as inline code in Markdown, whatever it contains; only its line breaks become spaces."""
    text = " ".join(text.split())
    fence = "`" * (1 + max(len(run) for run in re.findall("`*", text)))
    return f"{fence} {text} {fence}"
