"""The data sets: a registry, and patches with labels, groups and masks."""
