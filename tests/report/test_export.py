"""Pages: what a reader sees, what never reaches them, and that nothing they were given can act."""

import base64
import io
import re
from xml.etree import ElementTree

import nbformat
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from hypothesis import given, settings
from hypothesis import strategies as st
from IPython.display import Image as DisplayImage
from nbformat import v4
from PIL import Image

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.report.export import export_page, read_parameters, visible_text
from histoclip_lib.report.html import clean_html, clean_output, finish_article, markdown_to_html, math_to_mathml
from histoclip_lib.report.notebooks import run_navigation, run_notebooks
from histoclip_lib.report.tables import Table

HOSTILE = [
    "<script>window.hit=1</script>",
    '"><img src=x onerror="window.hit=1">',
    "a&b",
    "<svg onload=window.hit=1></svg>",
    "<a href='javascript:window.hit=1'>x</a>",
    "<iframe src='https://example.org'></iframe>",
    "<style>body{display:none}</style>",
    r"$\text{<script>window.hit=1</script>}\href{javascript:window.hit=1}{x}$",
]
PROSE = (
    "Each patch carries several labels at once. We compare four zero-shot strategies with a trained matching of "
    "image and class embeddings, and with predictors that never look at the image, since a label-wise accuracy "
    "rewards whoever predicts the common answer. "
)


def png(width=1200, height=500, color=(214, 160, 196)):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), color).save(buffer, "png")
    return buffer.getvalue()


def figure(alt="Bars of mAcc by strategy", **metadata):
    data = {"image/png": base64.b64encode(png()).decode(), "text/plain": "<Figure size 640x480>"}
    return v4.new_output("display_data", data=data, metadata={"image/png": {"alt": alt, **metadata}})


def table(frame):
    return v4.new_output("display_data", data={"text/html": frame._repr_html_(), "text/plain": str(frame)})


def tagged(cell, *tags):
    cell.metadata["tags"] = list(tags)
    return cell


def code(source="scores", *outputs):
    return v4.new_code_cell(source, outputs=list(outputs))


def report_cells():
    wide = pd.DataFrame(
        {f"column {i}": [0.1234 * i, 12.5] for i in range(12)}, index=["tumor epithelium", "lymphocytes"]
    )
    return [
        v4.new_markdown_cell("# Zero-shot strategies\n\n" + PROSE),
        tagged(code('name = "demo"  # names the run\nepochs = 30  # passes over the train part'), "parameters"),
        tagged(code('# Parameters\nname = "pannuke"\n'), "injected-parameters"),
        tagged(v4.new_markdown_cell("REMOVED CELL"), "remove-cell"),
        tagged(code("HIDDEN = 1", v4.new_output("stream", text="HIDDEN OUTPUT\n")), "hide"),
        v4.new_markdown_cell(
            "## The decision\n\n" + PROSE + "\n\n$$\\hat y = \\sigma(\\cos(z, c)) \\ge 0.5$$\n\n" + PROSE
        ),
        code("show(scores)  # a < b", table(wide), figure(width=600, height=250)),
        v4.new_markdown_cell(
            "### In detail\n\nWith $a < b$ and [the next page](03_train.ipynb#the-decision).\n\n"
            "$$\\mathcal{L} = -\\frac{1}{BN}\\sum_{i=1}^{B}\\sum_{c=1}^{N}\\left[y_{ic}\\log\\sigma(s_{ic})"
            "+(1-y_{ic})\\log(1-\\sigma(s_{ic}))\\right]$$\n\n"
            "- one\n- two\n\n| Rule | mAcc |\n|---|---|\n| sigma | 0.41 |\n"
        ),
        code(
            "run()",
            v4.new_output("stream", name="stderr", text="UserWarning: STDERR\n"),
            v4.new_output("stream", text="kept line\n\r 10%|#  | 1/10\r100%|###| 10/10 [00:01<00:00]\n"),
            v4.new_output("stream", text="100%|██████████| 10/10 [00:00<00:00]\n"),
            v4.new_output("error", ename="E", evalue="EVALUE", traceback=["TRACEBACK"]),
            v4.new_output(
                "display_data",
                data={"application/vnd.jupyter.widget-view+json": {"model_id": "m"}, "text/plain": "WIDGET"},
            ),
            v4.new_output("display_data", data={"application/javascript": "window.hit=1"}),
        ),
        v4.new_markdown_cell("## What follows\n\n" + PROSE * 6),
    ]


