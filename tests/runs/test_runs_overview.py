"""Pages over runs: which are executed again, which pairs are compared, and what comparisons and grids say."""

import json

import pytest
import yaml
from bs4 import BeautifulSoup
from small_runs import CLASSES, N_PATCHES, execute_here, make_patches, make_run

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.evaluation.artifacts import read_predictions
from histoclip_lib.evaluation.comparisons import align, compare_runs, disagreements
from histoclip_lib.runs import overview
from histoclip_lib.runs.overview import find_pairs, open_comparison, open_runs, write_overview


def soup_of(page):
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


def shown(displayed):
    """Return an HTML, a Table or a Markdown as parsed HTML or as text."""
    html = displayed._repr_html_() if hasattr(displayed, "_repr_html_") else displayed.data
    return BeautifulSoup(html, "html.parser")


def cells(displayed):
    return [
        [cell.get_text(strip=True) for cell in row.find_all(["th", "td"])]
        for row in shown(displayed).select("tbody tr")
    ]


def predictions_of(folder):
    return read_predictions(folder / "predictions.parquet")


@pytest.fixture
def executed(monkeypatch):
    """Execute notebooks in this process; the list holds the stems of those that were."""
    stems = []

    def execute(notebook, folder, step, *rest):
        stems.append(step)
        return execute_here(notebook, folder, step, *rest)

    monkeypatch.setattr(overview, "execute_notebook", execute)
    return stems


@pytest.fixture
def two_runs(tmp_path):
    """Two runs on the same patches; the majority and the Baseline do not depend on the seed."""
    return [
        make_run(tmp_path, name, seed=seed, same=("majority", "baseline")) for seed, name in enumerate(("one", "two"))
    ]


def compare(runs):
    return open_comparison(*(run.name for run in runs), runs[0].parent)


# What is executed


def test_a_page_is_executed_again_where_what_it_shows_has_changed(two_runs, executed):
    reports = two_runs[0].parent
    (reports / "compare_mine.html").write_text("my own notes")
    assert write_overview(reports) == [reports / "index.html"]
    assert executed == ["compare_one_two", "index"]
    write_overview(reports)
    assert len(executed) == 2
    (reports / "index.html").unlink()
    write_overview(reports)
    assert len(executed) == 2
    assert (reports / "index.html").is_file()
    metrics = json.loads((two_runs[1] / "metrics.json").read_text())
    (two_runs[1] / "metrics.json").write_text(json.dumps(metrics | {"n_val": 7}))
    write_overview(reports)
    assert executed[2:] == ["compare_one_two", "index"]
    (two_runs[0] / "metrics.json").unlink()
    write_overview(reports)
    assert [path.name for path in reports.glob("compare*")] == ["compare_mine.html"]
    assert executed[4:] == ["index"]


def test_a_comparison_that_fails_is_left_out(two_runs, executed, monkeypatch):
    def fail(notebook, folder, step, *rest):
        if step != "index":
            raise HistoCLIPError("killed")
        execute_here(notebook, folder, step, *rest)

    monkeypatch.setattr(overview, "execute_notebook", fail)
    [page] = write_overview(two_runs[0].parent)
    assert "compare_" not in page.read_text(encoding="utf-8")


def test_the_title_of_a_comparison_names_both_runs(two_runs, executed):
    write_overview(two_runs[0].parent)
    soup = soup_of(two_runs[0].parent / "compare_one_two.html")
    assert soup.h1.get_text() == "one and two"
    assert [a["href"] for a in soup.select(".pages a")] == ["index.html", "compare_one_two.html"]
    assert [a["href"] for a in soup.select(".sides a")] == ["one/04_results.html", "two/04_results.html"]


# Which pairs are compared


def pairs_of(reports):
    return [(first.folder, second.folder) for first, second in find_pairs(reports)]


