"""Predicting every tile of a slide: decoded ahead of the encoder, in bounded memory, continued after a kill."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from histoclip_lib import __version__
from histoclip_lib.common.errors import HistoCLIPError, shown
from histoclip_lib.common.executors import n_cores
from histoclip_lib.common.files import alone_in, cannot_write, replacing, sweep, write_text
from histoclip_lib.slides.reading import Slide, open_slide, slide_files
from histoclip_lib.slides.tiling import tiles
from histoclip_lib.slides.tissue import mask_thumbnail, tissue_mask, tissue_mask_from

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import torch

TABLE, ATTENTION, FACTS = "tiles.parquet", "attention.npy", "slide.json"
FORMAT = 1  # of these files
PARTS = ".parts-"  # begins the name of a folder of what was predicted so far
PART_BATCHES = 32  # after so many batches what was predicted is kept
BLURRED = 1.5  # times the training patches' mpp, above which a slide is too coarse to look like them
MOST_OFF = 1.05  # between the field of given coordinates and that of the training patches


class TileModel(Protocol):
    """What is needed of a saved model."""

    classes: list[str]
    thresholds: np.ndarray  # (N,), of the decisions
    patch_px: int  # side of the training patches
    mpp: float  # of the training patches
    pixels: int  # side S of the encoder's input
    ood_threshold: float
    identity: str  # changes with the model

    def predict_tensor(self, images: torch.Tensor, views: int) -> object:
        """Return `probabilities` (B, N), `ood` (B,) and `attention` (B, N, g, g) or None of uint8 (B, 3, S, S).

        They are averaged over so many flips and rotations.
        """


@dataclass(frozen=True)
class SlideResult:
    """What was predicted on a slide; `slide.json` holds the same.

    Attributes
    ----------
    slide : str
        Name of its file or folder.
    path : str
        As it was given.
    width, height, mpp, mpp_source, bounds
        As in `reading.Slide`.
    field_um : float
        Side of a tile in micrometres.
    classes, thresholds, ood_threshold
        Of the model.
    n_tiles, n_predicted : int
        Tiles with tissue, and how many of them were predicted: all, unless there is an `error`.
    n_ood : int
        Predicted tiles that are unlike the training patches.
    error : str or None
        Why the slide could not be read to its end.
    notes : list of str
        What a reader should know, a sentence each.
    views : int
        Flips and rotations of which each prediction is the mean.
    seconds : float
        Of the call that ended the work.
    model : str
        Identity of the model.
    identity : str
        Digest of all that decides the result.
    version : str
        Of the library.
    """

    slide: str
    path: str
    width: int
    height: int
    mpp: float
    mpp_source: str
    bounds: list[int]
    field_um: float
    classes: list[str]
    thresholds: list[float]
    ood_threshold: float
    n_tiles: int
    n_predicted: int
    n_ood: int
    error: str | None
    notes: list[str]
    views: int
    seconds: float
    model: str
    identity: str
    version: str


def predict_slide(
    model: TileModel,
    slide_path: str | Path,
    out_dir: str | Path,
    mpp: float | None = None,
    overlap: float = 0.0,
    min_tissue: float = 0.5,
    tissue: str | Path | None = None,
    coordinates: pd.DataFrame | None = None,
    views: int = 1,
    batch_size: int = 32,
    patience: float = 0.0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SlideResult:
    """Predict the tiles of a slide.

    Each tile shows the field of a training patch in micrometres, and is read at the side of a training patch or of the
    encoder's input, whichever is smaller. Threads decode ahead of the model, a few batches and no more, so memory does
    not grow with the slide. What was predicted is kept in parts: a killed call continues at the next one, with the same
    batches, and ends with the same bits. Where the same result exists already, it is returned.

    The folder holds then `tiles.parquet` (`x, y, width, height, tissue`, and for each class `prob_<class>` and
    `present_<class>`, and `ood`), `attention.npy` (n, N, g, g) in float16 where the model gives attention, and at last
    `slide.json`. A folder without `slide.json` is unfinished.

    Parameters
    ----------
    model : TileModel
        A saved model.
    slide_path : str or Path
        What `reading.open_slide` opens.
    out_dir : str or Path
        Folder of this slide alone; it is made.
    mpp : float, optional
        Micrometres per pixel, where the slide does not say or is wrong.
    overlap, min_tissue, coordinates
        As for `tiling.tiles`.
    tissue : str or Path, optional
        A mask or polygons for `tissue.tissue_mask_from`; without it, tissue is found on a thumbnail. With `coordinates`
        and without `tissue` it is not looked for.
    views : int
        How many of the eight flips and rotations of each tile are predicted and averaged.
    batch_size : int
        Tiles that the model sees at once.
    patience : float
        Seconds to wait for another process that is at work on the same folder.
    progress : callable
        Called with the numbers of predicted tiles and of all.

    Returns
    -------
    SlideResult
        With `error` set where the slide could not be read to its end; the tiles before are kept.

    Raises
    ------
    HistoCLIPError
        Whatever `open_slide`, `tissue_mask_from` and `tiles` raise; for a slide without tissue or without a readable
        thumbnail, values out of range, a full disk, and a folder where another process is at work.
    """
    start, folder = time.monotonic(), Path(out_dir)
    if not 1 <= views <= 8:
        raise HistoCLIPError(f"views: {views} was given; expected 1 to 8.")
    if batch_size < 1:
        raise HistoCLIPError(f"batch_size: {batch_size} was given; expected 1 or more.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    options = (mpp, overlap, min_tissue, views, batch_size)
    identity = _identity(model, Path(slide_path), tissue, coordinates, options)
    with ExitStack() as opened:
        opened.enter_context(alone_in(folder, patience))
        sweep(folder)
        with suppress(HistoCLIPError):
            found = read_slide_result(folder)
            if found.identity == identity and found.error is None:  # the slide need not be opened
                progress(found.n_tiles, found.n_tiles)
                return found
        slide = opened.enter_context(open_slide(slide_path, mpp))
        table = _tiles(model, slide, overlap, min_tissue, tissue, coordinates)
        plan = _Plan(model, slide, table, views, batch_size, identity)
        (folder / FACTS).unlink(missing_ok=True)  # from here on the folder is unfinished
        parts = folder / f"{PARTS}{plan.identity}"
        for old in set(folder.glob(f"{PARTS}*")) - {parts}:
            shutil.rmtree(old, ignore_errors=True)
        rest, failure = _predict_parts(plan, parts, progress)
        n_predicted, n_ood = _assemble(plan, parts, rest, folder)
        result = _result(plan, n_predicted, n_ood, failure, time.monotonic() - start)
        write_text(folder / FACTS, json.dumps({"format": FORMAT, **asdict(result)}, indent=1, ensure_ascii=False))
        if failure is None:
            shutil.rmtree(parts, ignore_errors=True)
        return result


def read_slide_result(folder: str | Path) -> SlideResult:
    """Read `slide.json` of a folder that `predict_slide` has finished.

    Raises
    ------
    HistoCLIPError
        If there is none, or it is of another version.
    """
    path = Path(folder) / FACTS
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts.pop("format") != FORMAT:
            raise ValueError("written by another version")
        return SlideResult(**facts)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise HistoCLIPError(f"{path} does not hold a finished slide prediction ({shown(str(error))}).") from error


def read_tiles(folder: str | Path) -> pd.DataFrame:
    """Read the table of a finished prediction: see `predict_slide`."""
    import pandas as pd

    read_slide_result(folder)
    return pd.read_parquet(Path(folder) / TABLE)


def read_attention(folder: str | Path) -> np.ndarray | None:
    """Return the attention of a finished prediction as a memory map (n, N, g, g), float16; None where there is none."""
    read_slide_result(folder)
    path = Path(folder) / ATTENTION
    return np.load(path, mmap_mode="r") if path.is_file() else None


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is to be predicted, and how."""

    model: TileModel
    slide: Slide
    table: pd.DataFrame  # the tiles
    views: int
    batch_size: int
    identity: str  # see `_identity`

    @property
    def side(self) -> int:
        """Pixels at which a tile is read: never finer than the training patches were."""
        return min(self.model.pixels, self.model.patch_px)

    @property
    def part_size(self) -> int:
        """Tiles of a part."""
        return self.batch_size * PART_BATCHES

    def batches(self, first: int) -> Iterator[tuple[torch.Tensor, HistoCLIPError | None]]:
        """Yield the images of each batch from tile `first` on, and why it is the last where it ends early."""
        starts = iter(range(first, len(self.table), self.batch_size))
        workers = n_cores()
        pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        try:
            ahead = deque(pool.submit(self._read, start) for start in islice(starts, workers + 1))
            while ahead:
                images, failure = ahead.popleft().result()
                ahead.extend(pool.submit(self._read, start) for start in islice(starts, 1))
                yield images, failure
                if failure:
                    return
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, start: int) -> tuple[torch.Tensor, HistoCLIPError | None]:
        import torch

        rows = self.table[["x", "y", "width"]].iloc[start : start + self.batch_size].to_numpy().tolist()
        size, failure = self.model.pixels, None
        images = np.empty((len(rows), 3, size, size), np.uint8)
        for number, (x, y, width) in enumerate(rows):
            try:
                field = self.slide.read_field(x, y, width, self.side)
            except HistoCLIPError as error:
                images, failure = images[:number], error
                break
            if self.side < size:
                field = np.asarray(Image.fromarray(field).resize((size, size), Image.Resampling.BICUBIC))
            images[number] = field.transpose(2, 0, 1)
        return torch.from_numpy(images), failure


