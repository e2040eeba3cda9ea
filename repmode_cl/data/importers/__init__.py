"""Manifests made from files that lie in a known way."""
