"""``repmode-cl sign``: statements about a model that a person vouches for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from repmode_cl.cli.options import ModelArgument

__all__ = ["sign"]


def sign(
    model: ModelArgument,
    key: Annotated[Path, typer.Option(metavar="FILE", help="Your private Ed25519 key (PEM or OpenSSH).")],
    structure: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Sign only this structure, and nothing if more is not signed; may be given again. All by default.",
        ),
    ] = None,
    new_key: Annotated[
        bool, typer.Option("--new-key", help="Make the key first: FILE, and FILE.pub to give to others.")
    ] = False,
) -> None:
    """Sign what is not signed yet of a model: its base, each addition, each removal.

    You vouch for each by name, digest and what it needs. Earlier signatures stay valid, whoever made them. Before you
    sign, check theirs with `repmode-cl verify --signed-by`.

    For example:

      repmode-cl sign model --key ada.pem --new-key

      repmode-cl sign model --key ben.pem --structure nucleolus
    """
    from repmode_cl.store.hub_copy import refuse_hub_copy
    from repmode_cl.store.keys import make_key, read_private_key
    from repmode_cl.store.registry import Registry
    from repmode_cl.store.signatures import sign_model

    if new_key:
        # First, so that the corrected command does not find the key there already.
        Registry.read(model)
        refuse_hub_copy(model)
        public = make_key(key)
        typer.echo(f"{key}: a new private key; keep it to yourself, unencrypted as it is")
        typer.echo(f"{public}: its public key; give it to those who verify")
    private = read_private_key(
        key, lambda: str(typer.prompt(f"Password of {key}", hide_input=True, err=True))
    )
    done = sign_model(model, private, structure)
    for one in done:
        values = one.statement.values
        what = (
            "removed" if one.statement.kind == "removal" else str(values.get("digest", values["sha256"]))[:8]
        )
        typer.echo(f"statement {one.statement.number}: {one.statement.name} {what}, signed by {one.signer}")
    typer.echo(
        f"newest statement: {done[-1].statement.digest}" if done else f"{model}: all is signed already"
    )
