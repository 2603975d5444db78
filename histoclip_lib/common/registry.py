"""Registries: what a decorator beside a thing says of it, found by name; and the modules that register from outside."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Generic, TypeVar

from histoclip_lib.common.errors import HistoCLIPError, shown

PLUGINS = "HISTOCLIP_PLUGINS"  # environment variable: modules or .py files, separated by commas
ENTRY_POINTS = "histoclip"  # the group in which an installed package names its modules
FAMILIES = ("uninformative", "zero-shot", "baseline", "histoclip")  # in the order of the tables

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """Entries by name, in the order in which they were registered.

    Parameters
    ----------
    kind : str
        What an error calls an entry, such as `data set`.
    parameter : str
        The parameter by which a user chooses one, such as `dataset`.
    modules : tuple of str
        Modules of the library that register entries; they are imported when the first entry is asked for.
    """

    def __init__(self, kind: str, parameter: str = "", modules: tuple[str, ...] = ()) -> None:
        self.kind, self.parameter, self.modules = kind, parameter or kind, modules
        self._entries: dict[str, Entry] = {}
        self._module: dict[str, str] = {}

    def add(self, name: str, entry: Entry, module: str = "") -> None:
        """Register an entry; with its module, entries of the library are listed in the order of `modules`.

        In a notebook a cell that is executed again replaces what it registered.

        Raises
        ------
        HistoCLIPError
            If another entry has the name.
        """
        known = self._entries.get(name, entry)
        if known != entry and not (_is_of_session(known) and _is_of_session(entry)):
            raise HistoCLIPError(f"{self.kind}: {name!r} is registered twice. Give one of the two another name.")
        self._entries[name], self._module[name] = entry, module

    def load(self) -> dict[str, Entry]:
        """Return all entries by name, those of plugins too."""
        for module in self.modules:
            importlib.import_module(module)
        load_plugins()
        order = {module: place for place, module in enumerate(self.modules)}
        names = sorted(self._entries, key=lambda name: order.get(self._module[name], len(order)))
        return {name: self._entries[name] for name in names}

    def __getitem__(self, name: str) -> Entry:
        """Return an entry.

        Raises
        ------
        HistoCLIPError
            If nothing registers the name; the message has the nearest names.
        """
        entries = self.load()
        if name not in entries:
            nearest = difflib.get_close_matches(str(name), entries, n=1)
            hint = f"Did you mean {nearest[0]}? " if nearest else ""
            raise HistoCLIPError(
                f"{self.parameter}: {shown(name)} is not a known {self.kind}. {hint}Use one of {', '.join(entries)}."
            )
        return entries[name]

    def __contains__(self, name: object) -> bool:
        """Say whether something registers the name."""
        return name in self.load()

    def __iter__(self) -> Iterator[str]:
        """Yield the names in the order of registration."""
        return iter(self.load())


def _is_of_session(entry: object) -> bool:
    functions = [entry] if callable(entry) else vars(entry).values()
    return any(getattr(each, "__module__", "") == "__main__" for each in functions)


@dataclass(frozen=True)
class Method:
    """A line of the result tables.

    Attributes
    ----------
    name : str
        As in `metrics.json` and `predictions.parquet`: `one_vs_rest`.
    label : str
        In tables with all methods: `Zero-shot: One-vs-Rest`.
    short : str
        In narrow tables, and where nothing but its family is shown: `One-vs-Rest`.
    family : str
        One of FAMILIES.
    in_table_one : bool
        Whether Table I has a column for it.
    paper : str
        Its name among the paper's numbers; empty where the paper has none.
    probabilities : bool
        Whether its scores are probabilities, which cross-entropy and Brier score can judge.
    """

    name: str
    label: str
    short: str
    family: str
    in_table_one: bool = False
    paper: str = ""
    probabilities: bool = False


METHODS: Registry[Method] = Registry(
    "method",
    modules=(
        "histoclip_lib.prompting.strategies",
        "histoclip_lib.prompting.adaptation",
        "histoclip_lib.models.baselines",
    ),
)


def register_method(name: str, label: str, family: str, short: str = "", *about: object, **more: object) -> None:
    """Register a line of the result tables; `Method` has the arguments."""
    METHODS.add(name, Method(name, label, short or label, family, *about, **more))


@cache
def load_plugins() -> tuple[str, ...]:
    """Import the modules that register entries from outside the library, once; return their names.

    These are the entry points of the group `histoclip` of installed packages, and what the environment variable
    HISTOCLIP_PLUGINS names: modules, or paths of `.py` files, separated by commas.

    Raises
    ------
    HistoCLIPError
        If one cannot be imported.
    """
    names = [point.module for point in entry_points(group=ENTRY_POINTS)]
    names += [name.strip() for name in os.environ.get(PLUGINS, "").split(",") if name.strip()]
    for name in names:
        try:
            _import_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
        except HistoCLIPError:
            raise
        except Exception as error:
            raise HistoCLIPError(
                f"plugin {name}: cannot be imported ({type(error).__name__}: {error}). Fix it, or remove it from "
                f"{PLUGINS}."
            ) from error
    return tuple(names)


def plugin_digest() -> str:
    """Return a digest of the source of all plugins, on which every step of a run depends."""
    digest = hashlib.sha256()
    for name in load_plugins():
        module = sys.modules[_module_name(Path(name)) if name.endswith(".py") else name]
        digest.update(name.encode() + b"\0" + Path(module.__file__).read_bytes())
    return digest.hexdigest()


def _module_name(path: Path) -> str:
    return f"histoclip_plugin_{path.stem}"


def _import_file(path: Path) -> None:
    name = _module_name(path)
    if loaded := sys.modules.get(name):
        if loaded.__file__ != str(path.absolute()):
            raise HistoCLIPError(f"{PLUGINS}: {loaded.__file__} and {path} have one name. Rename one of them.")
        return
    spec = importlib.util.spec_from_file_location(name, path.absolute())
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
