"""Names of the output files of a prediction."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from repmode_cl.errors import ImageError, RepmodeError
from repmode_cl.inference.writers import SUFFIXES, check_output, check_suffix
from repmode_cl.inference.writers.imagej import check_imagej

__all__ = ["output_paths", "refuse_inputs"]

_PLACEHOLDER = "{structure}"


def output_paths(
    out: str | Path,
    structures: Sequence[str],
    in_path: Path | str,
    *,
    several: bool,
    stack: bool = False,
    imagej: bool = False,
) -> tuple[Path, ...]:
    """Return the file to write for each structure, or the one for all in a stack.

    Parameters
    ----------
    out
        One structure: the file. Several: a folder, whose files are ``<structure>.ome.tif``, or a name in which
        ``{structure}`` stands for each.
    structures
        Names.
    in_path
        The image, which must not be replaced.
    several
        Whether several were requested, even if the list has one.
    stack
        Whether one file holds all of them.
    imagej
        Whether TIFFs are ImageJ hyperstacks; the files in a folder are then ``<structure>.tif``.

    Raises
    ------
    ImageError
        If a name's suffix is no format's, or the name is the input's.
    RepmodeError
        If no structure is named, one is named twice, or several would be written to one file.
    """
    if not structures:
        raise RepmodeError("no structure is named; name at least one")
    twice = sorted({name for name in structures if list(structures).count(name) > 1})
    if twice:
        raise RepmodeError(f"{', '.join(twice)}: named twice; name each structure once")
    text = str(out)
    if stack:
        if _PLACEHOLDER in text:
            raise RepmodeError(f"{out}: a stack holds all structures in one file; leave out {_PLACEHOLDER}")
        paths: tuple[Path, ...] = (Path(out),)
        if check_suffix(paths[0]) == ".npy":
            raise ImageError(
                f"{out}: a stack needs a format that names its channels; give a name that ends in .ome.tif or "
                ".ome.zarr"
            )
    elif _PLACEHOLDER in text:
        paths = tuple(Path(text.replace(_PLACEHOLDER, name)) for name in structures)
    elif not several:
        paths = (Path(out),)
    elif Path(out).suffix.lower() in SUFFIXES and (Path(out).suffix == ".zarr" or not Path(out).is_dir()):
        raise RepmodeError(
            f"{out}: several structures need a file each; give a folder, or a name with {_PLACEHOLDER} in it such as "
            f"{Path(out).with_name(_PLACEHOLDER + '.ome.tif')}"
        )
    else:
        paths = tuple(Path(out) / f"{name}{'.tif' if imagej else '.ome.tif'}" for name in structures)
    for path in paths:
        if imagej:
            check_imagej(path, 0)
        if isinstance(in_path, Path) and path.exists() and in_path.exists() and path.samefile(in_path):
            raise ImageError(f"{path}: is the input; give the prediction another name")
        check_output(path)
    return paths


def refuse_inputs(outputs: Iterable[Path], inputs: Iterable[Path | str]) -> None:
    """Refuse outputs that would replace one of the inputs.

    Raises
    ------
    ImageError
        If one is.
    """
    sources = {os.path.realpath(source) for source in inputs if isinstance(source, Path)}
    for path in outputs:
        if os.path.realpath(path) in sources:
            raise ImageError(f"{path}: is one of the inputs, and would be replaced; give another --out")
