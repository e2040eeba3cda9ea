"""``repmode-cl add`` and ``replace``: one more structure, or a better one, for a model that keeps all others."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repmode_cl.cli.options import (
    BatchSizeOption,
    Blocks,
    DeviceOption,
    ForceOption,
    Gate,
    LayerSource,
    LoaderWorkersOption,
    ModelArgument,
    PatchOption,
    PrecisionChoice,
    PrecisionOption,
    SeedOption,
    Sees,
    Setting,
    WorkersOption,
    check_training_options,
    continue_with,
    fail,
    kind_of_addition,
    parse_size,
    report_start,
)
from repmode_cl.cli.verdicts import verdict_line
from repmode_cl.errors import RepmodeError, counted
from repmode_cl.structures import check_structure_name
from repmode_cl.utils.command_text import command

if TYPE_CHECKING:
    from repmode_cl.workflows.add_structure import AddResult
    from repmode_cl.workflows.initialisation import Initialisation

__all__ = ["add", "replace"]

#: Exit code where a structure was trained, but did not reach the R2 that was demanded.
EXIT_BELOW_MIN_R2 = 3

#: End of the help of what a replacement keeps.
_AS_REPLACED = "With replace, that of the version it replaces."

_SECONDS = {"": 60.0, "h": 3600.0, "m": 60.0, "min": 60.0, "s": 1.0}


def add(
    ctx: typer.Context,
    model: ModelArgument,
    structure: Annotated[str, typer.Option(metavar="NAME", help="Name of the structure.")],
    data: Annotated[Path, typer.Option(metavar="MANIFEST", help="A CSV of image pairs.")],
    setting: Annotated[
        Setting | None,
        typer.Option(
            help="small, the default: low-rank experts, an eighth of the bytes of a plain network or less; best: conv3 "
            "experts, as many bytes as one. Each brings its learning rate. What stands below changes it; without "
            f"--setting, it starts from the paper's kind. {_AS_REPLACED}"
        ),
    ] = None,
    expert: Annotated[
        str | None,
        typer.Option(
            help="Fresh expert of each block: conv1, conv3, conv5, avg3, avg5, lowrank:R (or lowrank:R0,R1,... with a "
            f"rank for each level, 0 for none) or none. {_AS_REPLACED}"
        ),
    ] = None,
    sees: Annotated[
        Sees | None,
        typer.Option(
            help="Experts it weighs: base and own, or those of all earlier additions too; own by default."
            f" {_AS_REPLACED}"
        ),
    ] = None,
    norm: Annotated[
        LayerSource | None,
        typer.Option(help=f"Batch norms: own copies (by default), or the base's, frozen. {_AS_REPLACED}"),
    ] = None,
    resampling: Annotated[
        LayerSource | None,
        typer.Option(
            help="Down and up layers: own copies, or the base's, frozen. By default the base's with small, own "
            f"copies with best and without a setting. {_AS_REPLACED}"
        ),
    ] = None,
    gate: Annotated[
        Gate | None,
        typer.Option(
            help="Fresh expert: one more entry of the softmax (by default), or added outside it, from zero: it then "
            f"begins as a mode of the base. {_AS_REPLACED}"
        ),
    ] = None,
    scale: Annotated[
        bool | None,
        typer.Option(
            "--scale/--no-scale",
            help=f"With --gate outside: a learned factor for each output channel; none by default. {_AS_REPLACED}",
        ),
    ] = None,
    blocks: Annotated[
        Blocks | None, typer.Option(help=f"Blocks that get a fresh expert; all by default. {_AS_REPLACED}")
    ] = None,
    init_from: Annotated[
        str | None,
        typer.Option(
            metavar="none|best|NAME",
            help="What it starts from: chance, a known structure, or the one that fits the images best, the default of "
            "a setting; with a kind of your own, chance is.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Optimiser steps; by default training.steps of the base's configuration."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the images, in place of steps.")
    ] = None,
    time_limit: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Most minutes of training, validation not counted; or 45s, 30m, 1.5h."
        ),
    ] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many validations without an improvement.")
    ] = None,
    min_r2: Annotated[
        float | None,
        typer.Option(
            help="R2 on held-out images without which it does not become part of the model: it is staged, and "
            f"the exit code is {EXIT_BELOW_MIN_R2}."
        ),
    ] = None,
    stage: Annotated[
        bool, typer.Option("--stage", help="Leave it pending, for a person to take with accept.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only report what would be trained, its cost, and problems of the images."
        ),
    ] = False,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Largest learning rate; by default that of the setting, or that of `experts_frozen` in the base's "
            "configuration."
        ),
    ] = None,
    decay_to_base: Annotated[
        float | None,
        typer.Option(
            help="With --gate outside: decay of what is trained towards the base, as weight decay is towards 0; by "
            "default that of `experts_frozen` in the base's configuration, or 0."
        ),
    ] = None,
    gate_steps: Annotated[
        float | None,
        typer.Option(
            help="Share of the steps in which its gates learn, 0 to 1; then they are fixed, and steps cost less. By "
            "default that of the setting, 0.1, or of `experts_frozen` in the base's configuration if it has the same "
            "setting; without a setting that strategy's, or 1."
        ),
    ] = None,
    batch_size: BatchSizeOption = None,
    patch: PatchOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    precision: PrecisionOption = PrecisionChoice.auto,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where prepared images are kept; by default in the model until it is done."
        ),
    ] = None,
    workers: WorkersOption = None,
    loader_workers: LoaderWorkersOption = 0,
    force: ForceOption = False,
) -> None:
    """Add a structure to a model and forget none.

    What the model already predicts does not change by one bit. Interrupted, the same command continues.

    For example:

      repmode-cl add model --structure nucleolus --data new.csv

      repmode-cl add model --structure dna --data new.csv --expert lowrank:4 --time-limit 2h --min-r2 0.4
    """
    values = {key: value for key, value in locals().items() if key != "ctx"}
    _add(ctx, values, replace=False)


@functools.wraps(add, assigned=("__annotations__",))
def replace(ctx: typer.Context, **values: Any) -> None:
    """Train another version of an added structure.

    No other structure may need its experts. The present version is kept until gc; rollback brings it back.
    Interrupted, the same command continues.

    For example:

      repmode-cl replace model --structure nucleolus --data more.csv --init-from nucleolus
    """
    _add(ctx, values, replace=True)


def _add(ctx: typer.Context, values: dict[str, Any], *, replace: bool) -> None:
    """Add or replace with the parsed options of the command, by their names in `add`."""
    structure, min_r2 = check_structure_name(values["structure"]), values["min_r2"]
    patch = parse_size(values["patch"], "--patch")
    time_limit = _parse_seconds(values["time_limit"], "--time-limit")
    check_training_options(
        steps=values["steps"],
        epochs=values["epochs"],
        expert=values["expert"] or "none",
        rates={"--learning-rate": values["learning_rate"]},
    )
    if min_r2 is not None and not float("-inf") < min_r2 <= 1:
        raise RepmodeError(
            f"--min-r2 {min_r2}: a number of at most 1 is needed, which a perfect prediction has"
        )
    continue_with(ctx)
    if not values["dry_run"]:
        report_start(ctx, structure)
    from repmode_cl.nn import AdditionSpec
    from repmode_cl.utils.process_pool import workers_here
    from repmode_cl.workflows.add_structure import run_addition
    from repmode_cl.workflows.addition_dry_run import dry_run_add
    from repmode_cl.workflows.addition_plan import replacement_kind
    from repmode_cl.workflows.options import AdditionOptions, TrainingOverrides

    same = (
        "steps",
        "epochs",
        "patience",
        "learning_rate",
        "decay_to_base",
        "gate_steps",
        "batch_size",
        "seed",
        "device",
        "cache",
    )
    overrides = TrainingOverrides(
        **{key: values[key] for key in (*same, "loader_workers", "force")},
        time_limit=time_limit,
        patch=patch,
        precision=values["precision"].value,
        workers=values["workers"] or workers_here(),
    )
    keys = ("expert", "sees", "norm", "resampling", "gate", "scale", "blocks")
    given, setting = kind_of_addition(values["setting"], {key: values[key] for key in keys})
    spec = AdditionSpec(**given) if given else None
    if replace and setting is None:
        spec, setting = replacement_kind(values["model"], structure, given)
    options = AdditionOptions(
        spec=spec,
        setting=setting,
        init_from=values["init_from"],
        min_r2=min_r2,
        stage=values["stage"],
        replace=replace,
    )
    request = (values["model"], structure, values["data"], options, overrides)
    if values["dry_run"]:
        report = dry_run_add(*request)
        typer.echo(str(report))
        if not report.ok:
            fail(f"{values['data']}: {counted(len(report.problems), 'problem')} in the images of {structure}")
        return
    result = run_addition(*request)
    _print_result(result, values["data"], replace=replace)
    if not result.reached:
        raise typer.Exit(EXIT_BELOW_MIN_R2)


def _parse_seconds(text: str | None, option: str) -> float | None:
    """Read ``90`` (minutes), ``1.5h``, ``30m`` or ``45s`` as seconds.

    Raises
    ------
    RepmodeError
        If it is no positive duration.
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(h|min|m|s|)\s*", text.lower())
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if not 0 < seconds < float("inf"):
        raise RepmodeError(f"{option} {text!r}: give minutes such as 90, or a time such as 45s, 30m or 1.5h")
    return seconds


