"""BCSS-WSSS and LUAD-HistoSeg: training labels in the file names, validation and test labels from masks."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from histoclip_lib.common.errors import HistoCLIPError, bullet_list
from histoclip_lib.data.base import PatchDataset, coverage
from histoclip_lib.data.images import ImageFiles, read_class_map
from histoclip_lib.data.links import refuse_links
from histoclip_lib.data.registry import dataset

BCSS_CLASSES = ("tumor", "stroma", "lymphocyte", "necrosis")
LUAD_CLASSES = ("tumor_epithelial", "necrosis", "lymphocyte", "tumor_associated_stroma")

PART_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid"), "test": ("test",)}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
LAYOUTS = (
    "train/ or training/ (images in it, or in img/ below it) and, for the official parts, val/ or valid/ and "
    "test/, each with img/ and mask/"
)
SOURCE = (
    "It is distributed by the WSSS-Tissue project (Han et al., Multi-layer pseudo-supervision for "
    "histopathology tissue semantic segmentation using patch-level classification labels, Medical Image "
    "Analysis 2022; GitHub: ChuHan89/WSSS-Tissue)"
)

# Stored mask values 0..3 are the classes in order and 4 is white or excluded: neither set stores a background.
MASK_VALUES = np.full(256, 255, dtype=np.uint8)
MASK_VALUES[:5] = (1, 2, 3, 4, 0)


@dataclass(frozen=True)
class Release:
    """What differs between the two data sets."""

    name: str
    title: str
    licence: str  # as an error states it
    classes: tuple[str, ...]
    pattern: re.Pattern[str]  # of file names: groups `patient` and, in the training part only, `labels`
    form: str  # the pattern in words

    def labels_of(self, name: str) -> np.ndarray:
        """Return the labels in the name of a training patch, shape (4,), uint8, or raise HistoCLIPError."""
        match = self.pattern.fullmatch(name)
        if match is None or match["labels"] is None:
            raise HistoCLIPError(f"{name!r} is not the name of a {self.title} training patch: {self.form}.")
        return np.array([int(label) for label in match["labels"].replace(" ", "")], dtype=np.uint8)

    def patient_of(self, name: str) -> str:
        """Return the patient in the name of a patch of any part, or raise HistoCLIPError."""
        match = self.pattern.fullmatch(name)
        if match is None:
            raise HistoCLIPError(f"{name!r} is not the name of a {self.title} patch: {self.form}.")
        return match["patient"]


BCSS = Release(
    name="bcss_wsss",
    title="BCSS-WSSS",
    licence="the BCSS images and masks it is cut from are CC0 1.0",
    classes=BCSS_CLASSES,
    pattern=re.compile(
        r"(?P<patient>TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})[-_][^+\[\]/\\]*\+[0-9]+(?:\[(?P<labels>[01]{4})\])?\.png"
    ),
    form="TCGA-XX-YYYY-<rest of the BCSS image>+<index>[abcd].png, where a b c d, each 0 or 1, stand for "
    + ", ".join(BCSS_CLASSES),
)
LUAD = Release(
    name="luad_histoseg",
    title="LUAD-HistoSeg",
    licence="its authors share it for research and name no licence: ask them before any other use",
    classes=LUAD_CLASSES,
    pattern=re.compile(r"(?P<patient>[A-Za-z0-9]+)-[0-9]+-[0-9]+(?:-\[(?P<labels>[01] [01] [01] [01])\])?\.png"),
    form="<patient>-<x>-<y>-[a b c d].png, where a b c d, each 0 or 1 and separated by single spaces, stand for "
    + ", ".join(LUAD_CLASSES),
)


PRESENT = (
    "In the official training part a class is present where the file name says so, in the others where it covers at "
    "least {mask_coverage:g} of the mask."
)


@dataset(
    BCSS.name,
    title=BCSS.title,
    licence="The BCSS images and masks are CC0 1.0, the slides are from TCGA; see the WSSS-Tissue project.",
    about=(
        "**BCSS-WSSS.** Breast cancer, 224 x 224 at 0.25 µm per pixel, from TCGA slides (Amgad et al. 2019; patches by "
        "Han et al. 2022). Training labels come with the file names, those of the official val and test parts from "
        "masks. Groups are patients (TCGA barcodes). TCGA is public and widely copied: a backbone may have seen it."
    ),
    options=("split", "mask_coverage", "follow_links"),
    paper={"baseline": 0.4266, "one_vs_rest": 0.3757, "power_set": 0.4713, "top_k": 0.4358, "histoclip": 0.9121},
    mpp=0.25,
    tcga="yes",
    present=PRESENT,
)
def load_bcss_wsss(
    data_dir: str | Path,
    split: str = "random",
    mask_coverage: float = 0.01,
    follow_links: bool = False,
) -> PatchDataset:
    """Load BCSS-WSSS: breast cancer patches, 224x224 pixels at 0.25 micrometres a pixel.

    Parameters
    ----------
    data_dir : str or Path
        Folder that holds the parts, or one or two levels above it.
    split : str
        `given` adds the official validation and test parts, with their masks. Otherwise the official training part is
        loaded alone, which the paper divides 8:2.
    mask_coverage : float
        A patch of these two parts carries a class that covers at least this fraction of its pixels. 0.01 reproduces 571
        of 576 labels in names of the training part; 0 (any pixel) only 497.
    follow_links : bool
        Whether links may lead out of the folder.

    Returns
    -------
    PatchDataset
        Classes tumor, stroma, lymphocyte, necrosis; groups are TCGA patients. `parts` and masks with the official parts
        only; training patches have no mask.

    Raises
    ------
    HistoCLIPError
        For a missing or ambiguous folder, names of another form, images without a mask, masks that cannot be
        read, and files outside the folder where links are not followed.
    """
    return _load(BCSS, data_dir, split == "given", mask_coverage, follow_links)


@dataset(
    LUAD.name,
    title=LUAD.title,
    licence="None is stated; ask its authors before any use but research.",
    about=(
        "**LUAD-HistoSeg.** Lung adenocarcinoma, 224 x 224 at 10x by its authors (Han et al. 2022), taken as 0.5 µm "
        "per pixel (`mpp` sets another value). Training labels come with the "
        "file names, those of the official val and test parts from masks. Groups are patients."
    ),
    options=("split", "mask_coverage", "follow_links"),
    paper={"baseline": 0.4485, "one_vs_rest": 0.2932, "power_set": 0.4422, "top_k": 0.4738, "histoclip": 0.9507},
    mpp=0.5,
    tcga="no",
    present=PRESENT,
)
def load_luad_histoseg(
    data_dir: str | Path,
    split: str = "random",
    mask_coverage: float = 0.01,
    follow_links: bool = False,
) -> PatchDataset:
    """Load LUAD-HistoSeg: lung adenocarcinoma patches, 224x224 pixels at 10x.

    Parameters, result and errors are those of `load_bcss_wsss`, but for the classes: tumor epithelial, necrosis,
    lymphocyte, tumor-associated stroma, in this order. Groups are patients.
    """
    return _load(LUAD, data_dir, split == "given", mask_coverage, follow_links)


def labels_from_mask(class_map: np.ndarray, n_classes: int, least: float) -> np.ndarray:
    """Return which of N classes cover at least a fraction of all pixels of a class map (H, W), shape (N,), uint8.

    The map has k for the k-th class and 0 for none; a fraction of 0 asks for any pixel.
    """
    share = coverage(class_map, n_classes)
    return ((share > 0) & (share >= least)).astype(np.uint8)


def _load(
    release: Release, data_dir: str | Path, official: bool, mask_coverage: float, follow_links: bool
) -> PatchDataset:
    if not 0 <= mask_coverage <= 1:
        raise HistoCLIPError(f"mask_coverage: {mask_coverage} must lie between 0 and 1.")
    data_dir = Path(data_dir)
    train_dir = _find_train(release, data_dir)
    image_paths = _images(train_dir / "img" if (train_dir / "img").is_dir() else train_dir)
    _check_names(release, image_paths, "train")
    labels = [release.labels_of(path.name) for path in image_paths]
    mask_paths: list[Path | None] = [None] * len(image_paths)
    parts = ["train"] * len(image_paths)
    for part in ("val", "test") if official else ():
        part_images, part_masks = _official_part(release, train_dir.parent, part)
        _check_names(release, part_images, part)
        if not follow_links:
            refuse_links(data_dir, part_masks)  # before they are read
        labels += _mask_labels(release, part_masks, mask_coverage, part)
        image_paths += part_images
        mask_paths += part_masks
        parts += [part] * len(part_images)
    if not follow_links:
        refuse_links(data_dir, image_paths)
    return PatchDataset(
        name=release.name,
        classes=list(release.classes),
        files=[path.relative_to(data_dir).as_posix() for path in image_paths],
        labels=np.stack(labels),
        source=ImageFiles(image_paths, mask_paths if official else [], MASK_VALUES),
        groups=np.array([release.patient_of(path.name) for path in image_paths]),
        parts=np.array(parts) if official else None,
        has_masks=official,
        remedies={"parts": "Its official parts are loaded with split: given."},
        labels_follow_masks=True,
    )


def _check_names(release: Release, paths: list[Path], part: str) -> None:
    """Refuse the files whose names have another form, all at once."""
    matches = [release.pattern.fullmatch(path.name) for path in paths]
    # Masks hold the labels of the official parts, so a bracket may be missing there.
    wrong = [m is None or (part == "train" and m["labels"] is None) for m in matches]
    offenders = [path.name for path, is_wrong in zip(paths, wrong, strict=True) if is_wrong]
    if offenders:
        bracket = "" if part == "train" else " (here the bracket may be missing)"
        raise HistoCLIPError(
            f"{paths[0].parent}: {len(offenders)} of {len(paths)} names are not of {release.title}, part {part}. "
            f"Expected {release.form}{bracket}. Rename or remove:\n{bullet_list(offenders, limit=1000)}"
        )


def _mask_labels(release: Release, paths: list[Path], mask_coverage: float, part: str) -> list[np.ndarray]:
    """Return the labels that each mask gives; report the masks that cannot be used, all at once."""
    labels, offenders = [], []
    for path in tqdm(paths, desc=f"labels of {release.title} {part}", unit="mask"):
        try:
            class_map = read_class_map(path, MASK_VALUES)
        except HistoCLIPError as error:
            offenders.append(str(error))
        else:
            labels.append(labels_from_mask(class_map, len(release.classes), mask_coverage))
    if offenders:
        raise HistoCLIPError(
            f"{release.title}, part {part}: {len(offenders)} masks cannot be used. Values are 0..3 for "
            f"{', '.join(release.classes)} and 4 for excluded:\n{bullet_list(offenders, limit=1000)}"
        )
    return labels


def _folders(folder: Path) -> list[Path]:
    """Return the folders in a folder but those of desktop programs, sorted."""
    with os.scandir(folder) as entries:
        return sorted(Path(e) for e in entries if not e.name.startswith((".", "__MACOSX")) and e.is_dir())


def _find_train(release: Release, data_dir: Path) -> Path:
    """Return the folder of the training part, in `data_dir` or at most two levels below it."""
    level = [data_dir] if data_dir.is_dir() else []
    for _ in range(3):
        inside = [child for folder in level for child in _folders(folder)]
        found = [folder for folder in inside if folder.name in PART_FOLDERS["train"]]
        if len(found) > 1:
            raise HistoCLIPError(
                f"{data_dir} holds several training parts. Set data_dir to one that holds {release.title} alone:\n"
                + bullet_list([str(folder) for folder in found])
            )
        if found:
            return found[0]
        level = inside
    raise HistoCLIPError(
        f"{release.title} was not found in {data_dir}, nor one or two levels below it. Looked for {LAYOUTS}. "
        f"{SOURCE}; {release.licence}. Unpack it and set data_dir to its folder."
    )


def _images(folder: Path) -> list[Path]:
    """Return the image files of a folder, sorted by name; hidden files are left out."""
    with os.scandir(folder) as entries:
        found = [e for e in entries if e.name.lower().endswith(IMAGE_SUFFIXES) and not e.name.startswith(".")]
        offenders = sorted(e.name for e in found if not e.is_file())
    if offenders:
        raise HistoCLIPError(
            f"{folder}: {len(offenders)} entries have names of images but are folders, devices or broken links. "
            f"Remove them:\n{bullet_list(offenders, limit=1000)}"
        )
    if not found:
        raise HistoCLIPError(f"{folder} holds no images. Looked for {LAYOUTS}.")
    return sorted(Path(e) for e in found)


def _official_part(release: Release, root: Path, part: str) -> tuple[list[Path], list[Path]]:
    """Return the images of the validation or test part and the mask of each."""
    found = [root / name for name in PART_FOLDERS[part] if (root / name).is_dir()]
    if len(found) != 1:
        state = "several: " + ", ".join(str(folder) for folder in found) if found else "not there"
        raise HistoCLIPError(
            f"{release.title}: the folder of the {part} part is {state}. Looked in {root} for "
            f"{' or '.join(PART_FOLDERS[part])}; the layout is {LAYOUTS}. {SOURCE}; {release.licence}. "
            "With split: random or grouped the training part is enough."
        )
    missing = [folder for folder in (found[0] / "img", found[0] / "mask") if not folder.is_dir()]
    if missing:
        raise HistoCLIPError(f"{release.title}: {' and '.join(map(str, missing))} not found. The layout is {LAYOUTS}.")
    images = _images(found[0] / "img")
    mask_paths = _images(found[0] / "mask")
    masks = {path.stem: path for path in mask_paths}
    if several := [path.name for path in mask_paths if masks[path.stem] != path]:
        listed = bullet_list(several, limit=1000)
        raise HistoCLIPError(f"{found[0] / 'mask'}: several masks of one image. Keep one of each:\n{listed}")
    without = [path.name for path in images if path.stem not in masks]
    if without:
        raise HistoCLIPError(
            f"{release.title}, part {part}: {len(without)} images have no mask in {found[0] / 'mask'}. Add the "
            f"masks or remove the images:\n{bullet_list(without, limit=1000)}"
        )
    return images, [masks[path.stem] for path in images]
