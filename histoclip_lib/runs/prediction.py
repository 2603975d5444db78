"""Apply a saved model to images that no run has seen, in parts that survive a kill, and what their page shows."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from IPython.display import HTML, Image, Markdown

from histoclip_lib.common.errors import HistoCLIPError, bullet_list, shown
from histoclip_lib.common.executors import n_cores
from histoclip_lib.common.files import alone_in, replacing, write_text
from histoclip_lib.common.predictions import Predictions
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.data.images import ImageFiles, read_rgb
from histoclip_lib.evaluation.text import number_text, range_text
from histoclip_lib.evaluation.uncertainty import bootstrap_units, evaluate
from histoclip_lib.report import figures
from histoclip_lib.report.tables import Table, file_links

if TYPE_CHECKING:
    from histoclip_lib.models.bundle import SavedModel
    from histoclip_lib.report.explorers import Explorer
    from histoclip_lib.runs.pipeline import StepEvent

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2")
CHUNK = 256  # images in a part: what a kill costs at most
PARTS, SUMMARY, TABLE, ATTENTION = ".parts", "predictions.json", "predictions.parquet", "attention.npy"
RESAMPLES, SHOWN = 1000, 8
MOST_PAGES = 24  # of slides: each starts a process of its own


def find_images(inputs: list[Path]) -> tuple[list[Path], PatchDataset | None]:
    """Return the images among what a user gave, sorted within each folder, and their labels where a table has them.

    Parameters
    ----------
    inputs : list of Path
        Images; folders, of any depth, of which other files and hidden ones are passed over; or one `labels.csv` in the
        folder format.

    Raises
    ------
    HistoCLIPError
        For something that does not exist, a folder without images, and a table beside other inputs.
    """
    if tables := [path for path in inputs if path.suffix == ".csv"]:
        if len(inputs) > 1 or tables[0].name != "labels.csv":
            raise HistoCLIPError(f"{tables[0]}: give one labels.csv alone, in the folder format; its images follow.")
        from histoclip_lib.data.registry import load_dataset

        patches = load_dataset("folder", data_dir=tables[0].parent)
        return [tables[0].parent / name for name in patches.files], patches
    found: dict[Path, None] = {}
    for path in inputs:
        if path.is_dir():
            inside = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in IMAGES and file.is_file()]
            inside = [file for file in inside if not any(part.startswith(".") for part in file.relative_to(path).parts)]
            if not inside:
                raise HistoCLIPError(f"{path} holds no image ({', '.join(IMAGES)}). Give the folder of the images.")
            found |= dict.fromkeys(inside)
        elif path.exists():
            found[path] = None
        else:
            raise HistoCLIPError(f"{path} does not exist. Give images, folders of images, or a labels.csv.")
    return list(found), None


def predict_images(
    model: SavedModel,
    images: list[Path],
    out: Path,
    views: int | None = None,
    batch_size: int = 32,
    patches: PatchDataset | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, str]:
    """Predict images, and write `predictions.parquet`, `predictions.csv`, `attention.npy` and `predictions.json`.

    The tables have a line for each image and class: `file`, `class`, `probability`, `present` (at 0.5),
    `present_fitted` (at the fitted threshold), `ood`, `outside` (above the out-of-distribution threshold)
    and, for labelled images, `label`. Attention, (B, N, g, g) in 16 bits, has the order of the files. A run that was
    killed goes on with the part in which it stopped, and gives the same bytes.

    Parameters
    ----------
    model : SavedModel
        See `load_model`.
    images : list of Path
        See `find_images`.
    out : Path
        Made where it is missing.
    views, batch_size
        As for `SavedModel.predict`.
    patches : PatchDataset, optional
        Labels of the images, in their order; its classes must be those of the model, in any order.
    report : callable
        Called with the numbers of images done and of all.

    Returns
    -------
    dict of str to str
        Images that cannot be read, and why; they are left out.

    Raises
    ------
    HistoCLIPError
        If no image can be read, or another process writes there.
    """
    columns = None if patches is None else _columns(model.classes, patches)
    views = views or model.config.views
    out.mkdir(parents=True, exist_ok=True)
    with alone_in(out):
        folder = out / PARTS / _identity(model, images, views, batch_size)
        if not folder.is_dir():  # of other images or another model
            shutil.rmtree(out / PARTS, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        parts = list(_predict_parts(model, images, folder, views, batch_size, report))
        skipped = {name: reason for part in parts for name, reason in json.loads(str(part["skipped"])).items()}
        parts = [part for part in parts if len(part["index"])]
        if not parts:
            raise HistoCLIPError(f"None of the {len(images)} images can be read:\n{_listed(skipped)}")
        index, found = (np.concatenate([part[name] for part in parts]) for name in ("index", "probabilities"))
        table = _table(model, [str(images[i]) for i in index], found, parts)
        if columns is not None:
            table["label"] = patches.labels[index][:, columns].ravel()
        with replacing(out / TABLE) as temporary:
            table.to_parquet(temporary, index=False)
        with replacing(out / "predictions.csv") as temporary:
            table.to_csv(temporary, index=False, float_format="%.6g")
        with replacing(out / ATTENTION, durable=False) as temporary:
            # Not a memory map: on a full disk writing to one ends the process.
            np.save(temporary, np.concatenate([part["attention"] for part in parts]))
        summary = {
            "model": model.config.name, "identity": model.identity, "classes": model.classes, "images": len(index),
            "ood_threshold": model.config.ood_threshold, "skipped": skipped, "calibrated": model.config.calibrated,
            "groups": None if patches is None or patches.groups is None else patches.groups[index].tolist(),
        }  # fmt: skip
        write_text(out / SUMMARY, json.dumps(summary, indent=1))
        shutil.rmtree(out / PARTS)
    return skipped


def _identity(model: SavedModel, images: list[Path], views: int, batch_size: int) -> str:
    digest = hashlib.sha256(repr((model.identity, views, batch_size, CHUNK, model.precision, model.device)).encode())
    for path in images:
        facts = path.stat()
        digest.update(repr((os.fspath(path), facts.st_size, facts.st_mtime_ns)).encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _predict_parts(
    model: SavedModel, images: list[Path], folder: Path, views: int, batch_size: int,
    report: Callable[[int, int], None],
) -> Iterator[dict[str, np.ndarray]]:  # fmt: skip
    """Yield what each part holds, predicting those that are not there; images are decoded ahead of the encoder."""
    starts = range(0, len(images), CHUNK)
    paths = {start: folder / f"{start:08d}.npz" for start in starts}
    missing = deque(start for start in starts if not paths[start].is_file())
    done = sum(len(images[start : start + CHUNK]) for start in starts if paths[start].is_file())
    report(done, len(images))
    prepare = partial(_prepared, model)
    with ThreadPoolExecutor(min(8, n_cores())) as pool:
        ahead: deque[list] = deque()  # of the part in work, and of the next one
        for start in starts:
            if not paths[start].is_file():
                while missing and len(ahead) < 2:
                    coming = missing.popleft()
                    ahead.append([pool.submit(prepare, path) for path in images[coming : coming + CHUNK]])
                ready = [future.result() for future in ahead.popleft()]
                with replacing(paths[start], durable=False) as temporary:
                    np.savez(temporary, **_predict_part(model, ready, images, start, views, batch_size))
                done += len(ready)
                report(done, len(images))
            with np.load(paths[start], allow_pickle=False) as part:
                yield dict(part)


def _prepared(model: SavedModel, path: Path) -> object:
    """Return an image in the encoder's size, or why it cannot be read."""
    try:
        return model.prepare(read_rgb(path, str(path)))
    except (HistoCLIPError, OSError) as error:
        return str(error).removeprefix(f"{path}: ").removeprefix(f"{path} ")


