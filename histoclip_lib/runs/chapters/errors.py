"""What the notebook 05_errors shows."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pandas as pd
from IPython.display import Image, Markdown

from histoclip_lib.common.arrays import agreement
from histoclip_lib.common.predictions import Predictions
from histoclip_lib.evaluation import confusion
from histoclip_lib.evaluation.methods import label_of
from histoclip_lib.report import explorers, figures
from histoclip_lib.report.figures.base import as_image
from histoclip_lib.report.tables import Table
from histoclip_lib.runs.chapters.base import OURS, PROBE, Chapter
from histoclip_lib.runs.run import Run

# After "with 95% ".
WILSON = "Wilson intervals, which treat patches as independent and are too narrow where those of a group are alike."


class Errors(Chapter):
    """The notebook 05_errors."""

    @classmethod
    def of(cls, run: Run) -> Errors:
        """Read the predictions of the run."""
        run.predictions  # noqa: B018 (an error here names the notebook to run first)
        return cls(run)

    @property
    def ours(self) -> Predictions:
        """What HistoCLIP with patch tokens says of the held-out patches."""
        return self.run.predictions[OURS]

    def finding(self) -> Markdown:
        """Say in a sentence how many decisions are wrong, and of which class most."""
        wrong = agreement(self.truth, self.ours.decisions) == 0
        missed = (wrong & ~self.ours.decisions).sum()
        worst, known = int(wrong.sum(axis=0).argmax()), int((~np.isnan(self.truth)).sum())
        return Markdown(
            f"**HistoCLIP with patch tokens gets {wrong.sum():,} of {known:,} labels wrong: {missed:,} false "
            f"negatives and {wrong.sum() - missed:,} false positives. The class with the most errors is "
            f"{self.classes[worst]} ({wrong[:, worst].sum():,} of {wrong.sum():,}).**"
        )

    @cached_property
    def _by_area(self) -> pd.DataFrame | None:
        patches = self.run.patches
        if not patches.has_masks:
            return None
        area = patches.covered_areas(self.run.val)
        return confusion.recall_by_area(self.truth, self.ours.decisions, area, self.classes)

    def small_regions(self) -> Markdown:
        """Say how many of the false negatives are small regions, and how many large ones are missed."""
        if self._by_area is None:
            return Markdown("This data set has no masks, so sensitivity by covered area is not available.")
        table = self._by_area[self._by_area["class"] == "all classes"]
        missed, lower = table["present"] - table["found"], table["area"].str.split("%").str[0].astype(int)
        return Markdown(
            f"**{missed[lower < 10].sum():,} of {missed.sum():,} false negatives are of classes that cover less than "
            f"10% of the patch; of the {table['present'][lower >= 50].sum():,} that cover half or more, "
            f"{missed[lower >= 50].sum() or 'none'} "
            f"{'is a false negative' if missed[lower >= 50].sum() < 2 else 'are false negatives'}.**"
        )

    def recall_by_area(self) -> Image | None:
        """Draw recall of each class against the area that it covers; None without masks."""
        return None if self._by_area is None else as_image(figures.recall_by_area_plot(self._by_area, label_of(OURS)))

    def recall_table(self) -> Table | None:
        """Return recall by covered area, with intervals; None without masks."""
        if self._by_area is None:
            return None
        found = self._by_area.assign(
            cell=[
                f"{line.recall:.2f} ({line.low:.2f} to {line.high:.2f}), {line.found} of {line.present}"
                for line in self._by_area.itertuples()
            ]
        )
        wide = found.pivot(index="class", columns="area", values="cell").fillna("—")
        columns = sorted(wide.columns, key=lambda text: int(text.split("%")[0]))
        wide = wide.loc[found["class"].unique(), columns].rename_axis(None).rename_axis(None, axis=1)
        return Table(wide, f"Sensitivity by the share of the patch that a class covers, with 95% {WILSON}")

    def rates(self) -> Table:
        """Return sensitivity and specificity of each class at 0.5 with intervals by Wilson."""
        return Table(
            confusion.rates_table(self.truth, self.ours.decisions, self.classes),
            f"Sensitivity and specificity on {len(self.truth):,} held-out patches at 0.5, with 95% {WILSON}",
        )

    def threshold_explorer(self) -> explorers.Explorer:
        """Return sensitivity, specificity and more of each class at thresholds that can be moved."""
        return explorers.threshold_explorer(self.truth, self.ours.scores, self.classes)

    def confusion(self) -> Image:
        """Draw the 2 x 2 confusion matrix of each class."""
        counts = confusion.confusion(self.truth, self.ours.decisions)
        return as_image(figures.confusion_grid(counts, self.classes, label_of(OURS)))

    def multilabel_confusion(self) -> Image:
        """Draw the multi-label confusion matrix."""
        counts = confusion.multilabel_confusion(self.truth, self.ours.decisions)
        return as_image(figures.multilabel_confusion_map(counts, self.classes, label_of(OURS)))

    def predicted_when_missed(self) -> Image:
        """Draw which absent classes are predicted when one is missed."""
        return as_image(
            figures.missed_class_map(*confusion.predicted_when_missed(self.truth, self.ours.decisions), self.classes)
        )

    @cached_property
    def _biases(self) -> dict[str, object]:
        return {
            label_of(name): confusion.co_occurrence_bias(
                self.truth, self.run.predictions[name].decisions, self.units, *self.draws
            )
            for name in (OURS, PROBE)
        }

    def co_occurrence_bias(self) -> Image:
        """Draw how the presence of one class changes the prediction of another."""
        return as_image(figures.co_occurrence_bias_map(self._biases, self.classes))

    def bias_note(self) -> Markdown:
        """Say which of these differences is the largest that is significant."""
        return Markdown(
            "\n\n".join(confusion.bias_note(bias, self.classes, name) for name, bias in self._biases.items())
        )

    def by_group(self) -> Image | Markdown:
        """Draw the error rate of each group."""
        groups = self.run.patches.groups
        if groups is None:
            return Markdown("The patients or source images of the patches are not known.")
        return as_image(
            figures.group_error_plot(confusion.errors_by_group(self.truth, self.ours.decisions, groups[self.run.val]))
        )

    def by_label_set(self) -> Image:
        """Draw exact match and mAcc by the labels that a patch carries."""
        return as_image(
            figures.label_set_bars(confusion.errors_by_label_set(self.truth, self.ours.decisions, self.classes))
        )

    def gallery(self) -> explorers.Explorer:
        """Return the patches, those with the most confident errors first."""
        run = self.run
        sample = int(run["examples"]), int(run["seed"])
        return explorers.patch_gallery(run.patches, run.val, self.ours.scores, *sample, run.folder / "05_errors_files")
