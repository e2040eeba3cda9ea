"""``repmode-cl predict``: files of transmitted light to files of predicted structures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from repmode_cl.cli.options import (
    DeviceOption,
    ForceOption,
    ReadModelArgument,
    continue_with,
    fail,
    parse_size,
    parse_voxel_size,
)
from repmode_cl.errors import RepmodeError, counted
from repmode_cl.verdict import VerdictLevel

# Imported in functions, as in every command, for a fast start: torch takes seconds to import.
if TYPE_CHECKING:
    from repmode_cl.inference.cluster import PredictionCluster
    from repmode_cl.inference.image_task import ImageOutcome
    from repmode_cl.inference.options import PredictedFile
    from repmode_cl.inference.preview import PreviewVolumes
    from repmode_cl.store.snapshot import ModelSnapshot

__all__ = ["predict"]


def predict(
    ctx: typer.Context,
    model: ReadModelArgument,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="IN... [OUT]",
            help="Images with transmitted light (files, OME-Zarr folders, URLs, patterns), and without --out what to "
            "write.",
            show_default=False,
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="For many images: a folder, or a name with {input} and {structure} in it; its suffix is the format "
            "(.ome.tif, .ome.zarr, .npy).",
        ),
    ] = None,
    structure: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Structure to predict; may be given again."),
    ] = None,
    pending: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Staged structure to predict before it is accepted; may be given again."
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Predict all structures of the model.")] = False,
    stack: Annotated[
        bool, typer.Option("--stack", help="Write one file with transmitted light and all structures.")
    ] = False,
    imagej: Annotated[
        bool,
        typer.Option("--imagej", help="Write ImageJ hyperstacks (.tif) of at most 4 GB instead of OME-TIFF."),
    ] = False,
    preview: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Page (.html) or picture (.png) with slices and projections, written before the predictions; {input} "
            "in its name makes one for each image.",
        ),
    ] = None,
    rescale: Annotated[
        str | None,
        typer.Option(
            metavar="LOW:HIGH[:TYPE]",
            help="z-scores to map onto uint16 (or uint8, float32), such as -2:8:uint8; clipped beyond.",
        ),
    ] = None,
    channel: Annotated[
        str | None, typer.Option(help="Name or number (from 0) of the transmitted-light channel.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[STRUCTURE=]CHANNEL",
            help="Channel with a structure's truth, to compare with; may be given again.",
        ),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Table of what became of each image, and figures.")
    ] = None,
    confidence: Annotated[
        bool,
        typer.Option(
            "--confidence",
            help="Write a further channel: half-width of an interval of 90 %, calibrated on held-out images. Takes "
            "up to 8 times as long: windows are also flipped on each axis that training flipped.",
        ),
    ] = False,
    unlike_map: Annotated[
        bool,
        typer.Option(
            "--unlike-map", help="Write a further channel: how unlike the training images each part is."
        ),
    ] = False,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Go on after an image that cannot be predicted.")
    ] = False,
    window: Annotated[
        str | None, typer.Option(metavar="Z,Y,X", help="Voxels of a window; the model's by default.")
    ] = None,
    overlap: Annotated[
        float | None, typer.Option(help="Part that windows share, 0 to below 1; the model's by default.")
    ] = None,
    fast: Annotated[
        bool,
        typer.Option(
            "--fast",
            help="Let windows share a quarter: a half to a third of the time, a little less R2, stronger seams.",
        ),
    ] = False,
    scene: Annotated[
        str | None,
        typer.Option(help="Name or number (from 0) of one of several scenes, field of a plate, or all."),
    ] = None,
    t: Annotated[
        str | None, typer.Option("--t", "--time", metavar="N", help="Which of several time points, or all.")
    ] = None,
    voxel_size: Annotated[
        str | None,
        typer.Option(metavar="Z,Y,X", help="Voxel size in um, where the file states none or a wrong one."),
    ] = None,
    light: Annotated[
        str | None,
        typer.Option(
            metavar="MEAN,DEVIATION",
            help="For a model with one z-score for all images: what to z-score the light by in place of the "
            "training's; or all, for that of all images of this call, such as a plate.",
        ),
    ] = None,
    force: ForceOption = False,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Most to hold in memory, such as 2GB; by default half of what is free."
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Predict on a Dask cluster: its scheduler's address, or the path of a scheduler file.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="With --scheduler: threads of each worker; its share of the cores by default."
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard what an interrupted or earlier prediction left.")
    ] = False,
    device: DeviceOption = "auto",
    precision: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="Numbers in the network: float32, bfloat16, or auto: bfloat16 where the device multiplies matrices of "
            "it, which is up to six times as fast.",
        ),
    ] = "float32",
) -> None:
    """Predict one or several structures of images of any size.

    The result has the input's grid and voxel size, float32 in z-score units or as --rescale says. Interrupted, the
    same command continues.

    For example:

      repmode-cl predict model --structure nucleolus cells.ome.tif nucleolus.ome.tif

      repmode-cl predict model --all --stack in.czi stack.ome.zarr --memory 2GB

      repmode-cl predict model --all 'fields/*.tif' --out predictions --csv results.csv --keep-going

      repmode-cl predict model --pending golgi --preview a.html in.tif out.tif

      repmode-cl predict model --all plate.zarr --out out --scene all --t all
    """
    if out is None and len(paths) != 2:
        raise typer.BadParameter(
            "give IN and OUT, or images with --out DIR"
            if len(paths) < 2
            else "give --out DIR for several images",
            ctx=ctx,
            param_hint="'IN... [OUT]'",
        )
    if (every and structure) or not (every or structure or pending):
        raise RepmodeError("give --structure NAME (once or more often) or --all, which structures to predict")
    if threads is not None and scheduler is None:
        raise RepmodeError("--threads is for the workers of --scheduler; without it set OMP_NUM_THREADS")
    if fast and overlap is not None:
        raise RepmodeError(
            "--fast is an overlap of a quarter, and --overlap names another: leave out one of them"
        )
    window_size = parse_size(window, "--window")
    voxel_size_um = parse_voxel_size(voxel_size)
    from repmode_cl.data.preprocessing.recipe import PreprocessingRecipe
    from repmode_cl.data.readers.registry import refuse_folder
    from repmode_cl.inference.image_task import ImageTask, PredictionPlan
    from repmode_cl.inference.options import FAST_OVERLAP, PredictionOptions
    from repmode_cl.inference.output_paths import output_paths, refuse_inputs
    from repmode_cl.inference.positions import PositionChoice, fill_name, plan_positions, uses_positions
    from repmode_cl.inference.predict_files import expand_inputs, measure_light, output_names, predict_plan
    from repmode_cl.inference.prediction_table import check_prediction_table
    from repmode_cl.inference.provenance import input_name
    from repmode_cl.inference.rescale import Rescale
    from repmode_cl.model import Model
    from repmode_cl.store.staging import open_with_staged
    from repmode_cl.utils.memory import parse_memory
    from repmode_cl.utils.progress import task

    opened: ModelSnapshot | None = Model.open(model) if every else None
    names = list(opened.structures) if opened is not None else list(structure or [])
    if pending:
        both = sorted(set(pending) & set(structure or ()))
        if both:
            raise RepmodeError(
                f"{', '.join(both)}: named by --structure (what the model has) and by --pending (what waits to be "
                "accepted); predict one of them in a second call"
            )
        names += [name for name in pending if name not in names]
    several = every or len(names) > 1
    options = PredictionOptions(
        channel=channel,
        window=window_size,
        overlap=FAST_OVERLAP if fast else overlap,
        device=device,
        precision=precision,
        voxel_size=voxel_size_um,
        light=None if light in (None, "all") else _light(light),
        force=force,
        rescale=None if rescale is None else Rescale.parse(rescale),
        stack=stack,
        imagej=imagej,
        targets=_targets(target, names),
        confidence=confidence,
        unlike_map=unlike_map,
        memory=None if memory is None else parse_memory(memory),
        restart=restart,
        keep=out is not None,
    )
    choice = PositionChoice(scene, _time(ctx, t))
    if scheduler is not None and (pending or preview is not None):
        raise RepmodeError(
            "--scheduler predicts with what the model has, and makes no preview: leave out --pending and --preview"
        )
    if out is None:
        inputs = expand_inputs(paths[:1])
        refuse_folder(inputs[0])  # before the name of the output is found wrong
        if len(inputs) > 1:
            raise RepmodeError(
                f"{paths[0]}: {counted(len(inputs), 'image')} fit this pattern; give --out DIR for them"
            )
    else:
        inputs = expand_inputs(paths)
    if uses_positions(inputs, choice):
        if imagej or preview is not None:
            raise RepmodeError(
                "--imagej and --preview are for images one by one: name the scene and the time point, or leave them out"
            )
        plan = plan_positions(inputs, choice, out or paths[1], names, stack=stack, keep_going=keep_going)
        several, options = len(names) > 1, dataclasses.replace(options, keep=True)
        outputs = [name for name, _ in plan.outputs()]
        out = out or paths[1]
    else:
        if out is None:
            outputs = [fill_name(paths[1], inputs[0], choice)]
        else:
            outputs = output_names(inputs, out, names, stack=stack, imagej=imagej, choice=choice)
        tasks = [
            ImageTask(source, source, output, choice.scene, choice.one_t)
            for source, output in zip(inputs, outputs, strict=True)
        ]
        plan = PredictionPlan(tuple(tasks))
    # Before the model is opened, and before the first of many is predicted; the inputs first, because an input that
    # would be replaced is no earlier prediction either.
    if out is not None:
        refuse_inputs(
            (Path(output.replace("{structure}", name)) for output in outputs for name in names), inputs
        )
    written: list[Path] = []
    for output, source in plan.outputs():
        written += output_paths(output, names, source, several=several, stack=stack, imagej=imagej)
    if csv is not None:
        check_prediction_table(csv)
    previews: list[Path] | None = None
    if preview is not None:
        # With it come the reports and their templates, which take as long to load as all else.
        from repmode_cl.workflows.preview_page import PreviewWriter, preview_paths

        previews = preview_paths(preview, inputs, written)
    continue_with(ctx, without=["--restart"])
    opened = Model.open(model) if opened is None else opened
    if pending:
        opened = open_with_staged(opened, pending)
    writer = None
    if previews is not None:
        sources = [input_name(source) for source in inputs]
        writer = PreviewWriter(opened, dict(zip(sources, previews, strict=True)))
    if light == "all":
        if not PreprocessingRecipe.from_json(opened.preprocessing).data_set:
            raise RepmodeError(
                f"{model}: each image is z-scored by itself, as in training: leave out --light"
            )
        with task("measuring the light", total=len(plan.tasks)) as bar:
            scale = measure_light(
                opened,
                names if several else names[0],
                plan,
                options,
                keep_going=keep_going,
                measured=bar.advance,
            )
        typer.echo(f"light of all images: --light {scale[0]!r},{scale[1]!r}")
        options = dataclasses.replace(options, light=scale)
    reported: set[str] = set()
    shown: list[Path] = []
    with ExitStack() as contexts:
        cluster = None
        if scheduler is not None:
            cluster = contexts.enter_context(_cluster(scheduler, threads))
        bar = contexts.enter_context(task(_task_title(names, plan.tasks, every)))
        current = 0

        def begins(task: ImageTask) -> None:
            nonlocal current
            current = plan.tasks.index(task)

        def show_stage(stage: str) -> None:
            count = len(plan.tasks)
            position = f" ({current + 1} of {count})" if count > 1 else ""
            name = "" if plan.series or plan.plates else f" {Path(str(plan.tasks[current].source)).name}"
            bar.update(description=f"{stage}{name}{position}")

        def show_preview(volumes: PreviewVolumes) -> None:
            if writer is not None and (path := writer(volumes)) not in shown:
                shown.append(path)
                typer.echo(f"{path}: preview")

        def report(outcome: ImageOutcome) -> None:
            if outcome.error is not None:
                typer.echo(f"error: {outcome.error}", err=True)
            for file in outcome.files:
                for note in (*file.notes, *file.trust_notes):
                    if note not in reported:
                        reported.add(note)
                        typer.echo(f"note: {note}", err=True)
                # With the results, and not among the warnings: it is about the model, and the same for every image.
                for doubt in _doubts(file):
                    if doubt not in reported:
                        reported.add(doubt)
                        typer.echo(f"note: {doubt}")
                typer.echo(_result_line(file, outcome))

        outcomes = predict_plan(
            opened,
            names if several else names[0],
            plan,
            dataclasses.replace(
                options,
                preview=None if writer is None else show_preview,
                progress=lambda count, total: bar.update(completed=count, total=total),
                status=show_stage,
            ),
            keep_going=keep_going,
            table=csv,
            done=report,
            collected=lambda path: typer.echo(f"{path}: whole"),
            begins=begins,
            cluster=cluster,
        )
    failed = [outcome.label for outcome in outcomes if outcome.error is not None]
    if failed:
        fail(f"{len(failed)} of {counted(len(outcomes), 'image')} left out: {', '.join(failed)}")


def _cluster(address: str, threads: int | None) -> PredictionCluster:
    from repmode_cl.inference.cluster import PredictionCluster

    return PredictionCluster(address, threads)


def _task_title(names: Sequence[str], inputs: Sequence[object], every: bool) -> str:
    subject = names[0] if len(names) == 1 and not every else counted(len(names), "structure")
    return f"Predicting {subject}" + (f" of {counted(len(inputs), 'image')}" if len(inputs) > 1 else "")


def _doubts(file: PredictedFile) -> list[str]:
    """Return the verdict of the structure as a remark where its figures are not good enough; its line says unknown."""
    verdict = file.verdict
    if verdict is None or verdict.level in (VerdictLevel.USEFUL, VerdictLevel.UNKNOWN):
        return []
    return [f"{file.structure}: {verdict.text}"]


def _result_line(file: PredictedFile, outcome: ImageOutcome) -> str:
    """Describe a file that was predicted, or was there already."""
    # Of several scenes and time points the file may be a part of what is made of all.
    is_part = outcome.place or outcome.t is not None
    name = outcome.label if is_part else str(file.path)
    if file.existed:
        return f"{name}: {file.structure}, already there (--restart predicts it again)"
    voxels = " x ".join(str(extent) for extent in file.shape)
    line = f"{name}: {file.structure}, {voxels} voxels (z, y, x), {file.values}, in {file.seconds:.1f} s"
    if file.metrics is not None:
        line += f"; R2 {file.metrics['r2']:.3f}, Pearson {file.metrics['pearson']:.3f}"
    if file.verdict is not None and file.verdict.level is VerdictLevel.UNKNOWN:
        line += f"; how good is {file.verdict.text}"
    return f"{line}; {file.unlike_text}"


def _time(ctx: typer.Context, text: str | None) -> int | str | None:
    """Read ``--t``: a number from 0, or ``all``."""
    if text is None or text == "all":
        return text
    if not text.isdecimal():
        raise typer.BadParameter(
            f"{text!r} is no number from 0, and not 'all'", ctx=ctx, param_hint="'--t' / '--time'"
        )
    return int(text)


def _light(text: str) -> tuple[float, float]:
    """Read ``--light``: two numbers."""
    try:
        mean, deviation = (float(part) for part in text.split(","))
    except ValueError:
        raise RepmodeError(
            f"--light {text!r}: give the light's mean and deviation, such as --light 1200,85, or all"
        ) from None
    return mean, deviation


def _targets(texts: Sequence[str] | None, names: Sequence[str]) -> dict[str, str]:
    """Read ``dna=1`` or, of one structure, ``1``."""
    targets: dict[str, str] = {}
    for text in texts or ():
        name, equals, channel = text.partition("=")
        if not (equals and name in names):
            if len(names) != 1:
                raise RepmodeError(
                    f"--target {text!r}: say whose truth it is, STRUCTURE=CHANNEL with one of {', '.join(names)}"
                )
            name, channel = names[0], text
        if name in targets or not channel:
            raise RepmodeError(f"--target {text!r}: one channel for each structure is needed")
        targets[name] = channel
    return targets
