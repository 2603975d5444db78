"""What the notebook 06_attention shows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from IPython.display import Image, Markdown

from histoclip_lib.evaluation import localisation
from histoclip_lib.evaluation.segmentation import join_segmentations, segment, segmentation_table
from histoclip_lib.features.reader import FeatureReader
from histoclip_lib.models import attention
from histoclip_lib.models.cmm import CMM
from histoclip_lib.report import explorers, figures
from histoclip_lib.report.figures.base import as_image
from histoclip_lib.report.tables import Table
from histoclip_lib.runs.chapters.base import OURS, PROBE, Chapter
from histoclip_lib.runs.run import Run

FITTING = 200  # training patches on which the thresholds of segmentations are fitted


@dataclass(frozen=True, eq=False)
class Attention(Chapter):
    """The notebook 06_attention; `maps` (B, N, g, g) come from heads that have not seen the patch."""

    heads: list[CMM]
    reader: FeatureReader
    maps: np.ndarray

    @classmethod
    def of(cls, run: Run) -> Attention:
        """Compute the attention of the patches that are scored, each by the head of its fold."""
        heads = [run.head("patch", k) for k in range(len(run.folds))]
        reader = FeatureReader(run.features.tokens, run.compute.device)
        parts = [attention.attention_maps(head, reader, val) for head, (_, val) in zip(heads, run.folds, strict=True)]
        maps = np.concatenate(parts)[run.out_of_folds]
        return cls(run, heads, reader, attention.central_part(maps, run.inner_fraction[run.val]))

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
        first, _, _ = localisation.attention_verdict(self.scores, self.samples).partition("\n")
        return Markdown(f"**{first}** {grid}")

    def explorer(self) -> explorers.Explorer:
        """Return patches with their masks, and the attention and the linear probe's map of any class."""
        run, chosen = self.run, explorers.choose_to_explore(self.truth, self.probabilities, gain=self._gain)
        return explorers.attention_explorer(
            run.patches, run.val, self.maps, self.probabilities, chosen, self.compared[attention.PROBE]
        )

    def overlays(self) -> None:
        """Display all classes side by side for some patches, and write the thumbnail of the run."""
        run, path = self.run, self.run.folder / "thumbnail.png"
        figures.save_thumbnail(path, run.patches, run.val, self.maps, self.probabilities, self.chosen, self._gain)
        for k in self.chosen:
            figures.show(figures.attention_overlay(run.patches, run.val[k], self.maps[k], self.probabilities[k]))

    @cached_property
    def compared(self) -> dict[str, np.ndarray]:
        """The maps of the trained head, and those that it has to beat."""
        run = self.run
        maps = self._maps_of([val for _, val in run.folds])
        return {name: own[run.out_of_folds] for name, own in maps.items()}

    def _maps_of(self, indices: list[np.ndarray]) -> dict[str, np.ndarray]:
        """Return the maps of some patches for each fold, by its head and probe, one fold after the other."""
        run, parts = self.run, []
        is_clip = run.encoder_entry.is_clip  # others have no dense similarity
        for head, probe, index in zip(self.heads, run.baselines[PROBE], indices, strict=True):
            corrected = None
            if is_clip:
                corrected = attention.corrected_tokens(run.encoder, run.patches, index, int(run["encode_batch_size"]))
            maps = attention.maps_to_compare(head, probe.directions, self.reader, index, int(run["seed"]), corrected)
            if self.maps.shape[-1] <= attention.COARSE:
                finer = attention.shifted_maps(
                    head, run.encoder, run.patches, index, self.maps.shape[-1], int(run["encode_batch_size"])
                )
                maps = {attention.TRAINED: maps.pop(attention.TRAINED), attention.SHIFTED: finer, **maps}
            parts.append({name: attention.central_part(own, run.inner_fraction[index]) for name, own in maps.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def deletion(self) -> Table:
        """Return how far each class's logit falls without the tokens that a map ranks first."""
        run, side = self.run, self.maps.shape[-1]
        of_tokens = {name: maps for name, maps in self.compared.items() if maps.shape[-1] == side}
        parts = [
            attention.deletion_test(head, self.reader, val, {name: maps[place] for name, maps in of_tokens.items()})
            for head, (_, val) in zip(self.heads, run.folds, strict=True)
            for place in [np.searchsorted(run.val, val)]
        ]
        falls = {name: np.concatenate([part[name] for part in parts])[run.out_of_folds] for name in parts[0]}
        return Table(
            localisation.deletion_table(falls, self.truth, self.classes, self.samples),
            "Fall of the logit of a class after removing the tokens that a map ranks highest, minus the fall after "
            "removing as many random ones; patches in which the class is present. Higher is better.",
        )

    def segmentation(self) -> Table | None:
        """Return the maps scored as weakly supervised segmentation, thresholds fitted on training patches."""
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
            maps = {name: own[place] for name, own in self.compared.items()}
            decisions = run.predictions[OURS].decisions[place]
            parts.append(segment(fitting, train, maps, val, decisions, run.patches, bool(run["refine_maps"])))
        found = join_segmentations(parts, run.out_of_folds)
        return Table(
            segmentation_table(found, self.classes, self.samples),
            f"Maps as segmentation of {len(run.val):,} held-out patches"
            f"{', refined by a guided filter' if run['refine_maps'] else ''}; thresholds fitted on {len(train)} "
            f"training patches{' of each fold' if run.is_cross_validated else ''}. Higher is better.",
        )

    @cached_property
    def scores(self) -> localisation.MapScores | None:
        """How the maps agree with the masks; None without masks."""
        run = self.run
        return localisation.score_maps(self.compared, run.patches, run.val) if run.patches.has_masks else None

    def verdict(self) -> Markdown:
        """Say whether attention agrees with the masks better than each reference."""
        if self.scores is None:
            return Markdown("This data set has no masks.")
        return Markdown(localisation.attention_verdict(self.scores, self.samples))

    def agreement(self) -> Image | None:
        """Draw how maps agree with the masks."""
        return None if self.scores is None else as_image(figures.map_agreement(self.scores, self.classes))

    def agreement_table(self) -> Table | None:
        """Return three measures of each set of maps, and by how much trained attention is above it."""
        if self.scores is None:
            return None
        caption = f"Agreement with the masks of {len(self.run.val):,} patches, with 95% intervals; higher is better."
        return Table(localisation.agreement_table(self.scores, self.samples), caption)

    def agreement_by_class(self) -> Table | None:
        """Return the per-pixel average precision of each set of maps and class."""
        if self.scores is None:
            return None
        table = localisation.agreement_by_class(self.scores, self.classes, "ap", self.samples)
        return Table(table, "Per-pixel average precision by class, with 95% intervals; higher is better.")

    def best_and_worst(self) -> None:
        """Display the patches in which attention agrees best and worst with the mask."""
        if self.scores is None:
            return
        count = (int(self.run["examples"]) + 1) // 2
        for which, cases in zip(("best", "worst"), localisation.best_and_worst(self.scores.gain(), count), strict=True):
            arguments = (self.run.patches, self.run.val, self.compared, self.scores, self.probabilities, cases, which)
            figures.show(figures.attention_cases(*arguments))
