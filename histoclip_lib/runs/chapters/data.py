"""What the notebook 01_data shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from IPython.display import Image, Markdown

from histoclip_lib.data.base import Note
from histoclip_lib.data.checks import check_images
from histoclip_lib.data.registry import DATASETS
from histoclip_lib.evaluation import artifacts
from histoclip_lib.report import explorers, figures, tables
from histoclip_lib.report.figures.base import as_image
from histoclip_lib.report.tables import Table
from histoclip_lib.runs.chapters.base import Chapter
from histoclip_lib.runs.run import Run


@dataclass(frozen=True, eq=False)
class Data(Chapter):
    """The notebook 01_data; `notes` are what the loader and the check of all images noted."""

    notes: tuple[Note, ...]

    @classmethod
    def of(cls, run: Run) -> Data:
        """Check every image and write `split.csv`."""
        folds = run.folds
        notes = (*run.patches.notes, *check_images(run.patches))
        artifacts.save_split(run.folder / "split.csv", run.patches, folds)
        return cls(run, notes)

    @property
    def named_parts(self) -> dict[str, np.ndarray]:
        """Training and validation sets, or the patches that each fold holds out."""
        if not self.run.is_cross_validated:
            return {"train": self.run.train, "validation": self.run.val}
        return {f"fold {number}": val for number, (_, val) in enumerate(self.run.folds, 1)}

    def finding(self) -> Markdown:
        """Say in a sentence how much there is of what, and whether groups are in both parts."""
        patches, prevalence = self.run.patches, self.run.patches.prevalence
        most, least = (patches.classes[k] for k in (prevalence.argmax(), prevalence.argmin()))
        sentence = f"{len(patches):,} patches with {len(patches.classes)} classes"
        if patches.groups is not None:
            parts = [np.unique(patches.groups[index]) for index in self.named_parts.values()]
            several = int((np.unique(np.concatenate(parts), return_counts=True)[1] > 1).sum())
            sentence += f" from {len(np.unique(patches.groups)):,} groups, {several or 'none'} of which "
            sentence += f"{'is' if several < 2 else 'are'} in "
            sentence += "more than one fold" if self.run.is_cross_validated else "both sets"
        if unknown := int((~patches.known).sum()):
            sentence += f"; {unknown:,} of {patches.labels.size:,} labels are not known"
        return Markdown(
            f"{self.caution}**{sentence}.** The most common class is {most} ({prevalence.max():.0%} of the patches), "
            f"the rarest {least} ({prevalence.min():.0%})."
        )

    def about(self) -> Markdown:
        """Describe the data set: when a class is present, the field of a patch, licence and terms."""
        entry, patches = DATASETS[str(self.run["dataset"])], self.run.patches
        present = entry.present.format(**{option: self.run[option] for option in entry.options})
        height, width = patches.image(0).shape[:2]
        field = f"Patches have {width} x {height} pixels; their resolution is not known (`mpp` sets it)."
        if (mpp := patches.mpp) is not None:
            field = (
                f"Patches have {width} x {height} pixels at {mpp:.3g} µm per pixel: each shows a field of "
                f"{width * mpp:.0f} x {height * mpp:.0f} µm."
            )
        return Markdown(f"{entry.about}\n\n{present} {field}\n\nLicence: {entry.licence}")

    def checked(self) -> Table | Markdown:
        """Return what the check of files, labels, images and masks noted; nothing is left out because of it."""
        if not self.notes:
            return Markdown("No problems were found in the labels, images and masks.")
        return Table(
            tables.notes_table(self.notes),
            "Problems found in the labels, images and masks. No patch is left out because of them.",
        )

    def parts(self) -> Table:
        """Return the size of both parts, or of the folds, and how many of their groups are in others too."""
        where = "each fold" if self.run.is_cross_validated else "the training and validation sets"
        table = tables.dataset_table(self.run.patches, self.named_parts).T
        return Table(table, f"Patches, labels and groups in {where}; a grouped split shares no group.")

    def prevalence(self) -> Image:
        """Draw how often each class is present in either part."""
        return as_image(figures.prevalence_bars(self.run.patches.labels, self.named_parts, self.run.patches.classes))

    def co_occurrence(self) -> Image:
        """Draw which classes occur together."""
        return as_image(figures.co_occurrence_map(self.run.patches.labels, self.run.patches.classes))

    def explorer(self) -> explorers.Explorer:
        """Return the patches to look at, with labels and masks."""
        run = self.run
        sample = int(run["examples"]), int(run["seed"])
        return explorers.patch_browser(run.patches, run.train, *sample, run.folder / "01_data_files")