def _predict_part(
    model: SavedModel, ready: list, images: list[Path], start: int, views: int, batch_size: int
) -> dict[str, object]:
    import torch

    there = [k for k, image in enumerate(ready) if not isinstance(image, str)]
    skipped = {str(images[start + k]): image for k, image in enumerate(ready) if isinstance(image, str)}
    batches = [there[k : k + batch_size] for k in range(0, len(there), batch_size)]
    found = [model.predict_tensor(torch.stack([ready[k] for k in batch]), views) for batch in batches]
    arrays = {name: [getattr(each, name) for each in found] for name in ("probabilities", "fitted", "ood", "attention")}
    joined = {name: np.concatenate(each) for name, each in arrays.items()} if found else {}
    return {"index": start + np.array(there, dtype=np.int64), "skipped": json.dumps(skipped), **joined}


def _table(model: SavedModel, files: list[str], probabilities: np.ndarray, parts: list[dict]) -> pd.DataFrame:
    n_classes, ood = len(model.classes), np.concatenate([part["ood"] for part in parts])
    return pd.DataFrame(
        {
            "file": np.repeat(np.array(files, dtype=object), n_classes),
            "class": np.tile(np.array(model.classes, dtype=object), len(files)),
            "probability": probabilities.ravel(),
            "present": (probabilities >= 0.5).ravel(),
            "present_fitted": np.concatenate([part["fitted"] for part in parts]).ravel(),
            "ood": np.repeat(ood, n_classes),
            "outside": np.repeat(ood > model.config.ood_threshold, n_classes),
        }
    )


