"""A published run: what is in it opens elsewhere, and says nothing of where it was made."""

import json
import zipfile

import nbformat
import pytest
from bs4 import BeautifulSoup

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.report.glossary import GLOSSARY, glossary
from histoclip_lib.report.html import finish_article, markdown_to_html
from histoclip_lib.report.publish import publish, without_paths


@pytest.fixture
def run(tmp_path):
    """A run whose parameters and pages name folders of this machine."""
    folder, data = tmp_path / "reports" / "mine", tmp_path / "O'Brien & Co" / "patients"
    (folder / "model").mkdir(parents=True)
    cell = nbformat.v4.new_code_cell(f"data_dir = {str(data)!r}", metadata={"tags": ["injected-parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / "01_data.ipynb")
    links = '<li><a href="../index.html">All runs</a></li><a href="run.json">run.json</a> <a href="split.csv">split</a>'
    where = str(data).replace("&", "&amp;")
    (folder / "01_data.html").write_text(f"<ul>{links}</ul><td>{where}</td><p>{folder}</p>", encoding="utf-8")
    (folder / "split.csv").write_text("file\na.png\n")
    (folder / "model" / "config.json").write_text(f'{{"data": "{data}"}}')
    (folder / "run.json").write_text("{}")
    (folder / "01_data_files").mkdir()
    (folder / "01_data_files" / "0a.webp").write_bytes(b"RIFF")
    return folder


def test_an_archive_holds_pages_and_data_and_no_path_of_its_maker(run, tmp_path):
    with zipfile.ZipFile(publish(run)) as archive:
        held = {name: archive.read(name).decode() for name in archive.namelist()}
    assert set(held) == {"mine/01_data.html", "mine/01_data_files/0a.webp", "mine/split.csv", "mine/model/config.json"}
    assert not any(str(tmp_path) in text for text in held.values())
    page = BeautifulSoup(held["mine/01_data.html"], "html.parser")
    assert page.td.get_text() == "patients"
    assert [link["href"] for link in page.select("a")] == ["split.csv"]
    assert "run.json" in page.get_text()


def test_a_run_without_pages_cannot_be_published(tmp_path):
    with pytest.raises(HistoCLIPError, match="has no pages"):
        publish(tmp_path)


def test_the_longest_path_is_cut_first_and_the_root_never():
    assert without_paths("/data/a/b and /data/a, /etc", ["/data/a", "/data/a/b", "/"]) == "b and a, /etc"


def test_paths_are_cut_as_json_writes_them_and_pictures_stay_whole():
    assert without_paths(json.dumps({"data": "/data/Patiënten"}), ["/data/Patiënten"]) == '{"data": "Pati\\u00ebnten"}'
    picture = f'<img src="data:image/png;base64,{"A" * 500}/root{"A" * 500}=="> /root'
    assert without_paths(picture, ["/root", "/data/x"]) == picture.removesuffix("/root") + "root"


def test_every_term_of_the_glossary_can_be_linked():
    soup = BeautifulSoup(finish_article(markdown_to_html(glossary().data)).html, "html.parser")
    ids = {heading["id"] for heading in soup.select("h4")}
    assert len(ids) == len(GLOSSARY)
    assert ids >= {"macc", "map", "linear-probe", "cross-entropy", "brier-score", "sensitivity", "pointing-game"}
