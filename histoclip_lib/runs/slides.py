"""Apply a saved model to whole slides, a task for each, and write what QuPath, wsinfer and image viewers read."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.executors import run_tasks
from histoclip_lib.common.files import replacing
from histoclip_lib.slides.reading import DICOM, SCANNERS, TIFF, dicom_series, is_dicom_slide

if TYPE_CHECKING:
    import pandas as pd

    from histoclip_lib.models.bundle import SavedModel
    from histoclip_lib.slides import SlideResult
    from histoclip_lib.slides.aggregation import SlideTable

PATIENCE = 3600.0  # seconds to wait for another process that predicts the same slide
SLIDES, SLIDES_CSV = "slides.parquet", "slides.csv"
HEATMAP = "heatmap.ome.tif"


@dataclass(frozen=True)
class SlideOptions:
    """How slides are predicted; see `slides.predict_slide`.

    Attributes
    ----------
    mpp, overlap, min_tissue, views, batch_size
        As there; the column `mpp` of `slides.csv` comes before `mpp`.
    tissue, coordinates : Path or None
        A mask or polygons, and an H5 file of TRIDENT or CLAM; or a folder with one for each slide, named after it;
        TRIDENT adds `_patches`.
    patch_mpp : float or None
        Of the training patches, where the model does not say.
    device, precision : str
        As for `load_model`.
    """

    mpp: float | None = None
    overlap: float = 0.0
    min_tissue: float = 0.5
    tissue: Path | None = None
    coordinates: Path | None = None
    views: int = 1
    batch_size: int = 32
    patch_mpp: float | None = None
    device: str = "auto"
    precision: str = "auto"


def is_slide(path: Path) -> bool:
    """Whether a file is a slide: a scanner's, a tiled TIFF, or an image too large for a patch."""
    if not path.is_file():
        return False
    if path.suffix.lower() in (*SCANNERS, DICOM) or path.name.lower().endswith(".ome.tif"):
        return True
    from PIL import Image

    from histoclip_lib.data.images import MAX_PIXELS

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                tiled = path.suffix.lower() in TIFF and 322 in image.tag_v2  # TileWidth
                return tiled or image.width * image.height > MAX_PIXELS
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return True
    except (OSError, ValueError, AttributeError):
        return False


def find_slides(inputs: Sequence[Path], all_files: bool = False) -> tuple[SlideTable | None, list[Path]]:
    """Return the slides among what a user gave, and the other inputs.

    Parameters
    ----------
    inputs : sequence of Path
        Files; folders, in which slides are looked for at any depth, hidden files, earlier heat maps and label masks
        aside; or one `slides.csv`.
    all_files : bool
        Whether every file is a slide, whatever it looks like.
    """
    import pandas as pd

    from histoclip_lib.slides.aggregation import SlideTable, read_slide_table

    tables = [path for path in inputs if path.name == SLIDES_CSV]
    if tables:
        if len(inputs) > 1:
            raise HistoCLIPError(f"{tables[0]}: give slides.csv alone; its slides follow.")
        return read_slide_table(tables[0]), []
    found, others = [], []
    for path in inputs:
        inside = _slides_inside(path) if path.is_dir() else [path] * (is_slide(path) or (all_files and path.is_file()))
        found += inside
        others += [] if inside else [path]
    if not found:
        return None, others
    nothing = np.full(len(found), np.nan)
    groups = np.array([str(path) for path in found])
    return SlideTable(found, groups, nothing, nothing, pd.DataFrame(index=range(len(found)))), others


