"""What each notebook of a run shows: one class for each, its methods the last lines of the notebook's cells."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from IPython.display import Markdown

from histoclip_lib.common.predictions import Predictions
from histoclip_lib.evaluation import artifacts, comparisons, uncertainty
from histoclip_lib.evaluation import studies as study_tables
from histoclip_lib.evaluation.methods import label_of, labels, short_label
from histoclip_lib.evaluation.text import number_text
from histoclip_lib.report import figures, tables
from histoclip_lib.report.figures.base import as_image
from histoclip_lib.report.tables import Table
from histoclip_lib.runs.record import update_record
from histoclip_lib.runs.run import Run

if TYPE_CHECKING:
    import pandas as pd
    from IPython.display import HTML, Image

    from histoclip_lib.evaluation.leakage import NearDuplicates
    from histoclip_lib.evaluation.localisation import MapScores
    from histoclip_lib.features.reader import FeatureReader
    from histoclip_lib.models.cmm import CMM
    from histoclip_lib.models.studies import Finished
    from histoclip_lib.report.explorers import Explorer

OURS, PROBE = comparisons.OURS, comparisons.PROBE
COMPARED_BY_SIZE = ("one_vs_rest", "power_set", "majority")  # horizontal lines where training patches are counted
CALIBRATED = (PROBE, OURS)


@dataclass(frozen=True, eq=False)
class Chapter:
    """What a notebook shows of a run."""

    run: Run

    @property
    def truth(self) -> np.ndarray:
        """Labels of the validation patches, shape (B, N)."""
        return self.run.patches.labels[self.run.val]

    @property
    def classes(self) -> list[str]:
        """The N class names."""
        return self.run.patches.classes

    @property
    def draws(self) -> tuple[int, int]:
        """Number of bootstrap samples, and their seed."""
        return int(self.run["resamples"]), int(self.run["seed"])

    @property
    def units(self) -> np.ndarray:
        """What the bootstrap draws: the group of each validation patch, or the patch itself, shape (B,)."""
        return uncertainty.bootstrap_units(self.run.patches, self.run.val)


class Data(Chapter):
    """The notebook 01_data."""

    @classmethod
    def of(cls, run: Run) -> Data:
        """Check every image and write `split.csv`."""
        from histoclip_lib.data.checks import check_images

        train, val = run.parts
        check_images(run.patches)
        artifacts.save_split(run.folder / "split.csv", run.patches, train, val)
        return cls(run)

    def finding(self) -> Markdown:
        """Say in a sentence how much there is of what, and whether groups are in both parts."""
        patches, prevalence = self.run.patches, self.run.patches.prevalence
        most, least = (patches.classes[k] for k in (prevalence.argmax(), prevalence.argmin()))
        sentence = f"{len(patches):,} patches with {len(patches.classes)} classes"
        if patches.groups is not None:
            both = len(np.intersect1d(patches.groups[self.run.train], patches.groups[self.run.val]))
            sentence += f" from {len(np.unique(patches.groups)):,} groups, {both or 'none'} of which in both parts"
        return Markdown(
            f"**{sentence}.** The most common class is {most} ({prevalence.max():.0%} of the patches), the rarest "
            f"{least} ({prevalence.min():.0%})."
        )

    def about(self) -> Markdown:
        """Describe the data set, its licence and its terms."""
        from histoclip_lib.data.registry import DATASETS

        entry = DATASETS[str(self.run["dataset"])]
        return Markdown(f"{entry.about}\n\nLicence: {entry.licence}")

    def parts(self) -> Table:
        """Return the size of both parts, and how many groups are in both."""
        return Table(
            tables.dataset_table(self.run.patches, self.run.train, self.run.val).T,
            "The training and the validation part: patches, labels and groups.",
        )

    def prevalence(self) -> Image:
        """Draw how often each class is present in either part."""
        return as_image(
            figures.prevalence_bars(self.run.patches.labels, self.run.train, self.run.val, self.run.patches.classes)
        )

    def co_occurrence(self) -> Image:
        """Draw which classes occur together."""
        return as_image(figures.co_occurrence_map(self.run.patches.labels, self.run.patches.classes))

    def explorer(self) -> Explorer:
        """Return the patches to look at, with labels and masks."""
        from histoclip_lib.report.explorers import patch_browser

        return patch_browser(self.run.patches, self.run.train, int(self.run["examples"]), int(self.run["seed"]))


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
        methods = score_zero_shot(pooled, run.text_encoder, run.vocabulary, cls.context_of(run))
        artifacts.save_predictions(run.folder / "zero_shot.parquet", methods, run.patches, index)
        return cls(run, methods, pooled)

    @staticmethod
    def context_of(run: Run) -> object:
        """Return what strategies may use besides images and words."""
        from histoclip_lib.prompting.strategies import StrategyContext

        rule, temperature = str(run["baseline_rule"]), run.text_encoder.temperature
        return StrategyContext(run.train_prevalence, rule, temperature)

    def finding(self) -> Markdown:
        """Say in a sentence how the best strategy compares with the majority."""
        from histoclip_lib.models.baselines import uninformative

        def accuracy(predictions: Predictions) -> float:
            return float((self.truth == predictions.decisions).mean())

        majority = uninformative(self.run.patches.labels[self.run.train], len(self.run.val))["majority"]
        taken = {
            name: Predictions(own.scores[self.run.val], own.decisions[self.run.val])
            for name, own in self.methods.items()
        }
        best = max(taken, key=lambda name: accuracy(taken[name]))
        stands = "above" if accuracy(taken[best]) > accuracy(majority) else "not above"
        return Markdown(
            f"**The best strategy, {short_label(best)}, reaches an mAcc of {accuracy(taken[best]):.3f} on the "
            f"validation part, {stands} the {accuracy(majority):.3f} of predicting each class's majority.**"
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
        """Return mAcc and predicted prevalence of each strategy."""
        return Table(
            tables.whole_set_table(self.methods, self.run.patches, self.run.val),
            "mAcc of each strategy on the validation part and on all patches, and how often it predicts each class.",
        )

    def both_prompts(self) -> Table:
        """Return mAcc and mAP of each strategy with the paper's prompts and with those of the encoder."""
        from histoclip_lib.prompting.sensitivity import prompts_table
        from histoclip_lib.prompting.strategies import score_zero_shot

        run = self.run
        words = {name: run.words(name) for name in (run.prompts, run.other_prompts)}
        scored = {
            f"{name} ({own.photo_of})": score_zero_shot(
                self.pooled[run.val], run.text_encoder, own, self.context_of(run)
            )
            for name, own in words.items()
        }
        caption = "Each strategy on the validation part with the prompts of this run, and with another set of prompts."
        return Table(prompts_table(scored, self.truth), caption)

    def baseline_note(self) -> Markdown:
        """Say what the Baseline's decision amounts to."""
        from histoclip_lib.prompting.strategies import baseline_note

        rule = str(self.run["baseline_rule"])
        return Markdown(baseline_note(self.methods["baseline"], self.run.patches.labels, rule))

    def score_distributions(self) -> Image:
        """Draw the scores of patches with and without each class."""
        named = {short_label(name): own for name, own in self.methods.items()}
        return as_image(figures.score_distributions(named, self.run.patches.labels, self.classes))

    @cached_property
    def variants(self) -> object:
        """What each strategy scores with other words, on the validation part."""
        from histoclip_lib.prompting.sensitivity import score_variants

        run = self.run
        variants = score_variants(
            self.pooled[run.val], run.text_encoder, run.vocabulary, self.truth, self.context_of(run),
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

        return Table(extremes_table(self.variants), "The words with the lowest and the highest mAP of each strategy.")

    def explorer(self) -> Explorer:
        """Return a patch and its cosines with the classes' words, which JupyterLab lets change."""
        from histoclip_lib.report.explorers import prompt_explorer

        run = self.run
        return prompt_explorer(
            run.text_encoder, run.vocabulary, run.features, run.patches, run.val, self.context_of(run)
        )


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
    """The notebook 03_train; `methods` are predictions for the validation part."""

    heads: dict[str, CMM]
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
        from histoclip_lib.models.baselines import uninformative
        from histoclip_lib.models.training import predict, train_heads

        heads, history = train_heads(
            run.class_matrix, run.head_options, run.features, run.patches, run.train, run.val, cls.options_of(run),
            run.compute, run.folder,
        )  # fmt: skip
        artifacts.save_history(run.folder / "history.csv", history)
        methods = uninformative(run.patches.labels[run.train], len(run.val))
        methods |= _zero_shot_of(run)
        methods[PROBE] = run.baselines[PROBE].predict(run.features, run.val)
        for kind, head in heads.items():
            methods[f"histoclip_{kind}"] = predict(head, run.features, kind, run.val, run.compute.device)
        scored = artifacts.evaluate_methods(methods, run.patches, run.val, int(run["resamples"]), int(run["seed"]))
        return cls(run, heads, history, methods, scored)

    def finding(self) -> Markdown:
        """Say in a sentence where the head on patch tokens ended, beside the probe and the majority."""
        ours, probe, majority = (number_text(self.scored[name]["mAcc"]) for name in (OURS, PROBE, "majority"))
        return Markdown(
            f"**After {self.run['epochs']} epochs the head on patch tokens reaches an mAcc of {ours} on the validation "
            f"part; the linear probe reaches {probe}, the majority {majority}.**"
        )

    def features_note(self) -> Markdown:
        """Say how large the features are and what their views cost."""
        without = (
            "With `tokens: none` both heads attend to the global embedding alone, and no region can be attended to."
        )
        notes = [self.run.features.about(), without * (self.run["tokens"] == "none"), self.run.queries_note()]
        return Markdown("\n\n".join(filter(None, notes)))

    def curves(self) -> Image:
        """Draw loss and validation mAcc of both heads."""
        levels = {label_of(name): self.scored[name]["mAcc"] for name in ("majority", PROBE)}
        return as_image(figures.training_curves(self.history, levels))

    def last_and_best(self) -> Table:
        """Return the validation mAcc at the last and, as an oracle, at the best epoch."""
        caption = "Validation mAcc at the last epoch, which is reported, and at the best one, an oracle."
        return Table(tables.last_and_best(self.history), caption)

    def head_study(self) -> Table:
        """Return the fixed table by which the head's defaults were chosen."""
        caption = "Fixed: how the defaults of the head were chosen, by cross-validation inside training parts."
        return Table(study_tables.head_study(), caption)

    @cached_property
    def finished(self) -> list[Finished]:
        """The studies, fitted now or taken over from `studies.parquet`."""
        from histoclip_lib.models.studies import plan_studies, run_studies

        run, options = self.run, self.options_of(self.run)
        plan = plan_studies(
            run.patches, run["split"], run.train, run.val, options, run.head_options, run["val_fraction"],
            run["seeds"], run["draws"], run["studies"],
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
    def _designs(self) -> tuple[dict[str, dict], pd.DataFrame]:
        return study_tables.design_metrics(self.finished, self.methods, self.run.patches, self.run.val, *self.draws)

    def design_plot(self) -> Image:
        """Draw mAcc and mAP of the head with one choice made differently."""
        scored, _ = self._designs
        return as_image(figures.forest_plot(scored, {name: name for name in scored}))

    def design_table(self) -> Table:
        """Return mAcc and mAP of each design, and the change against the head as reported."""
        return Table(self._designs[1], "The head as reported, and with one choice made differently.")

    def label_efficiency(self) -> Image | Markdown:
        """Draw mAcc and mAP against the number of training patches."""
        if not (sizes := study_tables.of_purpose(self.finished, "size")):
            return Markdown("Not fitted: `studies` is off.")
        run = self.run
        frame = study_tables.size_frame(sizes, self.methods, len(run.train), run.patches, run.val)
        levels = {name: self.scored[name] for name in COMPARED_BY_SIZE if name in self.scored}
        return as_image(figures.label_efficiency(frame, levels, labels()))

    def seeds(self) -> Table | Markdown:
        """Return how mAcc and mAP vary with the seed of the training."""
        run = self.run
        found = study_tables.seed_metrics(self.finished, self.methods, run.patches, run.val, int(run["seed"]))
        if not found:
            return Markdown("Not fitted: `studies` is off, or `seeds` holds no other seed.")
        return Table(tables.seeds_table(found), "mAcc and mAP over the seeds of the training, on the same split.")


@dataclass(frozen=True, eq=False)
class Results(Chapter):
    """The notebook 04_results; `methods` are predictions for the validation part, `scored` their metrics."""

    methods: dict[str, Predictions]
    scored: dict[str, dict]
    finished: list[Finished]

    @classmethod
    def of(cls, run: Run) -> Results:
        """Score every method, and write `predictions.parquet` and `metrics.json`."""
        from histoclip_lib.models.baselines import tissue_prior_method, uninformative
        from histoclip_lib.models.studies import load_studies
        from histoclip_lib.models.training import predict

        patches, train, val = run.patches, run.train, run.val
        methods = uninformative(patches.labels[train], len(val)) | tissue_prior_method(patches, train, val)
        methods |= _zero_shot_of(run)
        methods |= {name: fitted.predict(run.features, val) for name, fitted in run.baselines.items()}
        finished = load_studies(run.folder / "studies.parquet", patches)
        methods |= study_tables.methods_of(finished)
        for kind in ("global", "patch"):
            methods[f"histoclip_{kind}"] = predict(run.head(kind), run.features, kind, val, run.compute.device)
        artifacts.save_predictions(run.folder / "predictions.parquet", methods, patches, val)
        scored = artifacts.evaluate_methods(methods, patches, val, int(run["resamples"]), int(run["seed"]))
        about = {name: run[name] for name in ("dataset", "backbone", "pretrained", "split", "seed")}
        artifacts.write_metrics(
            run.folder / "metrics.json", patches, scored, name=run.name, **about, n_train=len(train), n_val=len(val)
        )
        return cls(run, methods, scored, finished)

    def finding(self) -> Markdown:
        """Say in one sentence how HistoCLIP compares with the linear probe and with zero-shot."""
        return Markdown(f"**{self._sentence}**")

    @cached_property
    def _sentence(self) -> str:
        metrics = artifacts.read_metrics(self.run.folder / "metrics.json")
        predictions = artifacts.read_predictions(self.run.folder / "predictions.parquet")
        return comparisons.finding_sentence(metrics, predictions)

    def forest_plot(self) -> Image:
        """Draw mAcc and mAP of every method with their intervals."""
        return as_image(figures.forest_plot(self.scored, labels()))

    def table(self) -> Table:
        """Return the table of all methods."""
        caption = f"All methods on the {len(self.run.val)} validation patches, with 95 % intervals."
        return Table(tables.methods_table(self.scored, str(self.run["dataset"])), caption)

    def interval_note(self) -> Markdown:
        """Say what the intervals resample, and how baselines were tuned."""
        notes = [uncertainty.interval_note(self.run.patches, self.run.val)]
        notes = " ".join([*notes, *(fitted.about() for fitted in self.run.baselines.values())])
        return Markdown("\n\n".join(filter(None, [notes, self.run.queries_note(), self.run.field_note()])))

    def compare(self, method: str) -> uncertainty.Comparison:
        """Compare HistoCLIP with patch keys with another method, in mAcc and in mAP.

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
        """Return HistoCLIP with patch keys minus every other method, with corrected p."""
        caption = "HistoCLIP with patch keys minus each other method; p by Holm's method over the lines."
        return Table(comparisons.differences_table(self._against), caption)

    def correction_note(self) -> Markdown:
        """Say which differences remain significant after correction."""
        return Markdown(comparisons.correction_note(self._against, self.units))

    def all_pairs(self) -> Image:
        """Draw the difference in mAcc of every pair of methods."""
        seed = int(self.run["seed"])
        found = comparisons.all_pairs(self.methods, self.run.patches, self.run.val, seed)
        return as_image(figures.comparison_map(*found))

    def beside_the_paper(self) -> Table | Markdown:
        """Return our mAcc beside the paper's, where the paper has the data set."""
        table = tables.paper_table(self.scored, str(self.run["dataset"]))
        if table is None:
            return Markdown("The paper reports no numbers for this data set.")
        return Table(table, "mAcc here and in the paper, and what is known of the difference.")

    def paper_note(self) -> Markdown:
        """Say why no number need agree with the paper's."""
        about = (str(self.run[name]) for name in ("dataset", "backbone", "pretrained", "split"))
        return Markdown(tables.paper_note(*about))

    def per_class(self, metric: str) -> Image:
        """Draw a metric (`accuracy` or `ap`) of every method and class."""
        label = {"ap": "average precision"}.get(metric, metric)
        return as_image(figures.per_class_map(tables.per_class_table(self.scored, metric), label))

    @cached_property
    def fits(self) -> dict[str, object]:
        """Temperature and thresholds of the linear probe and of the head, fitted on out-of-fold predictions."""
        from histoclip_lib.evaluation.calibration import fit_calibration

        train = self.run.train
        out_of_fold = {
            PROBE: self.run.baselines[PROBE].out_of_fold,
            OURS: study_tables.out_of_fold(self.finished, len(self.run.patches), train),
        }
        labels_ = self.run.patches.labels[train]
        return {name: fit_calibration(labels_, found) for name, found in out_of_fold.items() if found is not None}

    def thresholds(self) -> Table:
        """Return mAcc, macro F1 and exact match at 0.5 and at fitted thresholds."""
        from histoclip_lib.evaluation.calibration import threshold_table

        table = threshold_table(self.truth, self.methods, self.fits, self.classes)
        return Table(table, "Decisions at 0.5, and at thresholds fitted on the training part.")

    def threshold_explorer(self) -> Explorer:
        """Return accuracy and F1 of the head at every threshold, which can be moved."""
        from histoclip_lib.report.explorers import threshold_explorer

        return threshold_explorer(self.truth, self.methods[OURS].scores, self.classes)

    def reliability(self) -> Image:
        """Draw how often each class is present at each predicted probability."""
        return as_image(figures.reliability_diagrams(self.truth, self.methods, self.fits, self.classes, labels()))

    def calibration(self) -> Table:
        """Return cross-entropy, Brier score and calibration error before and after temperature scaling."""
        from histoclip_lib.evaluation.calibration import calibration_table

        table = calibration_table(self.truth, self.methods, self.fits, self.classes)
        return Table(table, "Calibration before and after temperature scaling.")

    def temperature_note(self) -> Markdown:
        """Say which temperatures were fitted."""
        from histoclip_lib.evaluation.calibration import temperature_note

        return Markdown(temperature_note(self.fits))

    def precision_recall(self) -> Image:
        """Draw precision against recall of each class."""
        best = comparisons.best_zero_shot(artifacts.read_metrics(self.run.folder / "metrics.json"))
        shown = {
            name: self.methods[name] for name in dict.fromkeys(["baseline", best, *CALIBRATED]) if name in self.methods
        }
        return as_image(figures.precision_recall_curves(self.truth, shown, self.fits, self.classes, labels()))

    @cached_property
    def duplicates(self) -> NearDuplicates:
        """The nearest training patch of each validation patch, and how alike the two are."""
        from histoclip_lib.evaluation.leakage import find_near_duplicates

        run = self.run
        return find_near_duplicates(run.features.pooled, run.patches, run.train, run.val, int(run["seed"]))

    def leakage_note(self) -> Markdown:
        """Say how many validation patches have a near-duplicate in the training part."""
        from histoclip_lib.evaluation.leakage import near_duplicate_note

        return Markdown(near_duplicate_note(self.run.patches, self.duplicates))

    def leakage_histogram(self) -> Image:
        """Draw how alike nearest patches are."""
        return as_image(figures.similarity_histogram(self.duplicates))

    def leakage_table(self) -> Table:
        """Return the pairs of patches that are most alike."""
        from histoclip_lib.evaluation.leakage import near_duplicate_table

        table = near_duplicate_table(self.run.patches, self.duplicates, int(self.run["examples"]))
        return Table(table, "The validation patches that are most like a training patch.")

    def leakage_pairs(self) -> Image:
        """Draw the pairs of patches that are most alike."""
        count = min(int(self.run["examples"]), 4)
        return as_image(figures.near_duplicate_pairs(self.run.patches, self.duplicates, count))

    @cached_property
    def _split_gaps(self) -> list | None:
        from histoclip_lib.evaluation.leakage import split_gaps

        run = self.run
        splits = study_tables.two_splits(self.finished, self.methods, run.patches, str(run["split"]), run.val)
        return None if splits is None else split_gaps(*splits, *self.draws)

    def split_table(self) -> Table | Markdown:
        """Return the same models under a split by patch and under one by group."""
        from histoclip_lib.evaluation.leakage import split_gap_table

        if self._split_gaps is None:
            return Markdown("This data set cannot be split both by patch and by group, or `studies` is off.")
        return Table(split_gap_table(self._split_gaps), "The same models under a random and under a grouped split.")

    def split_note(self) -> Markdown:
        """Say whether a random split inflates the scores."""
        from histoclip_lib.evaluation.leakage import split_gap_note

        return Markdown("" if self._split_gaps is None else split_gap_note(self._split_gaps))

    def model_card(self) -> Markdown:
        """Write `model_card.md`, and return it under headings of the third level."""
        from histoclip_lib.report.model_card import write_model_card

        run, options = self.run, asdict(Training.options_of(self.run))
        options.pop("seed")
        about = {name: run[name] for name in ("dataset", "backbone", "pretrained", "split", "seed", "views")}
        card = write_model_card(
            run.folder / "model_card.md", self.scored, run.patches, run.train, run.val, name=run.name, **about,
            training={**run.head_options, **options}, findings=self._sentence,
        )  # fmt: skip
        _, _, text = card.partition("\n\n")  # the page has a heading of its own
        return Markdown(text.replace("\n## ", "\n### ").replace("## ", "### ", 1))

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
        """What HistoCLIP with patch keys says of the validation patches."""
        return self.run.predictions[OURS]

    def finding(self) -> Markdown:
        """Say in a sentence how many decisions are wrong, and of which class most."""
        truth, decisions = self.truth.astype(bool), self.ours.decisions
        wrong, missed = truth != decisions, (truth & ~decisions).sum()
        worst = int(wrong.sum(axis=0).argmax())
        return Markdown(
            f"**HistoCLIP with patch keys gets {wrong.sum():,} of {wrong.size:,} labels wrong: {missed:,} false "
            f"negatives and {wrong.sum() - missed:,} false positives, most of them for {self.classes[worst]} "
            f"({wrong[:, worst].sum():,}).**"
        )

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
            return Markdown("Groups (patients or source images) are not known.")
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
        return patch_gallery(run.patches, run.val, self.ours.scores, int(run["examples"]), int(run["seed"]))


@dataclass(frozen=True, eq=False)
class Attention(Chapter):
    """The notebook 06_attention; `maps` (B, N, g, g) are those of the validation patches."""

    head: CMM
    reader: FeatureReader
    maps: np.ndarray

    @classmethod
    def of(cls, run: Run) -> Attention:
        """Compute the attention of the validation patches."""
        from histoclip_lib.features.reader import FeatureReader
        from histoclip_lib.models.attention import attention_maps, central_part

        head = run.head("patch")
        reader = FeatureReader(run.features.tokens, run.compute.device)
        maps = attention_maps(head, reader, run.val)
        return cls(run, head, reader, central_part(maps, run.inner_fraction[run.val]))

    @property
    def probabilities(self) -> np.ndarray:
        """What HistoCLIP with patch keys says of the validation patches, shape (B, N)."""
        return self.run.predictions[OURS].scores

    @cached_property
    def chosen(self) -> list[int]:
        """Patches in which every class is found, as positions among the validation patches."""
        count = (int(self.run["examples"]) + 1) // 2
        return figures.choose_for_attention(self.truth, self.probabilities, count)

    def finding(self) -> Markdown:
        """Say in a sentence how well attention agrees with the masks, where there are any."""
        side = self.maps.shape[-1]
        if self.scores is None:
            return Markdown(
                f"**This data set has no masks: attention can be looked at, and not scored.** Maps are {side} x {side}."
            )
        from histoclip_lib.evaluation.localisation import attention_verdict

        first, _, _ = attention_verdict(self.scores, self.units, *self.draws).partition("\n")
        return Markdown(f"**{first}** Maps have {side} x {side} cells.")

    def explorer(self) -> Explorer:
        """Return patches with their masks and the attention of any class."""
        from histoclip_lib.report.explorers import attention_explorer

        return attention_explorer(self.run.patches, self.run.val, self.maps, self.probabilities)

    def overlays(self) -> None:
        """Display all classes side by side for some patches, and write the thumbnail of the run."""
        arguments = (self.run.patches, self.run.val, self.maps, self.probabilities, self.chosen)
        figures.save_thumbnail(self.run.folder / "thumbnail.png", *arguments)
        for overlay in figures.attention_figures(*arguments):
            figures.show(overlay)

    @cached_property
    def compared(self) -> dict[str, np.ndarray]:
        """The maps of the trained head, and those that it has to beat."""
        from histoclip_lib.models.attention import central_part, maps_to_compare

        fraction = self.run.inner_fraction[self.run.val]
        maps = maps_to_compare(self.head, self.reader, self.run.val, int(self.run["seed"]))
        return {name: central_part(own, fraction) for name, own in maps.items()}

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
        return Table(agreement_table(self.scores, self.units, *self.draws), "Agreement of maps with the masks.")

    def agreement_by_class(self) -> Table | None:
        """Return the per-pixel average precision of each set of maps and class."""
        from histoclip_lib.evaluation.localisation import agreement_by_class

        if self.scores is None:
            return None
        return Table(agreement_by_class(self.scores, self.classes, "ap"), "Per-pixel average precision by class.")

    def best_and_worst(self) -> None:
        """Display the patches in which attention agrees best and worst with the mask."""
        from histoclip_lib.evaluation.localisation import best_and_worst

        if self.scores is None:
            return
        count = (int(self.run["examples"]) + 1) // 2
        for cases in best_and_worst(self.scores.gain(), count):
            arguments = (self.run.patches, self.run.val, self.compared, self.scores, self.probabilities, cases)
            figures.show(figures.attention_cases(*arguments))
