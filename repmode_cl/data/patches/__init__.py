"""Training patches: datasets, the order of samples, and batches."""
