"""Pictures: each function takes arrays and returns a Matplotlib figure with a text alternative."""

from histoclip_lib.figures.attention import map_score_bars
from histoclip_lib.figures.base import described, save_thumbnail, short, show
from histoclip_lib.figures.confusion import confusion_grid, missed_class_map
from histoclip_lib.figures.data import co_occurrence_map, prevalence_bars
from histoclip_lib.figures.evaluation import forest_plot, per_class_map
from histoclip_lib.figures.training import training_curves
from histoclip_lib.figures.zero_shot import score_distributions, similarity_map

__all__ = [
    "co_occurrence_map",
    "confusion_grid",
    "described",
    "forest_plot",
    "map_score_bars",
    "missed_class_map",
    "per_class_map",
    "prevalence_bars",
    "save_thumbnail",
    "score_distributions",
    "short",
    "show",
    "similarity_map",
    "training_curves",
]