def hostile_cells():
    frame = pd.DataFrame({"<b onclick=window.hit=1>class</b>": HOSTILE, "n": range(len(HOSTILE))}, index=HOSTILE)
    cells = [
        code("t", table(frame)),
        code("raw", v4.new_output("display_data", data={"text/html": "".join(HOSTILE)})),
    ]
    for name in HOSTILE:
        cells.append(v4.new_markdown_cell(f"## {name}\n\n{name} ![{name}](https://example.org/x.png)"))
        cells.append(code(f"x = '''{name}'''", figure(alt=name), v4.new_output("stream", text=name)))
        cells.append(code("m", v4.new_output("display_data", data={"text/markdown": f"**{name}**"})))
        cells.append(code("p", v4.new_output("execute_result", data={"text/plain": name})))
    cells.append(code("w", figure(alt="x", width='1" onload="window.hit=1')))
    cells.append(tagged(code(f"name = {HOSTILE[0]!r}  # {HOSTILE[1]}"), "injected-parameters"))
    cells.append(v4.new_raw_cell("<script>window.hit=1</script>"))
    svg = '<svg xmlns="http://www.w3.org/2000/svg"><script>window.hit=1</script></svg>'
    cells.append(code("s", v4.new_output("display_data", data={"image/svg+xml": svg})))
    return cells


def export(folder, cells, title="demo · 02 Zero-shot", current="02_zero_shot", as_heading=False, **provenance):
    notebook = v4.new_notebook(cells=cells)
    notebook.metadata["language_info"] = {"name": "python"}
    path = folder / f"{current}.ipynb"
    nbformat.write(notebook, path)
    page = folder / f"{current}.html"
    provenance = provenance or {"commit": "0123abc", "device": "cpu", "torch": "2.10.0"}
    navigation = run_navigation(current, list(run_notebooks()))
    export_page(path, page, title, navigation, provenance, as_heading=as_heading)
    return page


def soup_of(page):
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return export(tmp_path_factory.mktemp("demo"), report_cells())


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    return export(folder, hostile_cells(), title=HOSTILE[1], **{HOSTILE[0]: HOSTILE[1]})


# What the page holds


def test_tables_with_captions_are_numbered_but_for_that_of_the_parameters():
    table = "<table><caption>All <b>methods</b>.</caption><tr><td>1</td></tr></table>"
    hidden = table.replace("All", "Parameters")
    html = f"{table}<table><tr><td>2</td></tr></table><details class='parameters'>{hidden}</details>{table}"
    soup = BeautifulSoup(finish_article(html).html, "html.parser")
    captions = [caption.get_text() for caption in soup.select("caption")]
    assert captions == ["Table 1# All methods.", "Parameters methods.", "Table 2# All methods."]
    assert [own["id"] for own in soup.select("table[id]")] == ["table-1", "table-2"]


def test_hidden_and_failed_things_never_reach_the_page(report):
    text = report.read_text(encoding="utf-8")
    for absent in ("REMOVED CELL", "HIDDEN", "STDERR", "EVALUE", "TRACEBACK", "WIDGET", "10/10", "window.hit"):
        assert absent not in text
    assert "kept line" in text


def test_one_h1_and_contents_of_h2_and_h3(report):
    soup = soup_of(report)
    assert [h.get_text() for h in soup.find_all("h1")] == ["Zero-shot strategies"]
    entries = soup.select(".contents a")
    expected = ["The decision", "In detail", "What follows", "How this page was made"]
    assert [a.get_text() for a in entries] == expected
    assert all(soup.find(id=a["href"][1:]).name in ("h2", "h3") for a in entries)


