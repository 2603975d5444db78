"""The site of a reports folder in a real browser: links, sorting, filtering, and names that try to act."""

import json
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import numpy as np
import pytest
from bs4 import BeautifulSoup
from small_runs import N_PATCHES, make_notebook, make_patches, make_run

from histoclip_lib.report.navigation import TABLE_PAGE
from histoclip_lib.report.overview import write_index, write_site

HOSTILE = [
    "<script>window.hit=1</script>",
    '"><img src=x onerror="window.hit=1">',
    "a&b",
    "\u6f22\u5b57" * 40,
    "\u05e9\u05dc\u05d5\u05dd <b>",
    "x" * 200,
]


def soup_of(page):
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


def pages_of(reports):
    return sorted(reports.rglob("*.html"))


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Three runs, two of which can be compared, one that is broken, one that came half-way; Table I over all."""
    reports = tmp_path_factory.mktemp("reports")
    make_run(reports, "beta", seed=1, noise=0.3, about={"backbone": "lite0-minilm", "pretrained": ""})
    make_run(reports, "alpha", seed=2, noise=0.5)
    make_run(reports, "gamma", seed=3, noise=0.1, dataset="pannuke", split="random")
    make_run(reports, "half", steps=2)
    (reports / "broken").mkdir()
    (reports / "broken" / "metrics.json").write_text("{")
    make_notebook(reports / f"{TABLE_PAGE}.ipynb", "Table I", {})
    write_site(reports)
    return reports


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Two runs in which every name comes from somebody who means ill."""
    reports = tmp_path_factory.mktemp("hostile")
    files = [f"{HOSTILE[k % 6]}{k}" for k in range(N_PATCHES)]
    patches = make_patches(HOSTILE, files=files)
    patches.groups[:] = np.resize(HOSTILE, N_PATCHES)
    for k, folder in enumerate(("sp ace & #", "<b>bold")):
        about = {"backbone": HOSTILE[k], "pretrained": HOSTILE[1]}
        parameters = {"dataset": HOSTILE[0], "data_dir": HOSTILE[k], "split": HOSTILE[2]}
        make_run(reports, folder, name=HOSTILE[k], seed=k, patches=patches, about=about, **parameters)
    write_site(reports)
    return reports


# What is there


def test_the_site_has_a_page_for_everything_and_is_drawn_once(reports):
    found = {str(path.relative_to(reports)) for path in pages_of(reports)}
    stems = ("01_data", "02_zero_shot", "03_train", "04_evaluate", "05_attention", "index")
    expected = {f"{run}/{stem}.html" for run in ("alpha", "beta", "gamma") for stem in stems}
    expected |= {f"half/{stem}.html" for stem in stems[:2]}
    assert found == expected | {"index.html", f"{TABLE_PAGE}.html", "compare_alpha_beta.html"}
    before = {path: path.stat().st_mtime_ns for path in pages_of(reports) if path.name != "index.html"}
    write_site(reports)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_cards_lead_to_the_summaries_and_say_the_headline(reports):
    cards = {card.h3.get_text(): card for card in soup_of(reports / "index.html").select(".card")}
    assert set(cards) == {"alpha", "beta", "gamma", "broken"}
    metrics = json.loads((reports / "alpha" / "metrics.json").read_text())
    text = cards["alpha"].get_text(" ", strip=True)
    assert f"{metrics['rows']['histoclip_patch']['mAcc']:.4f}" in text
    assert "[{:.3f}, {:.3f}]".format(*metrics["methods"]["histoclip_patch"]["mAcc_ci"]) in text
    assert "pannuke, random split" in cards["gamma"].get_text()
    assert [a["href"] for a in cards["alpha"].select("a")] == ["alpha/index.html"]
    assert cards["broken"].a is None


def test_table_one_holds_both_metrics_and_the_paper_once(reports):
    soup = soup_of(reports / "index.html")
    macc, mean_ap = soup.select("[data-metric]")
    assert (len(macc.select(".paper")), len(mean_ap.select(".paper"))) == (3, 0)
    value = json.loads((reports / "beta" / "metrics.json").read_text())["methods"]["histoclip_patch"]["mAP"]
    assert f"{value:.4f}" in mean_ap.get_text()
    assert f"{value:.4f}" not in macc.get_text()


def test_a_run_without_map_needs_no_switch(tmp_path):
    (tmp_path / "old").mkdir()
    basics = {"name": "old", "dataset": "synthetic", "backbone": "b", "split": "random"}
    (tmp_path / "old" / "metrics.json").write_text(json.dumps(basics | {"methods": {"majority": {"mAcc": 0.5}}}))
    soup = soup_of(write_index(tmp_path))
    assert soup.select_one("fieldset") is None
    assert soup.select_one(".controls") is None  # one run needs none
    assert soup.select_one(".card h3 a") is None  # it has no summary


