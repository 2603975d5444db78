"""What each data set is, where it comes from and under which terms, for the report."""

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
