"""Make the HTML of a page safe and complete: cleaned user text, equations as MathML, linked headings."""

from __future__ import annotations

import base64
import html as html_entities
import re
from dataclasses import dataclass
from urllib.parse import unquote
from xml.etree import ElementTree

import bleach
from bs4 import BeautifulSoup, Tag
from latex2mathml.converter import convert_to_element
from mistune.plugins import import_plugin
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

# fmt: off
TAGS = frozenset((
    "a", "abbr", "b", "blockquote", "br", "caption", "code", "col", "colgroup", "dd", "del", "details", "div",
    "dl", "dt", "em", "figcaption", "figure", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "img", "kbd", "li",
    "mark", "ol", "p", "pre", "s", "small", "span", "strong", "sub", "summary", "sup", "table", "tbody", "td",
    "tfoot", "th", "thead", "tr", "u", "ul", "var",
))
# fmt: on
MARKDOWN_PLUGINS = ("strikethrough", "table", "url", "def_list")
# fmt: off
MATH_ATTRIBUTES = frozenset((
    "accent", "columnalign", "columnlines", "columnspacing", "depth", "display", "displaystyle", "fence",
    "form", "height", "largeop", "linebreak", "linethickness", "lspace", "mathvariant", "maxsize", "minsize",
    "movablelimits", "notation", "rowlines", "rowspacing", "rspace", "scriptlevel", "separator", "stretchy",
    "voffset", "width",
))
# fmt: on
SHORT = 26  # characters of a line's name that are not worth a break
SHELL_IDS = frozenset({"content", "code", "provenance", "theme"})  # taken by template/index.html.j2
IMAGE_DATA = re.compile(r"data:image/(png|jpeg|gif|webp|svg\+xml);base64,[A-Za-z0-9+/=\s]+", re.IGNORECASE)
SAFE_LINK = re.compile(r"(https?:|mailto:)|[^:/?#]*([/?#]|$)", re.IGNORECASE)
IN_NUMBERS = r"(?:[-−+±<>\d.,%\s\[\]()–eE]|\bto\b)*"
NUMBER = re.compile(rf"{IN_NUMBERS}\d{IN_NUMBERS}|nan|NaN|[—–-]?")


@dataclass(frozen=True)
class Heading:
    """A heading that the contents list shows: `level` 2 or 3, its text, and the id that links lead to."""

    level: int
    text: str
    id: str


@dataclass(frozen=True)
class Article:
    """The finished body of a page; `title` is the text of the notebook's own first h1, if it has one."""

    html: str
    title: str | None
    headings: list[Heading]


def clean_html(html: str) -> str:
    """Return HTML in which only harmless tags and attributes act; other tags stay, escaped, as visible text.

    Inline SVG becomes an image, which cannot run scripts, and images that are not inlined lose their address,
    so nothing is fetched.
    """
    html = re.sub(r"<svg\b.*?</svg\s*>", _svg_as_image, html, flags=re.DOTALL | re.IGNORECASE)
    return bleach.clean(html, tags=TAGS, attributes=_is_allowed, protocols={"http", "https", "mailto", "data"})


def clean_output(html: str) -> str:
    """Clean the HTML of an output; style sheets go with their contents, as pandas writes one into every table."""
    return clean_html(re.sub(r"<style\b[^>]*>.*?</style\s*>", "", html, flags=re.DOTALL | re.IGNORECASE))


def _is_allowed(tag: str, attribute: str, value: str) -> bool:
    if attribute in ("class", "title", "lang"):
        return True
    if tag == "a" and attribute == "href":
        return SAFE_LINK.match(value.strip()) is not None
    if tag == "img" and attribute == "src":
        return IMAGE_DATA.fullmatch(value.strip()) is not None
    allowed = {
        "img": ("alt", "width", "height"),
        "td": ("colspan", "rowspan"),
        "th": ("colspan", "rowspan", "scope"),
        "details": ("open",),
        "ol": ("start",),
    }
    return attribute in allowed.get(tag, ())


def _svg_as_image(match: re.Match) -> str:
    svg = match.group()
    label = re.search(r"""aria-label=(["'])(.*?)\1|<title>(.*?)</title>""", svg, re.DOTALL | re.IGNORECASE)
    alt = html_entities.unescape((label.group(2) or label.group(3) or "") if label else "")
    if "xmlns=" not in svg:  # HTML does without it, an image file does not
        svg = svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    alt_attribute = f' alt="{html_entities.escape(alt)}"' if alt else ""
    return f'<img src="data:image/svg+xml;base64,{text_base64(svg)}"{alt_attribute}>'


