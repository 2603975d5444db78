"""A run: its parameters, its notebooks, its folder; many runs on an executor."""
