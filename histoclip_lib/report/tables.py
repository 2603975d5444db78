"""Tables of a run as text: all methods, seeds, classes, parts, and the paper's numbers beside ours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
from bs4 import BeautifulSoup
from IPython.display import HTML

from histoclip_lib.common.arrays import nan_mean
from histoclip_lib.common.html import as_typed, element, html, table
from histoclip_lib.common.predictions import Predictions, mean_accuracy
from histoclip_lib.data.base import Note, PatchDataset
from histoclip_lib.evaluation.artifacts import METRICS, PROPER, BrokenRun, RunMetrics
from histoclip_lib.evaluation.methods import in_table_order, label_of, paper_numbers, short_label, table_one_columns
from histoclip_lib.evaluation.text import UNDEFINED, not_clip_text, number_text, range_text
from histoclip_lib.report.notebooks import run_notebooks

ALL_POSITIVE = {"pannuke": 0.4107}  # mAcc of marking every label, measured on the whole data set
FILES = {
    "metrics.json": "every number of the tables",
    "predictions.parquet": "score and decision of every method for each class of the patches that were scored",
    "studies.parquet": "predictions of the models that 03 Training compares",
    "zero_shot.parquet": "score and decision of the zero-shot strategies for all patches",
    "split.csv": "which patches were used for training and which for validation, or the fold of each",
    "history.csv": "loss and validation mAcc of each epoch",
    "class_matrix.npy": "the class embeddings of eq. (2)",
    "cmm_patch.safetensors": "the head on patch tokens, with its options, classes and backbone",
    "baselines.npz": "what the baselines predict in each fold",
    "cmm_global.safetensors": "the head on the global embedding",
    "model/README.md": "the model card: what a user of the head must know",
    "model/config.json": "the saved model: classes, encoder, thresholds",
    "model/model.safetensors": "the saved model: the head on patch tokens",
    "model/reference.safetensors": "the saved model: embeddings of training patches",
    "run.json": "the parameters, and what each step depended on",
}


@dataclass(frozen=True, eq=False)
class Table:
    """A table that notebooks and pages show whole, whatever pandas' options are, with a caption.

    `best` names columns whose `max` or `min` is set in bold.
    """

    frame: pd.DataFrame
    caption: str = ""
    best: dict[str, str] = field(default_factory=dict)

    def _repr_html_(self) -> str:
        with pd.option_context("display.max_colwidth", None, "display.max_columns", None, "display.max_rows", None):
            text = self._with_best(self.frame.to_html())
        opening, closing, rest = text.partition(">")
        return f"{opening}{closing}{html(element('caption', self.caption))}{rest}" if self.caption else text

    def _with_best(self, text: str) -> str:
        if not self.best:
            return text
        soup = BeautifulSoup(text, "html.parser")
        for name, which in self.best.items():
            values = pd.to_numeric(self.frame[name], errors="coerce")
            for line in np.flatnonzero(values == values.agg(which)):
                cell = soup.select("tbody tr")[line].find_all("td")[self.frame.columns.get_loc(name)]
                cell.string.wrap(soup.new_tag("strong"))
        return str(soup)

    def __repr__(self) -> str:
        """Return the table as plain text."""
        return self.frame.to_string()


def score_text(value: float | None, interval: Sequence[float] | None) -> str:
    """Return a score with its interval where that is known, as `0.912 (0.883 – 0.940)`."""
    ends = range_text(interval)
    return f"{number_text(value)} ({ends})" if ends else number_text(value)


def methods_table(methods: dict[str, dict], dataset: str) -> pd.DataFrame:
    """Return the table of all methods, as in `metrics.json`, as text; beside the paper's mAcc where it has the data."""
    paper, lines = paper_numbers(dataset), {}
    for name, values in methods.items():
        line = {"mAcc": number_text(values["mAcc"]), "mAcc, 95%": range_text(values["mAcc_ci"])}
        if paper:
            line["paper's mAcc"] = number_text(paper[name]) if name in paper else ""
        line |= {"mAP": number_text(values["mAP"]), "mAP, 95%": range_text(values["mAP_ci"])}
        line |= {METRICS[key]: number_text(values[key]) for key in list(METRICS)[2:]}
        line |= {label: number_text(values.get(key)) for key, label in PROPER.items()}
        lines[label_of(name)] = line
    return pd.DataFrame.from_dict(lines, orient="index")


def best_values() -> dict[str, str]:
    """Return the columns of `methods_table` in which a method can be best, and whether the highest or lowest is."""
    return dict.fromkeys(METRICS.values(), "max") | dict.fromkeys(PROPER.values(), "min")


def spread(values: list[float]) -> dict[str, str]:
    """Return mean, standard deviation (of the sample, n - 1) and range of values, as text; dashes without values."""
    return {
        "mean": number_text(np.mean(values)) if values else UNDEFINED,
        "s.d.": number_text(np.std(values, ddof=1)) if len(values) > 1 else UNDEFINED,
        "range": range_text((min(values), max(values))) if values else UNDEFINED,
    }


