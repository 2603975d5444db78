"""For tests of figures: names that break what does not expect them, and drawing as a page would."""

import io

HOSTILE = ["$x^{$", "<script>alert(1)</script>", "一" * 200, "a&b\nc"]


def draw(figure):
    """Render a figure as `figures.show` would and return its text alternative."""
    figure.savefig(io.BytesIO(), format="png", dpi=40, bbox_inches="tight")
    assert len(figure.alternative) > 20
    return figure.alternative
