"""Leica LIF files: the container checked against the file's size, and the reader."""
