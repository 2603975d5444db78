"""What is shown of whole slides: by 07_slides under the model of a run, and by the pages of `histoclip predict`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
from IPython.display import HTML, Image, Markdown

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.html import as_typed, element, html
from histoclip_lib.evaluation.text import number_text, p_text, value_text
from histoclip_lib.evaluation.uncertainty import Difference
from histoclip_lib.report import figures
from histoclip_lib.report.explorers import Explorer
from histoclip_lib.report.figures.base import as_image
from histoclip_lib.report.slide_views import SlideView
from histoclip_lib.report.tables import Table, file_links
from histoclip_lib.runs.run import Run
from histoclip_lib.runs.slides import SLIDES, SlideOptions, find_slides, predict_slides
from histoclip_lib.slides.aggregation import burdens_by_metadata, study_target
from histoclip_lib.slides.prediction import read_slide_result

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
class Slides:
    """Slides that were predicted below a folder.

    Attributes
    ----------
    root : Path
        Where `predict_slides` wrote.
    place : str
        Of `root` as seen from the page, for links.
    slides : DataFrame or None
        A line for each; None without slides.
    view : SlideView or None
        The slide that is shown.
    least_cover : float
        Share of a tile from which a class in the slide's mask counts as present.
    draws : tuple of int
        Number of bootstrap samples, and their seed.
    """

    root: Path
    place: str = ""
    slides: pd.DataFrame | None = None
    view: SlideView | None = None
    least_cover: float = 0.02
    draws: tuple[int, int] = (1000, 0)

    @classmethod
    def of(cls, run: Run) -> Slides:
        """Predict the slides that the parameter `slides` names, into `slides/` of the run's folder.

        Raises
        ------
        HistoCLIPError
            If no slide is found, or none could be predicted; the message says why.
        """
        given = str(run["slides"])
        if not given:
            return cls(run.folder)
        found, _ = find_slides([paint(int(run["seed"])) if given == PAINTED else Path(given)])
        if found is None:
            raise HistoCLIPError(f"slides: {given} holds no slide. Name a slide, a folder of slides or a slides.csv.")
        options = SlideOptions(device=str(run["device"]), precision=str(run["precision"]))
        slides = predict_slides(run.folder / "model", found, run.folder / FOLDER, options)
        draws = int(run["resamples"]), int(run["seed"])
        view = replace(_first_labelled(run.folder / FOLDER, slides), generated=given == PAINTED)
        return cls(run.folder / FOLDER, f"{FOLDER}/", slides, view, float(run["least_cover"]), draws)

    @property
    def classes(self) -> list[str]:
        """The N class names."""
        return self.view.result.classes

    @cached_property
    def scored(self) -> dict[str, pd.DataFrame]:
        """Scores of the slide that is shown against its mask and at its points, where there are any."""
        return {} if self.view is None else self.view.scores(self.least_cover, *self.draws)

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
                where = {"mask": "presence in the mask", "points": "labels at points"}[kind]
                lowest = f"lowest for {worst['class']}, {worst.auroc:.3f}"
                said = (
                    f"Over {said}, the mean AUROC for the classes' {where} is {known.auroc.mean():.3f} ({lowest}); "
                    f"the mean Dice of the decisions is {known.dice.mean():.3f}"
                )
                break
        else:
            shares = self.slides[[f"share_{name}" for name in self.classes]].dropna()
            most = shares.mean().argmax()
            over = f" on average over {len(shares)} slides" * (len(shares) > 1)
            said += (
                f" with tissue were predicted; the class with the largest share of positive tissue is "
                f"{self.classes[most]} ({shares.mean().iloc[most]:.0%}{over})"
            )
        unlike = f"{result.n_ood:,} tile{' is' if result.n_ood == 1 else 's are'} unlike the training patches."
        trouble = f" {failed} of {len(self.slides)} slides could not be read completely." if failed else ""
        return Markdown(f"**{said}.** {unlike}{trouble}")

    def explorer(self) -> Explorer | None:
        """Return the viewer of the slide."""
        return None if self.view is None else self.view.explorer()

    def maps(self) -> Image | None:
        """Draw the map of each class, beside the mask where there is one."""
        return None if self.view is None else as_image(self.view.maps())

    def scores(self) -> Table | Markdown | None:
        """Return AUROC and Dice of each class, with intervals."""
        if self.view is None:
            return None
        if not self.scored:
            return Markdown(
                "This slide has no labels. Put `<slide>_mask.png` or `<slide>_points.csv` next to it to score the maps."
            )
        lines = {}
        for kind, scores in self.scored.items():
            for line in scores.to_dict("records"):
                lines[line["class"] if len(self.scored) == 1 else f"{line['class']}, {kind}"] = {
                    "tiles" if kind == "mask" else "points": f"{line['n_tiles']:,}",
                    "with the class": f"{line['n_present']:,}",
                    "AUROC": _measured(line["auroc"], line["auroc_low"], line["auroc_high"]),
                    "Dice": _measured(line["dice"], line["dice_low"], line["dice_high"]),
                }
        caption = (
            f"Agreement of the maps of {self.view.result.slide} with its labels, with 95% intervals; decisions are "
            "made at the model's fitted thresholds. The bootstrap draws blocks of tiles: with fewer than about 20 of "
            "them the intervals are probably too narrow."
        )
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
        """Return the share of positive tissue of each slide."""
        if self.view is None:
            return None
        shown = self.slides.set_index("slide")[["n_tiles", "n_ood"]].rename(
            columns={"n_tiles": "tiles", "n_ood": "unlike"}
        )
        shown = shown.map(lambda n: "" if np.isnan(n) else f"{int(n):,}")
        for name in self.classes:
            columns = [f"{kind}_{name}" for kind in ("share", "share_low", "share_high")]
            shown[name] = [_measured(*line) for line in self.slides[columns].to_numpy()]
        caption = (
            "Fraction of the tissue in tiles in which the class is predicted at the model's fitted threshold, with "
            "95% intervals. A tile counts as a whole, so this is not the area of the class."
        )
        return Table(shown.rename_axis(None), caption)

    def failed(self) -> Table | None:
        """Return the slides that could not be read completely, and why; None without any."""
        if self.view is None or (self.slides.error == "").all():
            return None
        failed = self.slides[self.slides.error != ""].set_index("slide")[["error"]].rename(columns={"error": "why"})
        return Table(failed, "Slides that could not be read completely.")

    def files(self) -> HTML | None:
        """Return the files of the slides, each as a link."""
        if self.view is None:
            return None
        folders = ("", *self.slides.folder)
        holds = {f"{folder}/{file}".lstrip("/"): text for folder in folders for file, text in FILES.items()}
        return file_links(self.root, holds, "Files of the slides.", self.place)

    def pages(self) -> HTML | None:
        """Return a link to the page of each slide that has one."""
        items = [
            element("li", element("a", name, href=quote(f"{self.place}{folder}/index.html")))
            for folder, name in zip(self.slides.folder, self.slides.slide, strict=True)
            if (self.root / folder / "index.ipynb").is_file()
        ]
        return HTML(html(element("ul", *items))) if items else None

    def by_metadata(self) -> Table | None:
        """Return the mean share of positive tissue for each value of the metadata; None without metadata."""
        found = burdens_by_metadata(self.slides, self.classes, self.draws[1])
        if found.empty:
            return None
        lines = {}
        for line in found.to_dict("records"):
            about = {"slides": f"{line['n_slides']:,}", "groups": f"{line['n_groups']:,}"}
            value = lines.setdefault((line["column"].removeprefix("meta_"), line["value"]), about)
            value[line["class"]] = _measured(line["mean"], line["low"], line["high"])
        return Table(
            pd.DataFrame.from_dict(lines, orient="index"),
            "Mean share of positive tissue by metadata, with 95% intervals over groups.",
        )

    def target(self) -> Markdown | None:
        """Say how well metadata, class burdens and both predict the target; None where the slides have none."""
        if "target" not in self.slides or self.slides.target.isna().all():
            return None
        study = study_target(self.slides, self.classes, self.draws[1])
        lines = [
            f"- {line['model']}: AUROC {line['auroc']:.3f} ({line['low']:.3f} to {line['high']:.3f})"
            for line in study.scores.to_dict("records")
        ]
        lines += [
            f"- {line['model']} minus {line['against']}: {line['difference']:+.3f} ({line['low']:+.3f} to "
            f"{line['high']:+.3f}), p = {p_text(line['p'])}"
            for line in study.tests.to_dict("records")
        ]
        return Markdown("\n".join([study.note, "", *lines]))


def open_slides(folder: str, slide: str = "") -> Slides:
    """Open the slides that `histoclip predict` wrote below a folder; `slide` is the folder of the one that is shown."""
    root = Path(folder)
    try:
        slides = pd.read_parquet(root / SLIDES)
    except (OSError, ValueError) as error:
        raise HistoCLIPError(f"{root} holds no slides ({error}). Run `histoclip predict` again.") from error
    if not slide:
        return Slides(root, "", slides, _first_labelled(root, slides))
    view = SlideView.of(read_slide_result(root / slide).path, root / slide)
    return Slides(root, "../", slides[slides.folder == slide].reset_index(drop=True), view)


def _first_labelled(root: Path, slides: pd.DataFrame) -> SlideView:
    """Return the first slide that has labels beside it, or the first that could be read."""
    readable = [folder for folder, n in zip(slides.folder, slides.get("n_predicted", ()), strict=False) if n > 0]
    if not readable:
        raise HistoCLIPError(f"None of the slides could be predicted. {slides.slide[0]}: {slides.error[0]}")
    views = (SlideView.of(read_slide_result(root / folder).path, root / folder) for folder in readable)
    first = next(views)
    labelled = (view for view in (first, *views) if view.mask is not None or view.points is not None)
    return next(labelled, first)


def paint(seed: int) -> Path:
    """Return the painted slide in HistoCLIP's cache, painted where it is not there yet."""
    from histoclip_lib.common.cache import cache_dir
    from histoclip_lib.data.synthetic.slide import paint_slide, slide_key

    return paint_slide(cache_dir() / "synthetic" / slide_key(seed), seed=seed)


def _measured(value: float, low: float, high: float) -> str:
    """Return a measure with its interval, and alone where that is not known."""
    return number_text(value) if np.isnan(low) else value_text(Difference(value, low, high))
