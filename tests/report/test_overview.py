"""The site of a reports folder: Table I, cards, and in a real browser links, sorting, and names that try to act."""

import json
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import numpy as np
import pytest
from bs4 import BeautifulSoup
from small_runs import N_PATCHES, execute_here, make_patches, make_run

from histoclip_lib.evaluation.artifacts import RunMetrics, read_metrics, read_predictions
from histoclip_lib.evaluation.comparisons import accuracy_against, finding
from histoclip_lib.evaluation.methods import ours_first, table_one_columns
from histoclip_lib.report.notebooks import run_notebooks
from histoclip_lib.report.overview import list_runs, results_table, run_cards, when_made
from histoclip_lib.runs import overview

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


def parsed(displayed):
    return BeautifulSoup(displayed.data, "html.parser")


def write_site(reports):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overview, "execute_notebook", execute_here)
        overview.write_overview(reports)
    return reports


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Three runs, two of which can be compared, two that are broken, one that came half-way."""
    reports = tmp_path_factory.mktemp("reports")
    make_run(reports, "beta", seed=1, noise=0.3, about={"backbone": "lite0-minilm", "pretrained": ""})
    make_run(reports, "alpha", seed=2, noise=0.5)
    make_run(reports, "gamma", seed=3, noise=0.1, dataset="pannuke", split="random")
    make_run(reports, "half", steps=2)
    (reports / "broken").mkdir()
    (reports / "broken" / "metrics.json").write_text("{")
    make_run(reports, "worn", seed=4, dataset="synthetic")
    (reports / "worn" / "03_train.ipynb").write_text("{")
    return write_site(reports)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Two runs in which every name comes from somebody with bad intentions."""
    reports = tmp_path_factory.mktemp("hostile")
    files = [f"{HOSTILE[k % 6]}{k}" for k in range(N_PATCHES)]
    patches = make_patches(HOSTILE, files=files)
    patches.groups[:] = np.resize(HOSTILE, N_PATCHES)
    for k, folder in enumerate(("sp ace & #", "<b>bold")):
        about = {"backbone": HOSTILE[k], "pretrained": HOSTILE[1]}
        parameters = {"dataset": HOSTILE[0], "data_dir": HOSTILE[k], "split": HOSTILE[2]}
        make_run(reports, folder, name=HOSTILE[k], seed=k, patches=patches, about=about, **parameters)
    return write_site(reports)


def metrics_of(reports, run):
    return json.loads((reports / run / "metrics.json").read_text())["methods"]


# What is there


def test_the_site_has_a_page_for_everything(reports):
    found = {str(path.relative_to(reports)) for path in reports.rglob("*.html")}
    stems = list(run_notebooks())
    expected = {f"{run}/{stem}.html" for run in ("alpha", "beta", "gamma", "worn") for stem in stems}
    expected |= {f"half/{stem}.html" for stem in stems[:2]}
    expected |= {"index.html", "compare_alpha_beta.html"}
    assert found <= expected
    assert {path for path in expected - found if not path.startswith("worn/")} == set()


def test_cards_lead_to_the_results_and_say_the_main_numbers(reports):
    cards = {card.select_one(".name").get_text(): card for card in soup_of(reports / "index.html").select(".card")}
    assert set(cards) == {"alpha", "beta", "gamma", "broken", "worn"}
    ours, text = metrics_of(reports, "alpha")["histoclip_patch"], cards["alpha"].get_text(" ", strip=True)
    assert f"{ours['mAcc']:.3f}" in text
    assert "[{:.3f}, {:.3f}]".format(*ours["mAcc_ci"]) in text
    assert "pannuke, random split" in cards["gamma"].get_text()
    assert [a["href"] for a in cards["alpha"].select("a")] == ["alpha/04_results.html", "alpha/01_data.html"]
    assert "is not CLIP" in cards["beta"].get_text()
    assert "is not CLIP" not in cards["alpha"].get_text()
    for name, reason in (("broken", "metrics.json cannot be read"), ("worn", "03_train.ipynb is not a notebook")):
        assert reason in cards[name].get_text()
        assert cards[name].a is None
        assert str(reports) not in cards[name].get_text()


