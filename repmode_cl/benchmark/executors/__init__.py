"""Executors of a benchmark's trials: processes here, or a Dask cluster."""
