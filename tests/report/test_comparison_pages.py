"""Pages that compare two runs: what they show, and which pairs have one."""

import json

import pytest
from bs4 import BeautifulSoup
from small_runs import CLASSES, N_PATCHES, make_notebook, make_patches, make_run

from histoclip_lib.evaluation.artifacts import read_predictions
from histoclip_lib.evaluation.comparisons import align, compare_runs, disagreements
from histoclip_lib.report import overview as run_pairs
from histoclip_lib.report.overview import write_comparisons


def soup_of(page):
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


def predictions_of(folder):
    return read_predictions(folder / "predictions.parquet")


@pytest.fixture
def two_runs(tmp_path):
    """Two runs on the same patches; the majority and the Baseline do not depend on the seed."""
    return [
        make_run(tmp_path, name, seed=seed, same=("majority", "baseline")) for seed, name in enumerate(("one", "two"))
    ]


# The page


def page_of(two_runs):
    links = write_comparisons(two_runs[0].parent)
    return two_runs[0].parent / links.links[0].href


def test_the_page_says_what_was_compared(two_runs):
    soup = soup_of(page_of(two_runs))
    text = " ".join(soup.get_text().split())
    assert soup.h1.get_text() == "one and two"
    assert f"Both validate on the same {N_PATCHES} patches" in text
    assert text.count("same answers") == 4  # two rows, two metrics
    found = compare_runs(align(*map(predictions_of, two_runs)))
    for row in found.methods:
        assert (
            row.same
            or f"{row.macc.value:+.3f}[{row.macc.interval[0]:+.3f}, {row.macc.interval[1]:+.3f}]"
            in text.replace(" [", "[")
        )
    assert f"{found.test.value:+.3f}, 95 % interval {found.test.low:+.3f} to {found.test.high:+.3f}" in text
    for name in CLASSES:
        assert name in text


def test_the_page_says_what_was_not_compared(tmp_path):
    runs = [make_run(tmp_path, "one", val=range(18)), make_run(tmp_path, "two", val=range(8, 24), seed=1)]
    text = " ".join(soup_of(page_of(runs)).get_text().split())
    assert "10 patches that both runs validate on are compared. 8 of A's and 6 of B's are not" in text


def test_parameters_that_differ_are_listed_and_others_are_not(tmp_path):
    one = make_run(tmp_path, "one", learning_rate=0.001, heads=8, only_here=1)
    two = make_run(tmp_path, "two", seed=1, learning_rate=0.001, heads=4)
    for folder, rate in ((one, "1e-3"), (two, "0.001")):
        for path in folder.glob("*.ipynb"):
            path.write_text(path.read_text().replace("learning_rate: float = 0.001", f"learning_rate: float = {rate}"))
    soup = soup_of(page_of([one, two]))
    rows = [
        [cell.get_text(strip=True) for cell in row.find_all(["th", "td"])]
        for row in soup.select("#parameters ~ .table-scroll tbody tr")
    ]
    assert sorted(rows) == [
        ["heads", "8", "4", "the heads"],
        ["only_here", "1", "–", "the only_here"],
        ["seed", "0", "1", "the seed"],
    ]


def test_equal_runs_are_called_the_same(tmp_path):
    soup = soup_of(page_of([make_run(tmp_path, "one"), make_run(tmp_path, "two")]))
    text = soup.get_text()
    assert "gives the same answers in both runs" in text
    assert "In no patch is one run right" in text
    assert "made with the same parameters" in text


def test_without_notebooks_the_page_says_what_it_does_not_know(two_runs):
    for path in two_runs[0].glob("*.ipynb"):
        path.unlink()
    # folders of one's own are told apart by data_dir, other data sets by their name
    for run in two_runs:
        metrics = json.loads((run / "metrics.json").read_text()) | {"dataset": "consep"}
        (run / "metrics.json").write_text(json.dumps(metrics))
    text = soup_of(page_of(two_runs)).get_text()
    assert "parameters are not known" in text
    assert "the executed notebooks, which say where the data lies, are not there" in text


