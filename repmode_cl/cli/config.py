"""``repmode-cl config``: the configurations that come with the package, to run or to start from."""

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
    width = max((len(one) for one in shipped), default=0)
    for one in shipped:
        first = shipped_config_text(one).partition("\n")[0]
        typer.echo(f"{one:{width}}  {first.removeprefix('#').strip()}")
