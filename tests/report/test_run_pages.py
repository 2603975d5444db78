"""The pages of a run: when they are drawn again, what they link, and what the summary says."""

import json

import nbformat
import pytest
from bs4 import BeautifulSoup
from small_runs import make_notebook, make_run

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.evaluation.artifacts import read_metrics
from histoclip_lib.report import export
from histoclip_lib.report.executed import executed_notebooks, read_executed, run_parameters, stamp
from histoclip_lib.report.navigation import PAGE_LABELS
from histoclip_lib.report.run_pages import size_text, write_run_pages

ALL = [*(f"{stem}.html" for stem in PAGE_LABELS), "index.html"]


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path, "demo")


def soup_of(page):
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


def links_of(page):
    return {a["href"]: a.get_text(strip=True) for a in soup_of(page).select(".pages a")}


def names(paths):
    return [path.name for path in paths]


def edit_metrics(folder, **changes):
    path = folder / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Drawing


def test_pages_are_drawn_once_and_again_where_something_changed(run):
    assert names(write_run_pages(run)) == ALL
    assert write_run_pages(run) == []
    (run / "02_zero_shot.html").unlink()
    assert names(write_run_pages(run)) == ["02_zero_shot.html"]
    make_notebook(run / "03_train.ipynb", "Changed", {"seed": 5})
    assert names(write_run_pages(run)) == ["03_train.html", "index.html"]
    assert soup_of(run / "03_train.html").h1.get_text() == "Changed"
    (run / "history.csv").write_text("epoch\n1\n")
    assert names(write_run_pages(run)) == ["index.html"]
    assert "history.csv" in soup_of(run / "index.html").get_text()
    (run / ".lock").write_text("")
    assert write_run_pages(run) == []


def test_a_changed_template_draws_every_page_again(run, monkeypatch):
    write_run_pages(run)
    monkeypatch.setattr(export, "_library_source", lambda: b"other")
    assert names(write_run_pages(run)) == ALL
    assert write_run_pages(run) == []


def test_a_page_that_is_none_of_ours_or_is_cut_off_is_drawn_again(run):
    write_run_pages(run)
    (run / "01_data.html").write_text("<title>data</title>")
    (run / "02_zero_shot.html").write_bytes(b"")
    assert names(write_run_pages(run)) == ["01_data.html", "02_zero_shot.html"]


def test_only_pages_that_are_there_are_linked(tmp_path):
    folder = make_run(tmp_path, "half", steps=2)
    assert names(write_run_pages(folder)) == ALL[:2]
    expected = {"../index.html": "All runs", "01_data.html": "01 Data", "02_zero_shot.html": "02 Zero-shot"}
    assert links_of(folder / "01_data.html") == links_of(folder / "02_zero_shot.html") == expected
    make_notebook(folder / "03_train.ipynb", "Training", {})
    assert names(write_run_pages(folder)) == ALL[:3]
    assert "03_train.html" in links_of(folder / "01_data.html")


def test_every_page_links_all_others_in_order_and_turns_to_its_neighbours(run):
    write_run_pages(run)
    order = ["../index.html", "index.html", *ALL[:-1]]
    for page in ALL:
        assert list(links_of(run / page)) == order
        soup, place = soup_of(run / page), order.index(page)
        assert soup.select_one(".pages [aria-current]")["href"] == page
        assert soup.select_one("[rel=prev]")["href"] == order[place - 1]
        following = soup.select_one("[rel=next]")
        assert (following and following["href"]) == (order[place + 1] if place + 1 < len(order) else None)


def test_results_that_cannot_be_read_have_no_summary_and_the_other_pages_do_not_link_one(run):
    (run / "metrics.json").write_text("{")
    assert names(write_run_pages(run)) == ALL[:-1]
    assert "index.html" not in links_of(run / "01_data.html")


