"""Whole slides: reading, tissue, tiling, prediction, aggregation, and exchange with QuPath and TRIDENT."""
