"""Plugins: each of them is imported, or the reason is told."""

import sys

import pytest

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.registry import load_plugins


def test_two_plugin_files_of_one_name_are_refused(tmp_path, monkeypatch):
    """The second would not be imported: a module is known by its name."""
    files = [tmp_path / folder / "twice_named.py" for folder in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        file.write_text("")
    monkeypatch.setenv("HISTOCLIP_PLUGINS", ",".join(map(str, files)))
    load_plugins.cache_clear()
    with pytest.raises(HistoCLIPError, match=r"a/twice_named.py and .*b/twice_named.py have one name. Rename one"):
        load_plugins()
    load_plugins.cache_clear()
    del sys.modules["histoclip_plugin_twice_named"]
