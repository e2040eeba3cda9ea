"""Page of a prediction's preview: slices and projections to one scale; it loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from repmode_cl.report.html import render
from repmode_cl.utils.atomic_files import write_text

__all__ = ["PreviewImage", "PreviewPanel", "PreviewPicture", "PreviewStructure", "write_preview_page"]


@dataclass(frozen=True)
class PreviewPicture:
    """One picture of a panel.

    Attributes
    ----------
    view
        ``xy``, ``xz`` or ``projection``.
    uri
        Data URI.
    aspect
        Width by height of the field that it shows.
    """

    view: str
    uri: str
    aspect: float


@dataclass(frozen=True)
class PreviewPanel:
    """The pictures of one volume.

    Attributes
    ----------
    title, note
        What it shows, and its grey levels.
    pictures
        Slices and projection.
    """

    title: str
    note: str
    pictures: tuple[PreviewPicture, ...]


@dataclass(frozen=True)
class PreviewStructure:
    """One structure of an image.

    Attributes
    ----------
    name
        Readable.
    facts
        What is known of it: how well it predicts held-out images.
    warnings
        What a reader has to know before looking.
    caption
        Which slices are shown.
    panels
        Light, prediction, overlay.
    """

    name: str
    facts: str
    warnings: tuple[str, ...]
    caption: str
    panels: tuple[PreviewPanel, ...]


@dataclass(frozen=True)
class PreviewImage:
    """One image.

    Attributes
    ----------
    name
        The file's.
    facts
        Which part is shown, in words.
    notes
        Remarks of the prediction.
    structures
        Its structures; empty where `missing` says why.
    bar
        Width of the scale bar in percent of a picture's width.
    bar_text
        Its length.
    missing
        Why it has no pictures.
    """

    name: str
    facts: str
    notes: tuple[str, ...] = ()
    structures: tuple[PreviewStructure, ...] = ()
    bar: float = 0.0
    bar_text: str = ""
    missing: str = ""


def write_preview_page(
    path: str | Path, title: str, settings: Sequence[tuple[str, str]], images: Sequence[PreviewImage]
) -> None:
    """Write the page, whole or not at all.

    Parameters
    ----------
    path
        The page.
    title
        The model's name.
    settings
        (name, value) of what is shown.
    images
        In the order of the call.
    """
    write_text(
        path, render("preview/page.jinja", title=title, settings=settings, notes=(), images=list(images))
    )
