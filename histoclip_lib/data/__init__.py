"""The data sets: a registry, and patches with labels, groups and masks."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["PatchDataset", "PatchSource"],
        "checks": ["check_images"],
        "images": ["ImageFiles"],
        "registry": ["DATASETS", "DatasetEntry", "dataset", "load_dataset"],
        "splits": ["grouped_folds", "make_folds", "split_dataset"],
    },
)
