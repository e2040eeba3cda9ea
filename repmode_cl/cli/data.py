"""``repmode-cl data``: make simulated images, and check a manifest before hours are spent on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from repmode_cl.cli.common import names, size

__all__ = ["app"]

app = typer.Typer(
    help="Make images, or check those you have.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@app.command("simulate")
def simulate(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the images and manifest.csv.")],
    fields: Annotated[int, typer.Option(min=1, help="Number of fields of view.")] = 16,
    structures: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Structures; all twelve of the paper by default.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same images.")] = 0,
    shape: Annotated[
        str, typer.Option(metavar="Z,Y,X", help="Voxels of a field, at 0.29 um.")
    ] = "32,128,128",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; one per processor core by default.")
    ] = None,
) -> None:
    """Simulate fields of cells, with a manifest.

    Each field is an OME-TIFF with transmitted light and the fluorescence of each structure.

    For example:

      repmode-cl data simulate cells --fields 16 --structures dna,nucleolus,cell_membrane
    """
    from repmode_cl.structures import TWELVE_STRUCTURES

    chosen = TWELVE_STRUCTURES if structures is None else names(structures, "--structures")
    voxels = size(shape, "--shape") or (32, 128, 128)
    from repmode_cl.data.phantom import simulate as simulate_cells

    manifest = simulate_cells(out, fields=fields, structures=chosen, seed=seed, shape=voxels, workers=workers)
    typer.echo(f"manifest: {manifest}")


@app.command("check")
def check(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="A CSV file.")],
    patch: Annotated[
        str | None, typer.Option(metavar="Z,Y,X", help="Training patch that the volumes must suit.")
    ] = None,
    gap: Annotated[
        int | None,
        typer.Option(min=0, help="Voxels between regions of different splits; half a patch by default."),
    ] = None,
    depth: Annotated[int, typer.Option(min=1, help="Depth of the network to train.")] = 4,
    headers_only: Annotated[
        bool,
        typer.Option("--headers-only", help="Read no voxels: faster, but finds no NaN or constant volume."),
    ] = False,
) -> None:
    """List every problem of a manifest; exit code 2 if any.

    Columns: structure, signal, signal_channel, target, target_channel, and optionally split, group, region,
    mask, scene, t, voxel_size_zyx.

    For example:

      repmode-cl data check cells/manifest.csv
    """
    patch_size = size(patch, "--patch")
    from repmode_cl.data.check import check_manifest
    from repmode_cl.data.manifest import read_manifest

    read = read_manifest(manifest)
    problems = check_manifest(manifest, patch=patch_size, gap=gap, read_voxels=not headers_only, depth=depth)
    for problem in problems:
        where = f"line {problem.row}" if problem.row else "manifest"
        column = f", {problem.column}" if problem.column else ""
        typer.echo(f"{manifest}, {where}{column}: {problem.message}", err=True)
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        typer.echo(f"{count} in {len(read.rows)} rows", err=True)
        raise typer.Exit(2)
    typer.echo(f"{manifest}: {len(read.rows)} rows without a problem, of {', '.join(read.structures)}")
