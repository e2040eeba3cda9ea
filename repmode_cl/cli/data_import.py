"""``repmode-cl data import``: manifests of images that users have already."""

from __future__ import annotations

from collections import Counter
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from repmode_cl.cli.options import parse_voxel_size
from repmode_cl.errors import RepmodeError, counted

if TYPE_CHECKING:
    from repmode_cl.data.importers.common import ImportedRows

__all__ = ["app"]

app = typer.Typer(
    help="Make a manifest of images you have.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

OutOption = Annotated[Path, typer.Option("--out", metavar="FILE.csv", help="The manifest to write.")]
KeepGoingOption = Annotated[
    bool,
    typer.Option("--keep-going", help="Leave out what cannot be used, and list it at the end."),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace a manifest that is there.")]
VoxelOption = Annotated[
    str | None,
    typer.Option(metavar="Z,Y,X", help="Voxel size in um, in place of what the files state."),
]
TargetOption = Annotated[
    list[str] | None,
    typer.Option("--target", metavar="STRUCTURE=CHANNEL", help="A structure and its channel; repeat it."),
]


class Dye(Enum):
    """Dyes of the cells in mitosis."""

    MEMBRANE = "membrane"
    DNA = "dna"


@app.command("allen")
def allen(
    csv_dir: Annotated[Path, typer.Argument(metavar="CSV_DIR", help="Folder of the data sets' CSVs.")],
    root: Annotated[Path, typer.Option("--root", metavar="DIR", help="Folder that the images lie below.")],
    out: OutOption = Path("manifest.csv"),
    seed: Annotated[int, typer.Option(min=0, help="Of splits and of the DNA rows; 42 is the paper's.")] = 42,
    dna: Annotated[
        str, typer.Option(metavar="TRAIN,VAL,TEST", help="DNA rows drawn from the other data sets.")
    ] = "54,6,20",
    voxel_size: VoxelOption = None,
    keep_going: KeepGoingOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Import the public label-free collection of the Allen Institute, as the paper does.

    CSV_DIR holds beta_actin.csv and so on, with the columns path_czi, channel_signal and channel_target, and
    dna.csv. Twelve structures, split 25% test and 10% of the rest for validation; DNA is drawn from the others.

    For example:

      repmode-cl data import allen csvs --root data --out allen.csv
    """
    counts = dna.split(",")
    if len(counts) != 3 or not all(part.strip().isdecimal() for part in counts):
        raise RepmodeError(f"--dna {dna!r}: give three whole numbers train,val,test such as 54,6,20")
    train, val, test = (int(part) for part in counts)
    from repmode_cl.data.importers.allen import import_allen

    imported = import_allen(
        csv_dir, root, seed=seed, dna=(train, val, test), voxel_size=parse_voxel_size(voxel_size)
    )
    _write(out, imported, keep_going, overwrite)


@app.command("folder")
def folder(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the files.")],
    pattern: Annotated[
        str, typer.Option(metavar="PATTERN", help="Their names, with {id} and {channel}; also {group} and *.")
    ],
    signal: Annotated[str, typer.Option(metavar="CHANNEL", help="The transmitted light's {channel}.")],
    target: TargetOption = None,
    out: OutOption = Path("manifest.csv"),
    voxel_size: VoxelOption = None,
    keep_going: KeepGoingOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    r"""Pair single-channel files by their names.

    Without --target every other channel is a structure of its name.

    For example:

      repmode-cl data import folder images --pattern '{id}_{channel}.tif' \
        --signal light --target dna=hoechst
    """
    from repmode_cl.data.importers.folder import import_folder

    imported = import_folder(
        directory,
        pattern,
        signal=signal,
        targets=_parse_targets(target),
        voxel_size=parse_voxel_size(voxel_size),
    )
    _write(out, imported, keep_going, overwrite)


@app.command("channels")
def channels(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Multi-channel files, or folders of them.")
    ],
    signal: Annotated[str, typer.Option(metavar="CHANNEL", help="Name or number of the transmitted light.")],
    target: TargetOption = None,
    out: OutOption = Path("manifest.csv"),
    scene: Annotated[
        str | None, typer.Option(metavar="all|N,N", help="Scenes, of files that hold several.")
    ] = None,
    t: Annotated[
        str | None, typer.Option("--t", metavar="all|N,N", help="Time points, of files that hold several.")
    ] = None,
    voxel_size: VoxelOption = None,
    keep_going: KeepGoingOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Make a row for every channel of multi-channel files.

    Without --target every channel but the signal is a structure of its name. Of a folder the image files in it are
    taken, not those of folders in it. A file that cannot be read, or lacks a channel, is an error: nothing is written,
    unless --keep-going leaves it out.

    For example:

      repmode-cl data import channels plate --signal brightfield
    """
    from repmode_cl.data.importers.channels import import_channels

    imported = import_channels(
        files,
        signal=signal,
        targets=_parse_targets(target),
        scenes=scene,
        times=t,
        voxel_size=parse_voxel_size(voxel_size),
    )
    _write(out, imported, keep_going, overwrite)


@app.command("isl")
def isl(
    directory: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The PNGs, under their original names.")
    ],
    out: OutOption = Path("isl.csv"),
    stack: Annotated[
        Path | None,
        typer.Option(metavar="FILE.ome.tif", help="The stack to write; by default beside the manifest."),
    ] = None,
    bin_pixels: Annotated[
        int, typer.Option("--bin", min=1, metavar="N", help="Make N x N pixels one, their mean.")
    ] = 1,
    columns: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Use the first N columns of pixels only.")
    ] = None,
    gap: Annotated[
        int, typer.Option(min=0, metavar="N", help="Rows of the stack between train, val and test.")
    ] = 32,
    voxel_size: VoxelOption = None,
    keep_going: KeepGoingOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Make a stack and a manifest of the public in-silico-labeling sample.

    FOLDER is isl/testdata/condition_blue_sample of the repository google/in-silico-labeling: thirteen planes of phase
    contrast and the stains DAPI (nuclei), MAP2 (dendrites) and NFH (axons), which are projections and are repeated
    over the planes. The first rows of pixels train, then some validate, the last quarter tests.

    For example:

      repmode-cl data import isl condition_blue_sample --bin 2 --out isl.csv
    """
    from repmode_cl.data.importers.common import check_imported
    from repmode_cl.data.importers.isl import read_isl

    file = stack if stack is not None else out.with_name(f"{out.stem}.ome.tif")
    if not file.name.endswith((".tif", ".tiff")):
        raise RepmodeError(f"--stack {file}: the stack is an OME-TIFF; give a name that ends with .ome.tif")
    if file.exists() and not overwrite:
        raise RepmodeError(f"{file} is there already: choose another name, or give --overwrite")
    sample = read_isl(directory, bin_pixels=bin_pixels, columns=columns)
    imported = sample.rows(file, gap=gap, voxel_size=parse_voxel_size(voxel_size))
    check_imported(out, imported, keep_going=keep_going, overwrite=overwrite)
    sample.write(file)
    shape = " x ".join(str(size) for size in sample.stack.shape[1:])
    typer.echo(f"{file}: {shape} voxels (z, y, x), channels {', '.join(sample.channels)}")
    _write(out, imported, keep_going, overwrite)


@app.command("mitotic")
def mitotic(
    directory: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Files such as ACTB_M1.ome.tif: gene and stage.")
    ],
    dye: Annotated[Dye, typer.Option(help="The dye that structures are predicted from.")] = Dye.MEMBRANE,
    val_stages: Annotated[
        str, typer.Option(metavar="N,N|none", help="Stages of mitosis (1 to 7) that validate.")
    ] = "5",
    test_stages: Annotated[
        str, typer.Option(metavar="N,N", help="Stages that test; the others train.")
    ] = "6,7",
    out: OutOption = Path("mitotic.csv"),
    voxel_size: VoxelOption = None,
    keep_going: KeepGoingOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Make a manifest of single cells in mitosis: ten tagged structures, each predicted from a dye.

    Each file holds one cell with four channels: membrane dye, DNA dye, the structure, and the mask of the cell. The
    input is fluorescence, not transmitted light. Regions are cut to the cells, and only voxels of cells count.

    For example:

      repmode-cl data import mitotic mitotic --dye membrane --out mitotic.csv
    """
    validating = [] if val_stages == "none" else _parse_stages("--val-stages", val_stages)
    testing = _parse_stages("--test-stages", test_stages)
    from repmode_cl.data.importers.mitotic import import_mitotic

    imported = import_mitotic(
        directory,
        dye=dye.value,
        val_stages=validating,
        test_stages=testing,
        voxel_size=parse_voxel_size(voxel_size),
    )
    _write(out, imported, keep_going, overwrite)


def _parse_stages(option: str, text: str) -> list[int]:
    """Read ``6,7`` as whole numbers."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise RepmodeError(f"{option} {text!r}: give whole numbers such as 6,7")
    return [int(part) for part in parts]


def _parse_targets(texts: list[str] | None) -> dict[str, str] | None:
    """Read ``STRUCTURE=CHANNEL`` as structure -> channel."""
    if not texts:
        return None
    targets: dict[str, str] = {}
    for text in texts:
        structure, equals, channel = (part.strip() for part in text.partition("="))
        if not (structure and equals and channel):
            raise RepmodeError(f"--target {text!r}: give a structure and its channel, such as dna=hoechst")
        if structure in targets:
            raise RepmodeError(f"--target: {structure} is given twice")
        targets[structure] = channel
    return targets


def _write(out: Path, imported: ImportedRows, keep_going: bool, overwrite: bool) -> None:
    """Write the manifest, and print its rows and what was skipped."""
    from repmode_cl.data.importers.common import skipped_lines, write_imported

    write_imported(out, imported, keep_going=keep_going, overwrite=overwrite)
    for note in imported.notes:
        typer.echo(f"note: {note}", err=True)
    counts = Counter(row.structure for row in imported.rows)
    listed = ", ".join(f"{name} {count}" for name, count in counts.items())
    typer.echo(f"{out}: {counted(len(imported.rows), 'row')} ({listed})")
    if imported.skipped:
        typer.echo(f"left out {len(imported.skipped)}:", err=True)
        for line in skipped_lines(imported.skipped):
            typer.echo(f"  {line}", err=True)
