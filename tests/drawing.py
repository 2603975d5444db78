"""For tests of figures: names that break what does not expect them, and drawing as a page would."""

import io

from histoclip_lib.report.figures.base import style

HOSTILE = ["$x^{$", "<script>alert(1)</script>", "一" * 200, "a&b\nc"]


def hostile(n_classes):
    """Return as many distinct names."""
    return [HOSTILE[k % 4] + str(k // 4) for k in range(n_classes)]


def draw(figure):
    """Render a figure as `figures.show` would and return its text alternative."""
    with style():
        figure.savefig(io.BytesIO(), format="png", dpi=40, bbox_inches="tight")
    assert len(figure.alternative) > 20
    assert 20 < len(figure.caption) < 400
    assert "nan" not in figure.caption
    return figure.alternative
