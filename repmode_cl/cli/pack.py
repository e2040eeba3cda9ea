"""``repmode-cl pack``: export an added structure as one file, and import it into a model with the same base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from repmode_cl.cli.options import ModelArgument
from repmode_cl.cli.text import printable
from repmode_cl.errors import counted

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Share an added structure with models that have the same base.")


@app.command("export")
def export(
    model: ModelArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="An added structure.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new .safetensors file.")],
) -> None:
    """Write an added structure as one file.

    It holds its tensors, proofs, the settings of its training, and how well it predicts.

    For example:

      repmode-cl pack export model nucleolus nucleolus.safetensors
    """
    from repmode_cl.model import Model

    opened = Model.open(model)
    opened.export_pack(name, file)
    entry = opened.entries[name]
    typer.echo(f"{file}: {name}, {file.stat().st_size:,} bytes, digest {entry.digest[:8]}")
    typer.echo(f"for models with the base {opened.base_digest[:8]}{_needs(entry.needs)}")


@app.command("import")
def import_(
    model: ModelArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that `pack export` wrote.")],
) -> None:
    """Add a structure from a file, after a check of its digests and of its predictions.

    A file for another base, damaged, or with anything in it that does not belong there is refused, and the model
    stays as it is.

    For example:

      repmode-cl pack import model nucleolus.safetensors
    """
    from repmode_cl.model import Model

    opened = Model.open(model)
    result = opened.import_pack(file)
    entry = result.entry
    typer.echo(f"{entry.name}: {result.status} to where it comes from ({printable(result.detail)})")
    done = "restored: the file was missing or damaged;" if result.restored else "added"
    typer.echo(
        f"{done} {counted(entry.parameters, 'parameter')}, {entry.bytes:,} bytes, digest {entry.digest[:8]}"
    )
    typer.echo(f"model: {model}")


def _needs(needs: tuple[tuple[str, str], ...]) -> str:
    listed = ", ".join(f"{name} {digest[:8]}" for name, digest in needs)
    return f" that have {listed}" if listed else ""
