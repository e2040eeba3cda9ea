"""Checks of a manifest and its images, one idea a file; `repmode_cl.data.check` puts them together."""
