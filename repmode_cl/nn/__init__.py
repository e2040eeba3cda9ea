"""Placeholder docstring: replaced by the folder's owner."""