def seeds_table(scored: dict[str, dict[int, dict]]) -> pd.DataFrame:
    """Return the `spread` of mAcc and mAP over the seeds of the training, for `studies.seed_metrics`, as text."""
    lines = {}
    for name in in_table_order(scored):
        line = {"seeds": len(scored[name])}
        for key in ("mAcc", "mAP"):
            values = [values[key] for values in scored[name].values() if values[key] is not None]
            line |= {f"{key}, {statistic}": text for statistic, text in spread(values).items()}
        lines[label_of(name)] = line
    return pd.DataFrame.from_dict(lines, orient="index")


def per_class_table(methods: dict[str, dict], metric: str) -> pd.DataFrame:
    """Return one metric for each method and each class, as numbers."""
    values = {label_of(name): {c: v[metric] for c, v in found["per_class"].items()} for name, found in methods.items()}
    return pd.DataFrame.from_dict(values, orient="index").astype(float)


def strategies_table(methods: dict[str, Predictions], labels: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """Return mAcc of methods, and how often each predicts each class, beside the truth.

    `methods` are predictions for the patches of `labels` (B, N), those that are held out, as in every other table.
    """
    lines = {}
    for name, predictions in methods.items():
        macc = f"{mean_accuracy(labels, predictions.decisions):.3f}"
        lines[short_label(name)] = {"mAcc": macc, **_frequencies(predictions.decisions, classes)}
    lines["Truth"] = _frequencies(labels, classes)
    return pd.DataFrame.from_dict(lines, orient="index").fillna("")


def _frequencies(labels: np.ndarray, classes: list[str]) -> dict[str, str]:
    fractions = {name: f"{fraction:.2f}" for name, fraction in zip(classes, nan_mean(labels, axis=0), strict=True)}
    return fractions | {"labels per patch": f"{np.nansum(labels, axis=1).mean():.2f}"}


def dataset_table(patches: PatchDataset, parts: dict[str, np.ndarray]) -> pd.DataFrame:
    """Return the size of each part, its labels per patch, its groups, and how many of them are in other parts too.

    Where labels are not known, also how many of each class are.
    """
    lines = {}
    for part, index in parts.items():
        labels, known = patches.labels[index] == 1, patches.known[index]
        line = {"patches": len(index), "labels per patch": f"{labels.sum(axis=1).mean():.2f}"}
        line |= {f"with {name}": int(n) for name, n in zip(patches.classes, labels.sum(axis=0), strict=True)}
        if not patches.known.all():
            line |= {f"known, {name}": int(n) for name, n in zip(patches.classes, known.sum(axis=0), strict=True)}
        line["without any label"] = int((labels.sum(axis=1) == 0).sum())
        if patches.groups is not None:
            line["groups"] = len(np.unique(patches.groups[index]))
            others = np.concatenate([rest for other, rest in parts.items() if other != part])
            line["groups also in another set"] = len(np.intersect1d(patches.groups[index], patches.groups[others]))
        lines[part] = line
    return pd.DataFrame.from_dict(lines, orient="index")


def notes_table(notes: tuple[Note, ...]) -> pd.DataFrame:
    """Return what was noted of the data, in how many places, and a few of them."""
    lines = {"found": [f"{note.count:,}" for note in notes], "such as": ["; ".join(note.examples) for note in notes]}
    return pd.DataFrame(lines, index=[note.what for note in notes])


def last_and_best(history: pd.DataFrame) -> pd.DataFrame:
    """Return the validation mAcc of each head at the last epoch, and at the epoch where it was highest."""
    lines = {}
    for head, epochs in history.groupby("head", sort=False):
        scored = epochs.dropna(subset=["val_mAcc"])
        best = scored.loc[scored["val_mAcc"].idxmax()]
        lines[head] = {
            "mAcc, last epoch": f"{scored['val_mAcc'].iloc[-1]:.3f}",
            "mAcc, best epoch (oracle)": f"{best['val_mAcc']:.3f}",
            "best epoch": int(best["epoch"]),
            "train loss, last epoch": f"{epochs['loss'].iloc[-1]:.3f}",
            "validation loss, last epoch": f"{scored['val_loss'].iloc[-1]:.3f}",
        }
    return pd.DataFrame.from_dict(lines, orient="index")


# Over all runs


@dataclass(frozen=True)
class TableGroup:
    """The lines of one data set in Table I: its runs, then the paper's mAcc by method, empty where it has none."""

    dataset: str
    runs: list[RunMetrics]
    paper: dict[str, float]


@dataclass(frozen=True)
class TableOne:
    """Table I: short labels of its columns by method, and one group of lines for each data set."""

    columns: dict[str, str]
    groups: list[TableGroup]


def table_one(runs: list[RunMetrics]) -> TableOne:
    """Arrange runs by data set, those of the paper first, each group closed by the paper's numbers."""
    from histoclip_lib.data.registry import DATASETS

    titles = {name: DATASETS[name].title for name in DATASETS if DATASETS[name].paper}
    titles |= {name: name for name in sorted({run.dataset for run in runs} - titles.keys())}
    groups = [
        TableGroup(title, [run for run in runs if run.dataset == name], paper_numbers(name))
        for name, title in titles.items()
    ]
    return TableOne(table_one_columns(), groups)


def table_one_frame(runs: list[RunMetrics | BrokenRun]) -> pd.DataFrame:
    """Return Table I over all runs: mAcc with its interval, and the paper's values under each of its data sets."""
    found = table_one([run for run in runs if isinstance(run, RunMetrics)])
    names, lines = [], []  # two folders may hold runs of one name

    def add(name: str, cells: dict[str, str]) -> None:
        names.append(name)
        lines.append({label: cells.get(method, "") for method, label in found.columns.items()})

    for group in found.groups:
        for run in group.runs:
            add(f"{group.dataset}: {run.name}", {name: f"{score.value:.3f}" for name, score in run.scores.items()})
            add("95% interval", {name: range_text(score.interval) for name, score in run.scores.items()})
        if group.paper:
            add(f"{group.dataset}: the paper", {name: f"{value:.3f}" for name, value in group.paper.items()})
    return pd.DataFrame(lines, index=names)


# Beside the paper


def paper_table(methods: dict[str, dict], dataset: str) -> pd.DataFrame | None:
    """Return our mAcc beside the paper's, with what is known of the difference, as text.

    `methods` as in `metrics.json`; those that the paper has are shown. None where it does not have the data set.
    """
    paper = paper_numbers(dataset)
    if not paper:
        return None
    lines = {
        label_of(name): {
            "mAcc": f"{methods[name]['mAcc']:.3f}",
            "95% interval": range_text(methods[name]["mAcc_ci"]),
            "the paper": f"{paper[name]:.3f}",
            "difference": f"{methods[name]['mAcc'] - paper[name]:+.3f}",
            "what is known": _known(name, methods, dataset),
        }
        for name in in_table_order(paper.keys() & methods.keys())
    }
    return pd.DataFrame.from_dict(lines, orient="index")


def _known(name: str, methods: dict[str, dict], dataset: str) -> str:
    if name == "baseline":
        scores = [f"{methods['all_positive']['mAcc']:.3f} here"] if "all_positive" in methods else []
        scores += [f"{ALL_POSITIVE[dataset]:.3f} on the whole data set"] if dataset in ALL_POSITIVE else []
        said = f" Marking every label scores {' and '.join(scores)}." if scores else ""
        return f"With OpenAI's CLIP every cosine is positive, so this rule marks every label.{said}"
    if name.startswith("histoclip"):
        heights = {"majority": "the majority of train", "tissue_prior": "the tissue alone"}
        simpler = [f"{label} scores {methods[key]['mAcc']:.3f}" for key, label in heights.items() if key in methods]
        return f"mAcc rewards the common answer: {', '.join(simpler)}." if simpler else ""
    return ""


SPLIT_BESIDE_PAPER = {
    "random": "The paper splits 8:2, without saying by what unit. This split draws patches, but other ones.",
    "grouped": "The paper splits 8:2, without saying by what unit. This split keeps groups apart.",
    "given": "The paper splits 8:2; this is the split that came with the data.",
}


def paper_note(dataset: str, backbone: str, pretrained: str, split: str) -> str:
    """Say in Markdown why no number need agree with the paper; empty where the paper does not have the data set."""
    from histoclip_lib.clip.registry import encoder_entry

    if not paper_numbers(dataset):
        return ""
    if not encoder_entry(backbone, pretrained).is_clip:
        encoder = not_clip_text(as_typed(backbone))
    else:
        this = "the latter" if re.match(r"vit-?l-?14", backbone, re.IGNORECASE) else as_typed(backbone)
        encoder = f"The paper names ViT-B/16 in section II.A and ViT-L/14 in section III; this is {this}."
    rest = (
        "The paper gives no batch size, no regularisation and no augmentation, and a single HistoCLIP, which is shown "
        "beside both of ours."
    )
    return "\n".join(f"- {line}" for line in (encoder, SPLIT_BESIDE_PAPER[split], rest))


def files_table(folder: Path) -> HTML:
    """Return the files of a run as a table: a link to each, its size, and what it holds."""
    holds = dict(FILES)
    for name, notebook in run_notebooks().items():
        holds[f"{name}.ipynb"] = f"{notebook.label}, executed"
        holds[f"{name}.failed.ipynb"] = f"{notebook.label}, as far as it came before it failed"
    return file_links(folder, holds, "Files of the run.")


def file_links(folder: Path, holds: dict[str, str], caption: str = "Files.", place: str = "") -> HTML:
    """Return those of some files that are there as a table: a link to each, its size, and what it `holds`.

    `place` is the folder as seen from the page, with a slash at its end; nothing for a page in the folder.
    """
    lines = [
        (element("a", name, href=quote(f"{place}{name}")), size_text((folder / name).stat().st_size), text)
        for name, text in holds.items()
        if (folder / name).is_file()
    ]
    return HTML(html(table(("File", "Size", "What it holds"), lines, caption)))


def size_text(size: int) -> str:
    """Return a number of bytes in words."""
    for unit, factor in (("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"
