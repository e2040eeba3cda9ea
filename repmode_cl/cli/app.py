"""Command ``repmode-cl``: the group of all commands, and the entry point of the process."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Annotated

import typer

from repmode_cl.cli import data, import_checkpoint, pack
from repmode_cl.cli.add import add, replace
from repmode_cl.cli.advise import advise
from repmode_cl.cli.bench import bench
from repmode_cl.cli.card import card
from repmode_cl.cli.compare import compare
from repmode_cl.cli.config import config
from repmode_cl.cli.evaluate import evaluate
from repmode_cl.cli.export import export
from repmode_cl.cli.options import CommandGroup
from repmode_cl.cli.pending import accept, discard, pending
from repmode_cl.cli.perf import perf
from repmode_cl.cli.predict import predict
from repmode_cl.cli.report import report
from repmode_cl.cli.serve import serve
from repmode_cl.cli.show_and_verify import show, verify
from repmode_cl.cli.sign import sign
from repmode_cl.cli.train import train
from repmode_cl.cli.versions import gc, history, remove, rollback
from repmode_cl.version import __version__

__all__ = ["app", "main"]

app = typer.Typer(
    name="repmode-cl",
    cls=CommandGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"repmode-cl {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Learn to predict one fluorescent structure after another from transmitted light, and forget none.

    Example, from nothing to an answer:

      repmode-cl bench quickstart
    """


# In the order in which help lists them.
app.command("bench")(bench)
app.command("train")(train)
app.command("add")(add)
app.command("replace")(replace)
app.command("advise")(advise)
app.command("compare")(compare)
app.command("show")(show)
app.command("verify")(verify)
app.command("predict")(predict)
app.command("evaluate")(evaluate)
app.command("sign")(sign)
app.command("card")(card)
app.command("export")(export)
app.command("serve")(serve)
app.command("history")(history)
app.command("remove")(remove)
app.command("rollback")(rollback)
app.command("gc")(gc)
app.command("pending")(pending)
app.command("accept")(accept)
app.command("discard")(discard)
app.add_typer(pack.app, name="pack")
app.add_typer(import_checkpoint.app, name="import")
app.command("report")(report)
app.add_typer(data.app, name="data")
app.command("config")(config)
app.command("perf")(perf)


def main() -> None:
    """Run ``repmode-cl`` with the arguments of the process."""
    for stream in (sys.stdout, sys.stderr):
        # A console that lacks a character shows a replacement; a message must not end in another error.
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    # Our own errors report damaged files, with what to do about them; tifffile's log lines name its own objects.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    app()
