"""Nikon ND2 files: the map of their chunks checked against the file's size, and the reader."""