def test_title_and_origin_come_from_the_notebook(run):
    stamp(run / "01_data.ipynb", "a <b>title</b>", {"made": "<script>x</script>", "commit": "0123abc"})
    write_run_pages(run)
    soup = soup_of(run / "01_data.html")
    assert soup.select_one(".kicker").get_text() == "a <b>title</b>"
    lines = [row.get_text("|") for row in soup.select(".provenance tr")]
    assert lines == ["made|<script>x</script>", "commit|0123abc"]  # in their order


def test_a_notebook_that_bears_nothing_is_titled_by_its_folder(run):
    make_notebook(run / "01_data.ipynb", "Data", {})
    write_run_pages(run)
    assert soup_of(run / "01_data.html").select_one(".kicker").get_text() == "demo"
    assert soup_of(run / "01_data.html").select_one(".provenance") is None


def test_a_garbled_notebook_is_named(run):
    (run / "03_train.ipynb").write_text("{")
    with pytest.raises(HistoCLIPError, match=r"03_train\.ipynb is not a notebook"):
        write_run_pages(run)


# Executed notebooks


def test_parameters_are_the_injected_values_with_the_declared_meaning(tmp_path):
    path = tmp_path / "01_data.ipynb"
    make_notebook(path, "Data", {"seed": 0, "name": "demo"})
    tree = nbformat.read(path, as_version=4)
    injected = nbformat.v4.new_code_cell("seed = 3\nadded = [1]")
    injected.metadata["tags"] = ["injected-parameters"]
    tree.cells.insert(2, injected)
    nbformat.write(tree, path)
    found = run_parameters([read_executed(path)])
    assert {name: (p.value, p.meaning) for name, p in found.items()} == {
        "seed": ("3", "the seed"),
        "name": ("'demo'", "the name"),
        "added": ("[1]", ""),
    }


@pytest.mark.parametrize(
    "metadata",
    [
        {"histoclip": 3},
        {"histoclip": {"title": None, "provenance": {"a": "b"}}, "papermill": 1},
        {"histoclip": {"provenance": [3, ["a"], "ab"]}, "papermill": {"end_time": None}},
    ],
)
def test_garbled_metadata_says_nothing(tmp_path, metadata):
    path = tmp_path / "01_data.ipynb"
    make_notebook(path, "Data", {})
    tree = json.loads(path.read_text())
    tree["metadata"] = metadata
    path.write_text(json.dumps(tree))
    executed = read_executed(path)
    assert (executed.title, executed.provenance, executed.made) == ("", {}, "")
    assert executed.picture.startswith("data:image/jpeg;base64,")


def test_a_picture_that_is_none_is_left_out(tmp_path):
    path = tmp_path / "01_data.ipynb"
    make_notebook(path, "Data", {})
    path.write_text(path.read_text().replace("iVBORw0KGgo", "AAAAAAAAAAA"))
    assert read_executed(path).picture == ""


# The summary


def test_the_summary_shows_every_number(run):
    write_run_pages(run)
    text = soup_of(run / "index.html").get_text()
    metrics = json.loads((run / "metrics.json").read_text())
    for row in metrics["methods"].values():
        for metric in ("mAcc", "mAP", "macro_f1", "micro_f1", "auroc", "exact_match"):
            assert f"{row[metric]:.3f}" in text
        assert "[{:.3f}, {:.3f}]".format(*row["mAcc_ci"]) in text
    for name, share in metrics["prevalence"].items():
        assert name in text
        assert f"{100 * share:.1f} %" in text
    for values in metrics["methods"]["histoclip_patch"]["per_class"].values():
        assert f"{values['ap']:.3f}" in text
    assert "96 patches were trained on, 24 validated on" in text
    image = soup_of(run / "index.html").select_one("figure img")
    assert image["alt"].startswith("Forest plot")
    assert "not CLIP" not in text


