"""Frozen encoders: loading them, pooled image features, patch tokens and text features."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "availability": ["forecast"],
        "compute": ["choose_compute"],
        "encoder": ["CLIP", "load_clip"],
        "registry": ["ENCODERS", "encoder", "encoder_entry"],
    },
)
