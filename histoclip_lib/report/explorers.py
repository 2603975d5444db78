"""Explorers: figures that a reader can move through, on a page by its script and in JupyterLab by anywidget.

Both run `assets/explorers.js`. On paper, without scripts and where neither is at hand, the figure itself is shown. A
page holds its data as JSON; in JupyterLab the same script asks the kernel, which can answer for every patch.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib import colors
from matplotlib.figure import Figure
from PIL import Image

from histoclip_lib.common.arrays import all_right, unit
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.executors import n_cores
from histoclip_lib.common.files import replacing
from histoclip_lib.common.html import EXPLORER_TYPE, thumbnail
from histoclip_lib.common.predictions import THRESHOLD, Predictions
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation.text import state_text
from histoclip_lib.models.attention import enlarge, square_crop
from histoclip_lib.report import figures
from histoclip_lib.report.figures.attention import hot, where_highest
from histoclip_lib.report.figures.base import class_colour, encoded
from histoclip_lib.report.figures.calibration import at_or_above
from histoclip_lib.report.figures.patches import OUTLINES
from histoclip_lib.report.figures.slides import HEAT

if TYPE_CHECKING:
    import pandas as pd
    from anywidget import AnyWidget

    from histoclip_lib.features.store import ImageFeatures
    from histoclip_lib.prompting.strategies import StrategyContext
    from histoclip_lib.prompting.vocabulary import TextEncoder, Vocabulary

ASSETS = Path(__file__).with_name("assets")
MOST_EXPLORED, MOST_IN_GALLERY = 24, 200  # patches on a page, with maps and without
MOST_BESIDE, AT_ONCE = 1000, 32  # where pictures may lie beside the page; patches that are read side by side
ROOM = 1_600_000  # characters that the patches of a page may take, which then stays below 4 MB; with maps half
PATCH_SIDE, PATCH_QUALITY = 1024, 75  # a patch is shown at its own resolution up to this side; of WebP
SLIDE_QUALITY, MASK_SIDE, MOST_CELLS = 68, 768, 1_000_000  # of WebP; of outlines in pixels; attention cells on a page
STEPS = 2**16 - 1  # of a probability in the slide's data
MAX_SAMPLE = 500  # patches on which other words are scored
FLAT = 1e-5  # a map that varies by less, as a part of its highest value, is uniform: rounding
UNREADABLE = (OSError, ValueError)  # HistoCLIPError is a ValueError


@dataclass(frozen=True, eq=False)
class Explorer:
    """A figure, and what puts something in its place that a reader can move through.

    Attributes
    ----------
    kind : str
        What `explorers.js` makes of the data: `patches`, `thresholds`, `prompts` or `slide`.
    data : dict
        As JSON holds it; without a `page` only JupyterLab gets it.
    static : Figure
        With its text alternative and a caption that is right for both.
    answers : mapping of str to callable, optional
        What a kernel can be asked; each takes what the script gives and returns what JSON can hold.
    page : bool
        Whether the explorer works without a kernel.
    """

    kind: str
    data: dict = field(repr=False)
    static: Figure = field(repr=False)
    answers: Mapping[str, Callable[[object], object]] = field(default_factory=dict, repr=False)
    page: bool = True

    def _repr_mimebundle_(self, **kwargs: object) -> tuple[dict, dict]:
        """Return the view for JupyterLab, the data for a page and the figure; each front end takes what it can show."""
        bundle, metadata = figures.as_image(self.static)._repr_mimebundle_()
        if self.page:
            bundle[EXPLORER_TYPE] = self.answer("data", None)
        if (widget := self.widget()) is not None:
            bundle |= widget._repr_mimebundle_()[0]
        return bundle, metadata

    def answer(self, question: str, given: object) -> object:
        """Answer a question of the script: `data`, or one of `answers`."""
        return {"kind": self.kind, **self.data} if question == "data" else self.answers[question](given)

    def widget(self) -> AnyWidget | None:
        """Return a widget whose script asks this explorer; None where anywidget is not installed."""
        try:
            view = _widget_class()()
        except ImportError:
            return None

        def reply(widget: AnyWidget, message: dict, buffers: object) -> None:
            try:
                told = {"answer": self.answer(message["question"], message["given"])}
            except UNREADABLE as error:
                told = {"error": str(error)}
            widget.send({"id": message["id"], **told})

        view.on_msg(reply)
        return view


@cache
def _widget_class() -> type[AnyWidget]:
    from anywidget import AnyWidget

    class ExplorerWidget(AnyWidget):
        _esm = (ASSETS / "explorers.js").read_text(encoding="utf-8")
        _css = (ASSETS / "explorers.css").read_text(encoding="utf-8")

    return ExplorerWidget


def patch_browser(
    patches: PatchDataset, index: np.ndarray, count: int, seed: int, files: Path | None = None
) -> Explorer:
    """Return a viewer of patches with their labels and masks.

    A page shows at most MOST_IN_GALLERY of the patches `index`, with `files` MOST_BESIDE, drawn at random; JupyterLab
    shows all of the data set.

    Parameters
    ----------
    patches : PatchDataset
        The data set.
    index : ndarray of int
        The patches to draw from.
    count : int
        Patches in the figure, which is `figures.sample_patches`.
    seed : int
        Of both draws.
    files : Path, optional
        Folder beside the page for the pictures that it has no room for; by default such patches are left out.
    """
    most = MOST_BESIDE if files else MOST_IN_GALLERY
    shown = np.random.default_rng(seed).choice(index, min(most, len(index)), replace=False)
    static = figures.sample_patches(patches, index, count, seed)
    outlined = OUTLINES if patches.has_masks else ""
    static.caption = f"Patches with their labels, drawn at random from {len(index):,}.{outlined}"
    return _Viewed(patches, np.arange(len(patches)), files=files).explorer("Patches with their labels", shown, static)


def attention_explorer(
    patches: PatchDataset,
    index: np.ndarray,
    maps: np.ndarray,
    probabilities: np.ndarray,
    chosen: list[int] | None = None,
    probe: np.ndarray | None = None,
) -> Explorer:
    """Return a viewer of attention: patches, their masks, and the map of any class over them.

    Its figure is `figures.attention_overlay` of the first patch. JupyterLab shows all of the patches.

    Parameters
    ----------
    patches : PatchDataset
        The data set.
    index : ndarray of int, shape (B,)
        The patches that `maps` and `probabilities` belong to.
    maps : ndarray of shape (B, N, g, g)
        Attention, each map summing to 1.
    probabilities : ndarray of shape (B, N)
        sigma(logit).
    chosen : list of int, optional
        Positions in `index`, from 1 to MOST_EXPLORED of them; by default as `choose_to_explore` chooses.
    probe : ndarray of shape (B, N, g, g), optional
        The maps of the linear probe, shown beside attention.

    Raises
    ------
    HistoCLIPError
        If there are none or too many.
    """
    if chosen is None:
        chosen = choose_to_explore(patches.labels[index], probabilities)
    if not 1 <= len(chosen) <= MOST_EXPLORED:
        raise HistoCLIPError(
            f"attention_explorer: {len(chosen)} patches are chosen; a page holds 1 to {MOST_EXPLORED}. Choose as "
            "`choose_to_explore` does."
        )
    first = chosen[0]
    static = figures.attention_overlay(patches, index[first], maps[first], probabilities[first])
    outlined = " Bright places should lie inside the line, the outline of the class." if patches.has_masks else ""
    static.caption = (
        f"Attention over some of {len(index):,} patches; brighter means more, ✗ marks a wrong decision.{outlined}"
    )
    named = {"Attention": maps} | ({} if probe is None else {"Linear probe": probe})
    return _Viewed(patches, index, probabilities, named).explorer("Attention over patches", chosen, static)


def noted_patches(patches: PatchDataset, files: list[str], notes: list[str], what: str, caption: str) -> Explorer:
    """Return a viewer of the patches of some files with a note on each; its figure, of them all, shows `what`.

    Raises
    ------
    KeyError
        If a file is not one of the data set.
    """
    position = {file: i for i, file in enumerate(patches.files)}
    index = np.array([position[file] for file in files])
    listed = "; ".join(f"{file}: {note}".replace("\n", ", ") for file, note in zip(files, notes, strict=True))
    static = figures.patch_grid([patches.picture(i) for i in index], notes, f"{what}. {listed}.", caption)
    return _Viewed(patches, index, notes=notes).explorer("Patches", range(len(index)), static)


def choose_to_explore(
    labels: np.ndarray, probabilities: np.ndarray, count: int = MOST_EXPLORED, gain: np.ndarray | None = None
) -> list[int]:
    """Return patches to look at, so that a reader sees both what goes well and what fails.

    Parameters
    ----------
    labels, probabilities : ndarray of shape (B, N)
        Truth and sigma(logit).
    count : int
        How many, of B at most.
    gain : ndarray of shape (B, N), optional
        See `figures.choose_for_attention`.

    Returns
    -------
    list of int
        Positions, none twice. First those without a wrong decision, in the order of `figures.choose_for_attention`;
        then, as about half, those with the most confident errors. Where one kind is short, more of the other.
    """
    count = min(count, len(labels))
    right = np.flatnonzero(all_right(labels, probabilities >= THRESHOLD))
    of_right = None if gain is None else gain[right]
    telling = right[figures.choose_for_attention(labels[right], probabilities[right], count, of_right)].tolist()
    telling += np.setdiff1d(right, telling)[: count - len(telling)].tolist()  # those in which there is nothing to find
    wrong = [patch for patch, _ in figures.find_confident_errors(labels, probabilities, count)]
    n_wrong = min(len(wrong), max(count // 2, count - len(telling)))
    return telling[: count - n_wrong] + wrong[:n_wrong]


def patch_gallery(
    patches: PatchDataset,
    index: np.ndarray,
    probabilities: np.ndarray,
    count: int,
    seed: int,
    files: Path | None = None,
) -> Explorer:
    """Return a viewer that begins with the most confident errors.

    A page shows at most MOST_IN_GALLERY patches, with `files` MOST_BESIDE: those with an error, the most confident
    first, then others at random. Its figure is `figures.confident_errors`, or some patches where there is no error.

    Parameters
    ----------
    patches : PatchDataset
        The data set.
    index : ndarray of int, shape (B,)
        The patches that `probabilities` (B, N) belong to.
    probabilities : ndarray
        sigma(logit).
    count : int
        Patches in the figure.
    seed : int
        Of the random ones.
    files : Path, optional
        As for `patch_browser`.
    """
    labels, most = patches.labels[index], MOST_BESIDE if files else MOST_IN_GALLERY
    any_wrong = ~all_right(labels, probabilities >= THRESHOLD)
    wrong = [patch for patch, _ in figures.find_confident_errors(labels, probabilities, most)]
    right = np.flatnonzero(~any_wrong)
    n_right = min(most - len(wrong), len(right))
    drawn = np.sort(np.random.default_rng(seed).choice(right, n_right, replace=False)).tolist()
    static = figures.confident_errors(patches, index, probabilities, count)
    if static is None:
        static = figures.sample_patches(patches, index, count, seed)
    static.caption = (
        f"Decisions on {len(index):,} patches, the most confident errors first. In annotated data, it may be the label "
        "that is wrong."
    )
    viewed = _Viewed(patches, index, probabilities, files=files)
    return viewed.explorer("Gallery of patches", wrong + drawn, static, wanted="errors", n_wrong=int(any_wrong.sum()))


@dataclass(frozen=True, eq=False)
class _Viewed:
    """What the viewer shows: the patches `index` (B,), with probabilities (B, N), maps (B, N, g, g) or B notes.

    `files` is a folder beside the page, for pictures that the page has no room for.
    """

    patches: PatchDataset
    index: np.ndarray
    probabilities: np.ndarray | None = None
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: list[str] | None = None
    files: Path | None = None

    def explorer(
        self, title: str, shown: Iterable[int], static: Figure, wanted: str = "all", n_wrong: int | None = None
    ) -> Explorer:
        """Return the viewer; a page shows the positions `shown`, the first of them where not all have room."""
        heat = np.round(hot(np.arange(256) / 255)[:, :3] * 255).astype(np.uint8)
        held = self.on_page(shown)
        there = {record["i"] for record in held}
        data = _shared(self.patches.classes) | {
            "title": title,
            "wanted": wanted,  # which patches are listed at first
            "held": _held(len(self.index), len(held), n_wrong) + self.where(held),
            "maps": list(self.maps),
            "grid": next((own.shape[-1] for own in self.maps.values()), 0),
            "heat": _base64(heat.tobytes()),  # 256 colours, each red, green, blue
            "patches": held,
        }
        answers = {
            "rest": lambda _: [self.about(i) for i in range(len(self.index)) if i not in there],
            "patch": lambda i: self.seen(int(i)),
            "areas": lambda _: np.nan_to_num(self.patches.covered_areas(self.index)).round(4).tolist(),
        }
        return Explorer("patches", data, static, answers)

    def on_page(self, shown: Iterable[int]) -> list[dict]:
        """Return what a page knows of patches while there is room.

        With `files`, the pictures of the first are on the page, in half the room, and those of the others beside it.
        """
        held, room, folder = [], ROOM // 2 if self.maps or self.files else ROOM, None
        unused = set() if self.files is None else set(self.files.glob("*.webp"))
        for record in self._records(list(shown)):
            if held and self.files is not None and folder is None and len(json.dumps(record)) > room:
                folder, room = self.files, ROOM
            if folder is not None:
                pixels = base64.b64decode(record["image"].partition(",")[2])
                picture = folder / f"{hashlib.sha256(pixels).hexdigest()[:16]}.webp"
                record["image"] = f"{folder.name}/{picture.name}"
            room -= len(json.dumps(record))
            if held and room < 0:
                break
            if folder is not None:
                unused.discard(picture)
                with replacing(picture, durable=False) as temporary:
                    temporary.write_bytes(pixels)
            held.append(record)
        for picture in unused:
            picture.unlink(missing_ok=True)
        return held

    def _records(self, shown: list[int]) -> Iterator[dict]:
        """Yield all that is known of each patch; some are read side by side."""
        with ThreadPoolExecutor(n_cores()) as pool:
            for start in range(0, len(shown), AT_ONCE):
                yield from pool.map(lambda i: self.about(i) | self.seen(i), shown[start : start + AT_ONCE])

    def where(self, held: list[dict]) -> str:
        """Say how many of the pictures of a page lie beside it, where any do."""
        beside = sum(not record["image"].startswith("data:") for record in held)
        return f" The pictures of {beside:,} lie in the folder {self.files.name} beside the page." if beside else ""

    def about(self, position: int) -> dict:
        """Return name, origin and truth of a patch, and its scores."""
        patches, i = self.patches, self.index[position]
        known = {"group": patches.groups, "part": patches.parts, "tissue": patches.tissue}
        labels = [None if np.isnan(label) else int(label) for label in patches.labels[i]]
        about = {"i": int(position), "name": patches.files[i], "labels": labels}
        about |= {name: None if values is None else str(values[i]) for name, values in known.items()}
        if self.notes is not None:
            about["note"] = self.notes[position]
        if self.probabilities is not None:
            own = self.probabilities[position]
            rounded, below = own.astype(float).round(4), own < THRESHOLD
            # rounding must not carry a score over the threshold
            about["probabilities"] = np.where(below, np.minimum(rounded, THRESHOLD - 1e-4), rounded).round(4).tolist()
        return about

    def seen(self, position: int) -> dict:
        """Return the pixels of a patch, its mask and its maps; with maps, the square that the encoder sees."""
        patches, i = self.patches, self.index[position]
        image, mask = patches.picture(i), patches.mask(i)
        if self.maps:
            image, mask = square_crop(image), None if mask is None else square_crop(mask)
        mpp = np.nan if patches.patch_mpp is None else patches.patch_mpp[i]
        seen = _pixels(image, mask, len(patches.classes))
        seen["um"] = None if np.isnan(mpp) else round(float(mpp) * image.shape[1], 2)  # width of the picture
        seen["areas"] = (
            None if mask is None else [_rounded((mask == k + 1).mean()) for k in range(len(patches.classes))]
        )
        seen["maps"] = [
            [_map(single.astype(float), mask, k) for k, single in enumerate(own[position])]
            for own in self.maps.values()
        ]
        return seen


def _held(total: int, held: int, n_wrong: int | None) -> str:
    """Say which patches are on the page: of all, and, where errors come first, of those with a wrong decision."""
    if held == total:
        return f"All {total:,} patches are here."
    if n_wrong is None:
        return f"Of {total:,} patches, {held:,} are on this page."
    first = f"the {held:,} most confident of {n_wrong:,}" if held < n_wrong else f"all {n_wrong:,}"
    others = f", and {held - n_wrong:,} of the others, drawn at random" if held > n_wrong else ""
    return f"Of {total:,} patches, {held:,} are here: {first} with a wrong decision{others}."


def threshold_explorer(labels: np.ndarray, scores: np.ndarray, classes: list[str]) -> Explorer:
    """Return an explorer in which the threshold of each class can be moved; its figure is `figures.threshold_curves`.

    Parameters
    ----------
    labels : ndarray of shape (B, N)
        0 or 1.
    scores : ndarray of shape (B, N)
        Probabilities; a class is present at or above its threshold.
    classes : list of str
        N names.

    Raises
    ------
    HistoCLIPError
        If a score is not a probability.
    """
    if not ((scores >= 0) & (scores <= 1)).all():
        raise HistoCLIPError(
            f"threshold_explorer: scores lie between {scores.min():.3g} and {scores.max():.3g}, thresholds between 0 "
            "and 1. Give probabilities."
        )
    data = _shared(classes) | {"counts": at_or_above(labels, scores).tolist()}
    return Explorer("thresholds", data, figures.threshold_curves(labels, scores, classes))


def slide_explorer(
    tiles: pd.DataFrame,
    classes: list[str],
    overview: np.ndarray,
    size: tuple[int, int],
    mpp: float,
    thresholds: np.ndarray,
    ood_threshold: float,
    top: Mapping[str, list[tuple[int, np.ndarray]]],
    mask: np.ndarray | None = None,
    attention: np.ndarray | None = None,
    read: Callable[[int], np.ndarray] | None = None,
) -> Explorer:
    """Return a viewer of a slide, with pan and zoom, the map of each class, and tiles that can be read and opened.

    Its figure is `figures.slide_maps`. In JupyterLab any tile can be opened, on a page those of `top`.

    Parameters
    ----------
    tiles : DataFrame of n lines
        `x, y, width, height` in level-0 pixels, `prob_<class>`, `present_<class>` and `ood`.
    classes : list of str
        N names.
    overview : ndarray of shape (h, w, 3), uint8
        The whole slide; about 2,000 pixels on its longer side keep a page small.
    size : tuple of int
        Width and height of the slide at level 0.
    mpp : float
        Micrometres per pixel of level 0.
    thresholds : ndarray of shape (N,)
        At or above which a class is present.
    ood_threshold : float
        Above which a tile is unlike the training patches.
    top : mapping of str to list of (int, ndarray (S, S, 3))
        By class, the indices and the images of tiles that a page holds at full size.
    mask : ndarray of shape (H, W), uint8, optional
        Of the whole slide: k for the k-th class; drawn as outlines.
    attention : ndarray of shape (n, N, g, g), optional
        A finer map inside each tile, drawn as a part of the tile's probability. A page holds up to MOST_CELLS values.
    read : callable, optional
        Returns the image of a tile by its index, for JupyterLab.
    """
    cuts = np.floor(np.asarray(thresholds, dtype=np.float64) * STEPS)
    chances = np.floor(tiles[[f"prob_{name}" for name in classes]].to_numpy(np.float64) * STEPS)
    present = tiles[[f"present_{name}" for name in classes]].to_numpy(bool)
    chances = np.where(present, chances, np.minimum(chances, cuts - 1).clip(0))  # rounding changes no decision
    cells = None
    if attention is not None and attention.size <= MOST_CELLS:
        own = np.asarray(attention, dtype=np.float32)
        cells = np.round(255 * own / np.maximum(own.max(axis=(2, 3), keepdims=True), np.finfo(np.float32).tiny))
    heat = np.round(matplotlib.colormaps[HEAT](np.arange(256))[:, :3] * 255)
    outlines = None
    if mask is not None:
        scale = min(1, MASK_SIDE / max(mask.shape))
        smaller = [max(1, round(scale * length)) for length in mask.shape[::-1]]
        outlines = _mask_picture(mask, smaller, len(classes))
    data = _shared(classes) | {
        "width": size[0],
        "height": size[1],
        "mpp": mpp,
        "image": _picture(overview, "webp", quality=SLIDE_QUALITY),
        "xs": _packed(tiles.x, "<i4"),
        "ys": _packed(tiles.y, "<i4"),
        "sides": _packed(tiles.width, "<f4"),
        "ood": _packed(tiles.ood, "<f4"),
        "chances": _packed(chances, "<u2"),
        "thresholds": (cuts / STEPS).tolist(),
        "oodThreshold": float(ood_threshold),
        "heat": _packed(heat, "u1"),
        "grid": 1 if cells is None else cells.shape[-1],
        "cells": None if cells is None else _packed(cells, "u1"),
        "mask": outlines,
        "top": [
            [{"i": int(i), "image": _picture(image, "webp", quality=PATCH_QUALITY)} for i, image in top.get(name, [])]
            for name in classes
        ],
    }
    static = figures.slide_maps(overview, tiles, classes, size, mpp)
    answers = {} if read is None else {"tile": lambda i: _picture(read(int(i)), "webp", quality=PATCH_QUALITY)}
    return Explorer("slide", data | {"any": read is not None}, static, answers)


def _packed(values: np.ndarray | pd.Series, kind: str) -> str:
    """Return numbers as base64 of their bytes, little-endian."""
    return _base64(np.asarray(values).astype(kind).tobytes())


def _mask_picture(mask: np.ndarray, size: Iterable[int], n_classes: int) -> str:
    """Return a mask (H, W), resized to a width and height, as a data address."""
    scaled = np.asarray(Image.fromarray(mask).resize(tuple(size), Image.Resampling.NEAREST))
    # Values far apart, since browsers that hinder fingerprinting alter pixels a little when they are read.
    return _picture(scaled * np.uint8(255 // n_classes), "png", optimize=True)


def prompt_explorer(
    encode: TextEncoder,
    vocabulary: Vocabulary,
    features: ImageFeatures,
    patches: PatchDataset,
    index: np.ndarray,
    context: StrategyContext,
) -> Explorer:
    """Return an explorer, for JupyterLab, of what other words for the classes would give.

    A change counts when it is entered, by the return key or by leaving the field. Its figure is
    `figures.patch_cosines` of the first patch.

    Parameters
    ----------
    encode : TextEncoder
        Encodes each distinct prompt once.
    vocabulary : Vocabulary
        The words to start from; synonyms are offered.
    features : ImageFeatures
        Of all patches.
    patches : PatchDataset
        The data set, of N classes.
    index : ndarray of int
        Patches to look at and to score the strategies on: the validation set. Of more than MAX_SAMPLE, as many at
        even distances.
    context : StrategyContext
        As in `score_zero_shot`.
    """
    index = index[np.unique(np.linspace(0, len(index) - 1, MAX_SAMPLE).astype(int))]
    images = unit(features.pooled.take(index).astype(np.float32))
    asked = _Prompts(encode, vocabulary, patches, context, index, images)
    synonyms = [*vocabulary.synonyms, *([] for _ in vocabulary.names)]
    offered = [[name, *own] for name, own in zip(vocabulary.names, synonyms, strict=False)]
    data = _shared(patches.classes) | {
        "offered": offered,
        "total": len(index),
        "words": {
            "names": vocabulary.names, "templates": vocabulary.templates, "template": vocabulary.photo_of,
            "negative": vocabulary.negative_prompt,
        },
    }  # fmt: skip
    cosines, negative = asked.cosines(vocabulary)
    first = index[0]
    static = figures.patch_cosines(
        patches.picture(first), cosines[0], float(negative[0]), vocabulary.names, patches.labels[first],
        patches.files[first],
    )  # fmt: skip
    return Explorer("prompts", data, static, {"words": asked.answer}, page=False)


@dataclass(frozen=True, eq=False)
class _Prompts:
    """What other words are scored on: unit `images` (B, d) of the patches `index`."""

    encode: TextEncoder
    vocabulary: Vocabulary
    patches: PatchDataset
    context: StrategyContext
    index: np.ndarray
    images: np.ndarray

    def cosines(self, words: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
        """Return the cosines (B, N) with the class embeddings, and those (B,) with the negative prompt."""
        from histoclip_lib.prompting.vocabulary import class_embeddings

        negative = self.images @ self.encode([words.negative_prompt])[0]
        return self.images @ class_embeddings(self.encode, words).T, negative

    def score(self, words: Vocabulary) -> dict[str, Predictions | None]:
        """Score every strategy, by label; None where it needs too many new prompts or has too many classes."""
        from histoclip_lib.prompting.sensitivity import MAX_NEW_PROMPTS, limited_encoder
        from histoclip_lib.prompting.strategies import STRATEGIES

        scored: dict[str, Predictions | None] = {}
        for strategy in STRATEGIES.load().values():
            limited = limited_encoder(self.encode, MAX_NEW_PROMPTS)
            try:
                scored[strategy.label] = strategy.score(self.images, limited, words, self.context)
            except HistoCLIPError:
                scored[strategy.label] = None
        return scored

    @cached_property
    def reported(self) -> dict[str, Predictions | None]:
        """What every strategy gives with the words of the report."""
        return self.score(self.vocabulary)

    def answer(self, given: dict) -> dict:
        """Return what the strategies score with the words in the fields, and the cosines of the patch at `place`."""
        from histoclip_lib.evaluation.metrics import point_metrics

        words, classes = self.read(given), self.patches.classes
        labels, scored, lines = self.patches.labels[self.index], self.score(words), []
        for label, own in scored.items():
            now, before = (point_metrics(labels, p, classes) if p else None for p in (own, self.reported[label]))
            lines.append([label])
            for metric in ("mAcc", "mAP"):
                lines[-1].append("—" if now is None or now[metric] is None else f"{now[metric]:.3f}")
                known = None not in (now, before) and None not in (now[metric], before[metric])
                lines[-1].append(f"{now[metric] - before[metric]:+.3f}" if known else "—")
        note = f"On {len(labels):,} patches; change against the words of the report."
        if None in scored.values():
            note += " —: too many new prompts or classes."
        place = int(given["place"])
        i, (cosines, negative) = self.index[place], self.cosines(words)
        chosen = [
            ", ".join(label for label, own in scored.items() if own and own.decisions[place, k])
            for k in range(len(classes))
        ]
        states = [state_text(label) for label in self.patches.labels[i]]
        numbers = [f"{cosine:.3f}" for cosine in cosines[place]]
        return {
            "methods": lines,
            "note": note,
            "patch": {
                "name": self.patches.files[i],
                "image": _pixels(self.patches.picture(i), None, len(classes))["image"],
            },
            "cosines": [
                *map(list, zip(classes, words.names, states, numbers, chosen, strict=True)),
                ["no class", words.negative_prompt, "", f"{negative[place]:.3f}", ""],
            ],
        }

    def read(self, given: dict) -> Vocabulary:
        """Return the vocabulary that the fields hold.

        Raises
        ------
        HistoCLIPError
            If a field is empty or a template has no `{}`.
        """
        from histoclip_lib.prompting.vocabulary import check_templates

        names = [name.strip() for name in given["names"]]
        templates = [line.strip() for line in given["templates"] if line.strip()]
        template, negative = given["template"].strip(), given["negative"].strip()
        fields = {f"the name of {column}": name for column, name in zip(self.patches.classes, names, strict=True)}
        fields |= {"Templates": templates, "Template of the other strategies": template, "Negative prompt": negative}
        if empty := [title for title, text in fields.items() if not text]:
            raise HistoCLIPError(f"These fields are empty: {', '.join(empty)}. Fill them in, or reset the words.")
        check_templates(templates, "Templates")
        check_templates([template], "Template of the other strategies")
        return replace(
            self.vocabulary, names=names, templates=templates, photo_of=template, negative_prompt=negative
        )  # fmt: skip


def _shared(classes: list[str]) -> dict:
    """Return what an explorer knows of the classes; in a mask class k has the value (k + 1) x maskStep."""
    hues = [colors.to_hex(class_colour(k)) for k in range(len(classes))]
    return {"classes": list(classes), "colours": hues, "threshold": THRESHOLD, "maskStep": 255 // len(classes)}


def _pixels(image: np.ndarray, mask: np.ndarray | None, n_classes: int) -> dict:
    """Return an image (H, W, 3) and its mask (H, W), made smaller where they are large, as data addresses."""
    small = thumbnail(image, PATCH_SIDE)
    size = list(small.shape[1::-1])
    address = None if mask is None else _mask_picture(mask, size, n_classes)
    return {"image": _picture(small, "webp", quality=PATCH_QUALITY), "mask": address, "size": size}


def _map(own: np.ndarray, mask: np.ndarray | None, k: int) -> dict:
    """Return the map (g, g) of class `k`, and in numbers and words what it shows.

    `cells` holds a byte for each cell, from 0 for its lowest value to 255 for its highest; `peak` is the highest value
    in multiples of a uniform map; `inside` the fraction that lies where the mask has the class, None where it has not.
    """
    spread, highest = np.ptp(own), own.max()
    flat = spread <= FLAT * highest
    scaled = np.zeros_like(own) if flat else (own - own.min()) / spread
    described = {
        "cells": _base64(np.round(scaled * 255).astype(np.uint8).tobytes()),
        "peak": round(float(highest / own.mean()), 1),
        "where": None if flat else where_highest(own),
        "inside": None,
    }
    if mask is not None and (inside := mask == k + 1).any():
        enlarged = enlarge(own, len(mask))
        described["inside"] = _rounded(enlarged[inside].sum() / enlarged.sum())
    return described


def _rounded(fraction: float) -> float:
    return round(float(fraction), 4)


def _picture(image: np.ndarray, kind: str, **options: object) -> str:
    """Return an image (H, W) or (H, W, 3), uint8, as a data address."""
    return f"data:image/{kind};base64,{_base64(encoded(Image.fromarray(image), kind, **options))}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