def _columns(classes: list[str], patches: PatchDataset) -> list[int]:
    """Return where each class of the model stands among those of a labelled data set."""
    if missing := [name for name in classes if name not in patches.classes]:
        raise HistoCLIPError(
            f"labels.csv has no column for {', '.join(map(shown, missing))}, classes of the model. It has "
            f"{', '.join(map(shown, patches.classes))}. Rename the columns, or predict the folder without its labels."
        )
    return [patches.classes.index(name) for name in classes]


def _listed(skipped: dict[str, str]) -> str:
    return bullet_list([f"{name}: {reason}" for name, reason in skipped.items()])


# The page


def write_prediction_pages(folder: Path, report: Callable[[StepEvent], None]) -> Path:
    """Write the pages of what lies in a folder: images, slides, and one for each of the first MOST_PAGES slides.

    Each is the page of an executed notebook. The first, which links the others, is returned: `index.html`.

    Raises
    ------
    HistoCLIPError
        If there is nothing to show, because there are no images and every slide failed.
    """
    from histoclip_lib.report.notebooks import PREDICTIONS, SLIDE, SLIDES, Link
    from histoclip_lib.report.run_pages import write_page
    from histoclip_lib.runs.pipeline import execute_notebook, find_notebooks

    name, has_images, predicted = folder.resolve().name, (folder / SUMMARY).is_file(), pd.DataFrame()
    if (folder / "slides.parquet").is_file():
        slides = pd.read_parquet(folder / "slides.parquet")
        predicted = slides[slides.n_predicted > 0] if "n_predicted" in slides else slides[:0]
        if predicted.empty and not has_images:
            reasons = bullet_list([f"{line.slide}: {line.error}" for line in slides.itertuples()])
            raise HistoCLIPError(f"None of the {len(slides)} slides could be predicted:\n{reasons}")
    has_slides = not predicted.empty
    over_slides = "slides" if has_images else "index"
    links = [Link("Images", "index.html")] * has_images + [Link("Slides", f"{over_slides}.html")] * has_slides

    def write(notebook: str, place: Path, stem: str, title: str, above: str, **values: str) -> None:
        source = find_notebooks() / f"{notebook}.ipynb"
        execute_notebook(source, place, stem, {"folder": str(folder), **values}, report, Path.cwd(), title)
        navigation = [Link(link.label, above + link.href, not above and link.href == f"{stem}.html") for link in links]
        write_page(place / f"{stem}.ipynb", title, navigation)

    if has_slides:
        for line in predicted.head(MOST_PAGES).itertuples():
            write(SLIDE, folder / line.folder, "index", line.slide, "../", slide=line.folder)
        write(SLIDES, folder, over_slides, f"Slides: {name}", "")
    if has_images:
        write(PREDICTIONS, folder, "index", f"Predictions: {name}", "")
    return folder / "index.html"


