"""What the notebook 02_zero_shot shows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from IPython.display import Image, Markdown

from histoclip_lib.common.arrays import nan_mean, unit
from histoclip_lib.common.predictions import Predictions, join_folds, mean_accuracy
from histoclip_lib.evaluation import artifacts
from histoclip_lib.evaluation.methods import short_label
from histoclip_lib.evaluation.metrics import ranking_note
from histoclip_lib.prompting import sensitivity, strategies
from histoclip_lib.prompting.vocabulary import Vocabulary
from histoclip_lib.report import explorers, figures, tables
from histoclip_lib.report.figures.base import as_image
from histoclip_lib.report.tables import Table
from histoclip_lib.runs.chapters.base import Chapter
from histoclip_lib.runs.record import update_record
from histoclip_lib.runs.run import Run

ABSENT = "Does not apply: the encoder has no text tower."


class EncoderChapter(Chapter):
    """What the notebook 02_zero_shot shows of any encoder."""

    def about_encoder(self) -> Markdown:
        """Describe the frozen encoder, and how its field of view compares with that of the patches."""
        return Markdown(f"{self.run.encoder.about()}\n\n{self.run.field_note()}")

    def words(self) -> Markdown:
        """List the classes in words, and the templates, where an encoder embeds them."""
        return Markdown(self.run.vocabulary.about(self.classes) if self.run.text_encoder else ABSENT)

    def class_similarity(self) -> Image | Markdown:
        """Draw the cosines of the class embeddings with each other."""
        if not self.run.text_encoder:
            return Markdown(ABSENT)
        matrix = self.run.class_matrix
        return as_image(figures.similarity_map(matrix @ matrix.T, self.run.vocabulary.names))


@dataclass(frozen=True, eq=False)
class ZeroShot(EncoderChapter):
    """The notebook 02_zero_shot; `methods` are the strategies' predictions for all patches."""

    methods: dict[str, Predictions]
    pooled: np.ndarray

    @classmethod
    def of(cls, run: Run) -> ZeroShot | WithoutText:
        """Encode the patches and the classes, run the strategies, and write `zero_shot.parquet`.

        An encoder without a text tower has no zero-shot predictions; what is returned then says so in every place.
        """
        index = np.arange(len(run.patches))
        pooled = run.encode().pooled.take(index)
        run.embed_classes()
        if not run.has_text:
            artifacts.save_predictions(run.folder / "zero_shot.parquet", {}, run.patches, index)
            return WithoutText(run)
        if run.is_cross_validated:
            left_out = np.setdiff1d(index, run.val)
            folds = [*run.folds, (run.val, left_out)] if len(left_out) else run.folds
            parts = [
                strategies.score_zero_shot(pooled[val], run.text_encoder, run.vocabulary, cls.context_of(run, train))
                for train, val in folds
            ]
            methods = {name: join_folds([val for _, val in folds], [part[name] for part in parts]) for name in parts[0]}
        else:
            methods = strategies.score_zero_shot(
                pooled, run.text_encoder, run.vocabulary, cls.context_of(run, run.train)
            )
        artifacts.save_predictions(run.folder / "zero_shot.parquet", methods, run.patches, index)
        return cls(run, methods, pooled)

    @staticmethod
    def context_of(run: Run, train: np.ndarray) -> object:
        """Return what strategies may use besides images and words; `train` are the patches whose labels they may."""
        rule, temperature = str(run["baseline_rule"]), run.text_encoder.temperature
        prevalence = nan_mean(run.patches.labels[train], axis=0)
        return strategies.StrategyContext(prevalence, rule, temperature, unit(run.features.pooled.take(train)))

    @property
    def held_out(self) -> dict[str, Predictions]:
        """The strategies' predictions for the patches on which every table scores."""
        return {name: own.take(self.run.val) for name, own in self.methods.items()}

    def finding(self) -> Markdown:
        """Say in a sentence how the best strategy compares with the majority."""
        accuracies = {name: mean_accuracy(self.truth, own.decisions) for name, own in self.held_out.items()}
        majority = mean_accuracy(self.truth, self.run.without_images["majority"].decisions)
        best = max(accuracies, key=accuracies.get)
        stands = "above" if accuracies[best] > majority else "not above"
        part = "" if self.run.is_cross_validated else " on the validation set"
        return Markdown(
            f"**The best strategy, {short_label(best)}, reaches an mAcc of {accuracies[best]:.3f}{part}, {stands} the "
            f"{majority:.3f} of predicting each class's majority.**"
        )

    def table(self) -> Table:
        """Return mAcc and predicted prevalence of each strategy, and of marking every label."""
        shown = self.held_out | {"all_positive": self.run.without_images["all_positive"]}
        return Table(
            tables.strategies_table(shown, self.truth, self.classes),
            f"mAcc on the {len(self.truth):,} held-out patches, and the fraction of them in which each class is "
            "predicted. Compare the fractions with the truth.",
        )

    def both_prompts(self) -> Table:
        """Return mAcc and mAP of each strategy with the paper's prompts and with those of the encoder."""
        run, scored = self.run, {}
        for name in (run.prompts, run.other_prompts):
            own = run.words(name)

            def score(_: int, train: np.ndarray, val: np.ndarray, own: Vocabulary = own) -> dict[str, Predictions]:
                return strategies.score_zero_shot(self.pooled[val], run.text_encoder, own, self.context_of(run, train))

            scored[f"{name} ({own.photo_of})"] = run.by_fold(score)
        caption = (
            f"Each strategy on {len(self.truth):,} held-out patches with the prompts of this run, then with the "
            "others. A large change means that the wording matters."
        )
        return Table(sensitivity.prompts_table(scored, self.truth), caption)

    def baseline_note(self) -> Markdown:
        """Say what the Baseline's decision amounts to, and which classes zero-shot ranks below chance."""
        note = strategies.baseline_note(self.held_out["baseline"], self.truth, str(self.run["baseline_rule"]))
        return Markdown(f"{note}\n\n{ranking_note(self.held_out, self.truth, self.classes)}")

    def score_distributions(self) -> Image:
        """Draw the scores of patches with and without each class."""
        named = {short_label(name): own for name, own in self.held_out.items()}
        return as_image(figures.score_distributions(named, self.truth, self.classes))

    @cached_property
    def variants(self) -> object:
        """What each strategy scores with other words, on the validation set."""
        run = self.run
        variants = sensitivity.score_variants(
            self.pooled[run.val], run.text_encoder, run.vocabulary, self.truth, self.context_of(run, run.folds[0][0]),
            draws=int(run["wordings"]), seed=int(run["seed"]),
        )  # fmt: skip
        spread = variants.table.groupby("strategy", sort=False)["mAcc"].agg(["min", "max"])
        update_record(run.folder, wordings={name: line.tolist() for name, line in spread.iterrows()})
        return variants

    def prompt_spread(self) -> Image:
        """Draw mAcc and mAP of every choice of words."""
        return as_image(figures.prompt_spread(self.variants.table))

    def prompt_notes(self) -> Markdown:
        """Say what ensembling over templates gains, and how much each strategy depends on its words."""
        return Markdown(f"{sensitivity.ensembling_note(self.variants)}\n\n{sensitivity.spread_note(self.variants)}")

    def prompt_extremes(self) -> Table:
        """Return the words with the lowest and the highest mAP."""
        caption = f"The wording with the lowest and the highest mAP on {len(self.truth):,} held-out patches."
        return Table(sensitivity.extremes_table(self.variants), caption)

    def explorer(self) -> explorers.Explorer:
        """Return a patch and its cosines with the classes' words, which JupyterLab lets change."""
        run = self.run
        return explorers.prompt_explorer(
            run.text_encoder, run.vocabulary, run.features, run.patches, run.val,
            self.context_of(run, run.folds[0][0]),
        )  # fmt: skip


class WithoutText(EncoderChapter):
    """The notebook 02_zero_shot of an encoder of images alone."""

    def finding(self) -> Markdown:
        """Say that the zero-shot methods do not apply, and what the head's queries are instead."""
        return Markdown(self.run.queries_note())

    def _absent(self) -> Markdown:
        return Markdown(ABSENT)

    table = both_prompts = baseline_note = score_distributions = prompt_spread = prompt_notes = prompt_extremes = (
        explorer
    ) = _absent