def run_of(folder, **changes):
    """Return a run with the mAcc of some methods."""
    basics = {
        "name": "demo",
        "dataset": "synthetic",
        "backbone": "ViT-B-16",
        "pretrained": "openai",
        "split": "grouped",
    }
    folder.mkdir(exist_ok=True)
    methods = {"histoclip_patch": {"mAcc": 0.88, "mAcc_ci": [0.86, 0.9]}, "linear_probe": {"mAcc": 0.85}}
    (folder / "metrics.json").write_text(json.dumps({**basics, "methods": methods, **changes}))
    return read_metrics(folder / "metrics.json")


def test_a_card_says_what_the_results_say_of_the_linear_probe(reports):
    cards = {card.select_one(".name").get_text(): card for card in soup_of(reports / "index.html").select(".card")}
    metrics = read_metrics(reports / "alpha" / "metrics.json")
    gaps = accuracy_against(read_predictions(reports / "alpha" / "predictions.parquet"), metrics.seed)
    assert f"HistoCLIP {finding(gaps['linear_probe'])} the linear probe." in cards["alpha"].get_text()


def test_a_card_without_predictions_says_nothing_of_the_probe_and_one_that_is_not_current_says_so(tmp_path):
    run = run_of(tmp_path / "better")
    text = parsed(run_cards([run])).get_text()
    assert "the linear probe." not in text
    assert "earlier run" not in text
    (tmp_path / "better" / "run.json").write_text('{"steps": {"01_data": {}}}')
    assert "earlier run" in parsed(run_cards([run])).get_text()


def test_intervals_are_drawn_on_one_axis(tmp_path):
    low = {"histoclip_patch": {"mAcc": 0.62, "mAcc_ci": [0.61, 0.63]}, "linear_probe": {"mAcc": 0.65}}
    runs = [run_of(tmp_path / "high", name="high"), run_of(tmp_path / "low", name="low", methods=low)]
    cards = parsed(run_cards(runs))
    assert "from 0.6 to 0.9" in cards.select_one(".legend").get_text()
    dots = [float(dot["cx"]) for dot in cards.select("circle")]  # the axis ends 4 pixels inside of 200
    assert dots == pytest.approx([4 + 192 * (score - 0.6) / 0.3 for score in (0.88, 0.62)], abs=0.01)
    said = "HistoCLIP patch 0.880, 95% interval 0.860 – 0.900, linear probe 0.850"
    assert cards.svg["aria-label"] == said


def test_thumbnails_are_inlined_where_they_are_pictures(tmp_path):
    run = run_of(tmp_path / "run")
    for data, expected in ((b"\x89PNG\r\n\x1a\n", ["Thumbnail of the run demo"]), (b"not a picture", [])):
        (run.path / "thumbnail.png").write_bytes(data)
        assert [image["alt"] for image in parsed(run_cards([run])).select("img")] == expected


def test_without_runs_the_overview_says_how_to_make_one(tmp_path):
    assert list_runs(tmp_path) == []
    assert "histoclip run params/demo.yaml" in run_cards([]).data
    assert len(parsed(results_table([], "mAcc")).select(".paper")) == 3
    assert "No run has mAP" in results_table([], "mAP").data