def _slides_inside(folder: Path) -> list[Path]:
    from histoclip_lib.slides.scoring import MASK, labels_beside

    there = [file for file in sorted(folder.rglob("*")) if file.name != HEATMAP]
    there = [file for file in there if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    found = [file for file in there if is_slide(file) and file.suffix.lower() != DICOM]
    for place in dict.fromkeys(file.parent for file in there if file.suffix.lower() == DICOM):
        found += [place] if is_dicom_slide(place) else dicom_series(place)
    masks = {labels_beside(slide, MASK) for slide in found}
    return sorted(slide for slide in found if slide not in masks)


def slide_folders(paths: Sequence[Path], out: Path) -> list[Path]:
    """Return a folder below `out` for each slide: its name, with a digest of its path where several have one name."""
    names = [path.stem for path in paths]
    times = Counter(name.casefold() for name in names)
    return [
        out / (f"{name}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}" if times[name.casefold()] > 1 else name)
        for path, name in zip(paths, names, strict=True)
    ]


def predict_slides(
    model: Path,
    table: SlideTable,
    out: Path,
    options: SlideOptions,
    executor: Executor | None = None,
    report: Callable[[Path, str], None] = lambda slide, error: None,
    progress: Callable[[Path, int, int], None] = lambda slide, done, total: None,
) -> pd.DataFrame:
    """Predict slides, each into a folder of its own below `out`, and write `slides.parquet` and `slides.csv` there.

    A slide that cannot be predicted stops no other. What is finished is not done again, and a slide that was
    interrupted goes on where it stopped.

    Parameters
    ----------
    model : Path
        Folder of a saved model.
    table : SlideTable
        See `find_slides`.
    out : Path
        Made where it is missing.
    options : SlideOptions
        For all slides.
    executor : Executor, optional
        As `open_executor` gives it, for a slide on each worker; without it, one after the other here.
    report : callable
        Called with each slide that is done, and why it failed (nothing: an empty text).
    progress : callable
        Without an executor: called with a slide, how many of its tiles are done and how many there are.

    Returns
    -------
    DataFrame
        As `slides.aggregate_slides` returns it.

    Raises
    ------
    HistoCLIPError
        If `slides.csv` in `out` is not such a result, or slides were predicted by different models.
    """
    from histoclip_lib.slides.aggregation import aggregate_slides

    _keep_table_of_user(out / SLIDES_CSV)
    folders = slide_folders(table.paths, out)
    mpps = [options.mpp if np.isnan(mpp) else float(mpp) for mpp in table.mpp]
    calls = [
        (model, path, folder, replace(options, mpp=mpp))
        for path, folder, mpp in zip(table.paths, folders, mpps, strict=True)
    ]
    if executor is not None:
        errors = run_tasks(executor, predict_one, calls, lambda number, error: report(table.paths[number], error))
    else:
        errors = []
        for call in calls:
            errors.append(predict_one(*call, lambda done, total, slide=call[1]: progress(slide, done, total)))
            report(call[1], errors[-1])
    slides = aggregate_slides(table, folders, errors)
    slides["folder"] = [folder.name for folder in folders]
    for name, write in ((SLIDES, slides.to_parquet), (SLIDES_CSV, slides.to_csv)):
        with replacing(out / name) as temporary:
            write(temporary, index=False)
    return slides


def _keep_table_of_user(path: Path) -> None:
    """Refuse a folder whose `slides.csv` is not a result: it may be the table that named the slides."""
    with suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
        if not file.readline().startswith("slide,folder,"):
            raise HistoCLIPError(f"{path} would be overwritten by the results. Write them to another folder.")


def predict_one(
    model: Path,
    slide: Path,
    folder: Path,
    options: SlideOptions,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """Predict one slide and write its files for other programs; return why it failed, nothing where it did not."""
    from histoclip_lib.slides.exchange import read_coordinates
    from histoclip_lib.slides.prediction import predict_slide

    try:
        coordinates = _of_slide(options.coordinates, slide)
        loaded = _loaded(model, options.device, options.precision, options.patch_mpp)
        if loaded.config.match_mpp:
            raise HistoCLIPError(f"{model} was trained with match_mpp, which slides do not support. Train without it.")
        result = predict_slide(
            loaded, slide, folder, options.mpp,
            options.overlap, options.min_tissue, _of_slide(options.tissue, slide),
            None if coordinates is None else read_coordinates(coordinates), options.views, options.batch_size,
            PATIENCE, progress,
        )  # fmt: skip
        write_exports(folder, result)
        return result.error or ""
    except HistoCLIPError as error:
        with suppress(OSError):  # where there is nothing in it
            folder.rmdir()
        return str(error)


def write_exports(folder: Path, result: SlideResult) -> None:
    """Write `tiles.csv` (wsinfer's columns), `tiles.geojson` (QuPath) and `heatmap.ome.tif` beside a slide's result."""
    from histoclip_lib.slides.exchange import write_heatmap, write_qupath_geojson, write_wsinfer_csv
    from histoclip_lib.slides.prediction import TABLE, read_attention, read_tiles

    made = (folder / TABLE).stat().st_mtime_ns
    named = [folder / name for name in ("tiles.csv", "tiles.geojson", HEATMAP)]
    if all(path.is_file() and path.stat().st_mtime_ns >= made for path in named) or not result.n_predicted:
        return
    tiles = read_tiles(folder)
    write_wsinfer_csv(named[0], tiles)
    write_qupath_geojson(named[1], tiles, tuple(result.bounds))
    write_heatmap(named[2], tiles, (result.width, result.height), result.mpp, read_attention(folder))


def _of_slide(given: Path | None, slide: Path) -> Path | None:
    """Return the file for a slide: the one that is given, or in a folder the one with the slide's name."""
    if given is None or not given.is_dir():
        return given
    names = (f"{slide.stem}.", f"{slide.stem}_patches.")  # TRIDENT's, of coordinates
    found = sorted(path for path in given.iterdir() if path.name.startswith(names))
    if not found:
        raise HistoCLIPError(f"{given} holds no file for {slide.name}: its name would begin with {' or '.join(names)}")
    return min(found, key=lambda path: len(path.name))  # a.h5 rather than a.b.h5, which is that of a.b.svs


@lru_cache(maxsize=1)
def _loaded(folder: Path, device: str, precision: str, patch_mpp: float | None) -> SavedModel:
    from histoclip_lib.models.bundle import load_model

    model = load_model(folder, device, precision)
    return model if patch_mpp is None else replace(model, config=replace(model.config, mpp=patch_mpp))
