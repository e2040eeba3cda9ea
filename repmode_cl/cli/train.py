"""``repmode-cl train``: a model of the base structures, to which `add` adds others later."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from repmode_cl.cli.options import ConfigArgument, OverridesOption, WorkersOption, continue_with, report_start
from repmode_cl.cli.show_and_verify import show
from repmode_cl.cli.text import printable
from repmode_cl.errors import ModelError

if TYPE_CHECKING:
    from repmode_cl.config import Config

__all__ = ["train"]

#: Keys of `experts_frozen` that a base is trained by, or that `add` takes from its record.
_OF_A_BASE = {
    "name",
    "label",
    "network",
    "base_learning_rate",
    "learning_rate",
    "decay_to_base",
    "gate_steps",
}


def train(
    ctx: typer.Context,
    config: ConfigArgument,
    out: Annotated[
        Path, typer.Option("--out", metavar="MODEL", help="Folder of the model; must not exist yet.")
    ],
    overrides: OverridesOption = None,
    workers: WorkersOption = None,
) -> None:
    """Train a model of base structures, jointly.

    The structures are those of stream.base; `repmode-cl add` adds others later.

    For example:

      repmode-cl train my.yaml --out model

      repmode-cl train my.yaml --out model --set "stream.base=[dna, cell_membrane]"

      torchrun --nproc-per-node 2 -m repmode_cl train my.yaml --out model
    """
    from repmode_cl.config import load_config
    from repmode_cl.utils.process_pool import workers_here

    loaded = load_config(config, overrides or ())
    # Checked before hours of training, not after; without torch, which the store imports, where nothing is there.
    if out.exists():
        from repmode_cl.store.transaction import is_free

        if not is_free(out):
            raise ModelError(
                f"{out}: exists already; give a new folder, or grow a model with `repmode-cl add`"
            )
    from repmode_cl.data.pipeline import check_base

    check_base(loaded)
    if unused := _unused_settings(loaded):
        typer.echo(f"note: not used by train: {', '.join(unused)}", err=True)
    if note := _unused_choices(loaded):
        typer.echo(f"note: {note}", err=True)
    report_start(ctx, out)
    if note := unused_base_steps(loaded):
        typer.echo(f"note: {note}", err=True)
    from repmode_cl.workflows.train_base import train_base, training_folder

    continue_with(ctx)
    model = train_base(loaded, out, workers=workers or workers_here())
    from repmode_cl.training.distributed import launched_ranks

    ranks = launched_ranks()
    if ranks is None or ranks[0] == 0:
        for note in model.entries[model.base_structures[0]].provenance["notes"]:
            typer.echo(f"note: {printable(note)}", err=True)
        show(out)
        typer.echo(f"curves of its training, which may be removed: {training_folder(out)}", err=True)


def _unused_settings(config: Config) -> list[str]:
    """Return the parts of a benchmark's configuration that training a base does not use."""
    own = next((strategy for strategy in config.strategies if strategy.name == "experts_frozen"), None)
    others = [strategy.name for strategy in config.strategies if strategy is not own]
    stream = config.stream
    keys = [
        f"stream.{key}"
        for key in type(stream).model_fields
        if key != "base" and getattr(stream, key) != type(stream).model_fields[key].default
    ]
    seeds = [str(seed) for seed in config.seeds[1:]]
    whole = [
        key
        for key in ("evaluation", "plugins", "loggers", "search", "comparisons", "output")
        if getattr(config, key) != type(config).model_fields[key].default
    ]
    return [
        *([f"the strategies {', '.join(others)}"] if others else []),
        *keys,
        *whole,
        *([f"the seeds {', '.join(seeds)} (only the first is)"] if seeds else []),
    ]


def _unused_choices(config: Config) -> str:
    """Return what to say where a configuration says how structures are added, as only options of `add` can; else ""."""
    from repmode_cl.config.addition_settings import DEFAULT_SETTING

    own = next((strategy for strategy in config.strategies if strategy.name == "experts_frozen"), None)
    named = own.model_fields_set - _OF_A_BASE if own is not None else set()
    if own is None or not named or (named == {"setting"} and own.setting == DEFAULT_SETTING):
        return ""
    listed = ", ".join(f"{key}: {getattr(own, key)}" for key in type(own).model_fields if key in named)
    return f"not used by train, nor by add, which has options for them: {listed} (of {own.title})"


def unused_base_steps(config: Config) -> str:
    """Return what to say where the steps of a base are set and not used; "" where they are used."""
    base, training = config.stream.base, config.training
    several = (base if isinstance(base, int) else len(base)) > 1
    if several or training.base_steps is None or training.base_steps == training.steps:
        return ""
    return (
        f"not used: training.base_steps ({training.base_steps}) is for a base of several structures; a single one is "
        f"trained for training.steps ({training.steps})"
    )
