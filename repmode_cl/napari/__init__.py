"""The napari plugin: predict structures of an image layer (extra ``napari``; docs/napari.md).

napari finds it by ``napari.yaml`` in this folder. Nothing here is imported before the widget is opened.
"""
