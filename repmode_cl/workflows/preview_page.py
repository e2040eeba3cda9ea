"""Preview of predictions: a page or a picture, written while the files are still being predicted."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from repmode_cl.data.geometry import shape_text
from repmode_cl.errors import RepmodeError, counted
from repmode_cl.inference.display_colours import colour_of
from repmode_cl.inference.preview import PreviewVolumes
from repmode_cl.inference.provenance import input_name
from repmode_cl.inference.trust_channels import confidence_text
from repmode_cl.inference.writers import title_of
from repmode_cl.report.data_check.page import scale_bar
from repmode_cl.report.page.chart_data import readable
from repmode_cl.report.page.overlay import overlay
from repmode_cl.report.page.slices import busiest, jpeg_data_uri
from repmode_cl.report.preview.page import (
    PreviewImage,
    PreviewPanel,
    PreviewPicture,
    PreviewStructure,
    write_preview_page,
)
from repmode_cl.results.predictions import contrast
from repmode_cl.store.snapshot import ModelSnapshot
from repmode_cl.utils.atomic_files import replacing
from repmode_cl.utils.number_format import number

__all__ = ["PreviewWriter", "preview_paths"]

_PAGES = (".html", ".htm")
#: Characters of pictures on one page; later images are only listed.
BUDGET = 24_000_000
#: z-score units from black to white at least.
_LEAST_CONTRAST = 1.0
#: A prediction of less deviation (z-score units) is said to show next to nothing.
FLAT = 0.15
_QUALITY = 85
#: Pixels of a picture's width in a PNG at least, and of margins.
_WIDTH, _MARGIN = 256, 12
_MARK = "repmode-cl preview"

VIEWS = ("xy", "xz", "projection")


def preview_paths(out: str | Path, inputs: Sequence[Path | str], outputs: Sequence[Path] = ()) -> list[Path]:
    """Return the preview of each image, and refuse a name at which none may be written.

    Parameters
    ----------
    out
        Ends in .html, or .png for one image; ``{input}`` in it stands for each image's name without suffix.
    inputs
        Images.
    outputs
        Files and folders that the prediction writes.

    Raises
    ------
    RepmodeError
        If the suffix is another, several images would share a .png, or something else than a preview is there.
    """
    text = str(out)
    suffix = Path(text).suffix.lower()
    if suffix not in (*_PAGES, ".png"):
        raise RepmodeError(f"--preview {text}: a preview is a page (.html) or a picture (.png)")
    paths = [Path(text.replace("{input}", title_of(Path(input_name(image))))) for image in inputs]
    if suffix == ".png" and len(set(paths)) < len(paths):
        raise RepmodeError(
            f"--preview {text}: each of {counted(len(paths), 'image')} needs a picture; put {{input}} into the name, "
            "or give a page (.html), which holds several"
        )
    for path in dict.fromkeys(paths):
        if path.is_dir():
            raise RepmodeError(f"--preview {path}: is a folder; give the name of a file")
        taken = {one.resolve() for one in (*outputs, *(image for image in inputs if isinstance(image, Path)))}
        if path.resolve() in taken or (path.exists() and not _is_preview(path)):
            raise RepmodeError(
                f"--preview {path}: is there, is no preview, and is not replaced; give another name, or remove it"
            )
    return paths


def _is_preview(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(1000)
    if path.suffix.lower() == ".png":
        return _MARK.encode() in start
    return b"preview \xe2\x80\x93 repmode-cl</title>" in start


class PreviewWriter:
    """Makes pictures of previewed volumes, and writes the page or picture again after each image.

    Give one as `repmode_cl.inference.options.PredictionOptions.preview`.

    Parameters
    ----------
    model
        The model: its figures stand beside the pictures.
    paths
        The page or picture of each image by its name (`preview_paths`); one page may be that of several.
    """

    def __init__(self, model: ModelSnapshot, paths: Mapping[str, Path]) -> None:
        self.model, self.paths = model, dict(paths)
        self._images: dict[Path, list[PreviewImage]] = {}
        self._characters: dict[Path, int] = {}

    def __call__(self, volumes: PreviewVolumes) -> Path:
        """Add an image; return the page or picture that shows it."""
        path = self.paths[volumes.source]
        path.parent.mkdir(parents=True, exist_ok=True)
        view = _View.of(volumes)
        drawn = [self._structure(volumes, view, name) for name in volumes.predictions]
        if path.suffix.lower() == ".png":
            _write_png(path, volumes, view, drawn)
        else:
            self._add_to_page(path, volumes, view, drawn)
        return path

    def _add_to_page(
        self, path: Path, volumes: PreviewVolumes, view: _View, drawn: Sequence[_DrawnStructure]
    ) -> None:
        images = self._images.setdefault(path, [])
        image = PreviewImage(
            volumes.source,
            _facts(volumes),
            tuple(volumes.notes),
            tuple(one.on_page(view) for one in drawn),
            100 * view.bar / view.width,
            view.bar_text,
        )
        size = sum(
            len(picture.uri)
            for structure in image.structures
            for panel in structure.panels
            for picture in panel.pictures
        )
        self._characters[path] = self._characters.get(path, 0) + size
        if self._characters[path] > BUDGET:
            image = PreviewImage(
                volumes.source,
                _facts(volumes),
                tuple(volumes.notes),
                missing=f"Its pictures would make the page too large ({BUDGET // 1_000_000} MB are full): put "
                "{input} into the name of the preview, which gives each image a page.",
            )
        images.append(image)
        names = list(dict.fromkeys(name for name in volumes.predictions))
        settings = [
            ("structures", ", ".join(readable(name) for name in names)),
            ("base", self.model.base_digest[:8]),
        ]
        write_preview_page(path, Path(self.model.path).resolve().name, settings, images)

    def _structure(self, volumes: PreviewVolumes, view: _View, name: str) -> _DrawnStructure:
        prediction = volumes.predictions[name]
        facts, warnings = [], []
        if name in self.model.staged:
            facts.append("pending: not part of the model")
        verdict = self.model.entries[name].verdict
        said = verdict.text.replace("R2 ", "R² ")
        facts.append(said if verdict.useful else str(verdict.level))
        if not verdict.useful:
            warnings.append(f"Verdict from held-out images: {said}")
        deviation = float(prediction.std())
        if deviation < FLAT:
            warnings.append(
                f"Next to nothing is predicted here: the deviation of the prediction is {number(deviation, 2)} z-score "
                "units, and that of a fluorescence image is 1."
            )
        z, y = view.place(prediction)
        low, high = contrast(prediction, 0.5, 99.7)
        if high - low < _LEAST_CONTRAST:
            middle = (low + high) / 2
            low, high = middle - _LEAST_CONTRAST / 2, middle + _LEAST_CONTRAST / 2
        light = volumes.light
        light_low, light_high = contrast(light, 0.5, 99.5)
        grey = [_levels(one, light_low, light_high) for one in (light[z], light[:, y], light.mean(axis=0))]
        shown = [_levels(one, low, high) for one in (prediction[z], prediction[:, y], prediction.max(axis=0))]
        mixed = [overlay(a, b, colour_of(name)) for a, b in zip(grey, shown, strict=True)]
        start = [part.start for part in volumes.box]
        caption = f"xy: plane {start[0] + z}; xz: row {start[1] + y}; below: all planes together"
        levels = f"black {number(low, 1)}, white {number(high, 1)} z-score units"
        panels = [
            ("transmitted light", "its own contrast", grey),
            ("prediction", levels, shown),
            ("overlay", "light grey, prediction in colour", mixed),
        ]
        half_width = volumes.confidence.get(name)
        if half_width is not None:
            top = max(_LEAST_CONTRAST, contrast(half_width, 0.5, 99.7)[1])
            views = (half_width[z], half_width[:, y], half_width.mean(axis=0))
            note = f"half-width of the interval: black 0, white {number(top, 1)} z-score units"
            panels.append(("confidence", note, [_levels(one, 0.0, top) for one in views]))
            warnings.append(f"Confidence: {confidence_text(self.model, name)}")
        return _DrawnStructure(name, "; ".join(facts), tuple(warnings), caption, panels)


@dataclass(frozen=True)
class _View:
    """Scale of an image's pictures.

    Attributes
    ----------
    depth, height, width
        Extent of the part, in um or in voxels.
    bar
        Length of the scale bar in the same unit.
    bar_text
        With its unit.
    """

    depth: float
    height: float
    width: float
    bar: float
    bar_text: str

    @classmethod
    def of(cls, volumes: PreviewVolumes) -> _View:
        size = volumes.voxel_size or (1.0, 1.0, 1.0)
        depth, height, width = (um * count for um, count in zip(size, volumes.light.shape, strict=True))
        bar = scale_bar(width, width)
        return cls(depth, height, width, bar, f"{bar:g} {'voxels' if volumes.voxel_size is None else 'µm'}")

    @staticmethod
    def place(prediction: NDArray[np.float32]) -> tuple[int, int]:
        """Return the plane and the row of most contrast in a prediction, away from the borders."""
        return busiest(prediction.std(axis=(1, 2))), busiest(prediction.std(axis=(0, 2)))

    def extent(self, kind: str) -> tuple[float, float]:
        """Return height and width of a kind of picture."""
        return (self.depth if kind == "xz" else self.height), self.width


@dataclass(frozen=True)
class _DrawnStructure:
    """Pictures of one structure as arrays: for each panel its title, note, and those of `VIEWS`."""

    name: str
    facts: str
    warnings: tuple[str, ...]
    caption: str
    panels: Sequence[tuple[str, str, Sequence[NDArray[np.uint8]]]]

    def on_page(self, view: _View) -> PreviewStructure:
        panels = []
        for title, note, pictures in self.panels:
            encoded = []
            for kind, pixels in zip(VIEWS, pictures, strict=True):
                height, width = view.extent(kind)
                encoded.append(PreviewPicture(kind, jpeg_data_uri(pixels, _QUALITY), width / height))
            panels.append(PreviewPanel(title, note, tuple(encoded)))
        return PreviewStructure(readable(self.name), self.facts, self.warnings, self.caption, tuple(panels))


def _levels(image: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint8]:
    scaled = np.nan_to_num((image.astype(np.float64) - low) / (high - low), nan=0.0, posinf=1.0, neginf=0.0)
    return (255.0 * np.clip(scaled, 0.0, 1.0) + 0.5).astype(np.uint8)


def _facts(volumes: PreviewVolumes) -> str:
    grid = shape_text(volumes.grid)
    whose = "the image" if volumes.existed else "the model's grid"
    if volumes.is_whole:
        facts = f"the whole image, {grid} voxels (z, y, x) of {whose}"
    else:
        facts = f"the middle, {shape_text(volumes.light.shape)} of {grid} voxels (z, y, x) of {whose}"
    if volumes.voxel_size is not None:
        facts += f", {' x '.join(f'{size:.3g}' for size in volumes.voxel_size)} µm"
    else:
        facts += "; no voxel size is known"
    if volumes.scene is not None:
        facts += f"; scene {volumes.scene}"
    if volumes.t is not None:
        facts += f"; time point {volumes.t}"
    return f"{facts}; read from files that were there already" if volumes.existed else facts


def _write_png(path: Path, volumes: PreviewVolumes, view: _View, drawn: Sequence[_DrawnStructure]) -> None:
    """Write one picture: for each structure a row of panels, one below the other the views of each."""
    font = ImageFont.load_default()
    width = max(_WIDTH, volumes.light.shape[2])
    line = 14
    columns = max(len(one.panels) for one in drawn)
    heights = {kind: max(1, round(width * view.extent(kind)[0] / view.width)) for kind in VIEWS}
    of_row = 4 * line + sum(heights.values()) + 2 * 4 + 2 * line + _MARGIN
    lines = [f"{volumes.source}: {_facts(volumes)}", *volumes.notes]
    page = Image.new(
        "RGB",
        (columns * width + (columns + 1) * _MARGIN, len(lines) * line + len(drawn) * of_row + 2 * _MARGIN),
        "white",
    )
    pen = ImageDraw.Draw(page)
    top = _MARGIN
    for text in lines:
        pen.text((_MARGIN, top), _plain(text), fill="black", font=font)
        top += line
    for structure in drawn:
        above = "; ".join([f"{readable(structure.name)}: {structure.facts}", *structure.warnings])
        pen.text((_MARGIN, top + line // 2), _plain(above), fill="black", font=font)
        pen.text((_MARGIN, top + line // 2 + line), _plain(structure.caption), fill="dimgrey", font=font)
        for column, (title, note, pictures) in enumerate(structure.panels):
            left, y = _MARGIN + column * (width + _MARGIN), top + 3 * line
            pen.text((left, y), _plain(title), fill="black", font=font)
            y += line
            for kind, pixels in zip(VIEWS, pictures, strict=True):
                size = (width, heights[kind])
                page.paste(
                    Image.fromarray(pixels).convert("RGB").resize(size, Image.Resampling.BILINEAR), (left, y)
                )
                y += heights[kind] + 4
            bar = max(1, round(width * view.bar / view.width))
            pen.line([(left, y + 5), (left + bar, y + 5)], fill="black", width=3)
            pen.text((left + bar + 6, y), _plain(view.bar_text), fill="black", font=font)
            pen.text((left, y + line), _plain(note), fill="dimgrey", font=font)
        top += of_row
    info = PngInfo()
    info.add_text("Software", _MARK)
    data = io.BytesIO()
    page.save(data, "PNG", pnginfo=info, optimize=True)
    with replacing(path) as temporary:
        temporary.write_bytes(data.getvalue())


def _plain(text: str) -> str:
    """Return a text of characters that Pillow's smallest font has."""
    for sign, plain in (("²", "2"), ("–", "-"), ("\N{MINUS SIGN}", "-"), ("µ", "u")):  # noqa: RUF001
        text = text.replace(sign, plain)
    return text.encode("ascii", "replace").decode("ascii")
