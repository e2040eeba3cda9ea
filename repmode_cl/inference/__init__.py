"""Prediction of volumes of any size: windows, blending and the files that come out."""