def test_title_is_h1_where_the_notebook_has_none(tmp_path):
    soup = soup_of(export(tmp_path, [v4.new_markdown_cell("text")], title="Data & more"))
    assert soup.h1.get_text() == "Data & more"
    assert soup.title.get_text() == "Data & more · HistoCLIP"


def test_title_takes_the_place_of_the_notebook_s_own(tmp_path):
    soup = soup_of(export(tmp_path, [v4.new_markdown_cell("# Two runs")], title="A & B", as_heading=True))
    assert (soup.h1.get_text(), soup.select_one(".kicker").get_text()) == ("A & B", "Two runs")


def test_navigation_marks_the_current_page_and_turns(report):
    soup = soup_of(report)
    assert soup.select_one(".pages [aria-current]").get_text() == "02 Zero-shot"
    assert soup.select_one("[rel=prev]")["href"] == "01_data.html"
    assert soup.select_one("[rel=next]")["href"] == "03_train.html"
    assert soup.select_one(".pages a")["href"] == "../index.html"


def test_the_last_page_turns_back_only(tmp_path):
    soup = soup_of(export(tmp_path, [], current="07_slides"))
    assert soup.select_one("[rel=next]") is None
    assert soup.select_one("[rel=prev]")["href"] == "06_attention.html"


def test_parameters_become_one_table_with_the_comments_of_the_defaults(report):
    table_ = soup_of(report).find("caption", string="Parameters").parent
    rows = [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in table_.tbody.find_all("tr")]
    assert rows == [["name", '"pannuke"', "names the run"], ["epochs", "30", "passes over the train part"]]


def test_figures_keep_alt_and_half_size(report):
    image = soup_of(report).select_one("figure img")
    assert (image["alt"], image["width"], image["height"]) == ("Bars of mAcc by strategy", "600", "250")
    assert image["src"].startswith("data:image/png;base64,")


def test_alt_and_caption_of_an_image_reach_the_page(tmp_path):
    drawn = DisplayImage(data=png(80, 40), alt="Two <patches>", width=40, metadata={"caption": "Look at <b>."})
    data, metadata = drawn._repr_png_()
    data = base64.b64encode(data).decode() if isinstance(data, bytes) else data
    output = v4.new_output("display_data", data={"image/png": data}, metadata={"image/png": metadata})
    figure = soup_of(export(tmp_path, [code("show", output)])).figure
    assert (figure.img["alt"], figure.img["width"]) == ("Two <patches>", "40")
    assert figure.figcaption.get_text() == "Figure 1# Look at <b>."


def test_provenance_stands_at_the_foot(report):
    rows = soup_of(report).select(".provenance tr")
    assert [row.get_text(" ", strip=True) for row in rows] == ["commit 0123abc", "device cpu", "torch 2.10.0"]


def test_code_is_folded_and_highlighted(report):
    folds = soup_of(report).select("article details.code")
    assert len(folds) == 2  # the two cells that assign parameters are shown as a table
    assert not any(fold.has_attr("open") for fold in folds)
    assert "show(scores)  # a < b" in folds[0].get_text()
    assert folds[0].select_one(".c1")


def test_local_images_are_inlined_and_others_are_not_fetched(tmp_path):
    (tmp_path / "stain.png").write_bytes(png(8, 8))
    cell = v4.new_markdown_cell("![stain](stain.png) ![gone](https://example.org/x.png)")
    soup = soup_of(export(tmp_path, [cell]))
    assert [i["alt"] for i in soup.select("article img")] == ["stain"]
    assert soup.select_one("article img")["src"].startswith("data:image/png;base64,")
    assert "example.org" not in str(soup)
    assert "gone" in soup.article.get_text()


