"""The methods, which are the lines of every table: their labels, their order, and the paper's numbers for them."""

from __future__ import annotations

from collections.abc import Iterable

from histoclip_lib.common.registry import FAMILIES, METHODS, Method


def methods() -> dict[str, Method]:
    """Return all methods in the order of the tables: by family, then in the order of their registration."""
    return dict(sorted(METHODS.load().items(), key=lambda item: FAMILIES.index(item[1].family)))


def labels() -> dict[str, str]:
    """Return the labels of all methods by name, in the order of the tables."""
    return {name: method.label for name, method in methods().items()}


def label_of(name: str) -> str:
    """Return the label of a method; its name where a plugin that is not installed here registered it."""
    found = METHODS.load().get(name)
    return found.label if found else name


def short_label(name: str) -> str:
    """Return the label for narrow tables, and where only methods of one family are shown: `One-vs-Rest`."""
    found = METHODS.load().get(name)
    return found.short if found else name


def in_table_order(names: Iterable[str]) -> list[str]:
    """Return names of methods in the order of the tables.

    Raises
    ------
    HistoCLIPError
        If nothing registers one of the names.
    """
    wanted = {METHODS[name].name for name in names}
    return [name for name in methods() if name in wanted]


def ours_first(names: Iterable[str]) -> list[str]:
    """Return names in table order with HistoCLIP's, the last first, before the others: narrow screens show them."""
    known, names = METHODS.load(), list(names)
    ours = [name for name in names if name in known and known[name].family == "histoclip"]
    return [*reversed(ours), *(name for name in names if name not in ours)]


def strategy_names() -> list[str]:
    """Return the names of the zero-shot strategies."""
    return [name for name, method in methods().items() if method.family == "zero-shot"]


def table_one_columns() -> dict[str, str]:
    """Return the columns of Table I: short labels by name."""
    return {name: method.short for name, method in methods().items() if method.in_table_one}


def paper_numbers(dataset: str) -> dict[str, float]:
    """Return the mAcc that the paper reports on a data set, by method; empty where it has none."""
    from histoclip_lib.data.registry import DATASETS

    paper = DATASETS[dataset].paper if dataset in DATASETS else {}
    return {name: paper[method.paper] for name, method in methods().items() if method.paper in paper}
