"""What commands share: how errors and interruptions end, and the options they have in common."""

from __future__ import annotations

import errno
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from repmode_cl.errors import RepmodeError

if TYPE_CHECKING:
    from rich.console import Console

    from repmode_cl.nn import AdditionSpec

__all__ = [
    "Commands",
    "ConfigArgument",
    "DeviceOption",
    "ForceOption",
    "ModelArgument",
    "OverridesOption",
    "WorkersOption",
    "console",
    "continue_with",
    "fail",
    "names",
    "size",
    "voxel_size_in_um",
    "spec_text",
]

_CONTINUE = "repmode_cl.continue_with"

# What an operating system refuses because of what the user named, not because of a defect here.
_USERS_ERRNO = frozenset(
    getattr(errno, name)
    for name in (
        "ENOENT",
        "EACCES",
        "EPERM",
        "EROFS",
        "ENOSPC",
        "EDQUOT",
        "EFBIG",
        "EISDIR",
        "ENOTDIR",
        "EEXIST",
        "ENAMETOOLONG",
    )
    if hasattr(errno, name)  # not every system has every one
)

ConfigArgument = Annotated[
    str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a shipped configuration.")
]
OverridesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override any key, such as training.steps=50; may be given again."
    ),
]
ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="A model's folder.")]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, help="Processes that prepare images; one per processor core by default."
    ),
]
ForceOption = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Go on with images whose voxel size is missing or far from what the model was trained on.",
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto (cuda where there is one), cpu, cuda or cuda:N.")]


class Commands(TyperGroup):
    """The top group: a user's mistake ends with its message and exit code 2, never with a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; see the class."""
        try:
            return super().invoke(ctx)
        except RepmodeError as error:
            fail(str(error))
        except KeyboardInterrupt:
            what_next = ctx.meta.get(_CONTINUE, "run the same command again to start over")
            typer.echo(f"\ninterrupted; {what_next}", err=True)
            raise typer.Exit(130) from None
        except OSError as error:
            if error.errno not in _USERS_ERRNO or error.filename is None:
                raise
            fail(f"{error.filename}: {error.strerror}")


def fail(message: str) -> None:
    """Print ``error: message`` on stderr and end with exit code 2."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2) from None


def continue_with(ctx: typer.Context, *more: str, without: Sequence[str] = ()) -> None:
    """Say, should the command be interrupted, that it continues with `more` added to what was typed.

    What is in `without` is left out: an option that would make it begin anew.
    """
    typed = [argument for argument in sys.argv[1:] if argument not in (*more, *without)]
    ctx.meta[_CONTINUE] = f"continue with: {shlex.join(['repmode-cl', *typed, *more])}"


def console(*, stderr: bool = False) -> Console:
    """Return a console that wraps no line where output is no terminal, so that it can be searched."""
    from rich.console import Console

    plain = Console(stderr=stderr)
    return plain if plain.is_terminal else Console(stderr=stderr, width=max(plain.width, 100))


def size(text: str | None, option: str) -> tuple[int, int, int] | None:
    """Read ``32,128,128`` (or ``32x128x128``) as voxels (z, y, x).

    Raises
    ------
    RepmodeError
        If these are not three positive whole numbers.
    """
    if text is None:
        return None
    parts = text.lower().replace("x", ",").split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise RepmodeError(f"{option} {text!r}: give three positive whole numbers z,y,x such as 32,128,128")
    z, y, x = (int(part) for part in parts)
    return z, y, x


def voxel_size_in_um(text: str | None) -> tuple[float, float, float] | None:
    """Read ``0.29,0.1,0.1``, the value of --voxel-size, as um (z, y, x).

    Raises
    ------
    RepmodeError
        If these are not three positive numbers.
    """
    if text is None:
        return None
    try:
        z, y, x = (float(part) for part in text.split(","))
    except ValueError:
        z = y = x = 0.0
    # A NaN is no number above 0 either.
    if not all(0 < size < float("inf") for size in (z, y, x)):
        raise RepmodeError(
            f"--voxel-size {text!r}: give three positive numbers z,y,x in um such as 0.29,0.1,0.1"
        )
    return z, y, x


def names(text: str, option: str) -> tuple[str, ...]:
    """Read ``dna,nucleolus`` as names of structures.

    Raises
    ------
    RepmodeError
        If one cannot name a structure, or stands twice.
    """
    from repmode_cl.structures import check_structure_name

    listed = tuple(check_structure_name(part.strip()) for part in text.split(","))
    twice = sorted({name for name in listed if listed.count(name) > 1})
    if twice:
        raise RepmodeError(f"{option}: {', '.join(twice)} stands twice")
    return listed


def spec_text(spec: AdditionSpec) -> str:
    """Write an addition's choices where they differ from the default: ``lowrank:4, sees all``."""
    said = [spec.expert]
    if spec.sees == "all":
        said.append(f"sees {', '.join(spec.needs) or 'all'}")
    said += [f"base's {part}" for part in ("norm", "resampling") if getattr(spec, part) == "base"]
    return ", ".join(said)
