"""``repmode-cl perf``: speed and memory on this machine, ours next to the plain network."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repmode_cl.cli.options import DeviceOption, PrecisionChoice, console, parse_size

if TYPE_CHECKING:
    from repmode_cl.perf import PerfSettings

__all__ = ["perf"]


class Section(StrEnum):
    """Part of the measurement."""

    check = "check"
    training = "training"
    inference = "inference"
    kernel3 = "kernel3"
    memory = "memory"
    loading = "loading"
    scaling = "scaling"
    startup = "startup"
    profile = "profile"


def perf(
    context: typer.Context,
    width: Annotated[int | None, typer.Option(help="Channels of the first level; 8 by default.")] = None,
    depth: Annotated[int | None, typer.Option(help="Number of halvings; 4 by default.")] = None,
    patch: Annotated[
        str | None, typer.Option(metavar="Z,Y,X", help="Voxels of a patch; 16,64,64 by default.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Patches of a step; 8 by default.")] = None,
    precision: Annotated[
        list[PrecisionChoice] | None,
        typer.Option(help="Number format; may be given again. Default: float32, and what auto means."),
    ] = None,
    device: DeviceOption = "auto",
    repeats: Annotated[int | None, typer.Option(help="Rounds after the warm-up; 7 by default.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of torch; its own choice by default.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Time allowed: it cuts rounds, never what is compared.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A tiny size, seconds: does it work?")] = False,
    paper: Annotated[
        bool,
        typer.Option(
            "--paper", help="The paper's size, for a large GPU: 32,128,128, width 32; aims at 8 minutes."
        ),
    ] = False,
    startup: Annotated[bool, typer.Option("--startup", help="Also time how commands start.")] = False,
    scaling: Annotated[
        bool, typer.Option("--scaling", help="Also time volumes of 1 to 64 times a size.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also say which operators take the time.")
    ] = False,
    only: Annotated[
        list[Section] | None, typer.Option(help="Measure only this section; may be given again.")
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Time this row of the training step (ours-1, addition-conv3 ...) besides the plain network; may be "
            "given again.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE.json", help="Where the figures are written.")
    ] = Path("runs/perf.json"),
) -> None:
    """Measure speed and memory on this machine.

    Everything is measured in alternation and compared with the plain network of 5 x 5 x 5 kernels, whose
    cost is the limit: ours, the mixture without fusion, and a fusion for each sample.

    For example:

      repmode-cl perf

      repmode-cl perf --device cuda --paper

      repmode-cl perf --only training --width 16 --precision bfloat16
    """
    from repmode_cl.errors import ConfigError

    if quick and paper:
        raise ConfigError("--quick and --paper: choose one of the two sizes")
    if out.suffix.lower() != ".json":
        raise ConfigError(f"--out {out}: the figures are written as JSON; give a name that ends in .json")
    if out.is_dir():
        raise ConfigError(f"--out {out}: is a folder; give the name of a file")
    given = {
        "width": width,
        "depth": depth,
        "patch": parse_size(patch, "--patch"),
        "batch": batch,
        "precisions": tuple(one.value for one in precision) if precision else None,
        "device": device,
        "repeats": repeats,
        "threads": threads,
        "minutes": minutes,
        "variants": tuple(variant) if variant else None,
    }
    extra = [
        name for name, wanted in (("startup", startup), ("scaling", scaling), ("profile", profile)) if wanted
    ]
    settings = _settings(given, [one.value for one in only or ()], extra, quick=quick, paper=paper)
    from repmode_cl.perf import run_perf
    from repmode_cl.perf.machine import describe
    from repmode_cl.perf.tables import tables_of

    screen = console()

    def show(section: str, found: Any) -> None:
        for part in tables_of(section, found):
            screen.print(part, highlight=False, markup=False)

    result = run_perf(
        settings,
        out=out,
        commands=_commands(context.find_root().command),
        tell=lambda text: typer.echo(text, err=True),
        show=show,
    )
    typer.echo(f"machine: {describe(result['machine'])}")
    typer.echo(f"figures: {out}")


def _settings(
    given: dict[str, Any], only: list[str], extra: list[str], *, quick: bool, paper: bool
) -> PerfSettings:
    """Take the size that was chosen, and what was given over it."""
    from repmode_cl.errors import ConfigError
    from repmode_cl.perf.settings import DEFAULT_SECTIONS, PAPER, QUICK, PerfSettings

    values: dict[str, Any] = dict(PAPER if paper else QUICK if quick else {})
    values |= {key: value for key, value in given.items() if value is not None}
    chosen = [*(only or DEFAULT_SECTIONS), *extra]
    settings = PerfSettings(**values, sections=tuple(dict.fromkeys(chosen)))
    if settings.variants and "training" not in settings.sections:
        raise ConfigError(
            "--variant chooses rows of the training step, which is not measured: add --only training, or leave it out"
        )
    return settings


def _commands(root: Any) -> list[list[str]]:
    """Return the words of every command below `root` but groups."""

    def below(command: Any, words: list[str]) -> list[list[str]]:
        inner = getattr(command, "commands", None)
        if inner is None:
            return [words]
        return [found for name in inner for found in below(inner[name], [*words, name])]

    return below(root, [])
