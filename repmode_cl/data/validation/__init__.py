"""Checks of a manifest and its images, one idea a file; `manifest_check` puts them together."""