def _print_result(result: AddResult, data: Path, *, replace: bool) -> None:
    """Print figures on held-out images, the cost, and the proof that nothing else changed."""
    for note in result.notes:
        typer.echo(f"note: {note}")
    _print_initialisation(result.structure, result.init)
    if result.metrics:
        typer.echo(f"{result.structure} on the {result.held_out} images: {_figures(result.metrics)}")
    else:
        typer.echo(f"{result.structure}: no image was held out, so how well it is predicted is not known")
    # What was just added is replaced by a longer training; what is only staged is learned once more.
    again = replace or not result.staged
    typer.echo(verdict_line(result.entry, result.model.path, staged=result.staged, replace=again, data=data))
    done = "staged" if result.staged else "replaced" if replace else "added"
    typer.echo(
        f"{done} {result.structure}: {result.parameters:,} parameters, {result.bytes:,} bytes, "
        f"{result.seconds:.0f} s of training; it ended after {result.stopped}"
    )
    for name, same in result.unchanged.items():
        typer.echo(f"{name}: {'bit-identical to before' if same else 'CHANGED'}")
    for one in result.verified.results:
        if one.structure not in result.unchanged and not result.staged:
            typer.echo(f"{one.structure}: {one.status}, as it was stored")
    typer.echo(f"model: {result.model.path}")
    if result.staged:
        path, name = result.model.path, result.structure
        typer.echo(
            f"{'' if result.reached else 'what was demanded is not reached; '}the model is as it was: "
            f"{command('accept', path, name)} takes {name}{'' if result.reached else ' all the same'}, "
            f"{command('discard', path, name)} removes it"
        )


def _print_initialisation(structure: str, init: Initialisation) -> None:
    """Print the structure that was started from, with the figures of all that were measured."""
    if init.structure is None:
        return
    typer.echo(f"on {init.patches} training patches, before training:")
    for known, figures in sorted(init.figures.items(), key=lambda pair: pair[1].get("mse", float("inf"))):
        typer.echo(f"  {known}: {_figures(figures)}{', started from' if known == init.structure else ''}")
    typer.echo(f"  {structure} at step 0: {_figures(init.step_0)} (copied: {', '.join(init.copied)})")


def _figures(figures: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:.3f}" for key, value in figures.items()) or "not finite"
