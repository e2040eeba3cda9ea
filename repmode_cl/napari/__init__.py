"""The napari plugin: predict structures of an image layer (extra ``napari``; docs/napari.md).

napari finds it by ``napari.yaml`` beside this file. Nothing here is imported before its widget is opened.
"""
