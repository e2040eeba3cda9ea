"""The card of a model: a README with the header that model hubs read, made of what the model directory knows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
from repmode_cl.errors import RepmodeError
from repmode_cl.export.description import (
    METHOD,
    Attribution,
    Citation,
    figures_of,
    limits_of,
    training_data_text,
)
from repmode_cl.inference.writers.image_metadata import software
from repmode_cl.store.hub_copy import refuse_hub_copy
from repmode_cl.store.registry import Entry
from repmode_cl.store.snapshot import ModelSnapshot
from repmode_cl.utils.atomic_files import write_text

__all__ = ["CARD", "model_card", "write_card"]

CARD = "README.md"
#: A line by which a card that was made here is known: it may be replaced.
_MARK = "<!-- written by repmode-cl card; it is replaced when the command is given again -->"
#: Figures in the order of the table, with their names.
_FIGURES = {"r2": "R2", "pearson": "Pearson r", "mse": "MSE", "mae": "MAE"}


def write_card(model: ModelSnapshot, attribution: Attribution, name: str | None = None) -> Path:
    """Write the card into the model directory, where nothing depends on it; parameters of `model_card`.

    Raises
    ------
    RepmodeError
        If there is a README that no such command wrote, or the model is a copy in the cache of the hub's library.
    """
    refuse_hub_copy(model.path)
    path = model.path / CARD
    if path.is_file() and _MARK not in path.read_text(encoding="utf-8", errors="replace"):
        raise RepmodeError(f"{path} was not written by repmode-cl card: move it away first")
    write_text(path, model_card(model, attribution, name))
    return path


def model_card(model: ModelSnapshot, attribution: Attribution, name: str | None = None) -> str:
    """Return a model's card.

    Parameters
    ----------
    model
        The model.
    attribution
        Who made it, under which licence, of which data.
    name
        ``owner/name`` that it has on the hub; None where it has none yet.
    """
    # An empty text, as of a variable that is not set, is none.
    attribution = replace(attribution, licence=(attribution.licence or "").strip() or None)
    title = name.rpartition("/")[2] if name else model.title
    header = yaml.safe_dump(_header(model, attribution, title), sort_keys=False, allow_unicode=True)
    voxels = (
        "not known: each image keeps its own grid"
        if model.voxel_size is None
        else f"{' x '.join(f'{size:g}' for size in model.voxel_size)} um (z, y, x); other images are resampled"
    )
    recipe = PreprocessingRecipe.from_json(model.preprocessing)
    prepared = ", ".join(filter(None, ("" if recipe.data_set else "z-score per image", recipe.summary)))
    window = " x ".join(str(size) for size in model.inference["window"])
    shape = model.architecture
    authors = "; ".join(
        f"{person.name} ({person.affiliation})" if person.affiliation else person.name
        for person in attribution.authors
    )
    parts = [
        f"---\n{header}---",
        _MARK,
        f"# {title}",
        "Predicts three-dimensional fluorescence of named structures from a transmitted-light stack. Structures are "
        "added one after the other, and none that was there changes by a bit.",
        _facts_table(
            {
                "authors": authors or "not stated",
                "licence": attribution.licence or "not stated: ask before you use it",
                "network": f"RepMode U-Net, width {shape.width}, depth {shape.depth}, experts "
                f"{', '.join(shape.experts)}",
                "voxel size": voxels,
                "images are prepared with": prepared,
                "windows": f"{window} voxels (z, y, x), overlap {model.inference['overlap']:g}",
                "digest of the base": f"`{model.base_digest}`",
            }
        ),
        "## Structures",
        _structures_table(model),
        "Figures are means over held-out images, as they were measured when a structure was stored; those of an "
        "imported structure are its sender's.",
        "\n".join(f"- **{entry.name}**: {_plain(entry.verdict.text)}" for entry in model.entries.values()),
        "## Training images",
        "\n".join(
            f"- **{entry.name}**: {_plain(training_data_text(model, entry, attribution))}"
            for entry in model.entries.values()
        ),
        "## Limits",
        "\n".join(f"- {limit}" for limit in limits_of(model)),
        "## How to predict",
        _usage(model, name),
        "## How to check it",
        "Each structure is stored with digests and a prediction, which is computed again. No pickle is ever loaded.",
        f"```sh\nrepmode-cl verify {f'hf://{name}' if name else 'MODEL'}\n```",
        "Digests protect from accidents. Who vouches for a model, `--signed-by KEY` tells.",
        "## Citation",
        "\n".join(f"- {_citation_text(one)}" for one in (*attribution.citations, METHOD)),
        f"Written by {software()}.",
    ]
    return "\n\n".join(parts) + "\n"


def _header(model: ModelSnapshot, attribution: Attribution, title: str) -> dict[str, Any]:
    """Return the values of the YAML header that hubs read."""
    header: dict[str, Any] = {
        "library_name": "repmode-cl",
        "pipeline_tag": "image-to-image",
        "tags": [
            "microscopy",
            "fluorescence",
            "label-free",
            "in-silico-labeling",
            "3d",
            "continual-learning",
        ],
    }
    if attribution.licence is not None:
        # The hub's identifiers are those of SPDX in lower case.
        header["license"] = attribution.licence.lower()
    results = []
    for entry in model.entries.values():
        figures = figures_of(entry.metrics)
        metrics = [
            {"type": key, "name": name, "value": round(figures[key], 6)}
            for key, name in _FIGURES.items()
            if key in figures
        ]
        if metrics:
            results.append(
                {
                    "task": {"type": "image-to-image", "name": f"predict {entry.name}"},
                    "dataset": {"type": "held-out", "name": f"held-out images of {entry.name}"},
                    "metrics": metrics,
                }
            )
    if results:
        header["model-index"] = [{"name": title, "results": results}]
    return header


def _facts_table(facts: dict[str, str]) -> str:
    rows = [f"| {key} | {_plain(value)} |" for key, value in facts.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def _structures_table(model: ModelSnapshot) -> str:
    shown = [key for key in _FIGURES if any(key in figures_of(one.metrics) for one in model.entries.values())]
    head = ["structure", "how", "verdict", *(_FIGURES[key] for key in shown), "parameters", "digest"]
    rows = [head, ["---", "---", "---", *("---:" for _ in shown), "---:", "---"]]
    rows += [
        [
            f"`{entry.name}`",
            _kind(entry),
            _plain(entry.verdict.level),
            *(_figure(entry, key) for key in shown),
            f"{entry.parameters:,}",
            f"`{entry.digest[:16]}`",
        ]
        for entry in model.entries.values()
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _kind(entry: Entry) -> str:
    return "base" if entry.spec is None else f"added: {_plain(entry.spec.text)}"


def _figure(entry: Entry, key: str) -> str:
    value = figures_of(entry.metrics).get(key)
    return "" if value is None else f"{value:.3f}"


def _usage(model: ModelSnapshot, name: str | None) -> str:
    address, first = f"hf://{name}@REVISION" if name else "MODEL", model.structures[0]
    lines = [
        "```sh",
        f"pip install 'repmode-cl{'[hub]' if name else ''}'",
        f"repmode-cl predict {address} --structure {first} cells.ome.tif {first}.ome.tif",
        "```",
        "",
        "```python",
        "from repmode_cl import Model",
        "",
        f'model = Model.open("{address}")',
        f'prediction = model.predict(volume, "{first}")  # (Z, Y, X), z-scored, on the model\'s voxel size',
        "```",
    ]
    if name:
        lines += ["", "Give a commit as the revision: a branch may name another model tomorrow."]
    return "\n".join(lines)


def _citation_text(one: Citation) -> str:
    return f"{_plain(one.text)}, {f'https://doi.org/{one.doi}' if one.doi else one.url}"


def _plain(text: str) -> str:
    """Return text that cannot break a table, a list or a line: some of it was written by strangers."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return printable.replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")
