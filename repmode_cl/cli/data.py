"""``repmode-cl data``: simulate images, make manifests, and check a manifest before training on it."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from repmode_cl.cli import data_import
from repmode_cl.cli.options import (
    ConfigArgument,
    OverridesOption,
    WorkersOption,
    parse_size,
    parse_structures,
)
from repmode_cl.errors import RepmodeError, counted
from repmode_cl.structures import TWELVE_STRUCTURES
from repmode_cl.utils.command_text import command

if TYPE_CHECKING:
    from repmode_cl.data.validation.manifest_check import CheckOptions, Inspection

__all__ = ["app"]

#: Rows on a page of thumbnails at most, and errors printed.
_THUMBNAILS, _ERRORS = 400, 1000
#: Configuration that images are checked for where none is named: the one that the README's next command trains with.
_DEFAULT_CONFIG = "quickstart"

app = typer.Typer(
    help="Make images, or manifests of those you have, and check them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
app.add_typer(data_import.app, name="import")


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
    names = TWELVE_STRUCTURES if structures is None else parse_structures(structures, "--structures")
    voxels = parse_size(shape, "--shape") or (32, 128, 128)
    from repmode_cl.data.phantom import simulate as simulate_cells

    manifest = simulate_cells(out, fields=fields, structures=names, seed=seed, shape=voxels, workers=workers)
    typer.echo(f"manifest: {manifest}")


@app.command("check")
def check(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="A CSV file.")],
    config: Annotated[
        str | None,
        typer.Option(
            "--config", metavar="CONFIG", help="Check for training with it; quickstart's by default."
        ),
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", metavar="MODEL", help="Check for adding structures to it.")
    ] = None,
    patch: Annotated[
        str | None,
        typer.Option(metavar="Z,Y,X", help="Training patch, in place of the configuration's or model's."),
    ] = None,
    gap: Annotated[
        int | None,
        typer.Option(min=0, help="Voxels between regions of different splits; half a patch by default."),
    ] = None,
    depth: Annotated[
        int | None, typer.Option(min=1, help="Depth of the network, in place of theirs.")
    ] = None,
    headers_only: Annotated[
        bool,
        typer.Option(
            "--headers-only", help="Read no voxels: much faster, but problems in them are not found."
        ),
    ] = False,
    page: Annotated[
        Path | None,
        typer.Option("--page", metavar="FILE.html", help="Write a page of pictures to look through."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON: problems, histograms, pairs.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 2 for warnings too.")] = False,
    workers: WorkersOption = None,
) -> None:
    """List every problem of a manifest; exit code 2 if there is an error.

    Rows with errors cannot be trained on. Warnings should be looked at by a person: saturation, blank planes, an
    unlikely voxel size, a signal and a target that do not belong together, the same image in two files.

    Columns: structure, signal, signal_channel, target, target_channel, and optionally split, group, region,
    mask, mask_channel, scene, t, voxel_size_zyx, labels, labels_channel.

    What images must suit (patch, depth, preprocessing) is taken from --config, from --model, or from the configuration
    that `repmode-cl config quickstart` prints; a line says which.

    For example:

      repmode-cl data check cells/manifest.csv --page look.html

      repmode-cl data check cells/manifest.csv --config my.yaml

      repmode-cl data check new/manifest.csv --model model
    """
    if page is not None and headers_only:
        raise RepmodeError("--page shows voxels, and --headers-only reads none: leave out one of them")
    if page is not None and page.suffix.lower() not in (".html", ".htm"):
        raise RepmodeError(f"--page {page}: a page ends in .html")
    patch_size = parse_size(patch, "--patch")
    if config is not None and model is not None:
        raise RepmodeError("--config and --model: give one of them, what is to be trained or what exists")
    from repmode_cl.data.validation.manifest_check import inspect_manifest
    from repmode_cl.utils.process_pool import workers_here

    options = _options_for_config(config) if model is None else _options_for_model(model)
    if patch_size is not None:
        options = replace(options, patch=patch_size, source=f"{options.source}, with --patch")
    if depth is not None:
        options = replace(options, depth=depth, source=f"{options.source}, with --depth")
    inspection = inspect_manifest(
        manifest,
        replace(
            options,
            gap=gap,
            read_voxels=not headers_only,
            thumbnails=_THUMBNAILS if page is not None else 0,
            workers=workers or workers_here(),
        ),
    )
    if page is not None:
        from repmode_cl.workflows.check_page import write_check_page

        write_check_page(page, inspection)
    failed = bool(inspection.problems if strict else inspection.errors)
    if as_json:
        typer.echo(json.dumps(inspection.as_json(), indent=2, allow_nan=False))
    else:
        _print_problems(manifest, inspection)
        if page is not None:
            typer.echo(f"page: {page}")
    if failed:
        raise typer.Exit(2)


@app.command("prepare")
def prepare(
    config: ConfigArgument,
    cache: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder for the prepared volumes; data.cache by default."),
    ] = None,
    overrides: OverridesOption = None,
    workers: WorkersOption = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Prepare on a Dask cluster: its scheduler's address, or the path of a scheduler file.",
        ),
    ] = None,
) -> None:
    """Prepare the images of a configuration in a cache, before anything is trained.

    Volumes that are there already are kept, so that the same command continues after an interruption. `train` and
    `bench` find them where their configuration names the same folder (--set data.cache=FOLDER).

    For example:

      repmode-cl data prepare my.yaml --cache cache --scheduler tcp://node1:8786
    """
    from repmode_cl.config import load_config
    from repmode_cl.data.pipeline import HeldOutCheck, prepared_samples
    from repmode_cl.utils.process_pool import workers_here

    if scheduler is not None and workers is not None:
        raise RepmodeError(
            "--workers is for processes on this machine, --scheduler for a cluster: leave out one of the two"
        )
    loaded = load_config(config, overrides or ())
    folder = cache if cache is not None else loaded.data.cache
    if folder is None:
        raise RepmodeError("which folder shall hold the prepared volumes? Give --cache FOLDER, or data.cache")
    if loaded.data.manifest is None:
        raise RepmodeError(f"{config}: names no manifest (data.manifest) whose images could be prepared")
    data = loaded.data.model_copy(update={"cache": str(folder)})
    with ExitStack() as contexts:
        cluster = None
        if scheduler is not None:
            from repmode_cl.utils.dask_cluster import DaskJobs

            cluster = contexts.enter_context(DaskJobs(scheduler))
        samples, notes = prepared_samples(
            data,
            Path(folder),
            held_out=HeldOutCheck(loaded.patch.size),
            workers=workers or workers_here(),
            cluster=cluster,
        )
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"{folder}: {counted(len(samples), 'row')} prepared")
    if (light := samples[0].light_scale) is not None:
        typer.echo(f"light of the training images: data.preprocessing.light=[{light[0]!r}, {light[1]!r}]")


def _options_for_config(config: str | None) -> CheckOptions:
    """Return the settings of a configuration; None takes the one that the README trains with."""
    from repmode_cl.config import load_config
    from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
    from repmode_cl.data.validation.manifest_check import CheckOptions

    loaded = load_config(config or _DEFAULT_CONFIG)
    source = (
        f"the settings of {command('config', _DEFAULT_CONFIG)} (--config or --model checks for yours)"
        if config is None
        else f"the settings of {config}"
    )
    return CheckOptions(
        patch=loaded.patch.size,
        depth=loaded.network.depth,
        voxel_size=loaded.data.preprocessing.voxel_size,
        recipe=PreprocessingRecipe.of(loaded.data.preprocessing),
        source=source,
    )


def _options_for_model(path: Path) -> CheckOptions:
    """Return the settings that a structure is added to a model with."""
    from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
    from repmode_cl.data.validation.manifest_check import CheckOptions
    from repmode_cl.model import Model
    from repmode_cl.workflows.training_settings import base_patch

    model = Model.open(path)
    return CheckOptions(
        patch=base_patch(model),
        depth=model.architecture.depth,
        voxel_size=model.voxel_size,
        recipe=PreprocessingRecipe.from_json(model.preprocessing),
        source=f"what the model {path} was trained with",
    )


def _print_problems(manifest: Path, inspection: Inspection) -> None:
    """Print errors, then warnings, each kind in one line, and a line that sums them up."""
    from repmode_cl.data.validation.problem_groups import group_problems

    for problem in inspection.errors[:_ERRORS]:
        typer.echo(f"error: {manifest}, {problem}", err=True)
    if len(inspection.errors) > _ERRORS:
        typer.echo(f"{len(inspection.errors) - _ERRORS} more errors; --json lists all", err=True)
    for group in group_problems(inspection.warnings):
        typer.echo(f"warning: {manifest}, {group}", err=True)
    totals = [(len(inspection.errors), "error"), (len(inspection.warnings), "warning")]
    summary = " and ".join(counted(count, kind) for count, kind in totals if count)
    rows = counted(len(inspection.rows), "row")
    typer.echo(inspection.options.text, err=bool(inspection.errors))
    if inspection.errors:
        typer.echo(f"{summary} in {rows}", err=True)
        return
    typer.echo(
        f"{manifest}: {rows} without {'an error' if summary else 'a problem'}, of "
        f"{', '.join(inspection.structures)}" + (f"; {summary}" if summary else "")
    )
