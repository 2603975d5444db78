"""The data sets by name: how each is loaded, and what the report says of it."""

from __future__ import annotations

import os

from histoclip_lib.common.errors import HistoCLIPError, shown
from histoclip_lib.common.files import resolve
from histoclip_lib.data import folder
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.data.checks import check_images
from histoclip_lib.data.histoseg import load_bcss_wsss, load_luad_histoseg
from histoclip_lib.data.pannuke.layouts import load_pannuke
from histoclip_lib.data.splits import split_dataset
from histoclip_lib.data.synthetic.patches import load_synthetic

DATASETS = ("synthetic", "folder", "bcss_wsss", "luad_histoseg", "pannuke")
LOADED_BY = ("dataset", "data_dir", "split", "n_patches", "mask_coverage", "min_nuclei")  # what `load_dataset` takes

__all__ = ["DATASETS", "LOADED_BY", "PatchDataset", "about", "check_images", "load_dataset", "split_dataset"]


def load_dataset(
    dataset: str,
    data_dir: str = "",
    split: str = "random",
    n_patches: int = 600,
    mask_coverage: float = 0.01,
    min_nuclei: int = 1,
) -> PatchDataset:
    """Load a data set by its name in the parameter files.

    Parameters
    ----------
    dataset : {"synthetic", "folder", "bcss_wsss", "luad_histoseg", "pannuke"}
        Which one.
    data_dir : str
        Where it lies; `synthetic` is painted and needs none.
    split : str
        BCSS-WSSS and LUAD-HistoSeg: with `given` the official val and test parts are loaded too; otherwise the
        official training part alone, which is what the paper divides 8:2.
    n_patches : int
        `synthetic`: how many patches to paint.
    mask_coverage : float
        BCSS-WSSS and LUAD-HistoSeg, val and test: a class is present where it covers this fraction of the mask.
    min_nuclei : int
        PanNuke: a class is present where it has this many nuclei.

    Raises
    ------
    HistoCLIPError
        For an unknown name, a missing `data_dir`, and whatever the loader finds wrong.
    """
    if dataset not in DATASETS:
        raise HistoCLIPError(f"dataset: {dataset!r} is not known. Use one of {', '.join(DATASETS)}.")
    if dataset == "synthetic":
        return load_synthetic(n_patches)
    if not data_dir:
        raise HistoCLIPError(f"data_dir: {dataset} needs the folder in which the data lies.")
    official, folder_path = split == "given", resolve(data_dir)
    try:
        os.stat(folder_path)
    except (FileNotFoundError, NotADirectoryError):
        pass  # the loader says what it looked for
    except (OSError, ValueError) as error:  # too long, not ours to read, or with a character that no name has
        reason = getattr(error, "strerror", None) or error
        raise HistoCLIPError(f"data_dir: {shown(data_dir, 300)} cannot be read ({reason}).") from error
    if dataset == "folder":
        return folder.load(folder_path)
    if dataset == "bcss_wsss":
        return load_bcss_wsss(folder_path, official, mask_coverage)
    if dataset == "luad_histoseg":
        return load_luad_histoseg(folder_path, official, mask_coverage)
    return load_pannuke(folder_path, min_nuclei)


ABOUT = {
    "synthetic": (
        "**Synthetic H&E.** Procedural patches, painted on this machine: tumor nests, stroma, lymphocytes and necrosis "
        "under a Beer-Lambert model of hematoxylin and eosin, with the stain, scale and scanner of synthetic patients. "
        "It exists so that the whole report can run where nothing can be downloaded. Scores on it say that the "
        "software works, and nothing about tissue."
    ),
    "folder": (
        "**Your own data**, read from `labels.csv` in the folder format. Its origin and terms are known to whoever "
        "made the folder."
    ),
    "bcss_wsss": (
        "**BCSS-WSSS.** Breast cancer, 224 x 224 at 0.25 µm per pixel, from TCGA slides (Amgad et al. 2019; patches by "
        "Han et al. 2022). Training labels come with the file names, those of the official val and test parts from "
        "masks. Groups are patients (TCGA barcodes). TCGA is public and widely copied: a backbone may have seen it."
    ),
    "luad_histoseg": (
        "**LUAD-HistoSeg.** Lung adenocarcinoma, 224 x 224 at 10x (Han et al. 2022). Training labels come with the "
        "file names, those of the official val and test parts from masks. Groups are patients."
    ),
    "pannuke": (
        "**PanNuke.** 19 tissues, 256 x 256 at 0.25 µm per pixel (Gamper et al. 2020), CC BY-NC-SA 4.0. A class is "
        "present where at least `min_nuclei` of its nuclei are annotated. Patients are not published, so patches of "
        "one patient may stand on both sides of any split. Part of it comes from TCGA: a backbone may have seen it."
    ),
}


def about(dataset: str) -> str:
    """Return a paragraph of Markdown on a data set."""
    return ABOUT[dataset]
