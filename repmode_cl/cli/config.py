"""``repmode-cl config``: the configurations that come with the package."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["config"]


def config(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="A shipped configuration; without it, all are listed."),
    ] = None,
) -> None:
    """Print a shipped configuration, or list all.

    For example:

      repmode-cl config

      repmode-cl config quickstart > my.yaml
    """
    from repmode_cl.config.load import shipped_config_names, shipped_config_text

    if name is not None:
        typer.echo(shipped_config_text(name), nl=False)
        return
    shipped = shipped_config_names()
    width = max((len(shipped_name) for shipped_name in shipped), default=0)
    for shipped_name in shipped:
        first = shipped_config_text(shipped_name).partition("\n")[0]
        typer.echo(f"{shipped_name:{width}}  {first.removeprefix('#').strip()}")
