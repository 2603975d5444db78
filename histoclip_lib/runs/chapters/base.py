"""What all chapters of a run share, and what several of them read."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from histoclip_lib.common.predictions import Predictions
from histoclip_lib.evaluation import artifacts, comparisons, uncertainty
from histoclip_lib.runs.run import Run

OURS, PROBE = comparisons.OURS, comparisons.PROBE


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

    @property
    def samples(self) -> uncertainty.Draws:
        """Bootstrap samples of the held-out patches."""
        return uncertainty.draw_units(self.units, *self.draws)


def zero_shot_of(run: Run) -> dict[str, Predictions]:
    """Return the zero-shot predictions for the validation patches; none of an encoder of images alone."""
    if not run.has_text:
        return {}
    return artifacts.load_predictions(run.folder / "zero_shot.parquet", run.patches, run.val)


def training_options(run: Run) -> object:
    """Return how the heads of a run are fitted."""
    from histoclip_lib.models.training import TrainingOptions

    return TrainingOptions(**{field.name: run[field.name] for field in fields(TrainingOptions)})
