"""Image features: encoded once, kept in checked shards, read in batches."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "encode": ["encode_dataset"],
        "reader": ["FeatureReader", "undo_view", "view_of"],
        "remote": ["encode_shards_on"],
        "store": ["ImageFeatures", "Shards", "open_features"],
    },
)
