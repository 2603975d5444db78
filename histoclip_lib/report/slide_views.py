"""What a page shows of one predicted slide: viewer, maps beside the mask, the highest tiles, and scores."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histoclip_lib.common.html import thumbnail
from histoclip_lib.data.base import stamped
from histoclip_lib.report import figures
from histoclip_lib.report.explorers import Explorer, slide_explorer
from histoclip_lib.slides import scoring
from histoclip_lib.slides.prediction import SlideResult, read_attention, read_slide_result, read_tiles
from histoclip_lib.slides.reading import open_slide

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

OVERVIEW_SIDE, STORED = 2000, 8  # pixels of the overview's longer side; tiles of each class on a page
MOST_PIXELS = 512  # of the side of a tile at full size


@dataclass(frozen=True, eq=False)
class SlideView:
    """A slide that was predicted, and its labels where there are any beside it.

    Attributes
    ----------
    path : Path
        Of the slide.
    result : SlideResult
        What `slide.json` holds.
    tiles : DataFrame of n lines
        As `slides.prediction.read_tiles` returns it.
    attention : ndarray of shape (n, N, g, g), or None
        Of each tile and class.
    mask : ndarray of shape (h, w), uint8, or None
        From `<slide>_mask.png`: see `scoring.read_label_mask`.
    points : DataFrame or None
        From `<slide>_points.csv`: see `scoring.read_points`.
    generated : bool
        Whether software painted the slide; each picture of it says so.
    """

    path: Path
    result: SlideResult
    tiles: pd.DataFrame
    attention: np.ndarray | None = None
    mask: np.ndarray | None = None
    points: pd.DataFrame | None = None
    generated: bool = False

    @classmethod
    def of(cls, path: str | Path, folder: str | Path) -> SlideView:
        """Open what `slides.predict_slide` has written into a folder, and the labels beside the slide.

        Raises
        ------
        HistoCLIPError
            If the prediction is not finished, or labels cannot be used.
        """
        result = read_slide_result(folder)
        mask, points = (scoring.labels_beside(path, ending) for ending in (scoring.MASK, scoring.POINTS))
        return cls(
            Path(path), result, read_tiles(folder), read_attention(folder),
            None if mask is None else scoring.read_label_mask(mask, len(result.classes), (result.width, result.height)),
            None if points is None else scoring.read_points(points, result.classes),
        )  # fmt: skip

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the slide at level 0."""
        return self.result.width, self.result.height

    @cached_property
    def overview(self) -> np.ndarray:
        """The whole slide as RGB, its longer side OVERVIEW_SIDE pixels."""
        with open_slide(self.path, self.result.mpp) as slide:
            return self._shown(slide.thumbnail(OVERVIEW_SIDE))

    @cached_property
    def highest(self) -> dict[str, list[int]]:
        """By class, the indices of the STORED tiles with the highest probability, the highest first."""
        return {
            name: np.argsort(-self.tiles[f"prob_{name}"].to_numpy(), kind="stable")[:STORED].tolist()
            for name in self.result.classes
        }

    def read(self, index: int) -> np.ndarray:
        """Return a tile at full size, of MOST_PIXELS at most."""
        tile = self.tiles.iloc[index]
        with open_slide(self.path, self.result.mpp) as slide:
            side = float(tile.width)
            return self._shown(
                slide.read_field(float(tile.x), float(tile.y), side, min(MOST_PIXELS, max(1, round(side))))
            )

    def _shown(self, image: np.ndarray) -> np.ndarray:
        return stamped(image) if self.generated else image

    @cached_property
    def _stored(self) -> dict[int, np.ndarray]:
        return {i: self.read(i) for i in sorted({i for own in self.highest.values() for i in own})}

    def explorer(self) -> Explorer:
        """Return the viewer."""
        top = {name: [(i, self._stored[i]) for i in own] for name, own in self.highest.items()}
        return slide_explorer(
            self.tiles, self.result.classes, self.overview, self.size, self.result.mpp,
            np.array(self.result.thresholds), self.result.ood_threshold, top, self.mask, self.attention, self.read,
        )  # fmt: skip

    def maps(self) -> Figure:
        """Draw the map of each class, beside the mask where there is one."""
        small = thumbnail(self.overview, OVERVIEW_SIDE // 3)
        return figures.slide_maps(small, self.tiles, self.result.classes, self.size, self.result.mpp, self.mask)

    def top_tiles(self) -> Figure:
        """Draw the highest tiles of each class."""
        chances = [[float(self.tiles[f"prob_{name}"].iloc[i]) for i in own] for name, own in self.highest.items()]
        images = [[self._stored[i] for i in own] for own in self.highest.values()]
        return figures.top_tiles(images, chances, self.result.classes)

    def scores(self, least_cover: float, resamples: int, seed: int) -> dict[str, pd.DataFrame]:
        """Score the maps against the labels that there are: `mask` and `points`, each as `scoring.score_tiles` does.

        In the mask a class is present in a tile where it covers at least `least_cover` of it.
        """
        classes, found = self.result.classes, {}
        if self.mask is not None:
            cover = scoring.cover_of_tiles(self.mask, self.tiles, self.size, len(classes))
            found["mask"] = scoring.score_tiles(cover >= least_cover, self.tiles, classes, resamples, seed)
        if self.points is not None:
            found["points"] = scoring.score_points(self.points, self.tiles, classes, resamples, seed)
        return found