def test_pairs_of_one_data_set_with_common_patches_are_compared(tmp_path):
    make_run(tmp_path, "a", val=range(17))
    make_run(tmp_path, "b", val=range(5, 24), seed=1)
    make_run(tmp_path, "c", val=range(14, 24), seed=2)  # three in common with a say nothing
    make_run(tmp_path, "elsewhere", data_dir="other", seed=3)
    make_run(tmp_path, "other_set", dataset="pannuke", seed=4)
    make_run(tmp_path, "other_classes", patches=make_patches(["x", "y", "z"]), seed=5)
    make_run(tmp_path, "half", steps=2)
    garbled = make_run(tmp_path, "garbled", seed=6)
    (garbled / "predictions.parquet").write_bytes(b"PAR1")
    assert pairs_of(tmp_path) == [("a", "b"), ("b", "c")]


def test_at_most_ten_pairs_are_compared_and_the_rest_is_counted(tmp_path, executed, monkeypatch):
    monkeypatch.setattr(overview, "MOST_PAIRS", 2)
    for k in range(3):
        make_run(tmp_path, f"run_{k}", seed=k)
    write_overview(tmp_path)
    assert executed == ["compare_run_0_run_1", "compare_run_0_run_2", "index"]
    assert "The first 2 pairs are compared, 1 more are not" in soup_of(tmp_path / "index.html").get_text()


def test_names_that_would_collide_or_are_too_long_get_files_of_their_own():
    stems = set()
    for first, second in (("a", "b_c"), ("a_b", "c"), ("x" * 120, "y" * 120)):
        stems.add(overview._stem(first, second, stems))
    assert len(stems) == 3
    assert "compare_a_b_c" in stems
    assert all(len(stem) < 200 for stem in stems)


# What a comparison says


def test_a_comparison_shows_every_difference(two_runs):
    compared = compare(two_runs)
    found = compare_runs(align(*map(predictions_of, two_runs)))
    text = shown(compared.methods()).get_text()
    assert text.count("same predictions") == 4  # two methods, two metrics
    for method in found.methods:
        assert method.same or f"{method.macc.value:+.3f} ({method.macc.interval[0]:+.3f} to" in text
    assert f"{found.test.value:+.3f}, 95% interval {found.test.low:+.3f} to" in compared.finding().data
    assert f"{N_PATCHES} held-out patches" in compared.patches_note().data
    assert [line[0] for line in cells(compared.classes())] == CLASSES


def test_a_comparison_says_what_was_left_out(tmp_path):
    runs = [make_run(tmp_path, "one", val=range(18)), make_run(tmp_path, "two", val=range(8, 24), seed=1)]
    note = compare(runs).patches_note().data
    assert "10 held-out patches" in note
    assert "8 of A's and 6 of B's" in note


def test_parameters_that_differ_are_listed_and_others_are_not(tmp_path):
    one = make_run(tmp_path, "one", learning_rate=0.001, heads=8, only_here=1)
    two = make_run(tmp_path, "two", seed=1, learning_rate=0.001, heads=4)
    for folder, rate in ((one, "1e-3"), (two, "0.001")):
        for path in folder.glob("*.ipynb"):
            path.write_text(path.read_text().replace("learning_rate: float = 0.001", f"learning_rate: float = {rate}"))
    assert sorted(cells(compare([one, two]).parameters())) == [
        ["heads", "8", "4", "the heads"],
        ["only_here", "1", "—", "the only_here"],
        ["seed", "0", "1", "the seed"],
    ]


def test_equal_runs_are_called_the_same(tmp_path):
    compared = compare([make_run(tmp_path, "one"), make_run(tmp_path, "two")])
    assert "the same predictions in both runs" in compared.finding().data
    assert "The runs never disagree" in compared.disagreements().data
    assert compared.patch_table() is None
    assert "the same parameters" in compared.parameters().data


def test_without_notebooks_a_comparison_says_what_it_does_not_know(two_runs):
    for path in two_runs[0].glob("*.ipynb"):
        path.unlink()
    compared = compare(two_runs)
    assert "parameters are not known" in compared.parameters().data
    assert "the executed notebooks, which name the data, are not there" in compared.disagreements().data


