"""What every room uses: errors, whole files, caches, tables and YAML from users, executors."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "cache": ["cache_dir"],
        "errors": ["HistoCLIPError"],
        "predictions": ["Predictions", "from_probabilities"],
        "registry": ["METHODS", "Method", "Registry", "register_method"],
    },
)
