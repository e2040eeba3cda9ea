"""Training patches: data sets, the order of samples, batches."""
