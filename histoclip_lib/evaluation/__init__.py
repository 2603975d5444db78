"""What a run found: metrics, methods, uncertainty, comparisons, and the files of a run."""
