"""``repmode-cl serve``: a web page on which images are predicted without a shell."""

from __future__ import annotations

import importlib.util
import math
import os
from pathlib import Path
from typing import Annotated

import typer

from repmode_cl.cli.options import DeviceOption
from repmode_cl.errors import RepmodeError

__all__ = ["serve"]

#: Environment variable that may hold the token.
TOKEN_VARIABLE = "REPMODE_CL_TOKEN"

_NEEDED = ("starlette", "uvicorn")


def serve(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL...", help="Folders of models.", show_default=False)
    ],
    host: Annotated[
        str,
        typer.Option(
            help="Address; any but this machine's own needs a token, and gets one if none is given."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8765,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"File whose first line is what visitors must know (or set {TOKEN_VARIABLE}); at least 16 characters.",
        ),
    ] = None,
    max_upload: Annotated[str, typer.Option(metavar="SIZE", help="Largest image, as a file.")] = "2GiB",
    max_voxels: Annotated[
        int, typer.Option(min=1, help="Most voxels (z, y, x) of one channel of an image.")
    ] = 500_000_000,
    max_stored: Annotated[
        str, typer.Option(metavar="SIZE", help="Most to hold of all images and results together.")
    ] = "20GiB",
    keep: Annotated[
        float,
        typer.Option(
            metavar="MINUTES", min=1, help="Minutes after its last use at which an image is deleted."
        ),
    ] = 60.0,
    device: DeviceOption = "auto",
) -> None:
    """Serve a web page on which people predict their images, until Ctrl-C.

    The page is at http://127.0.0.1:8765 for this machine only. Images and results are deleted an hour after their last
    use, five minutes after a download, and when the server ends.

    For example:

      repmode-cl serve model

      repmode-cl serve model other_model --host 0.0.0.0 --token-file token.txt
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        from repmode_cl.utils.extras import install_command

        raise RepmodeError(f"serve needs further packages ({', '.join(missing)}): {install_command('serve')}")
    if not math.isfinite(keep):
        raise RepmodeError(f"--keep {keep}: a finite number of minutes is needed; a year has 525600")
    token = _read_token(token_file)
    from repmode_cl.serve.server import run_server
    from repmode_cl.serve.settings import ServeSettings, is_loopback, is_unspecified, new_token
    from repmode_cl.utils.memory import parse_memory

    made = new_token() if token is None and not is_loopback(host) else None
    token = token or made
    settings = ServeSettings(
        host=host,
        port=port,
        token=token,
        device=device,
        max_upload=parse_memory(max_upload),
        max_voxels=max_voxels,
        max_stored=parse_memory(max_stored),
        keep_seconds=60 * keep,
    )

    def ready(address: str) -> None:
        # A token that the user chose is known already, and logs are read by others.
        with_token = address if made is None else f"{address}?token={made}"
        typer.echo(f"serving {', '.join(str(model) for model in models)} at {with_token} (Ctrl-C ends it)")
        if is_unspecified(host):
            typer.echo(
                f"note: {host} stands for all addresses of this machine, so that its name is printed; where others do "
                "not find it by that name, its IP address does the same",
                err=True,
            )
        if not is_loopback(host):
            typer.echo(
                "note: whoever can listen to this network can read the token and the images; docs/serve.md says how to "
                "encrypt",
                err=True,
            )

    run_server(models, settings, ready)
    typer.echo("\nended; all images and results are deleted", err=True)


def _read_token(file: Path | None) -> str | None:
    """Return the token of a file or of the environment, if there is one."""
    if file is None:
        return os.environ.get(TOKEN_VARIABLE, "").strip() or None
    try:
        # Editors of Windows write a mark of the encoding first, which is no part of the token.
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise RepmodeError(f"--token-file {file}: no text ({error})") from None
    if not lines[0].strip():
        raise RepmodeError(f"--token-file {file}: its first line is empty; write the token there")
    return lines[0].strip()
