"""Prediction from disk to disk in bounded memory."""
