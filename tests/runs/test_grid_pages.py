"""The page of a grid: its runs, what is not there yet, and the spread over seeds."""

import pytest
import yaml
from bs4 import BeautifulSoup
from small_runs import make_run

from histoclip_lib.report.overview import write_index
from histoclip_lib.runs.grids import write_grid_page
from histoclip_lib.runs.parameters import Parameter

SCHEMA = {
    "01_data": {
        "name": Parameter("name", str, "demo", "of the run"),
        "seed": Parameter("seed", int, 0, "of the split"),
        "views": Parameter("views", int, 8, "of each patch"),
    }
}


@pytest.fixture
def grid(tmp_path):
    """A grid of four runs of which three are finished, and the folder of its reports."""
    path, reports = tmp_path / "my & grid.yaml", tmp_path / "reports"
    path.write_text(yaml.safe_dump({"name": "g", "grid": {"seed": [0, 1], "views": [1, 8]}}))
    reports.mkdir()
    for seed, views in ((0, 1), (0, 8), (1, 1)):
        make_run(reports, f"g_seed-{seed}_views-{views}", seed=seed)
        (reports / f"g_seed-{seed}_views-{views}" / "index.html").write_text("<title>x</title>")
    return path, reports


def test_the_page_lists_every_run_and_the_spread_over_seeds(grid):
    path, reports = grid
    page = write_grid_page(path, SCHEMA, reports)
    soup = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
    assert soup.h1.get_text() == "my & grid"
    runs, seeds = soup.select("main table")
    names = [row.th.get_text(strip=True) for row in runs.select("tbody tr")]
    assert names == [f"g_seed-{seed}_views-{views}" for seed in (0, 1) for views in (1, 8)]
    assert [link["href"] for link in runs.select("a")] == [f"{name}/index.html" for name in names[:3]]
    assert "not finished" in runs.select("tbody tr")[3].get_text()
    assert [row.select("td")[1].get_text() for row in seeds.select("tbody tr")] == ["2 of 2", "1 of 2"]


def test_the_overview_leads_to_it(grid):
    path, reports = grid
    assert "Grids" not in write_index(reports).read_text(encoding="utf-8")
    page = write_grid_page(path, SCHEMA, reports)
    soup = BeautifulSoup(write_index(reports).read_text(encoding="utf-8"), "html.parser")
    assert [a.get_text() for a in soup.find_all("a", href="grid_my%20%26%20grid.html")] == ["my & grid"]
    assert page.name == "grid_my & grid.html"


@pytest.mark.browser
def test_axe_finds_nothing(grid, accessible):
    page = write_grid_page(*grid[:1], SCHEMA, grid[1])
    for width in (390, 1440):
        accessible(page, width=width)