def test_page_is_replaced_whole_or_not_at_all(tmp_path):
    page = export(tmp_path, [])
    before = page.read_bytes()
    (tmp_path / "bad.ipynb").write_text("{not json")
    with pytest.raises(HistoCLIPError, match=r"bad\.ipynb is not a notebook"):
        export_page(tmp_path / "bad.ipynb", page, "t", [], {})
    assert page.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["02_zero_shot.html", "02_zero_shot.ipynb", "bad.ipynb"]


@pytest.mark.parametrize("content", ["[]", "{}", '{"nbformat": 4, "cells": 3}', "3", "\xff"])
def test_files_that_are_no_notebooks_are_refused(tmp_path, content):
    path = tmp_path / "n.ipynb"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(HistoCLIPError, match="is not a notebook"):
        export_page(path, tmp_path / "n.html", "t", [], {})


def test_absent_notebook_is_named(tmp_path):
    with pytest.raises(HistoCLIPError, match=r"gone\.ipynb was not found"):
        export_page(tmp_path / "gone.ipynb", tmp_path / "n.html", "t", [], {})


# Cleaning


def test_library_html_survives_cleaning():
    html = (
        '<figure><img alt="a" src="data:image/png;base64,AAAA" width="3"><figcaption>c</figcaption></figure>'
        '<details open=""><summary>s</summary><p>x</p></details>'
        '<table class="dataframe"><tbody><tr><th colspan="2">h</th></tr></tbody></table>'
    )
    assert BeautifulSoup(clean_html(html), "html.parser") == BeautifulSoup(html, "html.parser")


def test_pandas_style_sheet_goes_with_its_contents():
    html = clean_output(pd.DataFrame({"a": [1]})._repr_html_())
    assert "vertical-align" not in html
    assert 'class="dataframe"' in html


def test_inline_svg_becomes_an_image_with_its_label():
    html = clean_html('<svg viewBox="0 0 1 1" aria-label="a &amp; &quot;b&quot;"><script>hit()</script></svg>')
    image = BeautifulSoup(html, "html.parser").img
    assert image["alt"] == 'a & "b"'
    svg = base64.b64decode(image["src"].partition(",")[2]).decode()
    assert svg.startswith('<svg xmlns="http://www.w3.org/2000/svg" viewBox')


@pytest.mark.parametrize("href", ["javascript:x", " JaVaScRiPt:x", "java\tscript:x", "data:text/html,x", "vbscript:x"])
def test_links_that_run_are_disarmed(href):
    link = BeautifulSoup(clean_html(f'<a href="{href}">x</a>'), "html.parser").a
    assert not link.has_attr("href")


@pytest.mark.parametrize("href", ["https://example.org/a:b", "mailto:a@b.org", "#a", "02.html?x=a:b", "a/b:c"])
def test_links_that_lead_somewhere_stay(href):
    assert BeautifulSoup(clean_html(f'<a href="{href}">x</a>'), "html.parser").a["href"] == href


def test_inline_tags_keep_their_contents():
    assert "H<sub>2</sub>O" in markdown_to_html("H<sub>2</sub>O")


def test_code_and_quotes_are_not_escaped_twice():
    html = markdown_to_html("> quote\n\n`a < b`\n\n```\nx < y && z\n```")
    soup = BeautifulSoup(html, "html.parser")
    assert soup.blockquote
    assert [c.get_text().strip() for c in soup.find_all("code")] == ["a < b", "x < y && z"]


def acts(html):
    """Return what in a page's HTML could run or fetch."""
    soup = BeautifulSoup(html, "html.parser")
    found = [tag.name for tag in soup.find_all(["script", "iframe", "object", "embed", "link", "base", "form", "meta"])]
    for tag in soup.find_all(True):
        found += [name for name in tag.attrs if name.startswith("on") or name in ("style", "srcdoc", "id", "name")]
        for name in ("href", "src", "xlink:href"):
            value = re.sub(r"[\x00-\x20]", "", str(tag.get(name, ""))).lower()
            if value.startswith(("javascript:", "vbscript:", "data:text")) or (name == "src" and value[:5] != "data:"):
                found += [value] if tag.has_attr(name) else []
    return found


