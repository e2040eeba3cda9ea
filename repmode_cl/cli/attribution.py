"""Options that say who made a model, under which licence, and of which data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from repmode_cl.export.description import Attribution

__all__ = ["AuthorOption", "CiteOption", "LicenceOption", "TrainingDataOption", "read_attribution"]

AuthorOption = Annotated[
    list[str] | None,
    typer.Option(
        "--author", metavar="'NAME (AFFILIATION)'", help="Who trained the model; may be given again."
    ),
]
LicenceOption = Annotated[
    str | None,
    typer.Option("--licence", "--license", metavar="SPDX", help="Licence of the model, such as CC-BY-4.0."),
]
CiteOption = Annotated[
    list[str] | None,
    typer.Option(
        "--cite",
        metavar="'TEXT DOI'",
        help="Publication to cite, ending with a DOI or an URL; may be given again.",
    ),
]
TrainingDataOption = Annotated[
    str, typer.Option("--training-data", metavar="TEXT", help="Where the training images come from.")
]


def read_attribution(
    authors: list[str] | None, licence: str | None, cite: list[str] | None, training_data: str
) -> Attribution:
    """Read the values of these options.

    Raises
    ------
    RepmodeError
        If an author has no name, or a citation neither DOI nor URL.
    """
    from repmode_cl.export.description import Attribution, parse_citation, parse_person

    return Attribution(
        authors=tuple(parse_person(text) for text in authors or ()),
        licence=licence,
        citations=tuple(parse_citation(text) for text in cite or ()),
        training_data=training_data,
    )