def test_patches_on_which_they_disagree_are_shown_where_the_images_are_there(tmp_path, write_folder):
    patches = make_patches()
    labels = {name: patches.labels[:, k] for k, name in enumerate(CLASSES)}
    data = write_folder(tmp_path / "data", labels)
    runs = [
        make_run(tmp_path / "reports", name, seed=k, patches=patches, data_dir=str(data))
        for k, name in enumerate(("one", "two"))
    ]
    soup = soup_of(page_of(runs))
    image = soup.select_one("figure img")
    found = disagreements(align(*map(predictions_of, runs)), 4)
    assert all(f"{patches.files[case.place]}: " in image["alt"] for case in found)
    listed = [row.th.get_text() for row in soup.select(".patches tbody tr")]
    assert listed == [patches.files[case.place] for case in found]
    assert str(data) not in soup.select_one("#disagree").parent.get_text()


def test_where_the_images_are_gone_the_files_are_listed_with_the_reason(two_runs):
    soup = soup_of(page_of(two_runs))
    assert soup.select_one("figure") is None
    assert "The patches are not shown: data_dir" in soup.get_text()
    assert len(soup.select(".patches tbody tr")) > 0


# Which pairs have a page


def hrefs(links):
    return [link.href for link in links.links]


def test_pairs_of_the_same_data_set_with_common_patches_have_a_page(tmp_path):
    make_run(tmp_path, "a", val=range(17))
    make_run(tmp_path, "b", val=range(5, 24), seed=1)
    make_run(tmp_path, "c", val=range(14, 24), seed=2)  # three in common with a say nothing
    make_run(tmp_path, "elsewhere", data_dir="other", seed=3)
    make_run(tmp_path, "other_set", dataset="pannuke", seed=4)
    make_run(tmp_path, "other_classes", patches=make_patches(["x", "y", "z"]), seed=5)
    make_run(tmp_path, "half", steps=2)
    garbled = make_run(tmp_path, "garbled", seed=6)
    (garbled / "predictions.parquet").write_bytes(b"PAR1")
    found = write_comparisons(tmp_path)
    assert hrefs(found) == ["compare_a_b.html", "compare_b_c.html"]
    assert [(link.first, link.second, link.dataset) for link in found.links] == [
        ("a", "b", "folder"),
        ("b", "c", "folder"),
    ]
    assert sorted(path.name for path in tmp_path.glob("*.html")) == hrefs(found)


def test_comparisons_are_drawn_once_and_go_with_their_runs(two_runs):
    reports = two_runs[0].parent
    page = page_of(two_runs)
    first = page.stat().st_mtime_ns
    (reports / "compare_mine.html").write_text("my own notes")
    write_comparisons(reports)
    assert page.stat().st_mtime_ns == first
    make_notebook(two_runs[1] / "03_train.ipynb", "Training", {"seed": 9})
    write_comparisons(reports)
    assert page.stat().st_mtime_ns > first
    (two_runs[0] / "metrics.json").unlink()
    assert hrefs(write_comparisons(reports)) == []
    assert [path.name for path in reports.glob("*.html")] == ["compare_mine.html"]


def test_at_most_so_many_pairs_are_compared_and_the_rest_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(run_pairs, "MOST_PAIRS", 2)
    for k in range(3):
        make_run(tmp_path, f"run_{k}", seed=k)
    found = write_comparisons(tmp_path)
    assert (hrefs(found), found.left_out) == (["compare_run_0_run_1.html", "compare_run_0_run_2.html"], 1)


def test_names_that_would_collide_or_are_too_long_get_files_of_their_own(tmp_path):
    for folder, val in (("a", range(12)), ("a_b", range(12, 24)), ("b_c", range(12)), ("c", range(12, 24))):
        make_run(tmp_path, folder, val=val)
    for end in "12":
        make_run(tmp_path, "x" * 120 + end, dataset="pannuke")
    found = hrefs(write_comparisons(tmp_path))
    assert len(set(found)) == len(found) == 3
    assert "compare_a_b_c.html" in found
    assert all((tmp_path / href).is_file() and len(href) < 210 for href in found)