def test_a_run_whose_pages_cannot_be_written_is_listed_with_the_reason(tmp_path):
    make_run(tmp_path, "good")
    make_run(tmp_path, "bad")
    (tmp_path / "bad" / "03_train.ipynb").write_text("{")
    write_site(tmp_path)
    broken = soup_of(tmp_path / "index.html").select_one(".broken")
    assert broken.h3.get_text() == "bad"
    assert "03_train.ipynb is not a notebook" in broken.get_text()
    assert str(tmp_path) not in broken.get_text()


def test_the_date_is_that_of_the_evaluation(reports, tmp_path):
    folder = make_run(tmp_path, "dated")
    path = folder / "04_evaluate.ipynb"
    tree = json.loads(path.read_text())
    tree["metadata"]["papermill"] = {"end_time": "2026-03-04T06:07:08.9+02:00"}
    path.write_text(json.dumps(tree))
    assert soup_of(write_index(tmp_path)).time["datetime"] == "2026-03-04T04:07+00:00"
    tree["metadata"]["papermill"] = {"end_time": "yesterday"}
    path.write_text(json.dumps(tree))
    assert soup_of(write_index(tmp_path)).time["datetime"] > "2026"


# In a real browser


@pytest.mark.parametrize("site", ["reports", "hostile"])
def test_every_link_leads_to_a_file_and_every_fragment_to_an_id(request, site):
    root = request.getfixturevalue(site)
    soups = {path: soup_of(path) for path in pages_of(root)}
    n_fragments = 0
    for path, soup in soups.items():
        ids = [tag["id"] for tag in soup.select("[id]")]
        assert len(ids) == len(set(ids))
        for link in soup.select("a[href]"):
            target, _, fragment = urljoin(path.as_uri(), link["href"]).partition("#")
            file = Path(unquote(urlsplit(target).path))
            assert file.is_file(), f"{path.name}: {link}"
            assert file.is_relative_to(root)
            if fragment:
                n_fragments += 1
                assert soups[file].find(id=unquote(fragment)), f"{path.name}: {link}"
    assert n_fragments > 50


@pytest.mark.browser
@pytest.mark.parametrize("site", ["reports", "hostile"])
def test_no_page_scrolls_sideways_acts_or_skips_a_heading(visit, request, site):
    root = request.getfixturevalue(site)
    for path in [*root.glob("*.html"), *next(root.glob("*/index.html")).parent.glob("[0i]*[ax].html")]:
        page = visit(path, 390)
        for width in (320, 390, 820, 1440):
            page.set_viewport_size({"width": width, "height": 900})
            over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert (path.name, width, over) == (path.name, width, 0)
        levels = page.eval_on_selector_all("h1,h2,h3,h4", "hs => hs.map(h => Number(h.tagName[1]))")
        assert levels.count(1) == 1
        assert all(after - before <= 1 for before, after in zip([0, *levels], levels, strict=False)), path.name
        assert page.evaluate("window.hit") is None
        assert page.locator("main script, main iframe, main style, main b").count() == 0
        attributes = page.evaluate("[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames())")
        assert not [name for name in attributes if name.startswith("on")]


def test_hostile_names_are_shown_as_typed(hostile):
    overview, comparison = hostile / "index.html", next(hostile.glob("compare*.html"))
    summary = hostile / "sp ace & #" / "index.html"
    for path, names in ((overview, HOSTILE[:3]), (comparison, HOSTILE), (summary, HOSTILE)):
        shown = soup_of(path).main.get_text()
        assert all(name in shown for name in names), path.name


@pytest.mark.browser
def test_the_whole_card_is_the_link(visit, reports):
    page = visit(reports / "index.html")
    page.locator(".card", has_text="gamma").locator("dl").click(force=True)  # the link lies over it
    page.get_by_role("heading", name="gamma", level=1).wait_for()
    assert page.url.endswith("gamma/index.html")


def order(page):
    return page.locator(".card:visible h3").all_inner_texts()


@pytest.mark.browser
def test_runs_are_filtered_as_one_types(visit, reports):
    page = visit(reports / "index.html")
    count = page.locator("#run-count")
    assert (order(page), count.inner_text()) == (["alpha", "beta", "broken", "gamma"], "4 runs")
    field = page.get_by_label("Filter")
    field.focus()
    page.keyboard.type("VIT folder")
    assert (order(page), count.inner_text()) == (["alpha"], "1 of 4 runs")
    page.keyboard.press("Control+a")
    page.keyboard.type("lite0")
    assert order(page) == ["beta"]
    page.keyboard.type(" nothing")
    assert (order(page), count.inner_text()) == ([], "0 of 4 runs")
    field.fill("")
    assert count.inner_text() == "4 runs"


