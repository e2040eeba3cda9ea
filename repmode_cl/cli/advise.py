"""``repmode-cl advise``: whether and how to add a structure, from short trainings that change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from repmode_cl.cli.options import (
    BatchSizeOption,
    DeviceOption,
    ForceOption,
    LoaderWorkersOption,
    ModelArgument,
    PatchOption,
    PrecisionChoice,
    PrecisionOption,
    SeedOption,
    WorkersOption,
    check_training_options,
    continue_with,
    parse_size,
    report_start,
)
from repmode_cl.structures import check_structure_name

if TYPE_CHECKING:
    from repmode_cl.workflows.advise import Advice, Difference

__all__ = ["advise"]


def advise(
    ctx: typer.Context,
    model: ModelArgument,
    structure: Annotated[str, typer.Option(metavar="NAME", help="Name of the structure to learn.")],
    data: Annotated[Path, typer.Option(metavar="MANIFEST", help="A CSV of image pairs.")],
    steps: Annotated[
        int | None, typer.Option(min=2, help="Optimiser steps of each short training.", show_default="60")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where to keep it; runs/advise-NAME by default.", show_default=False
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start again in a folder that holds an advice.")
    ] = False,
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
    """Advise on a structure before it is added: a few short trainings, some minutes.

    Can it be learned here, which known structure does it profit from, which setting at how many bytes, and how many
    images are needed. The model is not changed; interrupted, the same command continues.

    For example:

      repmode-cl advise model --structure nucleolus --data new.csv
    """
    check_structure_name(structure)
    patch_size = parse_size(patch, "--patch")
    check_training_options(steps=steps, epochs=None, expert="none", rates={})
    continue_with(ctx, without=("--restart",))
    report_start(ctx, structure)
    from repmode_cl.utils.process_pool import workers_here
    from repmode_cl.workflows.advise import ADVICE
    from repmode_cl.workflows.advise import advise as run
    from repmode_cl.workflows.options import TrainingOverrides

    advice = run(
        model,
        structure,
        data,
        TrainingOverrides(
            steps=steps,
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
        out=out,
        restart=restart,
    )
    for note in advice.notes:
        typer.echo(f"note: {note}", err=True)
    for line in _lines(advice, model, data):
        typer.echo(line)
    typer.echo(f"all figures: {advice.folder / ADVICE}; the model was not changed")


def _lines(advice: Advice, model: Path, data: Path) -> Iterator[str]:
    """Yield what the trainings say, a line for each question."""
    from repmode_cl.utils.number_format import count_text
    from repmode_cl.workflows.advise import Trial, advice_command

    small, best, warm = (
        advice.trials[Trial(*key).key]
        for key in (
            ("small", advice.largest),
            ("best", advice.largest),
            ("small", advice.largest, "best"),
        )
    )
    yield (
        f"can {advice.structure} be learned here: {advice.verdict.text}, after {advice.steps} steps from "
        f"{_images(advice.largest)}; {advice.verdict.curve_text}"
    )
    known = sorted((warm.known or {}).items(), key=lambda one: -one[1])
    listed = ", ".join(f"{name} {r2:.3f}" for name, r2 in known[:5])
    yield f"known structures as they are, R2 on it: {listed or 'none could be measured'}"
    if advice.init_from != "none":
        yield f"begin from {advice.init_from}: it gains {_difference(advice.init_gain)}"
    else:
        yield f"begin from chance: {warm.began}, which fits best, gains {_difference(advice.init_gain)}"
    yield (
        f"setting {advice.setting}: best has R2 {best.mean:.3f} at {count_text(best.bytes, 'B')}, small "
        f"{small.mean:.3f} at {count_text(small.bytes, 'B')}; best gains {_difference(advice.setting_gain)}"
    )
    yield from _curve_lines(advice)
    yield f"to add it so: {advice_command(advice, model, data)}"


def _curve_lines(advice: Advice) -> Iterator[str]:
    curve = advice.curve
    if curve is None:
        yield "how many images: one training image says nothing about that"
        return
    tried = ", ".join(f"{count}: {advice.trials[f'small-{count}'].mean:.3f}" for count in curve.counts)
    yield f"R2 by training images: {tried}"
    expected = []
    for count in (2 * advice.largest, 4 * advice.largest):
        point = curve.at(count)
        interval = (
            "no interval from two points"
            if point.low is None
            else f"95% interval {point.low:.3f} to {point.high:.3f}"
        )
        expected.append(f"{count}: {point.r2:.3f} ({interval})")
    yield f"expected with more: {', '.join(expected)}"
    bounds = curve.enough_range()
    between = "" if bounds is None else f" (95% range {bounds[0]} to {bounds[1]})"
    yield (
        f"images needed: about {curve.enough()}{between}, from where a doubling gains less than 0.02; the manifest has "
        f"{advice.available} to learn from"
    )


def _difference(difference: Difference) -> str:
    if difference.low is None:
        return f"{difference.mean:+.3f} on one held-out image, which gives no interval"
    return f"{difference.mean:+.3f} (95% interval {difference.low:+.3f} to {difference.high:+.3f})"


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"
