"""From the rows of a manifest to prepared volumes: resampling, normalisation, cache."""
