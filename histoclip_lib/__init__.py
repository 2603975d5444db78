"""HistoCLIP: multi-label classification of histopathology patches with a frozen CLIP."""

__version__ = "0.1.0"