def _identity(
    model: TileModel,
    slide: Path,
    tissue: str | Path | None,
    coordinates: pd.DataFrame | None,
    options: tuple,
) -> str:
    """Return a digest of all that decides the result, without opening the slide: model, files, options and version."""
    files = [*slide_files(slide), *([] if tissue is None else [Path(tissue)])]
    facts = [(file.name, *_size_and_time(file)) for file in files]
    of_model = (model.identity, model.classes, [float(value) for value in model.thresholds], float(model.ood_threshold))
    of_model += (model.patch_px, model.mpp, model.pixels)
    places = "" if coordinates is None else coordinates.to_csv(index=False)
    given = repr((FORMAT, __version__, of_model, facts, options, places))
    return hashlib.blake2b(given.encode(errors="surrogateescape"), digest_size=16).hexdigest()


def _size_and_time(file: Path) -> tuple[int, ...]:
    try:
        facts = file.stat()
    except OSError:  # opening it says what is wrong
        return ()
    return facts.st_size, facts.st_mtime_ns


def _tiles(
    model: TileModel,
    slide: Slide,
    overlap: float,
    min_tissue: float,
    tissue: str | Path | None,
    coordinates: pd.DataFrame | None,
) -> pd.DataFrame:
    field_um = model.patch_px * model.mpp
    if tissue is not None:
        mask = tissue_mask_from(tissue, slide)
    elif coordinates is None:
        mask = tissue_mask(*mask_thumbnail(slide))
    else:
        mask = None
    table = tiles(slide, field_um, overlap, mask, min_tissue, coordinates)
    if table.empty:
        raise HistoCLIPError(
            f"{slide.path}: no tissue was found: {mask.mean():.1%} of it look like tissue, and no tile of {field_um:g} "
            f"micrometres holds {min_tissue:.0%}. Lower --min-tissue, or say where it is: --tissue MASK."
        )
    return table