def test_the_summary_says_what_the_run_is_not(tmp_path):
    folder = make_run(tmp_path, "demo", about={"backbone": "lite0-minilm", "pretrained": ""})
    (folder / "steps.json").write_text('{"01_data": "x"}')
    write_run_pages(folder)
    text = soup_of(folder / "index.html").get_text()
    assert "is not CLIP" in text
    assert "results of an earlier run" in text
    (folder / "steps.json").write_text('{"04_evaluate": "x"}')
    assert names(write_run_pages(folder)) == ["index.html"]
    assert "results of an earlier run" not in soup_of(folder / "index.html").get_text()


def test_the_summary_lists_files_with_sizes_and_pages_with_pictures(run):
    (run / "02_zero_shot.failed.ipynb").write_text("{}")
    write_run_pages(run)
    soup = soup_of(run / "index.html")
    listed = {a["href"]: a.find_parent("tr").get_text(" ", strip=True) for a in soup.select("#files ~ .table-scroll a")}
    assert size_text((run / "metrics.json").stat().st_size) in listed["metrics.json"]
    assert "as far as it came" in listed["02_zero_shot.failed.ipynb"]
    assert {f"{stem}.ipynb" for stem in executed_notebooks(run)} <= listed.keys()
    assert "studies.parquet" not in listed
    cards = soup.select(".card")
    assert [card.a["href"] for card in cards] == ALL[:-1]
    assert all(card.img["src"].startswith("data:image/") for card in cards)


def test_origin_is_said_once_where_all_pages_have_the_same(run):
    write_run_pages(run)
    rows = [row.get_text("|", strip=True) for row in soup_of(run / "index.html").select(".provenance tr")]
    assert rows[0] == "made|2026-01-02 03:04 UTC"
    assert rows[1] == "seconds|" + "|".join(f"{label}: {k}" for k, label in enumerate(PAGE_LABELS.values()))


def test_results_of_an_earlier_version_are_summed_up(tmp_path):
    """mAcc alone, without classes, notebooks or predictions."""
    rows = {"majority": {"mAcc": 0.7}, "linear_probe": {"mAcc": 0.8, "mAcc_ci": [0.7, 0.9]}}
    basics = {"name": "old", "dataset": "synthetic", "backbone": "b", "split": "random"}
    for folder, more in {"old": {}, "ours": {"histoclip_patch": {"mAcc": 0.75}}, "none": None}.items():
        (tmp_path / folder).mkdir()
        content = basics | {"methods": {} if more is None else rows | more}
        (tmp_path / folder / "metrics.json").write_text(json.dumps(content))
        assert names(write_run_pages(tmp_path / folder)) == ["index.html"]
    assert "no results of HistoCLIP" in soup_of(tmp_path / "old" / "index.html").get_text()
    assert "does not beat the linear probe" in soup_of(tmp_path / "ours" / "index.html").get_text()
    assert soup_of(tmp_path / "none" / "index.html").table is not None  # of the files


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": 3, "prevalence": [], "n_val": "x", "n_train": True},
        {"classes": ["a", 3], "prevalence": {"a": "x"}},
        {"prevalence": {"tumor": 2}, "n_val": -1},
    ],
)
def test_garbled_details_are_left_out(run, changes):
    edit_metrics(run, **changes)
    write_run_pages(run)
    assert ("validated on" in soup_of(run / "index.html").get_text()) == ("n_val" not in changes)


def test_garbled_rows_are_left_out(run):
    rows = json.loads((run / "metrics.json").read_text())["methods"]
    rows["knn"] = {"mAcc": "high"}
    rows["histoclip_global"] |= {"auroc": "x", "macro_f1_ci": [1], "per_class": 4}
    rows["unheard of"] = 3
    edit_metrics(run, methods=rows)
    results = read_metrics(run / "metrics.json")
    assert "knn" not in results.methods
    assert "auroc" not in results.methods["histoclip_global"]
    assert results.methods["histoclip_global"]["macro_f1"].interval is None
    assert results.by_class["histoclip_global"]["tumor"] == {}
    write_run_pages(run)


def test_sizes_in_words():
    assert [size_text(n) for n in (0, 999, 1000, 5538900)] == ["0 B", "999 B", "1.0 kB", "5.5 MB"]