def test_patches_on_which_runs_disagree_are_shown_where_the_images_are_there(tmp_path, write_folder):
    patches = make_patches()
    labels = {name: patches.labels[:, k] for k, name in enumerate(CLASSES)}
    data = write_folder(tmp_path / "data", labels)
    runs = [
        make_run(tmp_path / "reports", name, seed=k, patches=patches, data_dir=str(data))
        for k, name in enumerate(("one", "two"))
    ]
    compared, found = compare(runs), disagreements(align(*map(predictions_of, runs)), 4)
    _, metadata = compared.disagreements()._repr_mimebundle_()
    alternative = next(iter(metadata.values()))["alt"]
    assert all(f"{patches.files[case.place]}: " in alternative for case in found)
    assert [line[0] for line in cells(compared.patch_table())] == [patches.files[case.place] for case in found]


def test_where_the_images_are_gone_the_files_are_listed_with_the_reason(two_runs):
    compared = compare(two_runs)
    assert "The patches are not shown: `` data_dir/labels.csv was not found" in compared.disagreements().data
    assert len(cells(compared.patch_table())) > 0


# Grids


@pytest.fixture
def grid(tmp_path):
    """A grid of four runs of which three are finished, and the folder of its reports."""
    path, reports = tmp_path / "my & grid.yaml", tmp_path / "reports"
    path.write_text(yaml.safe_dump({"name": "g", "grid": {"seed": [0, 1], "views": [1, 8]}}))
    reports.mkdir()
    for seed, views in ((0, 1), (0, 8), (1, 1)):
        make_run(reports, f"g_seed-{seed}_views-{views}", seed=seed)
    make_run(reports, "another", seed=9)
    return path, reports


def test_a_grid_lists_every_run_and_the_spread_over_seeds(grid):
    path, reports = grid
    found = open_runs(reports, str(path))
    (reports / "g_seed-0_views-1" / "01_data.html").write_text("<title>data</title>")
    lines = cells(found.list())
    assert [line[0] for line in lines] == [f"g_seed-{seed}_views-{views}" for seed in (0, 1) for views in (1, 8)]
    assert "not finished" in lines[3]
    assert [a["href"] for a in shown(found.list()).select("a")] == ["g_seed-0_views-1/01_data.html"]
    assert [line[2] for line in cells(found.seeds())] == ["2 of 2", "1 of 2"]
    assert "another" not in shown(found.table_one("mAcc")).get_text()
    assert found.links() is None


@pytest.mark.browser
def test_the_overview_leads_to_the_page_of_a_grid(grid, executed, monkeypatch, accessible):
    path, reports = grid
    monkeypatch.setattr(overview, "MOST_PAIRS", 0)
    pages = write_overview(reports, grids=[path])
    assert [page.name for page in pages] == ["grid_my & grid.html", "index.html"]
    assert soup_of(pages[0]).h1.get_text() == "Grid my & grid"
    links = soup_of(pages[1]).find_all("a", href="grid_my%20%26%20grid.html")
    assert [a.get_text() for a in links] == ["my & grid"]
    write_overview(reports, grids=[path])
    assert executed == ["grid_my & grid", "index"]
    for width in (390, 1440):
        accessible(pages[0], width=width)


def test_runs_of_several_data_sets_are_pooled_and_ranked(tmp_path):
    """One run of each data set counts; runs of one data set alone say nothing across data sets."""
    for seed, data in enumerate(("one", "two", "two", "three")):
        folder = make_run(tmp_path, f"{data}_{seed}", seed=seed, data_dir=data)
        (folder / "run.json").write_text(json.dumps({"parameters": {"data_dir": data}}))
    runs = open_runs(str(tmp_path))
    assert "over 3 data sets" in runs.across().data
    assert [line[0] for line in cells(runs.across_table())] == ["one_0", "three_3", "two_1", "mean over 3 data sets"]
    assert "Friedman's p" in runs.ranks_note().data
    assert "Mean ranks of 6 methods over 3 data sets" in str(runs.ranks().metadata) + str(runs.ranks().alt)
    (tmp_path / "nothing").mkdir()
    alone = open_runs(str(tmp_path / "nothing"))
    assert alone.across() is alone.across_table() is alone.ranks() is alone.ranks_note() is None