def _predict_parts(
    plan: _Plan, parts: Path, progress: Callable[[int, int], None]
) -> tuple[dict[str, np.ndarray], str | None]:
    """Predict the tiles that no part holds yet; return those after the last whole part, and why they are the last."""
    total, number = len(plan.table), 0
    while _part(parts, number).is_file():
        number += 1
    done = min(number * plan.part_size, total)
    progress(done, total)
    held, failure = [], None
    for images, failure in plan.batches(done):
        if len(images):
            said = plan.model.predict_tensor(images, plan.views)
            found = {"probabilities": said.probabilities, "ood": said.ood, "attention": said.attention}
            held.append({name: np.asarray(values) for name, values in found.items() if values is not None})
            done += len(images)
            progress(done, total)
        if failure is None and (done == total or done % plan.part_size == 0):
            with replacing(_part(parts, number)) as temporary:
                np.savez(temporary, **_joined(held))
            held, number = [], number + 1
    return _joined(held), failure and str(failure)


def _part(parts: Path, number: int) -> Path:
    return parts / f"{number:06d}.npz"


def _joined(batches: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]} if batches else {}


def _assemble(plan: _Plan, parts: Path, rest: dict[str, np.ndarray], folder: Path) -> tuple[int, int]:
    """Write the table and the attention part by part; return how many tiles they hold, and how many are unlike."""
    import pandas as pd
    import pyarrow as pa
    from pyarrow import parquet

    def pieces() -> Iterator[dict[str, np.ndarray]]:
        number = 0
        while (path := _part(parts, number)).is_file():
            with np.load(path) as part:
                yield dict(part)
            number += 1
        if rest:
            yield rest

    done, n_ood, grid = 0, 0, None
    with replacing(folder / TABLE) as temporary, parquet.ParquetWriter(temporary, _schema(plan)) as writer:
        for piece in pieces():
            probabilities, unlike = piece["probabilities"], piece["ood"]
            table = plan.table.iloc[done : done + len(unlike)].reset_index(drop=True)
            present = probabilities >= np.asarray(plan.model.thresholds)
            columns = {f"prob_{name}": probabilities[:, k] for k, name in enumerate(plan.model.classes)}
            columns |= {f"present_{name}": present[:, k] for k, name in enumerate(plan.model.classes)}
            table = pd.concat([table, pd.DataFrame({**columns, "ood": unlike})], axis=1)
            writer.write_table(pa.Table.from_pandas(table, _schema(plan), preserve_index=False))
            done += len(unlike)
            n_ood += int((unlike > plan.model.ood_threshold).sum())
            grid = piece["attention"].shape[1:] if "attention" in piece else None
    (folder / ATTENTION).unlink(missing_ok=True)
    if grid is not None:
        with replacing(folder / ATTENTION) as temporary, temporary.open("wb") as file:
            # Not a memory map: on a full disk writing to one ends the process.
            header = {"descr": np.dtype(np.float16).str, "fortran_order": False, "shape": (done, *grid)}
            np.lib.format.write_array_header_1_0(file, header)
            for piece in pieces():
                file.write(np.ascontiguousarray(piece["attention"]).tobytes())
    return done, n_ood


