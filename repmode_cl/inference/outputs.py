"""Names of the files that predictions are written to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from repmode_cl.errors import ImageError, RepmodeError
from repmode_cl.inference.volume_io import SUFFIXES, check_suffix

__all__ = ["output_paths"]

_PLACE = "{structure}"


def output_paths(
    out: str | Path, structures: Sequence[str], in_path: Path, *, several: bool
) -> tuple[Path, ...]:
    """Return the file to write for each structure.

    Parameters
    ----------
    out
        One structure: the file. Several: a folder, whose files are ``<structure>.ome.tif``, or a name in which
        ``{structure}`` stands for each.
    structures
        Names.
    in_path
        The image, which must not be written over.
    several
        Whether several were asked for, even if it comes to one.

    Raises
    ------
    ImageError
        If a name ends in what cannot be written, or is the input's.
    RepmodeError
        If no structure is named or one twice, or several would be written to one file.
    """
    if not structures:
        raise RepmodeError("no structure is named; name at least one")
    twice = sorted({name for name in structures if list(structures).count(name) > 1})
    if twice:
        raise RepmodeError(f"{', '.join(twice)}: named twice; name each structure once")
    text = str(out)
    if _PLACE in text:
        paths = tuple(Path(text.replace(_PLACE, name)) for name in structures)
    elif not several:
        paths = (Path(out),)
    elif Path(out).suffix.lower() in SUFFIXES and not Path(out).is_dir():
        raise RepmodeError(
            f"{out}: several structures need a file each; give a folder, or a name with {_PLACE} in it such as "
            f"{Path(out).with_name(_PLACE + '.ome.tif')}"
        )
    else:
        paths = tuple(Path(out) / f"{name}.ome.tif" for name in structures)
    for path in paths:
        check_suffix(path)
        if path.is_dir():
            raise ImageError(f"{path}: is a folder; give the name of a file")
        if path.exists() and in_path.exists() and path.samefile(in_path):
            raise ImageError(f"{path}: is the input; give the prediction a name of its own")
    return paths
