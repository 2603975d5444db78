"""What each notebook of a run shows: one class for each, its methods the last lines of the notebook's cells."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from IPython.display import Markdown

from histoclip_lib.common.arrays import agreement, nan_mean, unit
from histoclip_lib.common.predictions import Predictions, join_folds, mean_accuracy
from histoclip_lib.evaluation import artifacts, comparisons, uncertainty
from histoclip_lib.evaluation import studies as study_tables
from histoclip_lib.evaluation.methods import label_of, labels, ours_first, short_label
from histoclip_lib.evaluation.text import number_text
from histoclip_lib.report import figures, tables
from histoclip_lib.report.figures.base import as_image
from histoclip_lib.report.tables import Table
from histoclip_lib.runs.record import update_record
from histoclip_lib.runs.run import Run

if TYPE_CHECKING:
    import pandas as pd
    from IPython.display import HTML, Image

    from histoclip_lib.data.base import Note
    from histoclip_lib.evaluation.leakage import NearDuplicates
    from histoclip_lib.evaluation.localisation import MapScores
    from histoclip_lib.features.reader import FeatureReader
    from histoclip_lib.models.cmm import CMM
    from histoclip_lib.models.studies import Finished
    from histoclip_lib.prompting.vocabulary import Vocabulary
    from histoclip_lib.report.explorers import Explorer

OURS, PROBE, ENSEMBLE = comparisons.OURS, comparisons.PROBE, "histoclip_ensemble"
COMPARED_BY_SIZE = ("one_vs_rest", "power_set", "majority")  # horizontal lines where training patches are counted
CALIBRATED = (PROBE, OURS)
FITTING = 200  # training patches on which the thresholds of segmentations are fitted


@dataclass(frozen=True, eq=False)
class Chapter:
    """What a notebook shows of a run."""

    run: Run

    @property
    def truth(self) -> np.ndarray:
        """Labels of the held-out patches, shape (B, N)."""
        return self.run.patches.labels[self.run.val]

    @property
    def caution(self) -> str:
        """A paragraph that comes first where the held-out patches are too few to conclude anything."""
        from histoclip_lib.data.checks import too_few

        few = too_few(self.run.patches, self.run.val)
        return f"**{few}**\n\n" * bool(few)

    @property
    def classes(self) -> list[str]:
        """The N class names."""
        return self.run.patches.classes

    @property
    def draws(self) -> tuple[int, int, int]:
        """Number of bootstrap samples, their seed, and the number of folds."""
        return int(self.run["resamples"]), int(self.run["seed"]), len(self.run.folds)

    @property
    def on_which(self) -> str:
        """On which patches methods are scored, in words."""
        n_val = f"{len(self.run.val):,}"
        if not self.run.is_cross_validated:
            return f"on the {n_val} validation patches"
        apart = " of its group" * (self.run["split"] == "grouped")
        return f"out of fold on {n_val} patches, each predicted by models that saw no patch{apart or ' of its fold'}"

    @property
    def units(self) -> np.ndarray:
        """What the bootstrap draws: the group of each held-out patch, or the patch itself, shape (B,)."""
        return uncertainty.bootstrap_units(self.run.patches, self.run.val)


@dataclass(frozen=True, eq=False)
class Data(Chapter):
    """The notebook 01_data; `notes` are what the loader and the check of all images noted."""

    notes: tuple[Note, ...]

    @classmethod
    def of(cls, run: Run) -> Data:
        """Check every image and write `split.csv`."""
        from histoclip_lib.data.checks import check_images

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
        from histoclip_lib.data.registry import DATASETS

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

    def explorer(self) -> Explorer:
        """Return the patches to look at, with labels and masks."""
        from histoclip_lib.report.explorers import patch_browser

        run = self.run
        sample = int(run["examples"]), int(run["seed"])
        return patch_browser(run.patches, run.train, *sample, run.folder / "01_data_files")


@dataclass(frozen=True, eq=False)
class ZeroShot(Chapter):
    """The notebook 02_zero_shot; `methods` are the strategies' predictions for all patches."""

    methods: dict[str, Predictions]
    pooled: np.ndarray

    @classmethod
    def of(cls, run: Run) -> ZeroShot | WithoutText:
        """Encode the patches and the classes, run the strategies, and write `zero_shot.parquet`.

        An encoder without a text tower has no zero-shot predictions; what is returned then says so in every place.
        """
        from histoclip_lib.prompting.strategies import score_zero_shot

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
                score_zero_shot(pooled[val], run.text_encoder, run.vocabulary, cls.context_of(run, train))
                for train, val in folds
            ]
            methods = {name: join_folds([val for _, val in folds], [part[name] for part in parts]) for name in parts[0]}
        else:
            methods = score_zero_shot(pooled, run.text_encoder, run.vocabulary, cls.context_of(run, run.train))
        artifacts.save_predictions(run.folder / "zero_shot.parquet", methods, run.patches, index)
        return cls(run, methods, pooled)

    @staticmethod
    def context_of(run: Run, train: np.ndarray) -> object:
        """Return what strategies may use besides images and words; `train` are the patches whose labels they may."""
        from histoclip_lib.prompting.strategies import StrategyContext

        rule, temperature = str(run["baseline_rule"]), run.text_encoder.temperature
        prevalence = nan_mean(run.patches.labels[train], axis=0)
        return StrategyContext(prevalence, rule, temperature, unit(run.features.pooled.take(train)))

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

    def about_encoder(self) -> Markdown:
        """Describe the frozen encoder, and how its field of view compares with that of the patches."""
        return Markdown(f"{self.run.encoder.about()}\n\n{self.run.field_note()}")

    def words(self) -> Markdown:
        """List the classes in words, and the templates."""
        return Markdown(self.run.vocabulary.about(self.classes))

    def class_similarity(self) -> Image:
        """Draw the cosines of the class embeddings with each other."""
        matrix = self.run.class_matrix
        return as_image(figures.similarity_map(matrix @ matrix.T, self.run.vocabulary.names))

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
        from histoclip_lib.prompting.sensitivity import prompts_table
        from histoclip_lib.prompting.strategies import score_zero_shot

        run, scored = self.run, {}
        for name in (run.prompts, run.other_prompts):
            own = run.words(name)

            def score(_: int, train: np.ndarray, val: np.ndarray, own: Vocabulary = own) -> dict[str, Predictions]:
                return score_zero_shot(self.pooled[val], run.text_encoder, own, self.context_of(run, train))

            scored[f"{name} ({own.photo_of})"] = run.by_fold(score)
        caption = (
            f"Each strategy on {len(self.truth):,} held-out patches with the prompts of this run, then with the "
            "others. A large change means that the wording matters."
        )
        return Table(prompts_table(scored, self.truth), caption)

    def baseline_note(self) -> Markdown:
        """Say what the Baseline's decision amounts to, and which classes zero-shot ranks below chance."""
        from histoclip_lib.evaluation.metrics import ranking_note
        from histoclip_lib.prompting.strategies import baseline_note

        note = baseline_note(self.held_out["baseline"], self.truth, str(self.run["baseline_rule"]))
        return Markdown(f"{note}\n\n{ranking_note(self.held_out, self.truth, self.classes)}")

    def score_distributions(self) -> Image:
        """Draw the scores of patches with and without each class."""
        named = {short_label(name): own for name, own in self.held_out.items()}
        return as_image(figures.score_distributions(named, self.truth, self.classes))

    @cached_property
    def variants(self) -> object:
        """What each strategy scores with other words, on the validation set."""
        from histoclip_lib.prompting.sensitivity import score_variants

        run = self.run
        variants = score_variants(
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
        from histoclip_lib.prompting import sensitivity

        return Markdown(f"{sensitivity.ensembling_note(self.variants)}\n\n{sensitivity.spread_note(self.variants)}")

    def prompt_extremes(self) -> Table:
        """Return the words with the lowest and the highest mAP."""
        from histoclip_lib.prompting.sensitivity import extremes_table

        caption = f"The wording with the lowest and the highest mAP on {len(self.truth):,} held-out patches."
        return Table(extremes_table(self.variants), caption)

    def explorer(self) -> Explorer:
        """Return a patch and its cosines with the classes' words, which JupyterLab lets change."""
        from histoclip_lib.report.explorers import prompt_explorer

        run = self.run
        return prompt_explorer(
            run.text_encoder, run.vocabulary, run.features, run.patches, run.val,
            self.context_of(run, run.folds[0][0]),
        )  # fmt: skip


def _zero_shot_of(run: Run) -> dict[str, Predictions]:
    """Return the zero-shot predictions for the validation patches; none of an encoder of images alone."""
    if not run.has_text:
        return {}
    return artifacts.load_predictions(run.folder / "zero_shot.parquet", run.patches, run.val)


class WithoutText(Chapter):
    """The notebook 02_zero_shot of an encoder of images alone."""

    def finding(self) -> Markdown:
        """Say that the zero-shot methods do not apply, and what the head's queries are instead."""
        return Markdown(self.run.queries_note())

    def about_encoder(self) -> Markdown:
        """Describe the frozen encoder, and how its field of view compares with that of the patches."""
        return Markdown(f"{self.run.encoder.about()}\n\n{self.run.field_note()}")

    def words(self) -> Markdown:
        """List the classes in words where another encoder embeds them."""
        return Markdown(self.run.vocabulary.about(self.classes)) if self.run["text_encoder"] else self._absent()

    def class_similarity(self) -> Image | Markdown:
        """Draw the cosines of the class embeddings of `text_encoder` with each other."""
        if not self.run["text_encoder"]:
            return self._absent()
        matrix = self.run.class_matrix
        return as_image(figures.similarity_map(matrix @ matrix.T, self.run.vocabulary.names))

    def _absent(self) -> Markdown:
        return Markdown("Does not apply: the encoder has no text tower.")

    table = both_prompts = baseline_note = score_distributions = prompt_spread = prompt_notes = prompt_extremes = (
        explorer
    ) = _absent


@dataclass(frozen=True, eq=False)
class Training(Chapter):
    """The notebook 03_train; `methods` are predictions for the validation set, or out of fold."""

    history: pd.DataFrame
    methods: dict[str, Predictions]
    scored: dict[str, dict]

    @staticmethod
    def options_of(run: Run) -> object:
        """Return how heads are fitted."""
        from histoclip_lib.models.training import TrainingOptions

        return TrainingOptions(**{field.name: run[field.name] for field in fields(TrainingOptions)})

    @classmethod
    def of(cls, run: Run) -> Training:
        """Train both heads, or load those that the same training left, and write `history.csv`."""
        from histoclip_lib.models.studies import SIZED
        from histoclip_lib.models.training import train_heads

        run.fit_baselines()
        heads, history = train_heads(
            run.class_matrix, run.head_options, run.features, run.patches, run.folds, cls.options_of(run), run.compute,
            run.folder,
        )  # fmt: skip
        artifacts.save_history(run.folder / "history.csv", history)
        found = dict(run.without_images)
        found |= _zero_shot_of(run)
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
        return as_image(figures.training_curves(self.history, levels))

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
        from histoclip_lib.models.studies import plan_studies, run_studies

        run, options = self.run, self.options_of(self.run)
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
        caption = f"The reported head and variants with one choice changed, on {len(self.truth):,} held-out patches."
        return Table(self._designs[1], caption)

    def label_efficiency(self) -> Image | Markdown:
        """Draw mAcc and mAP against the number of training patches."""
        if not (sizes := study_tables.of_purpose(self.finished, "size")):
            return Markdown("Not fitted: `studies` is off.")
        run, (train, val) = self.run, self.run.folds[0]
        frame = study_tables.size_frame(sizes, self._in_first_fold, len(train), run.patches, val)
        levels = {name: self.scored[name] for name in COMPARED_BY_SIZE if name in self.scored}
        return as_image(figures.label_efficiency(frame, levels, labels()))

    def hidden_labels(self) -> Image | Markdown:
        """Draw mAcc and mAP against the share of training labels that were hidden."""
        if not study_tables.of_purpose(self.finished, "hidden"):
            return Markdown("Not fitted: `studies` is off.")
        val = self.run.folds[0][1]
        frame = study_tables.hidden_frame(self.finished, self._in_first_fold, self.run.patches, val)
        return as_image(figures.hidden_labels(frame, labels()))

    def seeds(self) -> Table | Markdown:
        """Return how mAcc and mAP vary with the seed of the training, or with the fold."""
        run = self.run
        if run.is_cross_validated:
            found = study_tables.fold_metrics(self.methods, run.patches, run.folds, run.val)
            table = tables.seeds_table(found).rename(columns={"seeds": "folds"})
            caption = f"mAcc and mAP over {len(run.folds)} folds. Differences below the s.d. may be due to chance."
            return Table(table, caption)
        found = study_tables.seed_metrics(self.finished, self.methods, run.patches, run.val, int(run["seed"]))
        if not found:
            return Markdown("Not fitted: `studies` is off, or `seeds` holds no other seed.")
        caption = (
            "mAcc and mAP over training seeds on the same split. Differences below the s.d. may be due to the seed."
        )
        return Table(tables.seeds_table(found), caption)


@dataclass(frozen=True, eq=False)
class Results(Chapter):
    """The notebook 04_results; `methods` are predictions for the validation set, `scored` their metrics."""

    methods: dict[str, Predictions]
    scored: dict[str, dict]
    finished: list[Finished]

    @classmethod
    def of(cls, run: Run) -> Results:
        """Score every method, and write `predictions.parquet` and `metrics.json`."""
        from histoclip_lib.models.baselines import ensemble
        from histoclip_lib.models.studies import load_studies
        from histoclip_lib.models.training import KINDS

        patches, val = run.patches, run.val
        methods = dict(run.without_images)
        methods |= _zero_shot_of(run)
        methods |= run.baseline_predictions
        finished = load_studies(run.folder / "studies.parquet", patches)
        methods |= study_tables.methods_of(finished)
        methods |= run.head_predictions({kind: [run.head(kind, k) for k in range(len(run.folds))] for kind in KINDS})
        methods |= ensemble(methods)
        artifacts.save_predictions(run.folder / "predictions.parquet", methods, patches, val)
        chapter = cls(run, methods, {}, finished)
        chapter.scored.update(artifacts.evaluate_methods(methods, patches, val, *chapter.draws))
        about = {name: run[name] for name in ("dataset", "backbone", "pretrained", "split", "seed")}
        about |= {"protocol": "cv" if run.is_cross_validated else "split", "folds": len(run.folds)}
        about |= {"n_train": len(run.folds[0][0]), "n_val": len(val)}
        artifacts.write_metrics(run.folder / "metrics.json", patches, chapter.scored, name=run.name, **about)
        return chapter

    def finding(self) -> Markdown:
        """Say in one sentence how HistoCLIP compares with the linear probe and with zero-shot."""
        return Markdown(f"{self.caution}**{self._sentence}**")

    @cached_property
    def _sentence(self) -> str:
        metrics = artifacts.read_metrics(self.run.folder / "metrics.json")
        predictions = artifacts.read_predictions(self.run.folder / "predictions.parquet")
        return comparisons.finding_sentence(metrics, predictions)

    def forest_plot(self) -> Image:
        """Draw mAcc and mAP of every method with their intervals."""
        return as_image(figures.forest_plot(self._in_order, labels()))

    @property
    def _in_order(self) -> dict[str, dict]:
        return {name: self.scored[name] for name in ours_first(self.scored)}

    def table(self) -> Table:
        """Return the table of all methods."""
        caption = f"All methods, scored {self.on_which}, with 95 % intervals; bold: the best of each column."
        return Table(tables.methods_table(self._in_order, str(self.run["dataset"])), caption, tables.best_values())

    def interval_note(self) -> Markdown:
        """Say what the intervals resample, and how baselines were tuned."""
        note = uncertainty.interval_note(self.run.patches, self.run.val, len(self.run.folds))
        where = "Everything is chosen inside each fold's training set; in the first:" * self.run.is_cross_validated
        tuned = " ".join(filter(None, [where, *(fitted[0].about for fitted in self.run.baselines.values())]))
        fold = f'<details class="fold"><summary>How the baselines were tuned</summary>\n\n{tuned}\n\n</details>'
        return Markdown("\n\n".join(filter(None, [note, fold, self.run.queries_note(), self.run.field_note()])))

    def compare(self, method: str) -> uncertainty.Comparison:
        """Compare HistoCLIP with patch tokens with another method, in mAcc and in mAP.

        Parameters
        ----------
        method : str
            Such as `linear_probe`.

        Returns
        -------
        uncertainty.Comparison
            HistoCLIP minus the other: value, 95 % interval and p of the permutation test, not corrected.
        """
        return uncertainty.compare(self.truth, self.methods[OURS], self.methods[method], self.units, *self.draws)

    @cached_property
    def _against(self) -> dict[str, uncertainty.Comparison]:
        return comparisons.against_every_method(self.methods, self.run.patches, self.run.val, *self.draws)

    def differences(self) -> Table:
        """Return HistoCLIP with patch tokens minus every other method, with corrected p."""
        caption = (
            f"HistoCLIP with patch tokens minus each other method on {len(self.truth):,} held-out patches, with 95 % "
            "intervals; positive values favour HistoCLIP. p is corrected by Holm's method."
        )
        return Table(comparisons.differences_table(self._against), caption)

    def correction_note(self) -> Markdown:
        """Say which differences remain significant after correction."""
        return Markdown(comparisons.correction_note(self._against, self.units, len(self.run.folds)))

    def all_pairs(self) -> Image:
        """Draw the difference in mAcc of every pair of methods."""
        _, *seed_and_folds = self.draws
        found = comparisons.all_pairs(self.methods, self.run.patches, self.run.val, *seed_and_folds)
        return as_image(figures.comparison_map(*found))

    def beside_the_paper(self) -> Table | Markdown:
        """Return our mAcc beside the paper's, where the paper has the data set."""
        table = tables.paper_table(self.scored, str(self.run["dataset"]))
        if table is None:
            return Markdown("The paper reports no numbers for this data set.")
        return Table(table, "mAcc in this run and in the paper, and known reasons for the difference.")

    def paper_note(self) -> Markdown:
        """Say why no number need agree with the paper's."""
        about = (str(self.run[name]) for name in ("dataset", "backbone", "pretrained", "split"))
        return Markdown(tables.paper_note(*about))

    def per_class(self, metric: str) -> Image:
        """Draw a metric (`accuracy` or `ap`) of every method and class."""
        label = {"ap": "average precision"}.get(metric, metric)
        return as_image(figures.per_class_map(tables.per_class_table(self.scored, metric), label))

    @property
    def _subgroups(self) -> dict[str, np.ndarray]:
        return {name: values[self.run.val] for name, values in self.run.patches.subgroups.items()}

    def by_subgroup(self) -> Table | Markdown:
        """Return the metrics of HistoCLIP with patch tokens in each subgroup, where metadata or tissues are known."""
        from histoclip_lib.evaluation.subgroups import subgroup_table

        if not self._subgroups:
            return Markdown("This data set has neither tissue types nor metadata (`meta_` columns).")
        table = subgroup_table(self.truth, self.methods[OURS], self.classes, self._subgroups, self.units, *self.draws)
        caption = (
            f"HistoCLIP with patch tokens by subgroup of {len(self.truth):,} held-out patches, with 95 % intervals."
        )
        return Table(table, caption)

    def subgroup_note(self) -> Markdown:
        """Say whether the largest difference between two subgroups is more than chance."""
        from histoclip_lib.evaluation.subgroups import gap_note, largest_gap

        decisions, seed = self.methods[OURS].decisions, int(self.run["seed"])
        return Markdown(
            gap_note(
                {
                    name: largest_gap(self.truth, decisions, values, self.units, seed)
                    for name, values in self._subgroups.items()
                }
            )
        )

    @cached_property
    def fits(self) -> dict[str, object]:
        """Temperature, Platt scaling and thresholds of probe, head and their mean, fitted in each training set."""
        from histoclip_lib.evaluation.calibration import FoldCalibrations, fit_calibration

        found = {}
        for name, parts in self.inside.items():
            fits = [fit_calibration(self.run.patches.labels[index], own) for index, own in parts]
            found[name] = fits[0] if len(fits) == 1 else FoldCalibrations(fits, self.run.fold_of)
        return found

    @cached_property
    def inside(self) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
        """For each fold the patches of its training set, and their probabilities by models that had not seen them."""
        run, found = self.run, {}
        for name in (PROBE, OURS):
            parts = []
            for k, (train, _) in enumerate(run.folds):
                if name == OURS:
                    parts.append(study_tables.out_of_fold(self.finished, run.folds, k))
                elif (own := run.baselines[PROBE][k].inside) is not None:
                    parts.append((train, own))
            if len(parts) == len(run.folds) and None not in parts:
                found[name] = [(index[order := np.argsort(index)], own[order]) for index, own in parts]
        if len(found) == 2:
            found[ENSEMBLE] = []
            for (index, one), (others, other) in zip(found[PROBE], found[OURS], strict=True):
                both, first, second = np.intersect1d(index, others, return_indices=True)
                found[ENSEMBLE].append((both, (one[first] + other[second]) / 2))
        return found

    def thresholds(self) -> Table:
        """Return mAcc, macro F1 and exact match at 0.5 and at fitted thresholds."""
        from histoclip_lib.evaluation.calibration import threshold_table

        table = threshold_table(self.truth, self.methods, self.fits, self.classes)
        mean = " (means over the folds)" * self.run.is_cross_validated
        caption = (
            f"Scores on {len(self.truth):,} held-out patches at 0.5 and at thresholds fitted on training patches{mean}."
        )
        return Table(table, caption)

    def threshold_explorer(self) -> Explorer:
        """Return accuracy and F1 of the head at every threshold, which can be moved."""
        from histoclip_lib.report.explorers import threshold_explorer

        return threshold_explorer(self.truth, self.methods[OURS].scores, self.classes)

    def reliability(self) -> Image:
        """Draw how often each class is present at each predicted probability."""
        return as_image(figures.reliability_diagrams(self.truth, self.methods, self.fits, self.classes, labels()))

    def calibration(self) -> Table:
        """Return cross-entropy, Brier score and calibration error before and after temperature and Platt scaling."""
        from histoclip_lib.evaluation.calibration import calibration_table

        table = calibration_table(self.truth, self.methods, self.fits, self.classes)
        caption = f"Calibration on {len(self.truth):,} held-out patches before and after scaling; lower is better."
        return Table(table, caption)

    def ensemble_note(self) -> Markdown:
        """Say whether the mean of head and probe has the lower cross-entropy."""
        from histoclip_lib.evaluation.calibration import ensemble_note

        return Markdown(ensemble_note(self.truth, self.methods, self.units, *self.draws))

    def temperature_note(self) -> Markdown:
        """Say which temperatures were fitted."""
        from histoclip_lib.evaluation.calibration import temperature_note

        return Markdown(temperature_note(self.fits))

    def missed_labels(self) -> Table:
        """Return thresholds that limit the false-negative rate, and what they cost."""
        from histoclip_lib.evaluation.risk_control import risk_table

        run, alpha = self.run, float(self.run["missed_share"])
        if run.is_cross_validated:
            index, out_of_fold = run.val, {name: self.methods[name].scores for name in CALIBRATED}
        else:
            out_of_fold = {name: self.inside[name][0][1] for name in CALIBRATED if name in self.inside}
            index = np.sort(run.train)
        fitted_on = run.patches.labels[index], uncertainty.bootstrap_units(run.patches, index)
        table = risk_table(
            fitted_on, out_of_fold, self.truth, self.methods, self.classes, self.units, alpha, *self.draws
        )
        caption = (
            f"Thresholds that limit the mean false-negative rate (FNR) of each class to {alpha:.0%}, and their "
            f"false-positive rate (FPR), with 95 % intervals on {len(self.truth):,} held-out patches. A low FNR "
            "costs FPR."
        )
        return Table(table, caption)

    def missed_note(self) -> Markdown:
        """Say what these thresholds guarantee."""
        from histoclip_lib.evaluation.risk_control import risk_note

        run = self.run
        units = uncertainty.bootstrap_units(run.patches, run.train)
        return Markdown(risk_note(float(run["missed_share"]), len(np.unique(units))))

    def precision_recall(self) -> Image:
        """Draw precision against recall of each class."""
        best = comparisons.best_zero_shot(artifacts.read_metrics(self.run.folder / "metrics.json"))
        shown = {
            name: self.methods[name] for name in dict.fromkeys(["baseline", best, *CALIBRATED]) if name in self.methods
        }
        return as_image(figures.precision_recall_curves(self.truth, shown, self.fits, self.classes, labels()))

    @cached_property
    def duplicates(self) -> NearDuplicates:
        """The nearest training patch of each patch that is scored, and how alike the two are."""
        from histoclip_lib.evaluation.leakage import find_near_duplicates

        run = self.run
        return find_near_duplicates(run.features.pooled, run.patches, run.folds, int(run["seed"]))

    def leakage_note(self) -> Markdown:
        """Say how many held-out patches have a near-duplicate in the training set."""
        from histoclip_lib.evaluation.leakage import near_duplicate_note

        return Markdown(near_duplicate_note(self.run.patches, self.duplicates))

    def leakage_histogram(self) -> Image:
        """Draw how alike nearest patches are."""
        return as_image(figures.similarity_histogram(self.duplicates))

    def leakage_table(self) -> Table:
        """Return the pairs of patches that are most alike."""
        from histoclip_lib.evaluation.leakage import near_duplicate_table

        table = near_duplicate_table(self.run.patches, self.duplicates, int(self.run["examples"]))
        return Table(table, f"The {len(table)} held-out patches that are most similar to a training patch.")

    def leakage_pairs(self) -> Image:
        """Draw the pairs of patches that are most alike."""
        count = min(int(self.run["examples"]), 4)
        return as_image(figures.near_duplicate_pairs(self.run.patches, self.duplicates, count))

    @cached_property
    def _split_gaps(self) -> list | None:
        from histoclip_lib.evaluation.leakage import split_gaps

        run = self.run
        resamples, seed, folds = self.draws
        arguments = (self.finished, self.methods, run.patches, str(run["split"]), run.val, folds)
        splits = study_tables.two_splits(*arguments)
        return None if splits is None else split_gaps(*splits, resamples, seed)

    def split_table(self) -> Table | Markdown:
        """Return the same models under a split by patch and under one by group."""
        from histoclip_lib.evaluation.leakage import split_gap_table

        if self._split_gaps is None:
            return Markdown("Not available: the data cannot be split both by patch and by group, or `studies` is off.")
        caption = "The same models with a random and a grouped split. A gain with the random split points to leakage."
        return Table(split_gap_table(self._split_gaps), caption)

    def split_note(self) -> Markdown:
        """Say whether a random split inflates the scores."""
        from histoclip_lib.evaluation.leakage import split_gap_note

        return Markdown("" if self._split_gaps is None else split_gap_note(self._split_gaps))

    def save_model(self) -> Markdown:
        """Write the folder `model`, and return its card under headings of the third level."""
        from histoclip_lib.data.splits import grouped_folds
        from histoclip_lib.evaluation.calibration import fit_calibration
        from histoclip_lib.models.bundle import ModelConfig, fit_ood, save_model
        from histoclip_lib.models.studies import FOLDS
        from histoclip_lib.report.model_card import card_metadata, model_card

        run, options, fit = self.run, asdict(Training.options_of(self.run)), self.fits.get(OURS)
        if run.is_cross_validated:  # the final head is fitted on all patches, of which these are the predictions
            fit = fit_calibration(self.truth, self.methods[OURS].scores)
        options.pop("seed")
        about = {name: run[name] for name in ("dataset", "backbone", "pretrained", "split", "seed", "views")}
        card = model_card(
            self.scored, run.patches, run.folds, name=run.name, **about,
            training={**run.head_options, **options}, against=self._against, findings=self._sentence,
        )  # fmt: skip
        folds = grouped_folds(run.patches, run.train, FOLDS, int(run["seed"]))
        reference, threshold = fit_ood(run.features.pooled.take(run.train), folds, int(run["seed"]))
        config = ModelConfig(
            name=run.name, classes=self.classes, words=list(run.vocabulary.names), **run.encoder_facts,
            patch_px=min(run.patches.image(int(run.train[0])).shape[:2]), mpp=run.patches.mpp,
            views=int(run["views"]), calibrated=fit is not None, temperature=fit.temperature if fit else 1.0,
            thresholds=fit.cut().tolist() if fit else [0.5] * len(self.classes),
            ood_threshold=threshold, scores=self.scored[OURS],
            training={**about, **options, "n_train": len(run.train), "n_val": len(run.val)},
        )  # fmt: skip
        metadata = card_metadata(self.scored, run.name, str(run["dataset"]))
        save_model(run.folder / "model", run.head("patch"), reference, config, metadata + card)
        _, _, text = card.partition("\n\n")  # the page has a heading of its own
        return Markdown(text.replace("\n## ", "\n### ").replace("## ", "### ", 1))

    def glossary(self) -> Markdown:
        """Return what the metrics and terms of the pages mean."""
        from histoclip_lib.report.glossary import glossary

        return glossary()

    def files(self) -> HTML:
        """Return the files of the run, each as a link."""
        return tables.files_table(self.run.folder)


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
            f"negatives and {wrong.sum() - missed:,} false positives, most of them for {self.classes[worst]} "
            f"({wrong[:, worst].sum():,}).**"
        )

    @cached_property
    def _by_area(self) -> pd.DataFrame | None:
        from histoclip_lib.evaluation.confusion import recall_by_area

        patches = self.run.patches
        if not patches.has_masks:
            return None
        area = patches.covered_areas(self.run.val)
        return recall_by_area(self.truth, self.ours.decisions, area, self.classes)

    def small_regions(self) -> Markdown:
        """Say how many of the false negatives are small regions, and how many large ones are missed."""
        if self._by_area is None:
            return Markdown("This data set has no masks, so sensitivity by covered area is not available.")
        table = self._by_area[self._by_area["class"] == "all classes"]
        missed, lower = table["present"] - table["found"], table["area"].str.split("%").str[0].astype(int)
        return Markdown(
            f"**{missed[lower < 10].sum():,} of {missed.sum():,} false negatives are regions that cover less than 10 % "
            f"of the patch; of the {table['present'][lower >= 50].sum():,} regions that cover half or more, "
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
        return Table(wide, "Sensitivity by the share of the patch that a class covers, with 95 % Wilson intervals.")

    def rates(self) -> Table:
        """Return sensitivity and specificity of each class at 0.5 with intervals by Wilson."""
        from histoclip_lib.evaluation.confusion import rates_table

        return Table(
            rates_table(self.truth, self.ours.decisions, self.classes),
            f"Sensitivity and specificity on {len(self.truth):,} held-out patches at 0.5, with 95 % Wilson intervals.",
        )

    def threshold_explorer(self) -> Explorer:
        """Return sensitivity, specificity and more of each class at thresholds that can be moved."""
        from histoclip_lib.report.explorers import threshold_explorer

        return threshold_explorer(self.truth, self.ours.scores, self.classes)

    def confusion(self) -> Image:
        """Draw the 2 x 2 confusion matrix of each class."""
        from histoclip_lib.evaluation.confusion import confusion

        counts = confusion(self.truth, self.ours.decisions)
        return as_image(figures.confusion_grid(counts, self.classes, label_of(OURS)))

    def multilabel_confusion(self) -> Image:
        """Draw the multi-label confusion matrix."""
        from histoclip_lib.evaluation.confusion import multilabel_confusion

        counts = multilabel_confusion(self.truth, self.ours.decisions)
        return as_image(figures.multilabel_confusion_map(counts, self.classes, label_of(OURS)))

    def predicted_when_missed(self) -> Image:
        """Draw which absent classes are predicted when one is missed."""
        from histoclip_lib.evaluation.confusion import predicted_when_missed

        return as_image(figures.missed_class_map(*predicted_when_missed(self.truth, self.ours.decisions), self.classes))

    @cached_property
    def _biases(self) -> dict[str, object]:
        from histoclip_lib.evaluation.confusion import co_occurrence_bias

        return {
            label_of(name): co_occurrence_bias(
                self.truth, self.run.predictions[name].decisions, self.units, *self.draws
            )
            for name in (OURS, PROBE)
        }

    def co_occurrence_bias(self) -> Image:
        """Draw how the presence of one class changes the prediction of another."""
        return as_image(figures.co_occurrence_bias_map(self._biases, self.classes))

    def bias_note(self) -> Markdown:
        """Say which of these differences is the largest that is significant."""
        from histoclip_lib.evaluation.confusion import bias_note

        return Markdown("\n\n".join(bias_note(bias, self.classes, name) for name, bias in self._biases.items()))

    def by_group(self) -> Image | Markdown:
        """Draw the error rate of each group."""
        from histoclip_lib.evaluation.confusion import errors_by_group

        groups = self.run.patches.groups
        if groups is None:
            return Markdown("The patients or source images of the patches are not known.")
        return as_image(
            figures.group_error_plot(errors_by_group(self.truth, self.ours.decisions, groups[self.run.val]))
        )

    def by_label_set(self) -> Image:
        """Draw exact match and mAcc by the labels that a patch carries."""
        from histoclip_lib.evaluation.confusion import errors_by_label_set

        return as_image(figures.label_set_bars(errors_by_label_set(self.truth, self.ours.decisions, self.classes)))

    def gallery(self) -> Explorer:
        """Return the patches, those with the most confident errors first."""
        from histoclip_lib.report.explorers import patch_gallery

        run = self.run
        sample = int(run["examples"]), int(run["seed"])
        return patch_gallery(run.patches, run.val, self.ours.scores, *sample, run.folder / "05_errors_files")


@dataclass(frozen=True, eq=False)
class Attention(Chapter):
    """The notebook 06_attention; `maps` (B, N, g, g) come from heads that have not seen the patch."""

    heads: list[CMM]
    reader: FeatureReader
    maps: np.ndarray

    @classmethod
    def of(cls, run: Run) -> Attention:
        """Compute the attention of the patches that are scored, each by the head of its fold."""
        from histoclip_lib.features.reader import FeatureReader
        from histoclip_lib.models.attention import attention_maps, central_part

        heads = [run.head("patch", k) for k in range(len(run.folds))]
        reader = FeatureReader(run.features.tokens, run.compute.device)
        parts = [attention_maps(head, reader, val) for head, (_, val) in zip(heads, run.folds, strict=True)]
        maps = np.concatenate(parts)[run.out_of_folds]
        return cls(run, heads, reader, central_part(maps, run.inner_fraction[run.val]))

    @property
    def probabilities(self) -> np.ndarray:
        """What HistoCLIP with patch tokens says of the held-out patches, shape (B, N)."""
        return self.run.predictions[OURS].scores

    @cached_property
    def chosen(self) -> list[int]:
        """Patches to show, as positions among the held-out ones: typical of the correct ones where there are masks."""
        count = (int(self.run["examples"]) + 1) // 2
        return figures.choose_for_attention(self.truth, self.probabilities, count, self._gain)

    @property
    def _gain(self) -> np.ndarray | None:
        return None if self.scores is None else self.scores.gain()

    def finding(self) -> Markdown:
        """Say in a sentence how well attention agrees with the masks, where there are any."""
        side = self.maps.shape[-1]
        grid = f"Maps have {side} x {side} cells: nothing smaller than {1 / side:.0%} of the patch's side is resolved."
        if self.scores is None:
            return Markdown(f"**This data set has no masks, so attention can be shown but not scored.** {grid}")
        from histoclip_lib.evaluation.localisation import attention_verdict

        first, _, _ = attention_verdict(self.scores, self.units, *self.draws).partition("\n")
        return Markdown(f"**{first}** {grid}")

    def explorer(self) -> Explorer:
        """Return patches with their masks, and the attention and the linear probe's map of any class."""
        from histoclip_lib.models.attention import PROBE as PROBE_MAP
        from histoclip_lib.report.explorers import attention_explorer, choose_to_explore

        run, chosen = self.run, choose_to_explore(self.truth, self.probabilities, gain=self._gain)
        return attention_explorer(run.patches, run.val, self.maps, self.probabilities, chosen, self.compared[PROBE_MAP])

    def overlays(self) -> None:
        """Display all classes side by side for some patches, and write the thumbnail of the run."""
        arguments = (self.run.patches, self.run.val, self.maps, self.probabilities, self.chosen)
        figures.save_thumbnail(self.run.folder / "thumbnail.png", *arguments, self._gain)
        for overlay in figures.attention_figures(*arguments):
            figures.show(overlay)

    @cached_property
    def compared(self) -> dict[str, np.ndarray]:
        """The maps of the trained head, and those that it has to beat."""
        run = self.run
        maps = self._maps_of([val for _, val in run.folds])
        return {name: own[run.out_of_folds] for name, own in maps.items()}

    def _maps_of(self, indices: list[np.ndarray]) -> dict[str, np.ndarray]:
        """Return the maps of some patches for each fold, by its head and probe, one fold after the other."""
        from histoclip_lib.clip.registry import encoder_entry
        from histoclip_lib.models.attention import (
            COARSE,
            SHIFTED,
            TRAINED,
            central_part,
            corrected_tokens,
            maps_to_compare,
            shifted_maps,
        )

        run, parts = self.run, []
        is_clip = encoder_entry(str(run["backbone"]), str(run["pretrained"])).is_clip  # others have no dense similarity
        for head, probe, index in zip(self.heads, run.baselines[PROBE], indices, strict=True):
            corrected = None
            if is_clip:
                corrected = corrected_tokens(run.encoder, run.patches, index, int(run["encode_batch_size"]))
            maps = maps_to_compare(head, probe.directions, self.reader, index, int(run["seed"]), corrected)
            if self.maps.shape[-1] <= COARSE:
                finer = shifted_maps(
                    head, run.encoder, run.patches, index, self.maps.shape[-1], int(run["encode_batch_size"])
                )
                maps = {TRAINED: maps.pop(TRAINED), SHIFTED: finer, **maps}
            parts.append({name: central_part(own, run.inner_fraction[index]) for name, own in maps.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def deletion(self) -> Table:
        """Return how far each class's logit falls without the tokens that a map ranks first."""
        from histoclip_lib.evaluation.localisation import deletion_table
        from histoclip_lib.models.attention import deletion_test

        run, side = self.run, self.maps.shape[-1]
        of_tokens = {name: maps for name, maps in self.compared.items() if maps.shape[-1] == side}
        parts = [
            deletion_test(head, self.reader, val, {name: maps[place] for name, maps in of_tokens.items()})
            for head, (_, val) in zip(self.heads, run.folds, strict=True)
            for place in [np.searchsorted(run.val, val)]
        ]
        falls = {name: np.concatenate([part[name] for part in parts])[run.out_of_folds] for name in parts[0]}
        return Table(
            deletion_table(falls, self.truth, self.classes, self.units, *self.draws),
            "Fall of the logit of a class after removing the tokens that a map ranks highest, minus the fall after "
            "removing as many random ones; patches in which the class is present. Higher is better.",
        )

    def segmentation(self) -> Table | None:
        """Return the maps scored as weakly supervised segmentation, thresholds fitted on training patches."""
        from histoclip_lib.evaluation.segmentation import join_segmentations, segment, segmentation_table

        run, parts = self.run, []
        if self.scores is None:
            return None
        generator = np.random.default_rng(int(run["seed"]))
        for train, val in run.folds:
            train = np.sort(generator.permutation(train)[:FITTING])
            if run.is_cross_validated:  # patches of the other folds, with maps of heads that had not seen them
                fitting = {name: maps[np.searchsorted(run.val, train)] for name, maps in self.compared.items()}
            else:
                fitting = self._maps_of([train])
            place = np.searchsorted(run.val, val)
            maps, decisions = (
                {name: own[place] for name, own in self.compared.items()},
                self.run.predictions[OURS].decisions[place],
            )
            parts.append(segment(fitting, train, maps, val, decisions, run.patches, bool(run["refine_maps"])))
        found = join_segmentations(parts, run.out_of_folds)
        return Table(
            segmentation_table(found, self.classes, self.units, *self.draws),
            f"Maps as segmentation of {len(run.val):,} held-out patches"
            f"{', refined by a guided filter' if run['refine_maps'] else ''}; thresholds fitted on {len(train)} "
            f"training patches{' of each fold' if run.is_cross_validated else ''}. Higher is better.",
        )

    @cached_property
    def scores(self) -> MapScores | None:
        """How the maps agree with the masks; None without masks."""
        from histoclip_lib.evaluation.localisation import score_maps

        return score_maps(self.compared, self.run.patches, self.run.val) if self.run.patches.has_masks else None

    def verdict(self) -> Markdown:
        """Say whether attention agrees with the masks better than each reference."""
        from histoclip_lib.evaluation.localisation import attention_verdict

        if self.scores is None:
            return Markdown("This data set has no masks.")
        return Markdown(attention_verdict(self.scores, self.units, *self.draws))

    def agreement(self) -> Image | None:
        """Draw how maps agree with the masks."""
        return None if self.scores is None else as_image(figures.map_agreement(self.scores, self.classes))

    def agreement_table(self) -> Table | None:
        """Return three measures of each set of maps, and by how much trained attention is above it."""
        from histoclip_lib.evaluation.localisation import agreement_table

        if self.scores is None:
            return None
        caption = f"Agreement with the masks of {len(self.run.val):,} patches, with 95 % intervals; higher is better."
        return Table(agreement_table(self.scores, self.units, *self.draws), caption)

    def agreement_by_class(self) -> Table | None:
        """Return the per-pixel average precision of each set of maps and class."""
        from histoclip_lib.evaluation.localisation import agreement_by_class

        if self.scores is None:
            return None
        table = agreement_by_class(self.scores, self.classes, "ap", self.units, *self.draws)
        return Table(table, "Per-pixel average precision by class, with 95 % intervals; higher is better.")

    def best_and_worst(self) -> None:
        """Display the patches in which attention agrees best and worst with the mask."""
        from histoclip_lib.evaluation.localisation import best_and_worst

        if self.scores is None:
            return
        count = (int(self.run["examples"]) + 1) // 2
        for cases in best_and_worst(self.scores.gain(), count):
            arguments = (self.run.patches, self.run.val, self.compared, self.scores, self.probabilities, cases)
            figures.show(figures.attention_cases(*arguments))
