"""Importers: manifests made from files whose arrangement is known."""