def text_base64(text: str) -> str:
    """Return text as base64 of its UTF-8 bytes, for data addresses."""
    return base64.b64encode(text.encode("utf-8")).decode("ascii")


class _Renderer(IPythonRenderer):
    """Mark equations for `finish_article` instead of leaving them to a script."""

    def block_math(self, body: str) -> str:
        return f'<span class="math math-block">{html_entities.escape(body)}</span>'

    def inline_math(self, body: str) -> str:
        return f'<span class="math">{html_entities.escape(body)}</span>'

    def block_html(self, html: str) -> str:
        return html + "\n"  # nbconvert's own reads each tag by itself to inline images, and so closes it at once

    def inline_html(self, html: str) -> str:
        return html

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")

    def multiline_math(self, text: str) -> str:
        return self.block_math(text)


def markdown_to_html(source: str, folder: str = "", attachments: dict | None = None) -> str:
    """Render Markdown as a notebook shows it and clean the result.

    The result is cleaned, not the source: in the source `a < b` within an equation or code block is not HTML
    yet, and `[x](javascript:...)` is not recognisable as a link.

    Parameters
    ----------
    source : str
        Markdown with equations in dollars.
    folder : str
        Where images named by relative paths lie; they are inlined.
    attachments : dict or None
        The attachments of the notebook cell.
    """
    renderer = _Renderer(
        escape=False, embed_images=True, path=folder, attachments=attachments, exclude_anchor_links=True
    )
    markdown = MarkdownWithMath(renderer, plugins=[import_plugin(name) for name in MARKDOWN_PLUGINS])
    return clean_html(markdown.render(source))


def math_to_mathml(tex: str, display: str = "inline") -> str:
    r"""Return an equation as MathML, or the TeX itself as code where it cannot be converted.

    latex2mathml passes text such as `\text{<script>}` and attributes such as `\href{javascript:...}` through,
    so its element tree is written out here, with all text escaped and only the attributes of MATH_ATTRIBUTES.
    """
    known = re.sub(r"\{(aligned|split)\}", "{align*}", tex)  # the name that latex2mathml has for both
    try:
        tree = convert_to_element(known, display=display)
    except Exception:  # malformed TeX raises exceptions of many kinds
        return f'<code class="tex">{html_entities.escape(tex)}</code>'
    for element in tree.iter():
        element.text = html_entities.unescape(element.text) if element.text else element.text
        for attribute in set(element.attrib) - MATH_ATTRIBUTES:
            del element.attrib[attribute]
    return ElementTree.tostring(tree, encoding="unicode", short_empty_elements=False)


def finish_article(html: str) -> Article:
    """Turn the cleaned cells of a notebook into the body of a page.

    Takes out the first h1 (the page prints it as its title), numbers figures and captioned tables, gives headings,
    figures and tables ids and links to themselves, turns equations into MathML, puts every table into a box that
    scrolls by itself and aligns columns of numbers.
    """
    soup = BeautifulSoup(html, "html.parser")
    for image in soup.select("img:not([src])"):
        image.replace_with(image.get("alt", ""))
    for link in soup.select("a[href]"):
        _mend_link(link)
    for span in soup.select("span.math"):
        is_block = "math-block" in span["class"]
        mathml = math_to_mathml(span.get_text(), "block" if is_block else "inline")
        box = f'<span class="math-block">{mathml}</span>' if is_block else mathml
        span.replace_with(BeautifulSoup(box, "html.parser"))
    title, headings = _link_headings(soup, SHELL_IDS | _number_figures(soup) | _number_tables(soup))
    for table in soup.find_all("table"):
        if table.caption:  # stays in view while the table scrolls sideways
            words = soup.new_tag("span", attrs={"class": "caption"})
            words.extend(list(table.caption.contents))
            table.caption.append(words)
        _align_numbers(table)
        for corner in table.select("thead th"):
            if not corner.get_text(strip=True):
                corner.name = "td"  # heads nothing
                corner.attrs.pop("scope", None)
        for head in table.select("tbody th"):
            if len(head.get_text(strip=True)) <= SHORT:
                head["class"] = [*head.get("class", []), "short"]
        words = table.caption.stripped_strings if table.caption else ["Table"]
        caption = " ".join(text for text in words if text != "#")  # not the link to itself
        box = {"class": "table-scroll", "role": "group", "tabindex": "0", "aria-label": caption}
        table.wrap(soup.new_tag("div", attrs=box))
    return Article(str(soup), title, headings)


