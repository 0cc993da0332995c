"""Pages with pictures about a dataset or a run."""
