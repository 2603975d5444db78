"""Files are written whole or not at all, and the cache lies where it is told to."""

from pathlib import Path

import platformdirs
import pytest

from histoclip_lib.cache import cache_dir
from histoclip_lib.files import replacing, resolve, run_folder, write_text


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "folder" / "table.csv"
    with replacing(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert names_in(path.parent) == ["table.csv"]


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_a_stopped_block_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, stop):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(stop), replacing(path) as temporary:
        temporary.write_text("ha")
        raise stop
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["table.csv"]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_the_temporary_file_is_beside_the_other_and_keeps_its_suffix(tmp_path):
    with replacing(str(tmp_path / "features.pooled.npy")) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".npy"
        assert temporary.name.startswith(".")
        temporary.touch()


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "table.csv"):
        pass


def test_text_is_utf_8(tmp_path):
    write_text(tmp_path / "note.md", "cos ≥ 0\n")
    assert (tmp_path / "note.md").read_bytes() == "cos ≥ 0\n".encode()


def test_the_environment_names_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HISTOCLIP_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    for unset in (lambda: monkeypatch.setenv("HISTOCLIP_CACHE", ""), lambda: monkeypatch.delenv("HISTOCLIP_CACHE")):
        unset()
        assert cache_dir() == Path(platformdirs.user_cache_dir("histoclip"))


def test_relative_paths_are_taken_from_above_a_notebooks_folder(tmp_path, monkeypatch):
    (tmp_path / "params").mkdir()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("data/x") == Path("data/x")
    monkeypatch.chdir(tmp_path / "notebooks")
    assert resolve("data/x") == Path("../data/x")
    assert resolve(tmp_path / "data") == Path("../data")
    assert run_folder("demo").resolve() == tmp_path / "reports" / "demo"


def test_notebooks_folder_of_another_project_means_nothing(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert resolve("data/x") == Path("data/x")
