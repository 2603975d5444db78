"""What the notebook over a grid of encoders shows: methods by encoder, ranks, cost, prompts, agreement, failures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML, Image, Markdown

from histoclip_lib.clip.availability import find_encoder
from histoclip_lib.clip.field import TOLERANCE, nearest_mpp, shorter_side
from histoclip_lib.clip.registry import encoder_entry
from histoclip_lib.common.errors import HistoCLIPError, shown
from histoclip_lib.common.files import resolve
from histoclip_lib.common.html import as_typed, html, table
from histoclip_lib.data.registry import DATASETS, load_dataset_from
from histoclip_lib.evaluation.artifacts import RunMetrics, read_metrics, read_predictions
from histoclip_lib.evaluation.comparisons import ALPHA, OURS, PROBE
from histoclip_lib.evaluation.encoders import Aligned, Ranking, agreement, align_runs, hardest, rank
from histoclip_lib.evaluation.methods import label_of, methods
from histoclip_lib.evaluation.text import UNDEFINED, p_text
from histoclip_lib.models.bundle import ModelConfig, read_config
from histoclip_lib.report import figures
from histoclip_lib.report.explorers import Explorer, noted_patches
from histoclip_lib.report.figures.base import as_image
from histoclip_lib.report.overview import linked_name
from histoclip_lib.report.tables import Table, score_text
from histoclip_lib.runs.grids import GridRun, read_grid
from histoclip_lib.runs.pipeline import load_schema
from histoclip_lib.runs.record import read_entry

DRAWN = ("majority", "one_vs_rest", PROBE, "histoclip_global", OURS)
HARD = 8  # patches in the gallery
MIB = 2**20


def open_encoders(grid: str, reports_dir: str) -> EncoderGrid:
    """Open the runs of a grid that varies the encoder (the path of its parameter file)."""
    return EncoderGrid(resolve(reports_dir), read_grid(Path(grid), load_schema()))


@dataclass(frozen=True, eq=False)
class EncoderGrid:
    """The notebook `encoders`: the runs of a grid that varies the encoder."""

    reports: Path
    grid: list[GridRun]

    @cached_property
    def names(self) -> dict[str, GridRun]:
        """The runs by their encoder, with what else varies where one encoder has several runs."""
        called = [_name(run) for run in self.grid]
        for distinguish in (_others, lambda run: run.name):  # two weights files may have one name
            called = [
                name if called.count(name) == 1 else ", ".join(filter(None, [name, distinguish(run)]))
                for name, run in zip(called, self.grid, strict=True)
            ]
        return dict(zip(called, self.grid, strict=True))

    @cached_property
    def metrics(self) -> dict[str, RunMetrics]:
        """What each finished run measured."""
        found = {}
        for name, run in self.names.items():
            try:
                found[name] = read_metrics(self.reports / run.name / "metrics.json")
            except (HistoCLIPError, OSError):
                continue
        return {name: metrics for name, metrics in found.items() if metrics.is_current}

    @cached_property
    def aligned(self) -> Aligned | None:
        """Their predictions for the patches that all of them validate on."""
        found = {}
        for name in self.metrics:
            try:
                found[name] = read_predictions(self.reports / self.names[name].name / "predictions.parquet")
            except HistoCLIPError:
                continue
        return align_runs(found)

    @cached_property
    def ranking(self) -> Ranking | None:
        """The encoders by mAcc of HistoCLIP with patch tokens."""
        if self.aligned is None or not self.aligned.of(OURS):
            return None
        return rank(self.aligned, OURS, max(run.folds for run in self.metrics.values()))

    def finding(self) -> Markdown:
        """Say which encoder is the best under the head, and whether the next differs significantly."""
        absent = len(self.grid) - len(self.metrics)
        rest = f" {absent} of {len(self.grid)} have no results; the last table says why." if absent else ""
        if self.ranking is None:
            return Markdown(f"**No encoder has results yet.**{rest}")
        names, values = self.ranking.names, self.ranking.accuracy
        sentence = (
            f"Of {len(names)} encoders {as_typed(names[0])} has the highest mAcc under HistoCLIP ({values[0]:.3f})"
        )
        alike = sum(self.ranking.p.loc[names[0], name] >= ALPHA for name in names[1:])
        if len(names) > 1:
            others = f"{len(names) - 1} other{'s' if len(names) > 2 else ''}"
            said = f"of the {others}, {alike} {'is' if alike == 1 else 'are'} not significantly different from it"
            sentence += f"; {said if alike else f'it is significantly better than the {others}'}"
        caveat = "".join(f"\n\n{as_typed(name)} is not CLIP." for name, run in self.metrics.items() if not run.is_clip)
        return Markdown(f"**{sentence}.**{rest}{caveat}")

    def methods_plot(self) -> Image | None:
        """Draw mAcc of the main methods for each encoder, with intervals."""
        scored = {
            method: {
                name: (run.scores[method].value, run.scores[method].interval)
                for name, run in self.metrics.items()
                if method in run.scores
            }
            for method in DRAWN
        }
        scored = {method: own for method, own in scored.items() if own}
        return as_image(figures.methods_by_encoder(scored)) if scored else None

    def methods_table(self) -> Table | None:
        """Return mAcc of every method with every encoder, with its interval."""
        lines = {
            label_of(method): {
                name: score_text(run.scores[method].value, run.scores[method].interval)
                if method in run.scores
                else UNDEFINED
                for name, run in self.metrics.items()
            }
            for method in methods()
            if any(method in run.scores for run in self.metrics.values())
        }
        caption = "mAcc of every method with every encoder and its 95% interval; a dash: the method does not apply."
        return Table(pd.DataFrame.from_dict(lines, orient="index"), caption) if lines else None

    def rank_plot(self) -> Image | None:
        """Draw the encoders in their order, and which do not differ significantly."""
        return None if self.ranking is None else as_image(figures.encoder_ranks(self.ranking, OURS))

    def pairs(self) -> Table | None:
        """Return every two encoders under HistoCLIP: the difference and its corrected p."""
        if self.ranking is None or len(self.ranking.names) < 2:
            return None
        names = self.ranking.names
        lines = {
            f"{one} minus {other}": {
                "mAcc": f"{self.ranking.differences.loc[one, other]:+.3f}",
                "p (Holm)": p_text(self.ranking.p.loc[one, other]),
            }
            for k, one in enumerate(names)
            for other in names[k + 1 :]
        }
        caption = (
            f"Every two encoders under {label_of(OURS)}, paired on the {len(self.aligned.first.files)} common patches."
        )
        return Table(pd.DataFrame.from_dict(lines, orient="index"), caption)

    def cost(self) -> Table:
        """Return what each encoder costs here: parameters, images in a second, bytes of its features."""
        lines = {}
        for name, run in self.names.items():
            cost = read_entry(self.reports / run.name, "cost")
            lines[name] = {
                "parameters, image tower": _millions(cost.get("image_parameters")),
                "parameters, all": _millions(cost.get("parameters")),
                "images per second": _rate_text(cost.get("images_per_second")),
                "measured on": f"{cost['device']}, {cost['precision']}".replace("None", "fp32") if cost else UNDEFINED,
                "features in the cache": f"{cost['bytes'] / MIB:,.1f} MiB" if cost else UNDEFINED,
            }
        caption = "Cost: one batch of 8 images, forward pass alone, on the machine that ran the notebooks."
        return Table(pd.DataFrame.from_dict(lines, orient="index"), caption)

    def pretraining(self) -> Table:
        """Return what each encoder's pretraining may have seen of the data, and how its field of view compares."""
        lines = {}
        for name, run in self.names.items():
            entry, data = self._entry(run), DATASETS[str(run.values["dataset"])]
            lines[name] = {
                "trained on": entry.pretraining.replace("**", ""),
                "TCGA": entry.tcga + (f" ({entry.tcga_source})" if entry.tcga_source else ""),
                f"saw {data.title}": _may_have_seen(entry.tcga, data.tcga),
                "µm per pixel": ", ".join(f"{mpp:g}" for mpp in entry.mpp) or "unknown",
                "field of view": _field_text(entry.mpp, self._config(run)),
                "licence": entry.licence,
            }
        caption = "What the pretraining of each encoder may have seen of this data, its resolution, and its licence."
        return Table(pd.DataFrame.from_dict(lines, orient="index"), caption)

    def prompts(self) -> Table | Markdown:
        """Return the range of mAcc of each strategy over all wordings tried, by encoder."""
        lines: dict[str, dict[str, str]] = {}
        for name, run in self.names.items():
            for strategy, (low, high) in read_entry(self.reports / run.name, "wordings").items():
                lines.setdefault(name, {})[strategy] = f"{low:.3f} – {high:.3f} ({high - low:.3f})"
        if not lines:
            return Markdown("No encoder with a text tower has results.")
        caption = "mAcc of each strategy from the worst to the best wording tried, and the difference of the two."
        return Table(pd.DataFrame.from_dict(lines, orient="index").fillna(UNDEFINED), caption)

    def agreement_plot(self) -> Image | Markdown:
        """Draw how far the decisions of every two encoders agree."""
        if self.ranking is None or len(self.ranking.names) < 2:
            return Markdown("Fewer than two encoders have results.")
        return as_image(figures.agreement_map(agreement(self.aligned, OURS), OURS))

    def hard_patches(self) -> Explorer | Markdown:
        """Return the patches with the most labels that every encoder gets wrong."""
        found = hardest(self.aligned, OURS, HARD) if self.ranking is not None else []
        if not found:
            return Markdown("No label is wrong with every encoder.")
        first = self.aligned.first
        files = [first.files[place] for place, _ in found]
        notes = [_wrong_text(first.labels[place], wrong, first.classes) for place, wrong in found]
        caption = (
            f"Patches with the most labels that HistoCLIP gets wrong with all {len(self.aligned.of(OURS))} encoders."
        )
        try:
            patches = load_dataset_from(next(run.values for name, run in self.names.items() if name in self.metrics))
            return noted_patches(patches, files, notes, "Hard patches", caption)
        except (HistoCLIPError, OSError, ValueError, KeyError) as error:
            return Markdown(f"The patches are not shown: {as_typed(shown(str(error), 200))}.")

    def runs(self) -> HTML:
        """Return every run of the grid with a link, and why it has no results where it has none."""
        lines = []
        for name, run in self.names.items():
            lines.append([name, linked_name(run.name, self.reports / run.name), self._state(name, run)])
        return HTML(html(table(["Encoder", "Run", "State"], lines, "The runs of this grid.")))

    def _state(self, name: str, run: GridRun) -> str:
        if name in self.metrics:
            return "finished"
        found = find_encoder(str(run.values["backbone"]), str(run.values["pretrained"]))
        if found.reason:
            missing = f" Missing: {', '.join(found.missing)}." if found.missing else ""
            return f"cannot be had here. {found.reason.splitlines()[0]}{missing}"
        return "not finished"

    def _config(self, run: GridRun) -> ModelConfig | None:
        try:
            return read_config(self.reports / run.name / "model")
        except HistoCLIPError:  # not finished
            return None

    @staticmethod
    def _entry(run: GridRun) -> object:
        return encoder_entry(str(run.values["backbone"]), str(run.values["pretrained"]))


