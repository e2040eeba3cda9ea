"""TIFF, OME-TIFF, ImageJ and Micro-Manager files."""
