"""Pictures: each function takes arrays and returns a Matplotlib figure with a text alternative."""

from __future__ import annotations

from histoclip_lib.report.figures.attention import map_agreement
from histoclip_lib.report.figures.base import described, short, show
from histoclip_lib.report.figures.calibration import precision_recall_curves, reliability_diagrams
from histoclip_lib.report.figures.confusion import (
    co_occurrence_bias_map,
    confusion_grid,
    group_error_plot,
    label_set_bars,
    missed_class_map,
    multilabel_confusion_map,
)
from histoclip_lib.report.figures.data import co_occurrence_map, prevalence_bars
from histoclip_lib.report.figures.evaluation import comparison_map, forest_plot, per_class_map
from histoclip_lib.report.figures.exploring import patch_cosines, threshold_curves
from histoclip_lib.report.figures.leakage import similarity_histogram
from histoclip_lib.report.figures.training import label_efficiency, training_curves
from histoclip_lib.report.figures.zero_shot import prompt_spread, score_distributions, similarity_map

__all__ = [
    "co_occurrence_bias_map",
    "co_occurrence_map",
    "comparison_map",
    "confusion_grid",
    "described",
    "forest_plot",
    "group_error_plot",
    "label_efficiency",
    "label_set_bars",
    "map_agreement",
    "missed_class_map",
    "multilabel_confusion_map",
    "patch_cosines",
    "per_class_map",
    "precision_recall_curves",
    "prevalence_bars",
    "prompt_spread",
    "reliability_diagrams",
    "score_distributions",
    "short",
    "show",
    "similarity_histogram",
    "similarity_map",
    "threshold_curves",
    "training_curves",
]
