"""PanNuke: nuclei of five classes in 19 tissues; labels say which classes have nuclei in a patch."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np

from histoclip_lib.common.cache import cache_dir as default_cache_dir
from histoclip_lib.common.errors import HistoCLIPError, bullet_list
from histoclip_lib.data.base import PatchDataset, PatchSource
from histoclip_lib.data.links import refuse_links
from histoclip_lib.data.pannuke.arrays import CLASSES, ArraySource, FoldArrays, cached_counts, check_fold, open_array
from histoclip_lib.data.registry import dataset

OFFICIAL_SIZES = {1: 2656, 2: 2523, 3: 2722}  # patches in each fold
TEST_FOLD = 3
COMPARED = 8  # patches by which a fold is recognised as a copy
MAX_DEPTH = 5  # `fold_1/Fold 1/images/fold1` has four folders
FOLD_NAME = re.compile(r"(?<![a-z])fold[ _-]?([0-9])(?![0-9])", re.IGNORECASE)
LAYOUTS = (
    "Fold 1/images/fold1/images.npy with Fold 1/images/fold1/types.npy and Fold 1/masks/fold1/masks.npy (as "
    "released; Fold1, and fold_1/Fold 1 around it, too), fold0..fold2/{images,masks,types}.npy (fold0 is Fold 1), "
    "fold1..fold3/{images,masks,types}.npy, or parquet files named fold1-*.parquet as in the Hugging Face data "
    "set RationAI/PanNuke"
)
Folds = tuple[list[int], dict[int, np.ndarray], dict[int, np.ndarray], PatchSource]  # folds, counts, tissues, pixels
SOURCE = "PanNuke is distributed by the Warwick TIA Centre (Gamper et al. 2020, arXiv:2003.10778) under CC BY-NC-SA 4.0"


@dataset(
    "pannuke",
    title="PanNuke",
    licence="CC BY-NC-SA 4.0: attribution, no commercial use, the same terms for what is derived from it.",
    about=(
        "**PanNuke.** 19 tissues, 256 x 256 at 0.25 µm per pixel (Gamper et al. 2020), CC BY-NC-SA 4.0. Patients "
        "are not published, so patches of one patient may be on both sides of any split. Part of it comes from TCGA: a "
        "backbone may have seen it."
    ),
    options=("min_nuclei", "follow_links"),
    paper={"baseline": 0.4107, "one_vs_rest": 0.4371, "power_set": 0.5263, "top_k": 0.4862, "histoclip": 0.8824},
    mpp=0.25,
    tcga="in part",
    present="A class is present if at least {min_nuclei} of its nuclei are annotated in the patch.",
)
def load_pannuke(
    data_dir: str | Path,
    min_nuclei: int = 1,
    follow_links: bool = False,
    cache_dir: str | Path | None = None,
) -> PatchDataset:
    """Load PanNuke, 256x256 pixels at 0.25 micrometres a pixel: the folds found, in order.

    Parameters
    ----------
    data_dir : str or Path
        Folder that holds the folds, at most five levels below it.
    min_nuclei : int
        A patch carries the classes of which it has at least this many nuclei.
    follow_links : bool
        Whether links may lead out of the folder.
    cache_dir : str or Path, optional
        Where the nucleus counts are kept, since counting reads all the masks (8.4 GB a fold); by default
        `histoclip_lib.common.cache.cache_dir()`.

    Returns
    -------
    PatchDataset
        Files are named by official fold and position, as in `fold1/00010`. Tissue and masks are given. PanNuke does
        not identify patients, so `groups` is None. With all three folds, `parts` follows one of the official
        rotations: `train` is folds 1 and 2, and `test` is fold 3.

    Raises
    ------
    HistoCLIPError
        If nothing is found, the fold of a file is unclear, files of a fold are missing or outside the folder, arrays
        and tables do not have the format of the release, or two folds hold the same images.
    """
    if min_nuclei < 1:
        raise HistoCLIPError(f"min_nuclei: {min_nuclei} must be 1 or more.")
    arrays, parquets = _find_files(Path(data_dir))
    if arrays and parquets:
        raise HistoCLIPError(
            f"{data_dir} holds PanNuke twice. Set data_dir to the folder of one copy:\n"
            + bullet_list([str(path) for path in (*arrays, *parquets)])
        )
    if not follow_links:
        refuse_links(Path(data_dir), (*arrays, *parquets))
    if arrays:
        folds, counts, tissue, source = _load_arrays(Path(data_dir), arrays, follow_links, cache_dir)
    elif parquets:
        folds, counts, tissue, source = _load_parquets(Path(data_dir), parquets)
    else:
        raise HistoCLIPError(
            f"PanNuke was not found in {data_dir}. Looked for {LAYOUTS}. {SOURCE}. Unpack it and set data_dir to "
            "its folder."
        )
    sizes = {fold: len(counted) for fold, counted in counts.items()}
    if parquets:
        _refuse_copies(sizes, source)
    _check_sizes(sizes)
    fold_of_patch = np.repeat(folds, [sizes[fold] for fold in folds])
    return PatchDataset(
        name="pannuke",
        classes=list(CLASSES),
        files=[f"fold{fold}/{place:05d}" for fold in folds for place in range(sizes[fold])],
        labels=labels_from_counts(np.concatenate([counts[fold] for fold in folds]), min_nuclei),
        source=source,
        parts=np.where(fold_of_patch == TEST_FOLD, "test", "train") if folds == [1, 2, 3] else None,
        tissue=np.concatenate([tissue[fold] for fold in folds]),
        has_masks=True,
        remedies={
            "groups": "Its patients are not published.",
            "parts": f"The official rotation needs folds 1, 2 and 3; found: {', '.join(map(str, folds))}.",
        },
        labels_follow_masks=True,
    )


def labels_from_counts(counts: np.ndarray, min_nuclei: int = 1) -> np.ndarray:
    """Return 1 where a patch has at least `min_nuclei` nuclei of a class: counts (B, N), int, to (B, N), uint8."""
    return (np.asarray(counts) >= min_nuclei).astype(np.uint8)


def _find_files(data_dir: Path) -> tuple[list[Path], list[Path]]:
    """Return the `images.npy` and the parquet files at or a few levels below `data_dir`, sorted."""
    arrays, parquets = [], []
    for folder, subfolders, names in os.walk(data_dir, followlinks=True):
        depth = len(Path(folder).relative_to(data_dir).parts)
        subfolders[:] = [s for s in subfolders if depth < MAX_DEPTH and not s.startswith((".", "__MACOSX"))]
        arrays += [Path(folder, name) for name in names if name == "images.npy"]
        tables = [Path(folder, name) for name in names if name.endswith(".parquet") and name[0] != "."]
        parquets += [path for path in tables if _fold_names(data_dir, path)]  # others are not PanNuke's
    return sorted(arrays), sorted(parquets)


def _by_fold(data_dir: Path, paths: list[Path]) -> dict[int, list[Path]]:
    """Sort paths by the official fold (1 to 3) in the names of their folders or files, ascending."""
    named = {path: sorted({int(n) for n in _fold_names(data_dir, path)}) for path in paths}
    numbers = {number for found in named.values() for number in found}
    offenders = [f"{path}: {' and '.join(map(str, n)) or 'no fold'}" for path, n in named.items() if len(n) != 1]
    if not offenders and not (numbers <= {0, 1, 2} or numbers <= {1, 2, 3}):
        offenders = [f"{path}: {found[0]}" for path, found in named.items()]
    if offenders:
        raise HistoCLIPError(
            f"{data_dir}: it is unclear which folds these are. The folder or name of each file must name one fold, "
            f"all of them numbered 1 to 3, or all 0 to 2:\n{bullet_list(offenders)}\nKnown are {LAYOUTS}."
        )
    shift = 1 if 0 in numbers else 0  # fold0 is the official Fold 1
    folds = defaultdict(list)
    for path in sorted(paths, key=lambda path: (named[path], path)):
        folds[named[path][0] + shift].append(path)
    return dict(folds)


def _fold_names(data_dir: Path, path: Path) -> list[str]:
    return FOLD_NAME.findall(path.relative_to(data_dir).as_posix())


def _load_arrays(data_dir: Path, paths: list[Path], follow_links: bool, cache_dir: str | Path | None) -> Folds:
    by_fold = _by_fold(data_dir, paths)
    several = [str(path) for found in by_fold.values() if len(found) > 1 for path in found]
    if several:
        raise HistoCLIPError(
            f"{data_dir} holds a fold more than once. Set data_dir to one copy:\n{bullet_list(several)}"
        )
    files = {fold: _fold_files(found[0]) for fold, found in by_fold.items()}
    absent = [str(path) for fold in files.values() for path in (fold.masks, fold.types) if not path.is_file()]
    if absent:
        raise HistoCLIPError(f"{data_dir}: files of PanNuke are missing:\n{bullet_list(absent)}\n{SOURCE}.")
    if not follow_links:
        refuse_links(data_dir, [path for fold in files.values() for path in (fold.masks, fold.types)])
    problems = [problem for fold in files.values() for problem in check_fold(fold)]
    if problems:
        raise HistoCLIPError(f"{data_dir}: PanNuke's arrays cannot be used:\n{bullet_list(problems)}")

    tissue = {fold: np.array(open_array(found.types)) for fold, found in files.items()}
    sizes = {fold: len(types) for fold, types in tissue.items()}
    source = ArraySource(list(files.values()), np.cumsum([0, *sizes.values()]))
    _refuse_copies(sizes, source)  # both before the long count
    _check_sizes(sizes)
    root = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    counts = {fold: cached_counts(found.masks, root) for fold, found in files.items()}
    return list(files), counts, tissue, source


def _fold_files(images: Path) -> FoldArrays:
    """Return where the masks and types of a fold are: as released, or in the folder of the images."""
    folder = images.parent
    expected = beside = folder / "masks.npy"
    if folder.parent.name == "images":  # as released
        expected = folder.parent.parent / "masks" / folder.name / "masks.npy"
    elif folder.name == "images":
        expected = folder.parent / "masks" / "masks.npy"
    masks = beside if beside.is_file() and not expected.is_file() else expected
    types, with_masks = images.with_name("types.npy"), masks.with_name("types.npy")
    return FoldArrays(images, masks, with_masks if with_masks.is_file() and not types.is_file() else types)


def _load_parquets(data_dir: Path, paths: list[Path]) -> Folds:
    from histoclip_lib.data.pannuke.parquet import ParquetSource, read_fold

    by_fold = _by_fold(data_dir, paths)
    several = [str(p) for found in by_fold.values() if len({p.parent for p in found}) > 1 for p in found]
    if several:
        raise HistoCLIPError(
            f"{data_dir}: parquet files of one fold are in several folders. Set data_dir to one copy:\n"
            + bullet_list(several)
        )
    row_groups, lengths, counts, tissue, problems = [], [0], {}, {}, []
    for fold, found in by_fold.items():
        try:
            groups, sizes, counts[fold], tissue[fold] = read_fold(found)
        except HistoCLIPError as error:
            problems.append(f"fold {fold}: {error}")
        else:
            row_groups += groups
            lengths += sizes.tolist()
    if problems:
        raise HistoCLIPError("\n".join(problems))
    return list(by_fold), counts, tissue, ParquetSource(row_groups, np.cumsum(lengths))


def _refuse_copies(sizes: dict[int, int], source: PatchSource) -> None:
    """Refuse folds with the same images or masks, which a wrong download gives; a few patches of each tell."""
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist(), strict=False))
    for one, other in combinations(sizes, 2):
        if sizes[one] != sizes[other]:
            continue
        places = np.unique(np.linspace(0, sizes[one] - 1, COMPARED).astype(int)).tolist() if sizes[one] else []
        for kind, read in (("images", source.image), ("masks", source.mask)):
            pairs = [(read(starts[one] + place), read(starts[other] + place)) for place in places]
            blank = all(np.ptp(first) == 0 for first, _ in pairs)  # which says nothing
            if not blank and all(np.array_equal(*pair) for pair in pairs):
                raise HistoCLIPError(
                    f"PanNuke: folds {one} and {other} hold the same {kind}, as after a wrong download. Of folds 1, 2 "
                    f"and 3, which have {', '.join(map(str, OFFICIAL_SIZES.values()))} patches, one is missing: "
                    "download it."
                )


def _check_sizes(sizes: dict[int, int]) -> None:
    """Refuse a fold that has exactly as many patches as another official fold: it is numbered differently."""
    official = {size: fold for fold, size in OFFICIAL_SIZES.items()}
    offenders = [
        f"read as fold {fold}, with the {size} patches of fold {official[size]}"
        for fold, size in sizes.items()
        if official.get(size, fold) != fold
    ]
    if offenders:
        raise HistoCLIPError(
            f"PanNuke: the numbers of the folds do not match their sizes:\n{bullet_list(offenders)}\nFolders fold0, "
            "fold1, fold2 are the official folds 1, 2, 3 and are recognized by fold0: put it beside the others, or "
            "number the folders from 1."
        )
