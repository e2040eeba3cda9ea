"""``repmode-cl import``: models of what other programs trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from repmode_cl.cli.options import parse_voxel_size
from repmode_cl.errors import RepmodeError

__all__ = ["app"]

app = typer.Typer(
    help="Make a model of what another program trained.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@app.callback()
def _group() -> None:
    """Make a model of what another program trained."""


@app.command("checkpoint")
def checkpoint(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Checkpoint of the code of RepMode's authors.")
    ],
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of the model, a new one.")],
    structures: Annotated[
        list[str],
        typer.Option(
            "--structures",
            metavar="NAME,NAME,...",
            help="Names of its tasks, in the alphabetical order of their data sets' names, as its code has them.",
        ),
    ],
    voxel_size: Annotated[
        str,
        typer.Option(metavar="Z,Y,X", help="Voxel size in um that it was trained on."),
    ] = "0.29,0.29,0.29",
    window: Annotated[
        str,
        typer.Option(metavar="Z,Y,X", help="Voxels of a window in prediction; those of its patches."),
    ] = "32,128,128",
) -> None:
    """Make a model of a checkpoint of the code of RepMode's authors; it then grows by `add` like any other.

    The file may be the whole checkpoint or only the network's state dict. Nothing in it is run: only tensors are taken,
    and a file that holds anything else is refused.

    For example:

      repmode-cl import checkpoint theirs.p model --structures dna,nucleolus
    """
    from repmode_cl.workflows.import_checkpoint import import_checkpoint

    names = [name.strip() for part in structures for name in part.split(",") if name.strip()]
    made = import_checkpoint(
        file, model, names, voxel_size=parse_voxel_size(voxel_size), window=_parse_window(window)
    )
    shape = made.architecture
    typer.echo(
        f"{model}: base of {len(names)} structure(s), width {shape.width}, depth {shape.depth}; "
        f"`repmode-cl verify {model}` checks it, `repmode-cl add {model} --structure NAME --data MANIFEST` grows it"
    )


def _parse_window(text: str) -> tuple[int, int, int]:
    parts = text.replace("x", ",").split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise RepmodeError(f"--window {text!r}: give three numbers of voxels (z, y, x), such as 32,128,128")
    z, y, x = (int(part) for part in parts)
    return z, y, x