def test_table_one_holds_every_run_and_the_paper(tmp_path):
    runs = [run_of(tmp_path / name, name=name, dataset=name) for name in ("pannuke", "consep")]
    table = parsed(results_table(runs, "mAcc"))
    header = [cell.get_text() for cell in table.select("thead th")]
    columns = table_one_columns()
    assert header == ["Run", *(columns[name] for name in ours_first(columns))]
    assert header[1] == "HistoCLIP patch"
    assert all(len(row.find_all(["td", "th"])) == len(header) for row in table.select("tr"))
    lines = [[cell.get_text() for cell in row.find_all("td")] for row in table.select(".paper")]
    assert lines == [
        ["0.912", "0.912", "–", "0.427", "0.376", "0.471", "0.436", "–"],
        ["0.951", "0.951", "–", "0.449", "0.293", "0.442", "0.474", "–"],
        ["0.882", "0.882", "–", "0.411", "0.437", "0.526", "0.486", "–"],
    ]
    assert "0.880 [0.860, 0.900]" in table.get_text()
    names = [head.contents[0].strip() for head in table.select("tbody th")]
    assert names == ["BCSS-WSSS", "LUAD-HistoSeg", "pannuke", "PanNuke", "Not in the paper", "consep"]
    without = parsed(results_table(runs, "mAcc", without_runs=False))
    assert [head.contents[0].strip() for head in without.select("tbody th")] == [
        "pannuke",
        "PanNuke",
        "Not in the paper",
        "consep",
    ]


def test_map_is_shown_of_the_runs_that_have_it(reports):
    runs = [run for run in list_runs(reports) if isinstance(run, RunMetrics)]
    value = metrics_of(reports, "beta")["histoclip_patch"]["mAP"]
    table = parsed(results_table(runs, "mAP"))
    assert f"{value:.3f}" in table.get_text()
    assert table.select(".paper") == []


def test_a_run_is_dated_by_its_evaluation(tmp_path):
    folder = make_run(tmp_path, "dated")
    run, path = read_metrics(folder / "metrics.json"), folder / "04_results.ipynb"
    tree = json.loads(path.read_text())
    for end, made in (("2026-03-04T06:07:08.9+02:00", "2026-03-04 04:07 UTC"), ("yesterday", None)):
        tree["metadata"]["papermill"] = {"end_time": end}
        path.write_text(json.dumps(tree))
        assert when_made(run) == made or (made is None and when_made(run).endswith("UTC"))


# In a real browser


@pytest.mark.parametrize("site", ["reports", "hostile"])
def test_every_link_leads_to_a_file_and_every_fragment_to_an_id(request, site):
    root = request.getfixturevalue(site)
    soups = {path: soup_of(path) for path in sorted(root.rglob("*.html"))}
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
    assert n_fragments > 20


@pytest.mark.browser
@pytest.mark.parametrize("site", ["reports", "hostile"])
def test_no_page_scrolls_sideways_acts_or_skips_a_heading(visit, request, site):
    root = request.getfixturevalue(site)
    for path in [*root.glob("*.html"), next(root.glob("*/01_data.html"))]:
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
    index, comparison = hostile / "index.html", next(hostile.glob("compare*.html"))
    for path, names in ((index, HOSTILE[:3]), (comparison, HOSTILE)):
        shown = soup_of(path).main.get_text()
        assert all(name in shown for name in names), path.name


@pytest.mark.browser
def test_the_whole_card_is_the_link(visit, reports):
    page = visit(reports / "index.html")
    page.locator(".card", has_text="gamma").locator("dl").click(force=True)  # the link lies over it
    page.wait_for_url("**/gamma/04_results.html")
    page.go_back()
    page.locator(".card", has_text="gamma").get_by_role("link", name="pannuke").click()
    page.wait_for_url("**/gamma/01_data.html")


def order(page):
    return page.locator(".card:visible .name").all_inner_texts()


@pytest.mark.browser
def test_runs_are_filtered_as_one_types(visit, reports):
    page = visit(reports / "index.html")
    count = page.locator(".controls output")
    assert (order(page), count.inner_text()) == (["alpha", "beta", "broken", "gamma", "worn"], "5 runs")
    field = page.get_by_label("Filter")
    field.focus()
    page.keyboard.type("VIT folder")
    assert (order(page), count.inner_text()) == (["alpha"], "1 of 5 runs")
    page.keyboard.press("Control+a")
    page.keyboard.type("lite0")
    assert order(page) == ["beta"]
    page.keyboard.type(" nothing")
    assert (order(page), count.inner_text()) == ([], "0 of 5 runs")
    field.fill("")
    assert count.inner_text() == "5 runs"


