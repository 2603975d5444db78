import pytest
from bs4 import BeautifulSoup
from hypothesis import given, settings
from hypothesis import strategies as st

from histoclip_lib.common.html import as_typed
from histoclip_lib.report.html import markdown_to_html

HOSTILE = [
    "a|b",
    "<script>alert(1)</script>",
    "`",
    "``",
    "a`b``c",
    "$x$ and $",
    "\\",
    "*a* [l](javascript:x)",
    "&amp;",
    "```py",
]


def shown(source):
    return BeautifulSoup(markdown_to_html(source), "html.parser")


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_shown_as_it_was_typed_and_does_nothing(text):
    for source in (f"- {as_typed(text)}: of $1$", f"# {as_typed(text)}", f"x {as_typed(text)}, {as_typed(text)} y"):
        page = shown(source)
        assert {code.get_text() for code in page.select("code")} == {text}
        assert not page.select("script, a[href], em, pre")


@settings(max_examples=200, deadline=None)
@given(st.text("`$|*<>&\\[]_ ab\n", max_size=12))
def test_any_text_is_shown_with_its_line_breaks_as_spaces(text):
    page = shown(f"- {as_typed(text)} end")
    assert page.select_one("code").get_text().strip() == " ".join(text.split())
    assert page.get_text().strip().endswith("end")