fragments = st.lists(
    st.sampled_from([*HOSTILE, "<", ">", "`", "$", "$$", "\n\n", "](", "![", "<svg", "</svg>", "<style>", "<!--", "\\"])
    | st.text(max_size=8),
    max_size=12,
).map("".join)


@given(fragments)
@settings(max_examples=50)
def test_no_text_can_act(text):
    assert acts(clean_html(text)) == []
    assert acts(clean_output(text)) == []
    html = finish_article(markdown_to_html(text)).html
    assert [name for name in acts(html) if name != "id"] == []


# Equations


@pytest.mark.parametrize(
    ("tex", "tag"),
    [(r"\frac{a}{b}", "mfrac"), (r"\sqrt{d}", "msqrt"), (r"\begin{aligned}a&=b\\c&=d\end{aligned}", "mtable")],
)
def test_equations_become_mathml(tex, tag):
    soup = BeautifulSoup(math_to_mathml(tex), "html.parser")
    assert soup.math.find(tag)
    assert "&" not in soup.get_text()


def test_equations_in_markdown_keep_less_than():
    soup = BeautifulSoup(finish_article(markdown_to_html("if $a<b$ or\n\n$$c<d$$")).html, "html.parser")
    assert [m.get_text() for m in soup.find_all("math")] == ["a<b", "c<d"]
    assert [m["display"] for m in soup.find_all("math")] == ["inline", "block"]


def test_malformed_equations_are_shown_as_written():
    assert math_to_mathml(r"< \frac{") == r'<code class="tex">&lt; \frac{</code>'


# Headings


def test_equal_headings_get_different_ids_and_none_of_the_shell():
    article = finish_article("<h2>Content</h2><h2>A</h2><h3>A</h3><h2>!</h2>")
    assert [h.id for h in article.headings] == ["content-2", "a", "a-2", "section"]


@pytest.mark.parametrize(
    ("href", "leads_to"),
    [
        ("#The-decision", "#the-decision"),
        ("03_train.ipynb#The-decision", "03_train.html#the-decision"),  # as JupyterLab has it
        ("03_train.ipynb", "03_train.html"),
        ("https://example.org/03_train.ipynb#The-decision", "https://example.org/03_train.ipynb#The-decision"),
    ],
)
def test_links_to_headings_follow_the_ids(href, leads_to):
    html = finish_article(f'<h2>The decision</h2><a href="{href}">x</a>').html
    assert BeautifulSoup(html, "html.parser").select("a")[-1]["href"] == leads_to


def test_headings_without_text_are_not_listed_and_equations_in_them_are_read():
    html = finish_article(markdown_to_html("## $\\sigma$ rule\n\n## ![](data:image/png;base64,AAAA)"))
    assert [h.text for h in html.headings] == ["σ rule"]


def test_columns_of_numbers_are_aligned():
    html = markdown_to_html("| a | b |\n|---|---|\n| x | 0.5 [0.4, 0.6] |\n| y | nan |\n| z | < 0.001 |\n| w | – |\n")
    soup = BeautifulSoup(finish_article(html).html, "html.parser")
    assert [c.get_text() for c in soup.select(".number")] == ["b", "0.5 [0.4, 0.6]", "nan", "< 0.001", "–"]


# Figures


