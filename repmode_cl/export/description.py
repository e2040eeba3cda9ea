"""Description of a structure for people: what it was trained on, how good it is, who made it, what it cannot do."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.data.split_record import read_split_record
from repmode_cl.data.voxel_size_check import trained_voxels, voxel_range_text
from repmode_cl.errors import RepmodeError, counted
from repmode_cl.store.registry import Entry
from repmode_cl.store.snapshot import ModelSnapshot

__all__ = [
    "METHOD",
    "Attribution",
    "Citation",
    "Person",
    "figures_of",
    "limits_of",
    "parse_citation",
    "parse_person",
    "training_data_text",
]

#: Sentences that hold for every model.
_LIMITS = (
    "A prediction is an estimate from transmitted light, and no measurement of fluorescence: do not use it where the "
    "conclusion depends on a cell that looks unusual.",
    "Its figures hold for cells, microscope and focus like those of the training images.",
)
_PER_IMAGE = (
    "Its numbers are z-scores over an image: they compare the pattern within an image, not brightness between "
    "images."
)
_DATA_SET = (
    "Its numbers are z-scores over all training images: they compare brightness between images only where camera, lamp "
    "and exposure of the transmitted light are those of the training."
)


def limits_of(model: ModelSnapshot) -> tuple[str, ...]:
    """Return what a user of a model must not expect, in sentences."""
    data_set = PreprocessingRecipe.from_json(model.preprocessing).data_set
    return (*_LIMITS, _DATA_SET if data_set else _PER_IMAGE)


@dataclass(frozen=True)
class Person:
    """An author: name, and affiliation where one is given."""

    name: str
    affiliation: str | None = None


@dataclass(frozen=True)
class Citation:
    """A publication to cite: its text, and a DOI or an URL."""

    text: str
    doi: str | None = None
    url: str | None = None


#: The method that every model is an instance of.
METHOD = Citation(
    "Zhou et al., RepMode: Learning to Re-parameterize Diverse Experts for Subcellular Structure Prediction, CVPR 2023",
    url="https://arxiv.org/abs/2212.10066",
)


@dataclass(frozen=True)
class Attribution:
    """What a model directory does not know of itself.

    Attributes
    ----------
    authors
        Who trained it.
    licence
        SPDX identifier, such as ``CC-BY-4.0``; None where it is not stated.
    citations
        Publications to cite, besides the method's.
    training_data
        Where the training images come from, in a sentence; empty where nobody said.
    """

    authors: tuple[Person, ...] = ()
    licence: str | None = None
    citations: tuple[Citation, ...] = ()
    training_data: str = ""


def parse_person(text: str) -> Person:
    """Read ``Ada Lovelace`` or ``Ada Lovelace (University of London)``.

    Raises
    ------
    RepmodeError
        If there is no name, or a slash in it.
    """
    found = re.fullmatch(r"\s*([^()/\\]*[^()/\\\s])\s*(?:\(([^()]+)\))?\s*", text)
    if found is None:
        raise RepmodeError(f"--author {text!r}: give a name, such as 'Ada Lovelace (University of London)'")
    return Person(found[1], found[2])


def parse_citation(text: str) -> Citation:
    """Read ``Lovelace, Notes, 1843, https://doi.org/10.1000/182``: a text that ends with a DOI or an URL.

    Raises
    ------
    RepmodeError
        If it does not.
    """
    words, _, last = text.strip().rpartition(" ")
    doi = re.fullmatch(r"(?:https?://(?:dx\.)?doi\.org/|doi:)?(10\.\d{4,9}/\S+)", last)
    if not words.strip() or (doi is None and not last.startswith(("https://", "http://"))):
        raise RepmodeError(
            f"--cite {text!r}: give a text that ends with a DOI or an URL, such as "
            "'Lovelace, Notes, 1843, https://doi.org/10.1000/182'"
        )
    words = words.strip().rstrip(",")
    return Citation(words, doi=doi[1]) if doi else Citation(words, url=last)


def training_data_text(model: ModelSnapshot, entry: Entry, attribution: Attribution) -> str:
    """Return what is known of a structure's training images, in sentences."""
    record = read_split_record(entry.provenance)
    counts = dict.fromkeys(("train", "val", "test"), 0)
    for parts in record.images.values():
        for _, split in parts:
            counts[split] += 1
    sentences = (
        [attribution.training_data.strip().rstrip(".") + "."] if attribution.training_data.strip() else []
    )
    if record.recorded:
        sentences.append(
            f"Trained on {counted(counts['train'], 'image')}, selected on {counts['val']}, and tested on "
            f"{counts['test']} held-out ones."
        )
    if voxels := voxel_range_text(trained_voxels(entry.provenance, None)):
        sentences.append(f"Their voxels measured {voxels}.")
    images = entry.provenance.get("images")
    if isinstance(images, str) and images:
        sentences.append(f"Digest of the images' contents: {images}.")
    if entry.kind == "base" and len(model.base_structures) > 1:
        sentences.append(
            f"Trained jointly with {', '.join(n for n in model.base_structures if n != entry.name)}."
        )
    return " ".join(sentences) or "Nothing is recorded of the training images."


def figures_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite figures of a structure on held-out images, by name."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