def open_predictions(folder: str | Path) -> PatchPredictions:
    """Open what `histoclip predict` wrote into a folder.

    Raises
    ------
    HistoCLIPError
        If a file is missing or cannot be read.
    """
    folder = Path(folder)
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        table = pd.read_parquet(folder / TABLE)
        attention = np.load(folder / ATTENTION, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise HistoCLIPError(f"{folder} holds no predictions ({error}). Run `histoclip predict` again.") from error
    return PatchPredictions(folder, summary, table, attention)


@dataclass(frozen=True, eq=False)
class PatchPredictions:
    """The notebook `predictions`: what a saved model says of B images."""

    folder: Path
    summary: dict
    table: pd.DataFrame
    attention: np.ndarray

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Shape (B, N)."""
        return self._wide("probability")

    def _wide(self, column: str) -> np.ndarray:
        return self.table[column].to_numpy().reshape(-1, len(self.summary["classes"]))

    @cached_property
    def patches(self) -> PatchDataset:
        """The images, with their labels where these are known, else with none."""
        files = self.table["file"].to_numpy()[:: len(self.summary["classes"])].tolist()
        known = "label" in self.table
        labels = self._wide("label") if known else np.full(self.probabilities.shape, np.nan, dtype=np.float32)
        groups = self.summary["groups"]
        return PatchDataset(
            "predictions", self.summary["classes"], files, labels, ImageFiles([Path(f) for f in files], [], None),
            groups=None if groups is None else np.array(groups),
        )  # fmt: skip

    def finding(self) -> Markdown:
        """Say how many images there are, what most of them show, and how many are unlike the training patches."""
        count, outside = len(self.probabilities), int(self._wide("outside")[:, 0].sum())
        share = self._wide("present_fitted").mean(axis=0)
        order = np.argsort(-share)
        listed = ", ".join(f"{self.summary['classes'][k]} in {share[k]:.0%}" for k in order)
        skipped = len(self.summary["skipped"])
        left_out = f" {skipped:,} could not be read and {'is' if skipped == 1 else 'are'} left out." if skipped else ""
        return Markdown(
            f"**{count:,} images: {listed}.** {outside:,} ({outside / count:.0%}) are less like the training patches "
            f"than 99% of these are to each other: their predictions deserve a look.{left_out}"
        )

    def by_class(self) -> Table:
        """Return for each class in how many images it is predicted, at either threshold."""
        lines = {
            name: {
                "mean probability": f"{self.probabilities[:, k].mean():.3f}",
                "present at 0.5": f"{self._wide('present')[:, k].mean():.1%}",
                "present at the fitted threshold": f"{self._wide('present_fitted')[:, k].mean():.1%}",
            }
            for k, name in enumerate(self.summary["classes"])
        }
        caption = f"Predictions for {len(self.probabilities):,} images."
        if not self.summary["calibrated"]:
            caption += " The model was saved without fitted thresholds: both are 0.5."
        return Table(pd.DataFrame.from_dict(lines, orient="index"), caption)

    def scores(self) -> Table | None:
        """Return the metrics on the labels with 95% intervals; None without labels."""
        if "label" not in self.table:
            return None
        units = bootstrap_units(self.patches, np.arange(len(self.patches)))
        lines = {}
        for title, column in (("at 0.5", "present"), ("at the fitted threshold", "present_fitted")):
            own = Predictions(self.probabilities, self._wide(column))
            found = evaluate(self.patches.labels, own, self.patches.classes, units, RESAMPLES, 0)
            for name in ("mAcc", "mAP", "macro_f1", "auroc", "exact_match"):
                text = f"{number_text(found[name])} ({range_text(found[f'{name}_ci']) or 'no interval'})"
                lines.setdefault(title, {})[name.replace("_", " ")] = text
        what = "groups" if self.patches.groups is not None else "images"
        return Table(
            pd.DataFrame.from_dict(lines, orient="index"),
            f"Metrics on the labels of {len(self.patches):,} images; in brackets the 95% interval, a bootstrap over "
            f"{what}.",
        )

    def explorer(self) -> Explorer:
        """Return images of high and of low confidence with the attention of any class."""
        from histoclip_lib.report.explorers import attention_explorer

        index = np.arange(len(self.patches))
        highest = np.argsort(-self.probabilities, axis=0, kind="stable")
        unsure = np.argsort(np.abs(self.probabilities - 0.5).min(axis=1), kind="stable")
        chosen = list(dict.fromkeys([*highest[:5].T.ravel().tolist(), *unsure[:4].tolist()]))[:24]
        return attention_explorer(self.patches, index, self.attention, self.probabilities, chosen)

    def unlike_training(self) -> Image | None:
        """Draw the images that are least like the training patches."""
        ood = self._wide("ood")[:, 0]
        chosen = np.argsort(-ood, kind="stable")[:SHOWN]
        titles = [f"{figures.short(Path(self.patches.files[i]).name)}\n{ood[i]:.2f}" for i in chosen]
        alternative = "Images least like the training patches: " + "; ".join(t.replace("\n", ", ") for t in titles)
        caption = (
            f"The {len(chosen)} images least like the training patches, with their out-of-distribution score; the "
            f"threshold is {self.summary['ood_threshold']:.2f}."
        )
        images = [self.patches.picture(i) for i in chosen]
        return figures.as_image(figures.patch_grid(images, titles, alternative, caption))

    def skipped(self) -> Table | None:
        """Return the images that could not be read, and why."""
        found = self.summary["skipped"]
        frame = pd.DataFrame({"why": list(found.values())}, index=list(found))
        return Table(frame, "Images that could not be read.") if found else None

    def files(self) -> HTML:
        """Return the files of the predictions, each as a link."""
        return file_links(
            self.folder,
            {
                TABLE: "a line for each image and class: probability, decisions, out-of-distribution score",
                "predictions.csv": "the same as CSV",
                ATTENTION: "attention of every image and class, in the order of the images",
                SUMMARY: "model, classes, and the images left out",
            },
        )
