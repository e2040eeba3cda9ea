"""Data of a configuration: images are simulated or read, split and prepared."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from repmode_cl.config import Config, DataConfig
from repmode_cl.data.manifest import Manifest, read_manifest
from repmode_cl.data.phantom import simulate
from repmode_cl.data.preprocessing.prepare import prepare
from repmode_cl.data.preprocessing.volume_cache import ContentDigests
from repmode_cl.data.sample import Sample, shuffle_signals
from repmode_cl.data.search_split import without_test
from repmode_cl.data.split_record import TrainingRecords
from repmode_cl.data.splits import assign_splits
from repmode_cl.data.validation.absent_chunks import absent_chunks_notes
from repmode_cl.data.validation.held_out import follow_records, learned_images, record_notes
from repmode_cl.data.validation.split_check import (
    refuse_split_problems,
    split_problems,
    split_problems_message,
)
from repmode_cl.errors import ConfigError, ManifestError, UnknownStructureError
from repmode_cl.structures import TWELVE_STRUCTURES
from repmode_cl.utils.process_pool import JobCluster

__all__ = ["HeldOutCheck", "available_structures", "check_base", "check_cache", "prepared_samples"]


@dataclass(frozen=True)
class HeldOutCheck:
    """Images that rows which are held out must keep away from.

    Attributes
    ----------
    patch
        Voxels (z, y, x) of a training patch: rows of different splits that lie too near for it are a problem.
    records
        Of the model that is built on: its images keep their splits, and rows that hold out what it learned from are a
        problem.
    refuse
        Refuse problems; else they become a note, for a script that chose its rows itself.
    """

    patch: Sequence[int]
    records: TrainingRecords | None = None
    refuse: bool = True


def available_structures(config: Config) -> tuple[str, ...]:
    """Return the structures with images: the manifest's, or those that can be simulated.

    Raises
    ------
    ManifestError
        If the manifest cannot be read.
    UnknownStructureError
        If the stream names a structure that would be simulated and cannot be.
    """
    if config.data.manifest is not None:
        return read_manifest(Path(config.data.manifest)).structures
    base = config.stream.base if isinstance(config.stream.base, tuple) else ()
    for name in (*base, *(config.stream.order or ())):
        if name not in TWELVE_STRUCTURES:
            raise UnknownStructureError(name, TWELVE_STRUCTURES, "the simulator")
    return TWELVE_STRUCTURES


def check_base(config: Config) -> tuple[str, ...]:
    """Check that there is a base with images, before training libraries are loaded; return `available_structures`.

    Raises
    ------
    ConfigError
        If the base has no structure.
    ManifestError
        If the manifest cannot be read.
    UnknownStructureError
        If there are no images of a structure of the base.
    """
    if not config.stream.base:
        raise ConfigError(
            "stream.base is empty: name the structures that the base learns jointly, such as [dna]"
        )
    known = available_structures(config)
    for name in config.stream.base if isinstance(config.stream.base, tuple) else ():
        if name not in known:
            raise UnknownStructureError(name, known, "the manifest")
    return known


def check_cache(folder: str | Path) -> Path:
    """Return the folder of prepared images, which need not exist.

    Raises
    ------
    ConfigError
        If it is a file, or would lie below one.
    """
    folder = Path(folder)
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if there.exists() and not there.is_dir():
        raise ConfigError(
            f"the folder of prepared images, {folder}, is no folder: {there} is a file; give another (--cache, or "
            "data.cache)"
        )
    return folder


def prepared_samples(
    data: DataConfig,
    folder: Path,
    *,
    structures: Sequence[str] | None = None,
    manifest: Manifest | None = None,
    held_out: HeldOutCheck | None = None,
    workers: int = 1,
    skipped: list[tuple[int, str]] | None = None,
    cluster: JobCluster | None = None,
) -> tuple[list[Sample], list[str]]:
    """Prepare the samples that `data` describes, in a cache.

    Parameters
    ----------
    data
        The data section of a configuration.
    folder
        Folder of simulated images, and of the cache where `data` names none.
    structures
        Structures to prepare; ``None`` prepares all.
    manifest
        An opened manifest, in place of the one `data` names.
    held_out
        What held-out rows must keep away from; None where nothing is trained.
    workers
        Processes that simulate and prepare.
    skipped
        Where given, rows whose images cannot be used are skipped, and their lines and reasons are added here.
    cluster
        Prepares the volumes, in place of processes here.

    Returns
    -------
    list of Sample
        One per row of the chosen structures.
    list of str
        Notes for the user, such as a structure with too few images to hold any out, or an image with missing chunks.

    Raises
    ------
    ConfigError
        If the cache is a file.
    ManifestError
        If images cannot be used and `skipped` is not given, no image of a structure remains, or held-out voxels would
        be trained on.
    """
    if manifest is None and data.manifest is None:
        wanted = [name for name in TWELVE_STRUCTURES if structures is None or name in structures]
        foreign = [name for name in structures or () if name not in TWELVE_STRUCTURES]
        sim = data.simulate
        path = simulate(
            folder / "simulated",
            fields=sim.fields,
            structures=[*wanted, *foreign],
            seed=sim.seed,
            shape=sim.shape,
            workers=workers,
        )
    elif manifest is None:
        path = Path(str(data.manifest))
    manifest = manifest if manifest is not None else read_manifest(path)
    cache = check_cache(data.cache if data.cache is not None else folder / "cache")
    cache.mkdir(parents=True, exist_ok=True)
    digests = ContentDigests(cache / "contents.json")
    chosen = manifest.rows if structures is None else [r for r in manifest.rows if r.structure in structures]
    # Splits are decided by the content of every image, also of structures that are not prepared.
    needed = [row.signal for row in manifest.rows if row.group is None]
    needed += [path for row in chosen for path in (row.signal, row.target, row.mask) if path is not None]
    try:
        digests.read(needed, workers)
    finally:
        digests.save()  # also after an interruption, so that the next run resumes from here
    if skipped is not None:
        manifest = _readable_rows(manifest, digests, structures, skipped)
    records = None if held_out is None else held_out.records
    followed = {} if records is None else follow_records(manifest.rows, records, digests.of)
    assignment = assign_splits(
        manifest,
        seed=data.split_seed,
        test_fraction=data.test_fraction,
        val_fraction=data.val_fraction,
        record=cache / "splits.json",
        earlier=followed,
        digest=digests.of,
    )
    digests.save()
    notes = list(assignment.notes)
    checked = [row for row in manifest.rows if structures is None or row.structure in structures]
    if held_out is not None:
        problems = split_problems(
            checked,
            assignment,
            patch=held_out.patch,
            preprocessing=data.preprocessing,
            digest=digests.of,
            workers=workers,
        )
        if records is not None:
            problems += learned_images(
                checked,
                assignment,
                records,
                patch=held_out.patch,
                preprocessing=data.preprocessing,
                digest=digests.of,
            )
        if held_out.refuse:
            refuse_split_problems(manifest, problems)
        elif problems:
            notes.append(split_problems_message(manifest, problems))
    if records is not None:
        notes += record_notes(checked, assignment, records, followed)
    notes += absent_chunks_notes(checked)
    samples = prepare(
        manifest,
        assignment,
        data.preprocessing,
        cache,
        structures=structures,
        workers=workers,
        skipped=skipped,
        cluster=cluster,
    )
    _require_images(structures or (), {sample.structure for sample in samples}, manifest, skipped)
    if data.without_test:
        samples = without_test(
            samples,
            seed=data.split_seed,
            test_fraction=data.test_fraction,
            val_fraction=data.val_fraction,
        )
    if data.shuffle_signals:
        samples = shuffle_signals(samples, data.split_seed)
    return samples, notes


def _readable_rows(
    manifest: Manifest,
    digests: ContentDigests,
    structures: Sequence[str] | None,
    skipped: list[tuple[int, str]],
) -> Manifest:
    """Return the manifest without rows whose signal cannot be read, which no split can be decided for."""
    rows = []
    for row in manifest.rows:
        try:
            digests.of(row.signal)
        except OSError as error:
            if structures is None or row.structure in structures:
                skipped.append((row.number, f"{row.signal}: cannot be read ({error.strerror or error})"))
        else:
            rows.append(row)
    readable = replace(manifest, rows=tuple(rows))
    _require_images(structures or (), readable.structures, manifest, skipped)
    return readable


def _require_images(
    structures: Sequence[str],
    remaining: Collection[str],
    manifest: Manifest,
    skipped: list[tuple[int, str]] | None,
) -> None:
    """Refuse to continue where a structure has no image."""
    missing = [name for name in structures if name in manifest.structures and name not in remaining]
    if skipped and missing:
        lines = "\n".join(f"  line {number}: {why}" for number, why in sorted(skipped))
        raise ManifestError(f"{manifest.path}: no image of {', '.join(missing)} can be used\n{lines}")
