"""Importers: labels as people have them, planned, shown, and then written in the folder format."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "plan": ["Found", "ImportOptions", "ImportPlan", "Item", "make_plan"],
        "registry": ["IMPORTERS", "Importer", "importer", "plan_import"],
    },
)