@pytest.mark.browser
def test_runs_are_sorted_with_the_keyboard(visit, reports):
    metrics = {run: metrics_of(reports, run) for run in ("alpha", "beta", "gamma")}
    score = {run: rows["histoclip_patch"]["mAcc"] for run, rows in metrics.items()}
    lead = {run: score[run] - rows["linear_probe"]["mAcc"] for run, rows in metrics.items()}
    assert len(set(score.values())) == len(set(lead.values())) == 3
    page = visit(reports / "index.html")
    select = page.get_by_label("Sort by")
    select.focus()
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    assert order(page) == [*sorted(score, key=score.get, reverse=True), "broken", "worn"]
    page.keyboard.press("ArrowDown")
    assert order(page) == [*sorted(lead, key=lead.get, reverse=True), "broken", "worn"]
    assert page.evaluate("document.activeElement.tagName") == "SELECT"
    select.select_option("data set")
    assert order(page)[2:] == ["gamma", "broken", "worn"]
    page.get_by_label("Filter").fill("a")
    select.select_option("name")
    assert order(page) == ["alpha", "beta", "gamma"]  # neither broken nor worn has an a


@pytest.mark.browser
def test_tables_are_sorted_by_any_column_with_mouse_and_keyboard(visit, reports):
    page = visit(reports / "compare_alpha_beta.html")
    table = page.locator("table.dataframe").first
    column = table.locator("thead > tr > *").nth(1)

    def values():
        return [float(text) for text in table.locator("tbody td:nth-child(2)").all_inner_texts()]

    before = values()
    assert before != sorted(before, reverse=True)
    column.get_by_role("button").click()
    assert (values(), column.get_attribute("aria-sort")) == (sorted(before, reverse=True), "descending")
    page.keyboard.press("Enter")
    assert (values(), column.get_attribute("aria-sort")) == (sorted(before), "ascending")
    page.keyboard.press("Space")
    assert (values(), column.get_attribute("aria-sort")) == (before, None)


@pytest.mark.browser
def test_table_one_is_sorted_within_its_data_sets_and_the_paper_stays(visit, reports):
    page = visit(reports / "index.html")
    table = page.locator("table.summary").first
    score = {run: metrics_of(reports, run)["histoclip_patch"]["mAcc"] for run in ("alpha", "beta")}
    table.get_by_role("button", name="HistoCLIP patch").click()
    rows = [text.split()[0] for text in table.locator("tbody th").all_inner_texts()]
    assert rows[:5] == ["BCSS-WSSS", "LUAD-HistoSeg", "gamma", "PanNuke", "Not"]
    assert rows[5:] == sorted(score, key=score.get, reverse=True)


@pytest.mark.browser
def test_on_paper_tables_keep_their_headings(visit, reports):
    page = visit(reports / "index.html")
    headings = page.locator("table.summary thead th")
    page.emulate_media(media="print")
    assert all(headings.nth(index).get_by_role("button").is_visible() for index in range(headings.count()))
    assert headings.count() > 5
    assert page.get_by_role("button", name="theme").is_hidden()


@pytest.mark.browser
def test_without_script_everything_is_shown_and_no_control(visit, reports):
    page = visit(reports / "index.html", java_script_enabled=False)
    assert page.locator(".card:visible").count() == 5
    assert page.locator(".controls, .sort").count() == 0


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1440, "light")])
@pytest.mark.parametrize("name", ["index.html", "beta/04_results.html", "compare_alpha_beta.html"])
def test_axe_finds_nothing(accessible, reports, name, width, scheme):
    accessible(reports / name, width=width, color_scheme=scheme)
