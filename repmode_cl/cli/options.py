"""Options that commands share, and how errors and interruptions end them."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from repmode_cl.errors import RepmodeError
from repmode_cl.structures import check_structure_name
from repmode_cl.utils.command_text import command_line
from repmode_cl.utils.progress import report_line
from repmode_cl.utils.stop_signals import Stopped, handle_stop_signals

if TYPE_CHECKING:
    from rich.console import Console


__all__ = [
    "CommandGroup",
    "fail",
    "continue_with",
    "report_start",
    "console",
    "ModelArgument",
    "ReadModelArgument",
    "ConfigArgument",
    "OverridesOption",
    "WorkersOption",
    "LoaderWorkersOption",
    "ForceOption",
    "DeviceOption",
    "PrecisionOption",
    "PrecisionChoice",
    "BatchSizeOption",
    "PatchOption",
    "SeedOption",
    "AS_BASE",
    "Blocks",
    "Gate",
    "Sees",
    "LayerSource",
    "parse_size",
    "parse_voxel_size",
    "parse_structures",
    "check_training_options",
    "kind_of_addition",
    "Setting",
]

#: End of the help of options that are the base's by default.
AS_BASE = "as the base was trained with, by default."

_CONTINUE = "repmode_cl.continue_with"

# Errors of the operating system that come from the paths that the user named, not from a defect here.
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
#: Of commands that change nothing.
ReadModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A model's folder, or hf://owner/name@revision.")
]
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
BatchSizeOption = Annotated[int | None, typer.Option(min=1, help=f"Patches a step; {AS_BASE}")]
PatchOption = Annotated[str | None, typer.Option(metavar="Z,Y,X", help=f"Voxels of a patch; {AS_BASE}")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of new weights and of crops.")]
LoaderWorkersOption = Annotated[
    int, typer.Option(min=0, max=256, help="Processes that cut patches ahead; 0 cuts them in this one.")
]


class PrecisionChoice(StrEnum):
    """Number format of the computation."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


PrecisionOption = Annotated[PrecisionChoice, typer.Option(help="Number format of training.")]


class Setting(StrEnum):
    """Named settings of an addition."""

    small = "small"
    best = "best"


class Sees(StrEnum):
    """Experts that the gates of an addition weigh."""

    own = "own"
    all = "all"


class Gate(StrEnum):
    """Place of an addition's fresh expert."""

    softmax = "softmax"
    outside = "outside"


class Blocks(StrEnum):
    """Blocks that get a fresh expert."""

    all = "all"
    encoder = "encoder"
    decoder = "decoder"


class LayerSource(StrEnum):
    """Layers that an addition uses: its own copies, or the base's."""

    own = "own"
    base = "base"


class CommandGroup(TyperGroup):
    """Top group of the commands: a user's mistake ends with its message and exit code 2, never with a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; see the class."""
        try:
            with handle_stop_signals():
                return super().invoke(ctx)
        except RepmodeError as error:
            fail(str(error))
        except KeyboardInterrupt as error:
            what_next = ctx.meta.get(_CONTINUE, "run the same command again to start over")
            saved = f" ({error.saved})" if isinstance(error, Stopped) and error.saved else ""
            typer.echo(f"\ninterrupted{saved}; {what_next}", err=True)
            number = error.number if isinstance(error, Stopped) else signal.SIGINT
            raise typer.Exit(128 + number) from None
        except OSError as error:
            if error.errno not in _USERS_ERRNO or error.filename is None:
                raise
            fail(f"{error.filename}: {error.strerror}")


def fail(message: str) -> None:
    """Print ``error: message`` on stderr and end with exit code 2."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2) from None


def report_start(ctx: typer.Context, subject: object) -> None:
    """Write a line before training libraries are loaded, which takes seconds, where there is no terminal."""
    report_line(f"{ctx.info_name} {subject}: started, loading libraries")


def continue_with(ctx: typer.Context, *more: str, without: Sequence[str] = ()) -> None:
    """Set the message of an interruption: the command continues with `more` added to what was typed.

    Options in `without` are not part of it: they would make the command start again.
    """
    typed = [argument for argument in sys.argv[1:] if argument not in (*more, *without)]
    ctx.meta[_CONTINUE] = f"continue with: {command_line(*typed, *more)}"


def console(*, stderr: bool = False) -> Console:
    """Return a console that wraps no line where output is no terminal, so that it can be searched."""
    # Rich takes a tenth of a second to import, and most commands print without it.
    from rich.console import Console

    plain = Console(stderr=stderr)
    return plain if plain.is_terminal else Console(stderr=stderr, width=max(plain.width, 100))


def parse_size(text: str | None, option: str) -> tuple[int, int, int] | None:
    """Read ``32,128,128`` (or ``32x128x128``) as voxels (z, y, x).

    Raises
    ------
    RepmodeError
        If `text` is not three positive whole numbers.
    """
    if text is None:
        return None
    parts = text.lower().replace("x", ",").split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise RepmodeError(f"{option} {text!r}: give three positive whole numbers z,y,x such as 32,128,128")
    z, y, x = (int(part) for part in parts)
    return z, y, x


def parse_voxel_size(text: str | None) -> tuple[float, float, float] | None:
    """Read ``0.29,0.1,0.1``, the value of --voxel-size, as um (z, y, x).

    Raises
    ------
    RepmodeError
        If `text` is not three positive numbers.
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


def parse_structures(text: str, option: str) -> tuple[str, ...]:
    """Read ``dna,nucleolus`` as names of structures.

    Raises
    ------
    RepmodeError
        If one is no valid name of a structure, or is given twice.
    """
    listed = tuple(check_structure_name(part.strip()) for part in text.split(","))
    repeated = sorted({name for name in listed if listed.count(name) > 1})
    if repeated:
        raise RepmodeError(f"{option}: {', '.join(repeated)} is given twice")
    return listed


def kind_of_addition(setting: Setting | None, chosen: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return the choices for an addition that were made, those of a setting included, and the setting's name.

    Parameters
    ----------
    setting
        The option ``--setting``.
    chosen
        The other options, by their names in `AdditionSpec`; None was not given, and is left out.
    """
    given = {
        key: value.value if isinstance(value, StrEnum) else value
        for key, value in chosen.items()
        if value is not None
    }
    if setting is None:
        return given, None
    # Reading a configuration's schema takes longer than all else that --help needs.
    from repmode_cl.config.addition_settings import kind_of_setting

    return kind_of_setting(setting.value) | given, setting.value


def check_training_options(
    *,
    steps: int | None,
    epochs: int | None,
    expert: str,
    rates: Mapping[str, float | None],
) -> None:
    """Refuse mistakes in the options of an addition before torch is imported.

    Parameters
    ----------
    steps, epochs
        Length of the training; at most one may be given.
    expert
        Kind of the fresh experts, or ``none``.
    rates
        Option -> learning rate.

    Raises
    ------
    RepmodeError
        Naming the option.
    """
    if steps is not None and epochs is not None:
        raise RepmodeError("give either --steps or --epochs, not both")
    for option, rate in rates.items():
        if rate is not None and not 0 < rate < float("inf"):
            raise RepmodeError(f"{option} {rate}: a positive number is needed")
    # The schemas of the configuration take tenths of a second to import.
    from repmode_cl.config.field_types import check_fresh_expert

    try:
        check_fresh_expert(expert)
    except ValueError as error:
        raise RepmodeError(f"--expert {error}") from error
