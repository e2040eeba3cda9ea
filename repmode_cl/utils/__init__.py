"""Helpers that every part may use: files, locks, memory, progress, processes, tensors on disk."""