def _name(run: GridRun) -> str:
    backbone, pretrained = str(run.values["backbone"]), str(run.values["pretrained"])
    if backbone.startswith("local-dir:"):
        backbone = Path(backbone.removeprefix("local-dir:")).name
    return ", ".join(filter(None, [backbone.removeprefix("hf-hub:"), Path(pretrained).name]))


def _others(run: GridRun) -> str:
    return ", ".join(f"{key} {value}" for key, value in run.varied.items() if key not in ("backbone", "pretrained"))


def _millions(count: int | None) -> str:
    return UNDEFINED if count is None else f"{count / 1e6:.3g} M"


def _rate_text(rate: float | None) -> str:
    return UNDEFINED if rate is None else f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _may_have_seen(tcga_of_encoder: str, tcga_of_data: str) -> str:
    """Say whether an encoder's pretraining may have seen a data set, as far as TCGA tells."""
    if tcga_of_data == "no":
        return "not through TCGA"
    if tcga_of_data == "unknown":
        return "unknown"
    part = " in part" if tcga_of_data == "in part" else ""
    return {"yes": f"may have seen it{part}", "no": "not through TCGA"}.get(tcga_of_encoder, "unknown")


def _field_text(trained: tuple[float, ...], config: ModelConfig | None) -> str:
    """Say how tissue appears to an encoder that was trained at some resolutions; patches are resized to its input."""
    if config is None:
        return UNDEFINED
    if not config.mpp or not trained:
        return "unknown"
    seen = config.mpp * config.patch_px / shorter_side(config.preprocessing["size"])
    ratio = seen / nearest_mpp(seen, trained)
    if max(ratio, 1 / ratio) <= TOLERANCE or (config.match_mpp and ratio < 1):
        return "as in its training"
    return f"tissue appears {'smaller' if ratio > 1 else 'larger'} by a factor of {max(ratio, 1 / ratio):.1f}"


def _wrong_text(labels: np.ndarray, wrong: np.ndarray, classes: list[str]) -> str:
    missed = [figures.short(classes[k]) for k in np.flatnonzero(wrong & (labels == 1))]
    extra = [figures.short(classes[k]) for k in np.flatnonzero(wrong & (labels == 0))]
    return "\n".join(
        f"{kind}: {', '.join(names)}"
        for kind, names in (("false negative", missed), ("false positive", extra))
        if names
    )