def test_figures_are_numbered_and_link_to_themselves():
    html = "<h2>Figure 1</h2><figure><img src='data:,' alt='a'></figure>"
    html += "<figure><p>x</p><figcaption>Said before.</figcaption></figure>"
    article = finish_article(html)
    soup = BeautifulSoup(article.html, "html.parser")
    assert [h.id for h in article.headings] == ["figure-1-2"]
    assert [f["id"] for f in soup.select("figure")] == ["figure-1", "figure-2"]
    assert [f.figcaption.get_text() for f in soup.select("figure")] == ["Figure 1# ", "Figure 2# Said before."]
    anchors = [(a["href"], a["aria-label"]) for a in soup.select("figcaption a.anchor")]
    assert anchors == [("#figure-1", "Link to figure 1"), ("#figure-2", "Link to figure 2")]


def test_a_figure_within_another_has_its_own_caption():
    html = finish_article("<figure><figure><figcaption>inner</figcaption></figure></figure>").html
    outer, inner = BeautifulSoup(html, "html.parser").select("figure")
    assert (outer["id"], inner["id"]) == ("figure-1", "figure-2")
    assert inner.find("figcaption").get_text() == "Figure 2# inner"
    assert outer.find("figcaption", recursive=False).get_text() == "Figure 1# "


# Streams and parameters


def test_progress_bars_go_and_other_lines_stay():
    text = "\x1b[31mred\x1b[0m\r\nplain\n\rbar\r\n50%|█  | 1/2\n12it [00:01, 9it/s]\naccuracy 50% | good"
    assert visible_text(text) == "red\nplain\naccuracy 50% | good"


def test_parameters_of_many_kinds():
    source = '# the name\n# of the run\nname: str = "a"\nlist_ = [\n 1,\n]  # numbers\n'
    source += "x, y = 1, 2\nz.a = 3\nw = -1e-4\n"
    found = [(p.name, p.value, p.meaning) for p in read_parameters(source)]
    assert found == [("name", '"a"', "the name of the run"), ("list_", "[\n 1,\n]", "numbers"), ("w", "-1e-4", "")]


@given(st.text(alphabet=st.sampled_from("ab =#:\n\t'\"[](1\\\x00é"), max_size=40))
@settings(max_examples=150)
def test_any_parameters_cell_is_read_or_passed_over(source):
    assert all(p.name.isidentifier() for p in read_parameters(source))


# In a real browser


