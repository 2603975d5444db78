"""A run as one archive that opens anywhere: its pages and data, without notebooks and without paths of its maker."""

from __future__ import annotations

import html
import json
import re
import zipfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.files import replacing
from histoclip_lib.report.executed import executed_notebooks, parameter_value, read_executed
from histoclip_lib.report.notebooks import MODEL_FILES

DATA = (
    "metrics.json", "predictions.parquet", "zero_shot.parquet", "studies.parquet", "split.csv", "history.csv",
    "thumbnail.png",
)  # fmt: skip
TEXT = frozenset({".html", ".json", ".csv", ".md"})
LINK = re.compile(r'<a (?:[^>]*\s)?href="([^"#:?]+)(?:#[^"]*)?"[^>]*>(.*?)</a>', re.DOTALL)
BASE64 = "[A-Za-z0-9+/]{200,}"
OVERVIEW_ITEM = re.compile(r'<li><a href="\.\./[^"]*">[^<]*</a></li>')


def publish(folder: Path) -> Path:
    """Write `<folder>.zip` beside a run's folder, and return its path.

    It holds the pages, the data of the tables and the saved model. Absolute paths that the run's parameters name, and
    the folder of the run, are cut to their last part; links to what is not in the archive become text.

    Raises
    ------
    HistoCLIPError
        If the run has no page.
    """
    pages = sorted(folder.glob("*.html"))
    if not pages:
        raise HistoCLIPError(f"{folder} has no pages. `histoclip run` makes them.")
    beside = sorted(folder.glob("*_files/*.webp"))
    data = (*DATA, *(f"model/{name}" for name in MODEL_FILES))
    files = [*pages, *beside, *(folder / name for name in data)]
    names = {path.relative_to(folder).as_posix(): path for path in files if path.is_file()}
    private = private_paths(folder)
    target = folder.with_name(f"{folder.name}.zip")
    with replacing(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in names.items():
            if path.suffix not in TEXT:
                archive.write(path, f"{folder.name}/{name}")
                continue
            text = without_paths(path.read_text(encoding="utf-8"), private)
            if path.suffix == ".html":
                text = LINK.sub(lambda link: link[0] if link[1] in names else link[2], OVERVIEW_ITEM.sub("", text))
            archive.writestr(f"{folder.name}/{name}", text)
    return target


def private_paths(folder: Path) -> list[str]:
    """Return the absolute paths that name the maker's machine: of the parameters, the run's folder, and of the user."""
    notebooks = (read_executed(path).parameters for path in executed_notebooks(folder).values())
    values = [parameter_value(own) for parameters in notebooks for own in parameters.values()]
    paths = [value for value in values if isinstance(value, str) and Path(value).is_absolute()]
    return [*paths, str(folder.resolve()), str(folder.resolve().parent), str(Path.cwd()), str(Path.home())]


def without_paths(text: str, paths: Iterable[str]) -> str:
    """Return text in which each of some paths, the longest first, is its last part; also as HTML and JSON write them.

    Pictures are left as they are: base64 has slashes and letters, so that `/root` may stand in one.
    """
    cut = {
        written(path): written(Path(path).name)
        for path in paths
        if len(Path(path).parts) > 1  # not the root, which is a sign that any text holds
        for written in (lambda text: json.dumps(text)[1:-1], partial(html.escape, quote=False), str)
    }
    either = "|".join([BASE64, *map(re.escape, sorted(cut, key=len, reverse=True))])
    return re.sub(either, lambda found: cut.get(found[0], found[0]), text)
