"""Checks of a manifest and its images, one subject in each file; `manifest_check` runs them all."""
