"""What the notebook 07_slides shows: whole slides under the model of the run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np
from IPython.display import HTML, Markdown

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.html import as_typed, element, html, table
from histoclip_lib.evaluation.text import number_text, value_text
from histoclip_lib.evaluation.uncertainty import Difference
from histoclip_lib.report import figures
from histoclip_lib.report.figures.base import as_image
from histoclip_lib.report.tables import Table, size_text
from histoclip_lib.runs.chapters import Chapter
from histoclip_lib.runs.run import Run

if TYPE_CHECKING:
    import pandas as pd
    from IPython.display import Image

    from histoclip_lib.report.explorers import Explorer
    from histoclip_lib.report.slide_views import SlideView

PAINTED = "painted"  # as the parameter `slides`: a slide that is painted
FOLDER = "slides"  # below the run's
FILES = {
    "slides.parquet": "a line for each slide: share of the tissue that is positive, mean and highest probabilities",
    "slides.csv": "the same",
    "tiles.parquet": "place, probabilities, decisions and out-of-distribution score of each tile",
    "tiles.csv": "the same, with the columns of wsinfer",
    "tiles.geojson": "the tiles for QuPath: drop it on the open slide",
    "heatmap.ome.tif": "a channel for each class, for image viewers",
    "attention.npy": "the attention inside each tile",
    "slide.json": "size, scale, and what the prediction depends on",
}


@dataclass(frozen=True, eq=False)
class Slides(Chapter):
    """The notebook 07_slides; `slides` has a line for each of `paths`, and `view` is the slide that is shown.

    Without slides all are empty.
    """

    slides: pd.DataFrame | None = None
    paths: tuple[Path, ...] = ()
    view: SlideView | None = None

    @classmethod
    def of(cls, run: Run) -> Slides:
        """Predict the slides that the parameter `slides` names, into `slides/` of the run's folder.

        Raises
        ------
        HistoCLIPError
            If there is no slide, or none could be predicted; the message says why.
        """
        given = str(run["slides"])
        if not given:
            return cls(run)
        from histoclip_lib.report.slide_views import SlideView
        from histoclip_lib.runs.slides import SlideOptions, find_slides, predict_slides

        found, _ = find_slides([paint(int(run["seed"])) if given == PAINTED else Path(given)])
        if found is None:
            raise HistoCLIPError(f"slides: {given} holds no slide. Name a slide, a folder of slides or a slides.csv.")
        options = SlideOptions(device=str(run["device"]), precision=str(run["precision"]))
        slides = predict_slides(run.folder / "model", found, run.folder / FOLDER, options)
        readable = [i for i, n in enumerate(slides.get("n_predicted", ())) if n > 0]
        if not readable:
            raise HistoCLIPError(f"slides: none could be predicted. {slides.slide[0]}: {slides.error[0]}")
        views = (SlideView.of(found.paths[i], run.folder / FOLDER / slides.folder[i]) for i in readable)
        first = next(views)
        labelled = (view for view in (first, *views) if view.mask is not None or view.points is not None)
        return cls(run, slides, tuple(found.paths), next(labelled, first))

    @property
    def classes(self) -> list[str]:
        """The N class names."""
        return self.view.result.classes

    @cached_property
    def scored(self) -> dict[str, pd.DataFrame]:
        """Scores of the slide that is shown against its mask and at its points, where there are any."""
        return {} if self.view is None else self.view.scores(float(self.run["least_cover"]), *self.draws[:2])

    def finding(self) -> Markdown:
        """Say in a sentence how the maps agree with the labels, or what was found."""
        if self.view is None:
            return Markdown("**No slides were given.** The parameter `slides` takes a slide, a folder or a slides.csv.")
        result, failed = self.view.result, int((self.slides.error != "").sum())
        said = f"{result.n_predicted:,} tiles of {as_typed(result.slide)}"
        for kind, scores in self.scored.items():
            known = scores.dropna(subset="auroc")
            if len(known):
                worst = known.loc[known.auroc.idxmin()]
                where = {"mask": "cover in the mask", "points": "labels at points"}[kind]
                lowest = f"lowest for {worst['class']}, {worst.auroc:.3f}"
                said = (
                    f"Over {said}, probabilities rank the classes' {where} with a mean AUROC of "
                    f"{known.auroc.mean():.3f} ({lowest}); decisions reach a mean Dice of {known.dice.mean():.3f}"
                )
                break
        else:
            shares = self.slides[[f"share_{name}" for name in self.classes]].mean()
            most = self.classes[int(shares.argmax())]
            said += f" with tissue were predicted; most of it is positive for {most}"
        unlike = f"{result.n_ood:,} tiles are unlike the training patches."
        trouble = f" {failed} of {len(self.slides)} slides could not be read to their end." if failed else ""
        return Markdown(f"**{said}.** {unlike}{trouble}")

    def explorer(self) -> Explorer | None:
        """Return the viewer of the slide."""
        return None if self.view is None else self.view.explorer()

    def maps(self) -> Image | None:
        """Draw the map of each class, beside the mask where there is one."""
        return None if self.view is None else as_image(self.view.maps())

    def scores(self) -> Table | Markdown | None:
        """Return AUROC and Dice of each class, with intervals."""
        import pandas as pd

        if self.view is None:
            return None
        if not self.scored:
            return Markdown("There are no labels beside this slide: `<slide>_mask.png` or `<slide>_points.csv`.")
        lines = {}
        for kind, scores in self.scored.items():
            for line in scores.to_dict("records"):
                lines[line["class"] if len(self.scored) == 1 else f"{line['class']}, {kind}"] = {
                    "tiles" if kind == "mask" else "points": f"{line['n_tiles']:,}",
                    "with the class": f"{line['n_present']:,}",
                    **{title: _measured(line, name) for name, title in (("auroc", "AUROC"), ("dice", "Dice"))},
                }
        caption = f"Agreement of the maps of {self.view.result.slide} with its labels, with 95 % intervals."
        return Table(pd.DataFrame.from_dict(lines, orient="index").fillna(""), caption)

    def top_tiles(self) -> Image | None:
        """Draw the tiles with the highest probability of each class."""
        return None if self.view is None else as_image(self.view.top_tiles())

    def burdens(self) -> Image | None:
        """Draw which share of each slide's tissue is positive."""
        if self.view is None:
            return None
        return as_image(figures.slide_burdens(self.slides.dropna(subset="n_predicted"), self.classes))

    def table(self) -> Table | None:
        """Return the share of positive tissue of each slide, and why a slide was not read to its end."""
        if self.view is None:
            return None
        shown = self.slides.set_index("slide")[["n_tiles", "n_ood"]].rename(
            columns={"n_tiles": "tiles", "n_ood": "unlike"}
        )
        shown = shown.map(lambda n: "" if np.isnan(n) else f"{int(n):,}")
        for name in self.classes:
            columns = {f"share_{name}": "share", f"share_low_{name}": "share_low", f"share_high_{name}": "share_high"}
            lines = self.slides[[*columns]].rename(columns=columns).to_dict("records")
            shown[name] = [_measured(line, "share") for line in lines]
        if (self.slides.error != "").any():
            shown["not read to its end"] = self.slides.error.to_numpy()
        return Table(shown.rename_axis(None), "Share of the tissue that lies in positive tiles, with 95 % intervals.")

    def files(self) -> HTML | None:
        """Return the files of the slides, each as a link."""
        if self.view is None:
            return None
        root = self.run.folder / FOLDER
        folders = ["", *self.slides.folder]
        lines = [
            (element("a", name, href=quote(f"{FOLDER}/{name}")), size_text((root / name).stat().st_size), text)
            for folder in folders
            for file, text in FILES.items()
            if (root / (name := f"{folder}/{file}".lstrip("/"))).is_file()
        ]
        return HTML(html(table(("File", "Size", "What it holds"), lines, "Files of the slides.")))


def paint(seed: int) -> Path:
    """Return the painted slide in HistoCLIP's cache, painted where it is not there yet."""
    from histoclip_lib.common.cache import cache_dir
    from histoclip_lib.data.synthetic.slide import paint_slide, slide_key

    return paint_slide(cache_dir() / "synthetic" / slide_key(seed), seed=seed)


def _measured(line: dict, name: str) -> str:
    """Return a measure with its interval, and alone where that is not known."""
    gap = Difference(line[name], line[f"{name}_low"], line[f"{name}_high"])
    return number_text(gap.value) if np.isnan(gap.low) else value_text(gap)
