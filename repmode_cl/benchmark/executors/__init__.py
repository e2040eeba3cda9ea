"""Where the trials of a benchmark are computed: processes here, or a Dask cluster."""
