"""``repmode-cl card``: the README of a model that is shared."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from repmode_cl.cli.attribution import (
    AuthorOption,
    CiteOption,
    LicenceOption,
    TrainingDataOption,
    read_attribution,
)
from repmode_cl.cli.options import ModelArgument
from repmode_cl.errors import RepmodeError

__all__ = ["card"]


def card(
    model: ModelArgument,
    name: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Name that the model has on the hub.")
    ] = None,
    author: AuthorOption = None,
    licence: LicenceOption = None,
    cite: CiteOption = None,
    training_data: TrainingDataOption = "",
) -> None:
    """Write a model's card, README.md: what it predicts, how well, learned from what, and how to use it.

    The header is the one that the Hugging Face hub reads. Nothing in the model depends on the card; write it again
    after an addition.

    For example:

      repmode-cl card model --name lab/cells --author Ada --licence MIT
    """
    if name is not None and re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", name) is None:
        raise RepmodeError(f"--name {name!r}: give owner/name, as the hub does")
    from repmode_cl.export.model_card import write_card
    from repmode_cl.model import Model

    attribution = read_attribution(author, licence, cite, training_data)
    path = write_card(Model.open(model), attribution, name)
    typer.echo(f"{path}: written")
    for option, value in (("--author", author), ("--licence", licence)):
        if not value:
            typer.echo(f"note: {option} was not given; the card says that it is not stated", err=True)
