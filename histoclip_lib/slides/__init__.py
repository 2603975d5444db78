"""Whole slides: reading, tissue, tiling, prediction, aggregation, and exchange with QuPath and TRIDENT."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "aggregation": ["aggregate_slides", "burdens_by_metadata", "class_burdens", "read_slide_table", "study_target"],
        "prediction": ["SlideResult", "predict_slide", "read_attention", "read_slide_result", "read_tiles"],
        "reading": ["Slide", "open_slide"],
        "tiling": ["tiles"],
        "tissue": ["mask_thumbnail", "tissue_mask", "tissue_mask_from"],
    },
)