def hidden_overflow(page):
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.mark.browser
@pytest.mark.parametrize("name", ["report", "hostile"])
def test_the_page_never_scrolls_sideways(visit, request, name):
    page = visit(request.getfixturevalue(name), 320)
    page.click("#code")
    for width in (320, 390, 820, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        assert (width, hidden_overflow(page)) == (width, 0)


@pytest.mark.browser
def test_hostile_names_are_inert(visit, hostile):
    page = visit(hostile)
    assert page.evaluate("window.hit") is None
    assert page.locator("main script, main iframe, main style, main svg").count() == 0
    attributes = "[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames())"
    assert not [name for name in page.evaluate(attributes) if name.startswith("on")]
    assert HOSTILE[0] in page.inner_text("main")
    assert page.is_visible("h1")


@pytest.mark.browser
def test_hostile_alt_texts_are_kept_as_text(visit, hostile):
    page = visit(hostile)
    alts = page.eval_on_selector_all("figure img", "images => images.map(image => image.alt)")
    assert set(HOSTILE) <= set(alts)


@pytest.mark.browser
def test_code_is_shown_where_it_is_asked_for(visit, report):
    page = visit(report)
    shown = page.locator("details.code:visible")
    assert shown.count() == 0
    page.get_by_role("button", name="Show code").click()
    assert shown.count() == page.locator("details.code[open]").count() == 2
    page.get_by_role("button", name="Hide code").click()
    assert shown.count() == 0


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_theme_follows_the_system_and_the_reader(visit, report, scheme):
    page = visit(report, color_scheme=scheme)
    other = {"light": "dark", "dark": "light"}[scheme]
    background = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(background)
    page.get_by_role("button", name=f"{other} theme").click()
    after = page.evaluate(background)
    assert before != after
    for _ in range(20):  # Chromium stores through another process, which a reload can overtake on a busy machine
        page.reload()
        if page.evaluate(background) == after:
            break
    assert page.evaluate(background) == after
    page.emulate_media(media="print")
    assert page.evaluate(background) == (before if scheme == "light" else after)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(visit, report, scheme):
    """WCAG AA: at least 4.5 to 1 for every element that holds text."""
    page = visit(report, color_scheme=scheme)
    page.click("#code")
    low = page.evaluate("""() => {
      const channels = (color) => color.match(/[\\d.]+/g).map(Number);
      const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92
        : ((v + 0.055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
      const behind = (e) => { for (; e; e = e.parentElement) {
        const color = channels(getComputedStyle(e).backgroundColor);
        if (color.length < 4 || color[3]) return color; } };
      const low = [];
      for (const e of document.querySelectorAll("body *")) {
        if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || !e.checkVisibility()) continue;
        const [a, b] = [light(channels(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) low.push([e.tagName, e.className, e.textContent.slice(0, 30)]);
      }
      return low;
    }""")
    assert low == []


@pytest.mark.browser
def test_contents_follow_the_scroll_and_lead_to_headings(visit, report):
    page = visit(report, height=700)
    page.click(".contents a[href='#what-follows']")
    page.locator(".contents a[aria-current][href='#what-follows']").wait_for(state="attached", timeout=5000)
    assert page.url.endswith("#what-follows")
    assert page.locator(".contents").bounding_box()["y"] == 0  # it stays beside the text
    page.evaluate("scrollTo(0, 0)")
    page.locator(".contents [aria-current]").wait_for(state="detached", timeout=5000)


@pytest.mark.browser
def test_contents_are_folded_on_phones_and_open_without_script(visit, report):
    assert not visit(report, 390).locator(".contents ol").is_visible()
    page = visit(report, 390, java_script_enabled=False)
    assert page.locator(".contents ol").is_visible()
    assert not page.locator("button").first.is_visible()
    page.click("details.code summary >> nth=0")
    assert page.locator("details.code pre").first.is_visible()


@pytest.mark.browser
def test_wide_tables_scroll_in_their_own_box(visit, report):
    page = visit(report, 390)
    assert page.locator(".dataframe tbody th").first.bounding_box()["width"] > 80  # words are not broken up
    box = page.locator(".table-scroll:has(.dataframe)")
    assert box.evaluate("e => e.scrollWidth > e.clientWidth + 100")
    assert box.get_attribute("tabindex") == "0"


@pytest.mark.browser
@pytest.mark.parametrize(("width", "expected"), [(390, 36 * 17), (1440, 600)])
def test_figures_stand_at_half_size_and_stay_readable_on_phones(visit, report, width, expected):
    page = visit(report, width)
    size = page.locator("figure img").bounding_box()
    assert size["width"] == pytest.approx(min(600, expected), abs=1)
    assert size["width"] / size["height"] == pytest.approx(1200 / 500, rel=0.02)
    box = page.locator(".figure-scroll")
    assert box.evaluate("e => e.scrollWidth > e.clientWidth") == (width == 390)
    assert box.get_attribute("tabindex") == ("0" if width == 390 else "-1")


@pytest.mark.browser
def test_lines_of_text_are_thirty_three_times_the_letter_height(visit, report):
    box = visit(report).locator(".prose p").last.bounding_box()  # about 70 letters; how many depends on the font
    assert box["width"] == pytest.approx(33 * 17, abs=1)


def saved(page, button, folder):
    with page.expect_download() as download:
        button.click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


@pytest.mark.browser
def test_tables_and_figures_are_saved_as_shown(visit, tmp_path):
    cells = {"mAcc": [0.5, 0.25, 0.75], "says": ['one, "two"', "—", "three"], "p": ["< 0.001", "–", "0.12"]}
    frame = pd.DataFrame(cells, index=["µ", "b", "c"])
    drawn = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"/>'
    vector = v4.new_output("display_data", data={"image/svg+xml": drawn})
    shown = v4.new_output("display_data", data={"text/html": Table(frame, "Methods.")._repr_html_()})
    both = pd.MultiIndex.from_product([["probe", "head"], ["a", "b"]])
    spanned = pd.DataFrame(np.arange(16.0).reshape(4, 4), index=both, columns=both)
    more = v4.new_output("display_data", data={"text/html": Table(spanned, "Spans.")._repr_html_()})
    page = visit(export(tmp_path, [code("t", shown, figure(), vector, more)]))
    page.get_by_role("button", name="mAcc").click()  # sorts it, and so the file
    path = saved(page, page.get_by_role("button", name="Save as CSV").first, tmp_path)
    assert path.name == f"{tmp_path.name}_02_zero_shot_table-1.csv"
    read = pd.read_csv(path, index_col=0)
    pd.testing.assert_frame_equal(read, frame.loc[["c", "µ", "b"]].replace({"—": np.nan, "–": np.nan}))
    path = saved(page, page.get_by_role("button", name="Save as CSV").last, tmp_path)
    pd.testing.assert_frame_equal(pd.read_csv(path, header=[0, 1], index_col=[0, 1]), spanned)
    path = saved(page, page.get_by_role("button", name="Save as PNG"), tmp_path)
    assert (path.name.endswith("_figure-1.png"), path.read_bytes()) == (True, png())
    path = saved(page, page.get_by_role("button", name="Save as SVG"), tmp_path)
    assert ElementTree.parse(path).getroot().get("viewBox") == "0 0 1 1"
    page.emulate_media(media="print")
    assert page.locator(".save:visible").count() == 0
    assert visit(tmp_path / "02_zero_shot.html", java_script_enabled=False).locator(".save").count() == 0


@pytest.mark.browser
def test_sizes_of_files_are_sorted_by_their_units(visit, tmp_path):
    sizes = ["300.0 kB", "1.2 MB", "900 B", "12.5 kB"]
    shown = v4.new_output(
        "display_data", data={"text/html": Table(pd.DataFrame({"Size": sizes}), "Files.")._repr_html_()}
    )
    page = visit(export(tmp_path, [code("t", shown)]))
    page.get_by_role("button", name="Size").click()
    assert page.locator("article tbody td").all_inner_texts() == ["1.2 MB", "300.0 kB", "12.5 kB", "900 B"]


@pytest.mark.browser
def test_folded_outputs_are_shown_when_opened_and_on_paper(visit, tmp_path):
    cell = code("t", figure())
    cell.metadata["fold"] = "Every <pair>"
    page = visit(export(tmp_path, [cell]))
    image = page.locator("article figure img")
    assert not image.is_visible()
    page.get_by_text("Every <pair>").click()
    assert image.is_visible()
    page.get_by_text("Every <pair>").click()
    page.emulate_media(media="print")
    assert image.bounding_box()["height"] > 100


@pytest.mark.browser
def test_equations_are_drawn(visit, report):
    page = visit(report)
    assert page.evaluate("document.querySelector('math mfrac') instanceof MathMLElement")
    assert page.locator("math[display=block]").first.bounding_box()["height"] > 15


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["report", "hostile"])
def test_axe_finds_nothing(accessible, request, name, scheme):
    for width in (390, 1440):
        accessible(request.getfixturevalue(name), width=width, color_scheme=scheme)


@pytest.mark.browser
def test_landmarks_heading_order_and_names(visit, report):
    page = visit(report)
    assert page.get_attribute("html", "lang") == "en"
    assert page.locator("main").count() == 1
    levels = page.eval_on_selector_all("h1,h2,h3,h4", "hs => hs.map(h => Number(h.tagName[1]))")
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip([0, *levels], levels, strict=False))
    names = page.eval_on_selector_all(
        "button, a, summary, img", "es => es.map(e => e.ariaLabel || e.alt || e.textContent.trim())"
    )
    assert all(names)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