@pytest.mark.browser
def test_runs_are_sorted_with_the_keyboard(visit, reports):
    metrics = {
        run: json.loads((reports / run / "metrics.json").read_text())["methods"] for run in ("alpha", "beta", "gamma")
    }
    score = {run: rows["histoclip_patch"]["mAcc"] for run, rows in metrics.items()}
    lead = {run: score[run] - rows["linear_probe"]["mAcc"] for run, rows in metrics.items()}
    assert len(set(score.values())) == len(set(lead.values())) == 3
    page = visit(reports / "index.html")
    select = page.get_by_label("Sort by")
    select.focus()
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    assert order(page) == [*sorted(score, key=score.get, reverse=True), "broken"]
    page.keyboard.press("ArrowDown")
    assert order(page) == [*sorted(lead, key=lead.get, reverse=True), "broken"]
    assert page.evaluate("document.activeElement.id") == "run-order"
    select.select_option("dataset")
    assert order(page)[2:] == ["gamma", "broken"]
    page.get_by_label("Filter").fill("a")
    select.select_option("name")
    assert order(page) == ["alpha", "beta", "gamma"]  # the broken run has no a in its name


@pytest.mark.browser
def test_tables_are_sorted_by_any_column_with_mouse_and_keyboard(visit, reports):
    page = visit(reports / "alpha" / "index.html")
    metrics = json.loads((reports / "alpha" / "metrics.json").read_text())["methods"]
    table = page.locator("table.sortable").first
    column = table.locator("thead th").nth(1)

    def values():
        return [float(text.split()[0]) for text in table.locator("tbody td:nth-child(2)").all_inner_texts()]

    before, expected = values(), sorted((round(row["mAcc"], 3) for row in metrics.values()), reverse=True)
    column.get_by_role("button").click()
    assert (values(), column.get_attribute("aria-sort")) == (expected, "descending")
    page.keyboard.press("Enter")
    assert (values(), column.get_attribute("aria-sort")) == (expected[::-1], "ascending")
    page.keyboard.press("Space")
    assert (values(), column.get_attribute("aria-sort")) == (before, None)
    names = table.locator("tbody th")
    table.get_by_role("button", name="Row").click()
    assert names.all_inner_texts() == sorted(names.all_inner_texts(), key=str.lower)


@pytest.mark.browser
def test_table_one_is_sorted_within_its_data_sets_and_the_paper_stays(visit, reports):
    page = visit(reports / "index.html")
    table = page.locator("table.sortable").first
    score = {
        run: json.loads((reports / run / "metrics.json").read_text())["methods"]["histoclip_patch"]["mAcc"]
        for run in ("alpha", "beta")
    }
    table.get_by_role("button", name="HistoCLIP patch").click()
    rows = [text.split()[0] for text in table.locator("tbody th").all_inner_texts()]
    assert rows == ["BCSS-WSSS", "LUAD-HistoSeg", "gamma", "PanNuke", *sorted(score, key=score.get, reverse=True)]


@pytest.mark.browser
def test_the_metric_of_table_one_is_switched(visit, reports):
    page = visit(reports / "index.html")
    macc, mean_ap = page.locator("[data-metric=mAcc]"), page.locator("[data-metric=mAP]")
    assert (macc.is_visible(), mean_ap.is_visible()) == (True, False)
    page.get_by_label("mAcc", exact=True).focus()
    page.keyboard.press("ArrowRight")
    assert (macc.is_visible(), mean_ap.is_visible()) == (False, True)


@pytest.mark.browser
def test_on_paper_tables_keep_their_headings(visit, reports):
    page = visit(reports / "alpha" / "index.html")
    headings = page.locator("table.sortable thead th")
    page.emulate_media(media="print")
    assert all(headings.nth(index).get_by_role("button").is_visible() for index in range(headings.count()))
    assert headings.count() > 5
    assert page.get_by_role("button", name="theme").is_hidden()


@pytest.mark.browser
def test_names_of_files_do_not_run_into_their_sizes_on_a_phone(visit, reports):
    page = visit(reports / "alpha" / "index.html", width=390)
    names = page.locator(".files tbody th")
    assert names.count() > 3
    assert names.evaluate_all("all => all.every(name => name.scrollWidth <= name.clientWidth)")
    assert page.locator(".table-scroll:has(.files)").evaluate("box => box.scrollWidth <= box.clientWidth")


@pytest.mark.browser
def test_without_script_everything_is_shown_and_no_control(visit, reports):
    page = visit(reports / "index.html", java_script_enabled=False)
    assert page.locator(".card:visible").count() == 4
    assert page.locator("[data-metric]:visible").count() == 2
    assert page.locator(".controls:visible, .metrics:visible, .sort").count() == 0


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1440, "light")])
@pytest.mark.parametrize("name", ["index.html", "beta/index.html", "compare_alpha_beta.html"])
def test_axe_finds_nothing(accessible, reports, name, width, scheme):
    accessible(reports / name, width=width, color_scheme=scheme)


@pytest.mark.browser
def test_the_table_that_the_switch_shows_can_be_scrolled_with_the_keyboard(visit, reports):
    page = visit(reports / "index.html", 390)
    page.get_by_label("mAP", exact=True).check()
    page.locator("[data-metric=mAP] .table-scroll[tabindex='0']").wait_for(timeout=5000)
