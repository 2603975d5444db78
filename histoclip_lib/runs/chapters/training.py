"""What the notebook 03_train shows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pandas as pd
from IPython.display import Image, Markdown

from histoclip_lib.common.predictions import Predictions
from histoclip_lib.evaluation import artifacts
from histoclip_lib.evaluation import studies as study_tables
from histoclip_lib.evaluation.methods import label_of, labels
from histoclip_lib.evaluation.text import number_text
from histoclip_lib.models.studies import SIZED, Finished, plan_studies, run_studies
from histoclip_lib.models.training import train_heads
from histoclip_lib.report import figures, tables
from histoclip_lib.report.figures.base import as_image
from histoclip_lib.report.tables import Table
from histoclip_lib.runs.chapters.base import OURS, PROBE, Chapter, training_options, zero_shot_of
from histoclip_lib.runs.run import Run

COMPARED_BY_SIZE = ("one_vs_rest", "power_set", "majority")  # horizontal lines where training patches are counted


@dataclass(frozen=True, eq=False)
class Training(Chapter):
    """The notebook 03_train; `methods` are predictions for the validation set, or out of fold."""

    history: pd.DataFrame
    methods: dict[str, Predictions]
    scored: dict[str, dict]

    @classmethod
    def of(cls, run: Run) -> Training:
        """Train both heads, or load those that the same training left, and write `history.csv`."""
        run.fit_baselines()
        heads, history = train_heads(
            run.class_matrix, run.head_options, run.features, run.patches, run.folds, training_options(run),
            run.compute, run.folder,
        )  # fmt: skip
        artifacts.write_csv(run.folder / "history.csv", history)
        found = dict(run.without_images)
        found |= zero_shot_of(run)
        found |= {name: own for name, own in run.baseline_predictions.items() if name in SIZED}
        found |= run.head_predictions(heads)
        chapter = cls(run, history, found, {})
        chapter.scored.update(artifacts.evaluate_methods(found, run.patches, run.val, *chapter.draws))
        return chapter

    def finding(self) -> Markdown:
        """Say in a sentence where the head on patch tokens ended, beside the probe and the majority."""
        ours, probe, majority = (number_text(self.scored[name]["mAcc"]) for name in (OURS, PROBE, "majority"))
        return Markdown(
            f"**After {self.run['epochs']} epochs the head on patch tokens reaches an mAcc of {ours}; the linear probe "
            f"reaches {probe} and the majority {majority}**, scored {self.on_which}."
        )

    def features_note(self) -> Markdown:
        """Say how large the features are and what their views cost."""
        without = (
            "With `tokens: none` both heads attend to the global embedding alone, and no region can be attended to."
        )
        notes = [self.run.features.about(), without * (self.run["tokens"] == "none"), self.run.queries_note()]
        return Markdown("\n\n".join(filter(None, notes)))

    def curves(self) -> Image:
        """Draw loss and validation mAcc of both heads, in a cross-validation those of the first fold."""
        levels = {label_of(name): self.scored[name]["mAcc"] for name in ("majority", PROBE)}
        sizes = [len(part) for part in self.run.folds[0]]
        return as_image(figures.training_curves(self.history, levels, *sizes))

    def last_and_best(self) -> Table:
        """Return the validation mAcc at the last and, as an oracle, at the best epoch."""
        caption = (
            f"Validation mAcc on {len(self.run.folds[0][1]):,} patches at the last epoch, which is reported, and at "
            "the best one, an oracle. A large gap is a sign of overfitting."
        )
        return Table(tables.last_and_best(self.history), caption)

    def head_study(self) -> Table:
        """Return the fixed table by which the head's defaults were chosen."""
        caption = f"How the defaults of the head were chosen; the same in every run. {study_tables.study_note()}"
        return Table(study_tables.head_study(), caption)

    @cached_property
    def finished(self) -> list[Finished]:
        """The studies, fitted now or taken over from `studies.parquet`."""
        run, options = self.run, training_options(self.run)
        plan = plan_studies(
            run.patches, run["split"], run.folds, options, run.head_options, run["val_fraction"], run["seeds"],
            run["draws"], run["studies"],
        )  # fmt: skip
        finished = run_studies(
            plan, run.class_matrix, run.head_options, run.features, run.patches, options, run.compute, run.folder
        )
        self.methods.update(study_tables.methods_of(finished))
        return finished

    def fit_studies(self) -> Markdown:
        """Fit the further models, or take over those that the same training left."""
        return Markdown(f"{len(self.finished)} further models were fitted.")

    @cached_property
    def _in_first_fold(self) -> dict[str, Predictions]:
        """The methods as reported, for the patches that the first fold holds out: further models are fitted there."""
        rows = self.run.fold_of == 0
        return {name: found.take(rows) for name, found in self.methods.items()}

    @cached_property
    def _designs(self) -> tuple[dict[str, dict], pd.DataFrame]:
        return study_tables.design_metrics(self.finished, self.methods, self.run.patches, self.run.val, *self.draws)

    def design_plot(self) -> Image:
        """Draw mAcc and mAP of the head with one choice made differently."""
        scored, _ = self._designs
        return as_image(figures.forest_plot(scored, {name: name for name in scored}))

    def design_table(self) -> Table:
        """Return mAcc and mAP of each design, and the change against the head as reported."""
        caption = (
            f"The reported head and variants with one choice changed, on {len(self.truth):,} held-out patches. p is "
            "corrected for the variants of this table."
        )
        return Table(self._designs[1], caption)

    def label_efficiency(self) -> Image | Markdown:
        """Draw mAcc and mAP against the number of training patches."""
        if not (sizes := study_tables.of_purpose(self.finished, "size")):
            return Markdown("Not fitted: `studies` is off.")
        run, (train, val) = self.run, self.run.folds[0]
        frame = study_tables.size_frame(sizes, self._in_first_fold, len(train), run.patches, val)
        levels = {name: self.scored[name] for name in COMPARED_BY_SIZE if name in self.scored}
        return as_image(figures.label_efficiency(frame, levels, labels(), len(val), len(self.truth)))

    def hidden_labels(self) -> Image | Markdown:
        """Draw mAcc and mAP against the share of training labels that were hidden."""
        if not study_tables.of_purpose(self.finished, "hidden"):
            return Markdown("Not fitted: `studies` is off.")
        val = self.run.folds[0][1]
        frame = study_tables.hidden_frame(self.finished, self._in_first_fold, self.run.patches, val)
        return as_image(figures.hidden_labels(frame, labels(), len(val)))

    def seeds(self) -> Table | Markdown:
        """Return how mAcc and mAP vary with the seed of the training, or with the fold."""
        run = self.run
        if run.is_cross_validated:
            found = study_tables.fold_metrics(self.methods, run.patches, run.folds, run.val)
            table = tables.seeds_table(found).rename(columns={"seeds": "folds"})
            caption = (
                f"Mean, standard deviation and range over {len(run.folds)} folds. They describe variation; they "
                "are not a test. mAP is computed within each fold, so it differs from the value over all patches."
            )
            return Table(table, caption)
        found = study_tables.seed_metrics(self.finished, self.methods, run.patches, run.val, int(run["seed"]))
        if not found:
            return Markdown("Not fitted: `studies` is off, or `seeds` holds no other seed.")
        caption = (
            "Mean, standard deviation and range over training seeds on the same split. They describe variation; they "
            "are not a test."
        )
        return Table(tables.seeds_table(found), caption)