def _mend_link(link: Tag) -> None:
    """Point links between notebooks at their pages, and links to headings at the ids given here."""
    link["rel"] = "noopener noreferrer"
    path, _, fragment = link["href"].strip().partition("#")
    if path.endswith(".ipynb") and ":" not in path:
        path = path.removesuffix("ipynb") + "html"
    elif path:
        return
    link["href"] = f"{path}#{_slug(unquote(fragment))}" if fragment else path or "#"


def _slug(text: str) -> str:
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", text.lower())).strip("-") or "section"


def _number_figures(soup: BeautifulSoup) -> set[str]:
    """Give each figure an id and a number in its caption that links to it, and return the ids."""
    taken = set()
    for number, figure in enumerate(soup.find_all("figure"), 1):
        figure["id"] = f"figure-{number}"
        taken.add(figure["id"])
        caption = figure.find("figcaption", recursive=False)
        if caption is None:
            caption = soup.new_tag("figcaption")
            figure.append(caption)
        _number(soup, caption, figure["id"], f"Figure {number}")
    return taken


def _number_tables(soup: BeautifulSoup) -> set[str]:
    """Give each table with a caption, but that of the parameters, an id and a number, and return the ids.

    A table without one, such as Markdown's, takes the text of the heading that it stands under.
    """
    taken = set()
    for table in soup.find_all("table"):
        heading = table.find_previous(["h2", "h3", "h4"])
        if heading and not table.caption:
            table.insert(0, soup.new_tag("caption"))
            table.caption.string = f"{heading.get_text(strip=True)}."
    tables = (table for table in soup.find_all("table") if table.caption and not table.find_parent(class_="parameters"))
    for number, table in enumerate(tables, 1):
        table["id"] = f"table-{number}"
        taken.add(table["id"])
        _number(soup, table.caption, table["id"], f"Table {number}")
    return taken


def _number(soup: BeautifulSoup, caption: Tag, identifier: str, name: str) -> None:
    """Put a number that links to itself before a caption."""
    label = soup.new_tag("span", attrs={"class": "figure-number"})
    label.append(name)
    label.append(_link_to_itself(soup, identifier, name.lower()))
    caption.insert(0, label)
    label.insert_after(" ")


def _link_to_itself(soup: BeautifulSoup, identifier: str, name: str) -> Tag:
    anchor = soup.new_tag("a", attrs={"class": "anchor", "href": f"#{identifier}", "aria-label": f"Link to {name}"})
    anchor.string = "#"
    return anchor


def _link_headings(soup: BeautifulSoup, taken: set[str] | frozenset[str]) -> tuple[str | None, list[Heading]]:
    title, headings, used = None, [], set(taken)
    for element in soup.find_all(["h1", "h2", "h3", "h4", "h5", "h6"]):
        text = " ".join(element.get_text().split())
        if element.name == "h1" and title is None:
            title = text
            element.decompose()
            continue
        if element.name == "h1":
            element.name = "h2"  # a page has one h1
        identifier, copy = _slug(text), 2
        while identifier in used:
            identifier, copy = f"{_slug(text)}-{copy}", copy + 1
        used.add(identifier)
        element["id"] = identifier
        level = int(element.name[1])
        if text and level <= 3 and not element.find_parent("details"):
            headings.append(Heading(level, text, identifier))
        element.append(_link_to_itself(soup, identifier, text or "this section"))
    return title, headings


def _align_numbers(table: Tag) -> None:
    """Mark columns in which every body cell is a number, in tables without spanning cells."""
    rows = [row.find_all(["td", "th"]) for row in table.find_all("tr")]
    if table.select_one("[colspan], [rowspan]") or len({len(row) for row in rows}) != 1:
        return
    for column in zip(*rows, strict=True):
        body = [cell.get_text(strip=True) for cell in column if cell.name == "td"]
        if any(body) and all(NUMBER.fullmatch(text) for text in body):
            for cell in column:
                cell["class"] = [*cell.get("class", []), "number"]
