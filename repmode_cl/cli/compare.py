"""``repmode-cl compare``: adding a structure, fine-tuning, or a separate network, before anything is changed."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from repmode_cl.cli.options import (
    AS_BASE,
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
    console,
    continue_with,
    kind_of_addition,
    parse_size,
    report_start,
)
from repmode_cl.structures import check_structure_name

if TYPE_CHECKING:
    from repmode_cl.results.comparison import Comparison

__all__ = ["compare"]


class Kernel(StrEnum):
    """Edge of a plain network's kernels."""

    three = "3"
    five = "5"


def compare(
    ctx: typer.Context,
    model: ModelArgument,
    structure: Annotated[str, typer.Option(metavar="NAME", help="Name of the structure to learn.")],
    data: Annotated[Path, typer.Option(metavar="MANIFEST", help="A CSV of image pairs.")],
    steps: Annotated[
        int | None, typer.Option(min=1, help=f"Optimiser steps of each method; {AS_BASE}")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the images of each method, in place of steps.")
    ] = None,
    kernel: Annotated[Kernel, typer.Option(help="Kernel size of the separate network.")] = Kernel.three,
    setting: Annotated[
        Setting | None,
        typer.Option(
            help="The addition, as of `add`: small, the default, or best; what stands below changes it."
        ),
    ] = None,
    expert: Annotated[
        str | None,
        typer.Option(
            help="The addition: conv1, conv3, conv5, avg3, avg5, lowrank:R, lowrank:R0,R1,... or none."
        ),
    ] = None,
    sees: Annotated[
        Sees | None,
        typer.Option(help="The addition: base and own experts, or those of all earlier additions too."),
    ] = None,
    norm: Annotated[
        LayerSource | None,
        typer.Option(help="The addition's batch norms: own copies, or the base's, frozen."),
    ] = None,
    resampling: Annotated[
        LayerSource | None, typer.Option(help="Its down and up layers: own copies, or the base's, frozen.")
    ] = None,
    gate: Annotated[
        Gate | None,
        typer.Option(help="Its expert: one more entry of the softmax, or added outside it, from zero."),
    ] = None,
    scale: Annotated[
        bool | None,
        typer.Option(
            "--scale/--no-scale", help="With --gate outside: a learned factor for each output channel."
        ),
    ] = None,
    blocks: Annotated[Blocks | None, typer.Option(help="Its blocks that get a fresh expert.")] = None,
    init_from: Annotated[
        str | None,
        typer.Option(metavar="none|best|NAME", help="What the addition starts from, as of `add`."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where to keep it; runs/compare-NAME by default.", show_default=False
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start again in a folder that holds a comparison.")
    ] = False,
    learning_rate: Annotated[
        float | None, typer.Option(help="Largest learning rate of adding; as `add` chooses it, by default.")
    ] = None,
    fine_tuning_rate: Annotated[
        float | None, typer.Option(help="Largest learning rate of fine-tuning; the base's by default.")
    ] = None,
    network_rate: Annotated[
        float | None,
        typer.Option(
            help="Largest learning rate of the separate network; by default that of --learning-rate, or else that of "
            "`experts_frozen` in the base's configuration, or else the base's own."
        ),
    ] = None,
    batch_size: BatchSizeOption = None,
    patch: PatchOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    precision: PrecisionOption = PrecisionChoice.auto,
    cache: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep prepared images here; else they are removed at the end."),
    ] = None,
    workers: WorkersOption = None,
    loader_workers: LoaderWorkersOption = 0,
    force: ForceOption = False,
) -> None:
    """Compare adding, fine-tuning and a separate network.

    On the same images for as many steps: how well each learns the structure, how it changes the predictions of those
    that the model knows, and its cost. Ends with a table and a page. The model is not changed.

    For example:

      repmode-cl compare model --structure nucleolus --data new.csv

      repmode-cl compare model --structure dna --data new.csv --steps 300
    """
    check_structure_name(structure)
    patch_size = parse_size(patch, "--patch")
    check_training_options(
        steps=steps,
        epochs=epochs,
        expert=expert or "none",
        rates={
            "--learning-rate": learning_rate,
            "--fine-tuning-rate": fine_tuning_rate,
            "--network-rate": network_rate,
        },
    )
    continue_with(ctx, without=("--restart",))
    report_start(ctx, structure)
    from repmode_cl.nn import AdditionSpec
    from repmode_cl.utils.process_pool import workers_here
    from repmode_cl.workflows.compare_structure import run_comparison
    from repmode_cl.workflows.options import AdditionOptions, ComparisonOptions, TrainingOverrides

    chosen = {
        "expert": expert,
        "sees": sees,
        "norm": norm,
        "resampling": resampling,
        "gate": gate,
        "scale": scale,
        "blocks": blocks,
    }
    kind, name = kind_of_addition(setting, chosen)
    spec = AdditionSpec(**kind) if kind else None
    comparison = run_comparison(
        model,
        structure,
        data,
        AdditionOptions(spec=spec, setting=name, init_from=init_from),
        TrainingOverrides(
            steps=steps,
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=batch_size,
            patch=patch_size,
            seed=seed,
            device=device,
            precision=precision.value,
            cache=cache,
            workers=workers or workers_here(),
            loader_workers=loader_workers,
            force=force,
        ),
        ComparisonOptions(
            out=out,
            restart=restart,
            kernel=int(kernel),
            fine_tuning_rate=fine_tuning_rate,
            network_rate=network_rate,
        ),
    )
    _print_comparison(comparison)


def _print_comparison(comparison: Comparison) -> None:
    """Print the table, a sentence on each method, and the path of the page."""
    from repmode_cl.report.comparison.text import findings, render_terminal, verdict_lines

    for note in comparison.notes:
        typer.echo(f"note: {note}")
    console().print(render_terminal(comparison))
    for line in (*findings(comparison), *verdict_lines(comparison)):
        typer.echo(line)
    typer.echo(f"report: {comparison.report}")
