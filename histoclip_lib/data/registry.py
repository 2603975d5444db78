"""The data sets by name: each registers itself beside its loader, with what the tables and the report say of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from histoclip_lib.common.errors import HistoCLIPError, shown
from histoclip_lib.common.files import resolve
from histoclip_lib.common.registry import Registry
from histoclip_lib.data.base import PatchDataset

Loader = Callable[..., PatchDataset]
LEAST_MPP, MOST_MPP = 0.05, 20.0


@dataclass(frozen=True)
class DatasetEntry:
    """A data set that can be loaded by name.

    Attributes
    ----------
    name, title : str
        As in parameter files, and as in tables: `bcss_wsss`, `BCSS-WSSS`.
    load : callable
        `load(folder, **options)`, or `load(**options)` where no folder is needed.
    licence, about : str
        The terms in a sentence, and a paragraph of Markdown for the report.
    options : tuple of str
        Arguments of `load`, named like the parameters of a run; `split` among them where it decides what is loaded.
    needs_folder : bool
        Whether the data is read from a folder; otherwise it is generated.
    paper : dict of str to float
        mAcc in Table I of the paper, by the name under which a method is found there; empty where it has none.
    mpp : float or None
        Micrometres per pixel of its patches; None where the data itself says it, or nothing does.
    tcga : {"yes", "in part", "no", "unknown"}
        Whether its images come from TCGA, which the pretraining of many encoders holds.
    present : str
        The rule by which a class counts as present in a patch, a sentence; `{option}` stands for an option's value.
    """

    name: str
    title: str
    load: Loader
    licence: str
    about: str
    options: tuple[str, ...] = ()
    needs_folder: bool = True
    paper: Mapping[str, float] = field(default_factory=dict)
    mpp: float | None = None
    tcga: str = "unknown"
    present: str = "A class is present where the labels say so."


DATASETS: Registry[DatasetEntry] = Registry(
    "data set",
    parameter="dataset",
    modules=tuple(
        f"histoclip_lib.data.{name}" for name in ("synthetic.patches", "folder", "histoseg", "pannuke.layouts")
    ),
)


def dataset(name: str, *, title: str, licence: str, about: str, **more: object) -> Callable[[Loader], Loader]:
    """Register the decorated loader as a data set; `DatasetEntry` has the arguments.

    Examples
    --------
    >>> import numpy as np
    >>> from histoclip_lib import PatchDataset, dataset
    >>> @dataset("blank", title="Blank", licence="CC0", about="Two patches.", needs_folder=False)
    ... def load():
    ...     return PatchDataset("blank", ["tumor"], ["a", "b"], np.array([[0], [1]], dtype=np.uint8), source=None)
    """

    def register(load: Loader) -> Loader:
        DATASETS.add(name, DatasetEntry(name, title, load, licence, about, **more), load.__module__)
        return load

    return register


def load_dataset(
    dataset: str, data_dir: str | Path = "", split: str = "random", mpp: float = 0.0, **options: object
) -> PatchDataset:
    """Load a data set by its name in the parameter files.

    Parameters
    ----------
    dataset : str
        One of `DATASETS`: `synthetic`, `folder`, `bcss_wsss`, `luad_histoseg`, `pannuke`, or what a plugin registers.
    data_dir : str or Path
        Its folder; `synthetic` is generated and needs none.
    split : str
        BCSS-WSSS and LUAD-HistoSeg: with `given` the official validation and test parts are loaded too; otherwise the
        official training part alone, which is what the paper divides 8:2.
    mpp : float
        Micrometres per pixel of the patches, where what the data set says does not hold; 0 for that.
    **options
        `n_patches` (synthetic), `mask_coverage` (BCSS-WSSS, LUAD-HistoSeg), `min_nuclei` (PanNuke), `classes`,
        `ignore`, `group_pattern` (folder), `follow_links` (all that are read from a folder). Those of other data sets
        are ignored.

    Raises
    ------
    HistoCLIPError
        For an unknown name, an option of no data set, a missing `data_dir`, and whatever the loader finds wrong.

    Examples
    --------
    >>> patches = load_dataset("synthetic", n_patches=4)
    >>> len(patches), patches.classes
    (4, ['tumor', 'stroma', 'lymphocyte', 'necrosis'])
    """
    entry = DATASETS[dataset]
    known = {name for other in DATASETS.load().values() for name in other.options}
    if unknown := sorted(options.keys() - known):
        raise HistoCLIPError(
            f"{', '.join(unknown)}: not an option of any data set. {dataset} has {', '.join(entry.options) or 'none'}."
        )
    given = {name: value for name, value in {**options, "split": split}.items() if name in entry.options}
    if not entry.needs_folder:
        return _with_mpp(entry.load(**given), mpp, entry)
    if not data_dir:
        raise HistoCLIPError(f"data_dir: {dataset} needs the folder of the data.")
    folder = resolve(data_dir)
    try:
        os.stat(folder)
    except (FileNotFoundError, NotADirectoryError):
        pass  # the loader says what it looked for
    except (OSError, ValueError) as error:  # too long, forbidden, or with a null character
        reason = getattr(error, "strerror", None) or error
        raise HistoCLIPError(f"data_dir: {shown(str(data_dir), 300)} cannot be read ({reason}).") from error
    return _with_mpp(entry.load(folder, **given), mpp, entry)


def _with_mpp(patches: PatchDataset, mpp: float, entry: DatasetEntry) -> PatchDataset:
    """Return patches with the resolution that is given, else their own, else that of their data set."""
    if mpp and not LEAST_MPP <= mpp <= MOST_MPP:
        raise HistoCLIPError(
            f"mpp: {mpp:g} micrometres per pixel is out of range; expected {LEAST_MPP:g} to {MOST_MPP:g}, or 0."
        )
    if mpp or (entry.mpp and patches.patch_mpp is None):
        return replace(patches, patch_mpp=np.full(len(patches), mpp or entry.mpp))
    return patches


def dataset_parameters(values: Mapping[str, object]) -> dict[str, object]:
    """Return those of a run's parameters that decide which patches are loaded."""
    names = ("dataset", "data_dir", "split", "mpp", *DATASETS[str(values["dataset"])].options)
    given = {name: values[name] for name in dict.fromkeys(names) if name in values}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}  # hashable


def load_dataset_from(values: Mapping[str, object]) -> PatchDataset:
    """Load the data set that a run's parameters name; errors are those of `load_dataset`."""
    return load_dataset(**dataset_parameters(values))
