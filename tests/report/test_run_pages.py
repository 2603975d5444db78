"""The pages of a run: when they are drawn again and what they link; what executed notebooks say of themselves."""

import json

import nbformat
import pytest
from bs4 import BeautifulSoup
from small_runs import make_notebook, make_run

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.report import export
from histoclip_lib.report.executed import executed_notebooks, read_executed, run_parameters, stamp
from histoclip_lib.report.notebooks import front_page, run_notebooks
from histoclip_lib.report.run_pages import write_run_pages
from histoclip_lib.report.tables import files_table, size_text

ALL = [f"{stem}.html" for stem in run_notebooks()]


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path, "demo")


def soup_of(page):
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


def links_of(page):
    return {a["href"]: a.get_text(strip=True) for a in soup_of(page).select(".pages a")}


def names(paths):
    return [path.name for path in paths]


# Drawing


def test_pages_are_drawn_once_and_again_where_something_changed(run, monkeypatch):
    assert names(write_run_pages(run)) == ALL
    assert write_run_pages(run) == []
    (run / "02_zero_shot.html").unlink()
    assert names(write_run_pages(run)) == ["02_zero_shot.html"]
    make_notebook(run / "03_train.ipynb", "Changed", {"seed": 5})
    assert names(write_run_pages(run)) == ["03_train.html"]
    assert soup_of(run / "03_train.html").h1.get_text() == "Changed"
    (run / "01_data.html").write_text("<title>not drawn by this library</title>")
    (run / "02_zero_shot.html").write_bytes(b"")
    assert names(write_run_pages(run)) == ["01_data.html", "02_zero_shot.html"]
    monkeypatch.setattr(export, "_own_source", lambda: b"a changed template")
    assert names(write_run_pages(run)) == ALL
    assert write_run_pages(run) == []


def test_only_pages_that_exist_are_linked(tmp_path):
    folder = make_run(tmp_path, "half", steps=2)
    assert front_page(folder) is None
    assert names(write_run_pages(folder)) == ALL[:2]
    expected = {"../index.html": "All runs", "01_data.html": "01 Data", "02_zero_shot.html": "02 Zero-shot"}
    assert links_of(folder / "01_data.html") == links_of(folder / "02_zero_shot.html") == expected
    assert front_page(folder).name == "01_data.html"
    make_notebook(folder / "03_train.ipynb", "Training", {})
    assert names(write_run_pages(folder)) == ALL[:3]
    assert "03_train.html" in links_of(folder / "01_data.html")


def test_every_page_links_all_others_in_order_and_turns_to_its_neighbours(run):
    write_run_pages(run)
    order = ["../index.html", *ALL]
    for place, page in enumerate(ALL, 1):
        assert list(links_of(run / page)) == order
        soup = soup_of(run / page)
        assert soup.select_one(".pages [aria-current]")["href"] == page
        assert soup.select_one("[rel=prev]")["href"] == order[place - 1]
        following = soup.select_one("[rel=next]")
        assert (following and following["href"]) == (order[place + 1] if place + 1 < len(order) else None)
    assert front_page(run).name == "04_results.html"


def test_title_and_origin_come_from_the_notebook(run):
    stamp(run / "01_data.ipynb", "a <b>title</b>", {"made": "<script>x</script>", "commit": "0123abc"})
    make_notebook(run / "02_zero_shot.ipynb", "Zero-shot", {})
    write_run_pages(run)
    soup = soup_of(run / "01_data.html")
    assert soup.select_one(".kicker").get_text() == "a <b>title</b>"
    lines = [row.get_text("|") for row in soup.select(".provenance tr")]
    assert lines == ["made|<script>x</script>", "commit|0123abc"]  # in their order
    unstamped = soup_of(run / "02_zero_shot.html")
    assert unstamped.select_one(".kicker").get_text() == "demo"
    assert unstamped.select_one(".provenance") is None


def test_a_garbled_notebook_is_named_and_its_page_removed(run):
    write_run_pages(run)
    (run / "03_train.ipynb").write_text("{")
    with pytest.raises(HistoCLIPError, match=r"03_train\.ipynb is not a notebook"):
        write_run_pages(run)
    assert not (run / "03_train.html").exists()
    assert "03_train.html" not in links_of(run / "01_data.html")


# Executed notebooks


def test_parameters_are_the_injected_values_with_the_declared_meaning(tmp_path):
    path = tmp_path / "01_data.ipynb"
    make_notebook(path, "Data", {"seed": 0, "name": "demo"})
    tree = nbformat.read(path, as_version=4)
    injected = nbformat.v4.new_code_cell("seed = 3\nadded = [1]")
    injected.metadata["tags"] = ["injected-parameters"]
    tree.cells.insert(2, injected)
    nbformat.write(tree, path)
    assert {name: (p.value, p.meaning) for name, p in run_parameters(tmp_path).items()} == {
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
def test_garbled_metadata_counts_as_not_said(tmp_path, metadata):
    path = tmp_path / "01_data.ipynb"
    make_notebook(path, "Data", {})
    tree = json.loads(path.read_text())
    tree["metadata"] = metadata
    path.write_text(json.dumps(tree))
    executed = read_executed(path)
    assert (executed.title, executed.provenance, executed.made) == ("", {}, "")


# Files


def test_the_files_of_a_run_are_listed_with_sizes(run):
    (run / "02_zero_shot.failed.ipynb").write_text("{}")
    soup = BeautifulSoup(files_table(run).data, "html.parser")
    listed = {a["href"]: a.find_parent("tr").get_text(" ", strip=True) for a in soup.select("a")}
    assert size_text((run / "metrics.json").stat().st_size) in listed["metrics.json"]
    assert "as far as it came" in listed["02_zero_shot.failed.ipynb"]
    assert {f"{stem}.ipynb" for stem in executed_notebooks(run)} <= listed.keys()
    assert "studies.parquet" not in listed


def test_sizes_are_in_words():
    assert [size_text(n) for n in (0, 999, 1000, 5538900)] == ["0 B", "999 B", "1.0 kB", "5.5 MB"]
