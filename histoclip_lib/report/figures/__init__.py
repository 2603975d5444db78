"""Figures: each function takes arrays and returns a Matplotlib figure with a caption and a text alternative.

Names are loaded on first use, so that importing this package is cheap; no figure needs torch.
"""

from __future__ import annotations

import lazy_loader

_MODULES = {
    "attention": (
        "attention_cases", "attention_overlay", "choose_for_attention", "map_agreement",
        "save_thumbnail",
    ),
    "base": ("as_image", "described", "figure", "short", "show", "style", "wrapped"),
    "calibration": ("precision_recall_curves", "reliability_diagrams", "threshold_curves"),
    "confusion": (
        "co_occurrence_bias_map", "confusion_grid", "group_error_plot", "label_set_bars", "missed_class_map",
        "multilabel_confusion_map", "recall_by_area_plot",
    ),
    "data": ("co_occurrence_map", "prevalence_bars"),
    "encoders": ("agreement_map", "encoder_ranks", "methods_by_encoder"),
    "evaluation": ("comparison_map", "critical_differences", "forest_plot", "per_class_map"),
    "leakage": ("similarity_histogram",),
    "patches": ("confident_errors", "find_confident_errors", "near_duplicate_pairs", "patch_grid", "sample_patches"),
    "slides": ("slide_burdens", "slide_maps", "top_tiles"),
    "training": ("hidden_labels", "label_efficiency", "training_curves"),
    "zero_shot": ("patch_cosines", "prompt_spread", "score_distributions", "similarity_map"),
}  # fmt: skip
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_MODULES)