def _schema(plan: _Plan) -> pa.Schema:
    import pyarrow as pa

    integers = [(name, pa.int64()) for name in ("x", "y", "width", "height")]
    scores = [(f"prob_{name}", pa.float32()) for name in plan.model.classes]
    decisions = [(f"present_{name}", pa.bool_()) for name in plan.model.classes]
    return pa.schema([*integers, ("tissue", pa.float32()), *scores, *decisions, ("ood", pa.float32())])


def _result(plan: _Plan, n_predicted: int, n_ood: int, failure: str | None, seconds: float) -> SlideResult:
    model, slide, total = plan.model, plan.slide, len(plan.table)
    field_um, notes = model.patch_px * model.mpp, list(slide.notes)
    if slide.mpp > BLURRED * model.mpp:
        notes.append(
            f"The slide has {slide.mpp:.3g} micrometres per pixel, the training patches {model.mpp:.3g}: its tiles are "
            "enlarged, and more blurred than what the model has learned from."
        )
    sides_um = plan.table.width * slide.mpp
    if max(sides_um.max() / field_um, field_um / sides_um.min()) > MOST_OFF:
        notes.append(
            f"The tiles given show {sides_um.min():.4g} to {sides_um.max():.4g} micrometres, the training patches "
            f"{field_um:.4g}."
        )
    if 2 * n_ood > n_predicted:
        notes.append(f"{n_ood:,} of {n_predicted:,} tiles are unlike the training patches.")
    if failure:
        failure = f"{failure} {n_predicted:,} of {total:,} tiles were predicted before."
    return SlideResult(
        slide=slide.path.name,
        path=str(slide.path),
        **{name: getattr(slide, name) for name in ("width", "height", "mpp", "mpp_source")},
        bounds=list(slide.bounds),
        field_um=field_um,
        classes=list(model.classes),
        thresholds=[float(value) for value in model.thresholds],
        ood_threshold=float(model.ood_threshold),
        n_tiles=total,
        n_predicted=n_predicted,
        n_ood=n_ood,
        error=failure,
        notes=notes,
        views=plan.views,
        seconds=round(seconds, 3),
        model=model.identity,
        identity=plan.identity,
        version=__version__,
    )
