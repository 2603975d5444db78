"""What the notebook 04_results shows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
from IPython.display import HTML, Image, Markdown

from histoclip_lib.common.predictions import Predictions
from histoclip_lib.data.splits import grouped_folds
from histoclip_lib.evaluation import (
    artifacts,
    calibration,
    comparisons,
    leakage,
    risk_control,
    subgroups,
    uncertainty,
)
from histoclip_lib.evaluation import studies as study_tables
from histoclip_lib.evaluation.methods import labels, ours_first
from histoclip_lib.models.baselines import ensemble
from histoclip_lib.models.bundle import ModelConfig, fit_ood, save_model
from histoclip_lib.models.studies import FOLDS, Finished, load_studies
from histoclip_lib.models.training import KINDS
from histoclip_lib.report import explorers, figures, tables
from histoclip_lib.report.figures.base import as_image
from histoclip_lib.report.glossary import glossary
from histoclip_lib.report.model_card import card_metadata, model_card
from histoclip_lib.report.tables import Table
from histoclip_lib.runs.chapters.base import OURS, PROBE, Chapter, training_options, zero_shot_of
from histoclip_lib.runs.run import Run

CALIBRATED, ENSEMBLE = (PROBE, OURS), "histoclip_ensemble"


@dataclass(frozen=True, eq=False)
class Results(Chapter):
    """The notebook 04_results; `methods` are predictions for the validation set, `scored` their metrics."""

    methods: dict[str, Predictions]
    scored: dict[str, dict]
    finished: list[Finished]

    @classmethod
    def of(cls, run: Run) -> Results:
        """Score every method, and write `predictions.parquet` and `metrics.json`."""
        patches, val = run.patches, run.val
        methods = dict(run.without_images)
        methods |= zero_shot_of(run)
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
        caption = f"All methods, scored {self.on_which}, with 95% intervals; bold: the best of each column."
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
            HistoCLIP minus the other: value, 95% interval and p of the permutation test, not corrected.
        """
        return uncertainty.compare(self.truth, self.methods[OURS], self.methods[method], self.units, *self.draws)

    @cached_property
    def _against(self) -> dict[str, uncertainty.Comparison]:
        return comparisons.against_every_method(self.methods, self.run.patches, self.run.val, *self.draws)

    def differences(self) -> Table:
        """Return HistoCLIP with patch tokens minus every other method, with corrected p."""
        caption = (
            f"HistoCLIP with patch tokens minus each other method on {len(self.truth):,} held-out patches, with 95% "
            "intervals; positive values favour HistoCLIP. p is corrected by Holm's method for these comparisons. "
            "Intervals are not corrected, so one may exclude 0 although p is not below 0.05."
        )
        return Table(comparisons.differences_table(self._against), caption)

    def correction_note(self) -> Markdown:
        """Say which differences remain significant after correction."""
        return Markdown(comparisons.correction_note(self._against, self.units, self.draws[0]))

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
        if not self._subgroups:
            return Markdown("This data set has neither tissue types nor metadata (`meta_` columns).")
        table = subgroups.subgroup_table(
            self.truth, self.methods[OURS], self.classes, self._subgroups, self.units, *self.draws
        )
        caption = (
            f"HistoCLIP with patch tokens by subgroup of {len(self.truth):,} held-out patches, with 95% intervals "
            f"where there are {uncertainty.MIN_GROUPS} groups or more."
        )
        return Table(table, caption)

    def subgroup_note(self) -> Markdown:
        """Say whether the largest difference between two subgroups is more than chance."""
        decisions, seed = self.methods[OURS].decisions, int(self.run["seed"])
        return Markdown(
            subgroups.gap_note(
                {
                    name: subgroups.largest_gap(self.truth, decisions, values, self.units, seed)
                    for name, values in self._subgroups.items()
                }
            )
        )

    @cached_property
    def fits(self) -> dict[str, object]:
        """Temperature, Platt scaling and thresholds of probe, head and their mean, fitted in each training set."""
        found = {}
        for name, parts in self.inside.items():
            fits = [calibration.fit_calibration(self.run.patches.labels[index], own) for index, own in parts]
            found[name] = fits[0] if len(fits) == 1 else calibration.FoldCalibrations(fits, self.run.fold_of)
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
        table = calibration.threshold_table(self.truth, self.methods, self.fits, self.classes)
        mean = " (means over the folds)" * self.run.is_cross_validated
        caption = (
            f"Scores on {len(self.truth):,} held-out patches at 0.5 and at thresholds fitted on training patches{mean}."
        )
        return Table(table, caption)

    def threshold_explorer(self) -> explorers.Explorer:
        """Return accuracy and F1 of the head at every threshold, which can be moved."""
        return explorers.threshold_explorer(self.truth, self.methods[OURS].scores, self.classes)

    def reliability(self) -> Image:
        """Draw how often each class is present at each predicted probability."""
        return as_image(figures.reliability_diagrams(self.truth, self.methods, self.fits, self.classes, labels()))

    def calibration(self) -> Table:
        """Return cross-entropy, Brier score and calibration error before and after temperature and Platt scaling."""
        table = calibration.calibration_table(self.truth, self.methods, self.fits, self.classes)
        caption = f"Calibration on {len(self.truth):,} held-out patches before and after scaling; lower is better. "
        caption += (
            "ECE is the expected calibration error, the mean distance between predicted probability and observed "
            "frequency; by chance: what perfectly calibrated probabilities would show on as many patches."
        )
        return Table(table, caption)

    def ensemble_note(self) -> Markdown:
        """Say whether the mean of head and probe has the lower cross-entropy."""
        return Markdown(calibration.ensemble_note(self.truth, self.methods, self.units, *self.draws))

    def temperature_note(self) -> Markdown:
        """Say which temperatures were fitted."""
        return Markdown(calibration.temperature_note(self.fits))

    def missed_labels(self) -> Table:
        """Return thresholds that limit the false-negative rate, and what they cost."""
        run, alpha = self.run, float(self.run["missed_share"])
        if run.is_cross_validated:
            index, out_of_fold = run.val, {name: self.methods[name].scores for name in CALIBRATED}
        else:
            out_of_fold = {name: self.inside[name][0][1] for name in CALIBRATED if name in self.inside}
            index = np.sort(run.train)
        fitted_on = run.patches.labels[index], uncertainty.bootstrap_units(run.patches, index)
        table = risk_control.risk_table(
            fitted_on, out_of_fold, self.truth, self.methods, self.classes, self.samples, alpha, int(run["seed"])
        )
        caption = (
            f"Thresholds that limit the mean false-negative rate (FNR) of each class to {100 * alpha:g}%, and their "
            f"false-positive rate (FPR), with 95% intervals on {len(self.truth):,} held-out patches. A low FNR "
            "costs FPR. Rates are means over the groups that have patches to count, so they differ from the pooled "
            "rates of 05 Errors."
        )
        if run.is_cross_validated:
            caption += (
                " The thresholds were fitted on these same predictions; only the last column is measured on groups "
                "on which they were not fitted."
            )
        return Table(table, caption)

    def missed_note(self) -> Markdown:
        """Say what these thresholds guarantee."""
        run = self.run
        units = uncertainty.bootstrap_units(run.patches, run.train)
        return Markdown(risk_control.risk_note(float(run["missed_share"]), len(np.unique(units))))

    def precision_recall(self) -> Image:
        """Draw precision against recall of each class."""
        best = comparisons.best_zero_shot(artifacts.read_metrics(self.run.folder / "metrics.json"))
        shown = {
            name: self.methods[name] for name in dict.fromkeys(["baseline", best, *CALIBRATED]) if name in self.methods
        }
        return as_image(figures.precision_recall_curves(self.truth, shown, self.fits, self.classes, labels()))

    @cached_property
    def duplicates(self) -> leakage.NearDuplicates:
        """The nearest training patch of each patch that is scored, and how alike the two are."""
        run = self.run
        return leakage.find_near_duplicates(run.features.pooled, run.patches, run.folds, int(run["seed"]))

    def leakage_note(self) -> Markdown:
        """Say how many held-out patches have a near-duplicate in the training set."""
        return Markdown(leakage.near_duplicate_note(self.run.patches, self.duplicates))

    def leakage_histogram(self) -> Image:
        """Draw how alike nearest patches are."""
        return as_image(figures.similarity_histogram(self.duplicates))

    def leakage_table(self) -> Table:
        """Return the pairs of patches that are most alike."""
        table = leakage.near_duplicate_table(self.run.patches, self.duplicates, int(self.run["examples"]))
        return Table(table, f"The {len(table)} held-out patches that are most similar to a training patch.")

    def leakage_pairs(self) -> Image:
        """Draw the pairs of patches that are most alike."""
        count = min(int(self.run["examples"]), 4)
        return as_image(figures.near_duplicate_pairs(self.run.patches, self.duplicates, count))

    @cached_property
    def _split_gaps(self) -> list | None:
        run = self.run
        resamples, seed, folds = self.draws
        arguments = (self.finished, self.methods, run.patches, str(run["split"]), run.val, folds)
        splits = study_tables.two_splits(*arguments)
        return None if splits is None else leakage.split_gaps(*splits, resamples, seed)

    def split_table(self) -> Table | Markdown:
        """Return the same models under a split by patch and under one by group."""
        if self._split_gaps is None:
            return Markdown("Not available: the data cannot be split both by patch and by group, or `studies` is off.")
        caption = (
            f"The same models with the split of this run ({len(self.truth):,} held-out patches) and with one split of "
            "the other type. Higher scores with the random split point to leakage. Intervals use other bootstrap "
            "samples than the table of all methods."
        )
        return Table(leakage.split_gap_table(self._split_gaps), caption)

    def split_note(self) -> Markdown:
        """Say whether a random split inflates the scores."""
        return Markdown("" if self._split_gaps is None else leakage.split_gap_note(self._split_gaps))

    def save_model(self) -> Markdown:
        """Write the folder `model`, and return its card under headings of the third level."""
        run, options, fit = self.run, asdict(training_options(self.run)), self.fits.get(OURS)
        if run.is_cross_validated:  # the final head is fitted on all patches, of which these are the predictions
            fit = calibration.fit_calibration(self.truth, self.methods[OURS].scores)
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
            patch_px=run.patch_side, mpp=run.patches.mpp,
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
        return glossary()

    def files(self) -> HTML:
        """Return the files of the run, each as a link."""
        return tables.files_table(self.run.folder)
