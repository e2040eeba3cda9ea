"""``repmode-cl export``: fused networks for other programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from repmode_cl.cli.attribution import (
    AuthorOption,
    CiteOption,
    LicenceOption,
    TrainingDataOption,
    read_attribution,
)
from repmode_cl.cli.options import ForceOption, ReadModelArgument, parse_voxel_size
from repmode_cl.errors import RepmodeError

__all__ = ["export"]


class Format(StrEnum):
    """Format of an exported file."""

    onnx = "onnx"
    torch = "torch"
    bioimageio = "bioimageio"


def export(
    model: ReadModelArgument,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="A new file, whose suffix chooses the format (.onnx, .pt2, or .zip for bioimage.io); for several "
            "structures a folder, or a name with {structure} in it.",
        ),
    ],
    structure: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Structure to export; may be given again."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Export all structures of the model.")] = False,
    format_: Annotated[
        Format | None, typer.Option("--format", help="Format of the files in a folder; ONNX by default.")
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            metavar="IN",
            help="A real image, on whose middle file and model are compared; a simulated field by default.",
        ),
    ] = None,
    channel: Annotated[
        str | None, typer.Option(help="Name or number (from 0) of its transmitted-light channel.")
    ] = None,
    scene: Annotated[str | None, typer.Option(help="Name or number (from 0) of one of its scenes.")] = None,
    t: Annotated[int | None, typer.Option("--t", "--time", min=0, help="Which of its time points.")] = None,
    voxel_size: Annotated[
        str | None,
        typer.Option(
            metavar="Z,Y,X", help="Its voxel size in um, where the file states none or a wrong one."
        ),
    ] = None,
    force: ForceOption = False,
    author: AuthorOption = None,
    licence: LicenceOption = None,
    cite: CiteOption = None,
    training_data: TrainingDataOption = "",
) -> None:
    """Write the fused network of a structure for other programs, and prove that it predicts what the model does.

    Each file is run by its own runtime on the model's probe and on an image, through the windows of `predict`, and is
    refused if it differs from the model by more than rounding explains. What was measured is written into it.

    For example:

      repmode-cl export model dna.onnx --structure dna --image cells.ome.tif

      repmode-cl export model exported --all --format onnx

      repmode-cl export model dna.zip --structure dna --image cells.ome.tif
      --author Ada --licence MIT
    """
    if every == bool(structure):
        raise RepmodeError("give --structure NAME (once or more often) or --all, which structures to export")
    voxel_size_um = parse_voxel_size(voxel_size)
    if image is None:
        _refuse_unused(
            {
                "--channel": channel is not None,
                "--scene": scene is not None,
                "--t": t is not None,
                "--voxel-size": voxel_size is not None,
                "--force": force,
            },
            "said of an image; name it with --image, or leave this out",
        )
    from repmode_cl.export.bioimageio_package import check_packable
    from repmode_cl.export.export_structure import export_paths, export_structure
    from repmode_cl.export.volumes import part_of_image, simulated_volume
    from repmode_cl.inference.options import PredictionOptions
    from repmode_cl.model import Model

    opened = Model.open(model)
    names = list(opened.structures) if every else _once(structure or [])
    paths, chosen = export_paths(out, names, None if format_ is None else format_.value)
    options = PredictionOptions(
        channel=channel,
        scene=scene,
        t=t,
        voxel_size=voxel_size_um,
        force=force,
    )
    if chosen != "bioimageio":
        _refuse_unused(
            {
                "--author": bool(author),
                "--licence": licence is not None,
                "--cite": bool(cite),
                "--training-data": bool(training_data),
            },
            f"written into bioimage.io packages (.zip) only, not into {chosen} files; leave this out",
        )
    attribution = read_attribution(author, licence, cite, training_data)
    if chosen == "bioimageio":
        if image is None:
            raise RepmodeError(
                "a bioimage.io package holds a real image and what is predicted of it: name one with --image"
            )
        check_packable(opened, attribution)
    volume = None
    for name, path in zip(names, paths, strict=True):
        # Each structure may have been trained on other voxel sizes.
        if image is not None:
            volume = part_of_image(opened, name, image, options)
        elif volume is None:
            volume = simulated_volume(opened)
            typer.echo("note: compared on a simulated field; --image names a real one", err=True)
        for note in volume.notes:
            typer.echo(f"note: {note}", err=True)
        exported = export_structure(opened, name, path, chosen, volume, attribution)
        typer.echo(f"{path}: {name}, run by {exported.parity.runtime}; {exported.parity.text}")


def _refuse_unused(given: Mapping[str, bool], why: str) -> None:
    """Refuse the options that were given (`given` says which) and would be ignored."""
    if unused := [option for option, is_given in given.items() if is_given]:
        raise RepmodeError(f"{', '.join(unused)}: {why}")


def _once(names: Sequence[str]) -> list[str]:
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise RepmodeError(f"{', '.join(twice)}: named twice; name each structure once")
    return list(names)
