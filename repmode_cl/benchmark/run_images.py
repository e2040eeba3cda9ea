"""Images of a benchmark: prepared, checked against the streams, and recorded where some are left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from repmode_cl.benchmark.resume import ResumeState, check_images_are_the_same
from repmode_cl.config import Config
from repmode_cl.data.pipeline import HeldOutCheck, prepared_samples
from repmode_cl.data.sample import Sample
from repmode_cl.errors import counted
from repmode_cl.results.left_out import LEFT_OUT, write_left_out
from repmode_cl.scenarios import StreamVariant, check_images
from repmode_cl.training.early_stopping import check_patience
from repmode_cl.utils.atomic_files import write_text

__all__ = ["RunImages", "run_images"]


@dataclass(frozen=True)
class RunImages:
    """Images that a benchmark learns from.

    Attributes
    ----------
    samples
        Prepared images of all structures of its streams.
    notes
        Sentences that a person should see.
    left_out
        Lines of the manifest that are left out, and why.
    """

    samples: list[Sample]
    notes: list[str]
    left_out: list[tuple[int, str]]

    def write_notes(self, folder: Path) -> None:
        """Write ``notes.txt`` and ``left_out.csv`` of the run in `folder`; without content they are removed."""
        if self.notes:
            write_text(folder / "notes.txt", "\n".join(self.notes) + "\n")
        else:
            (folder / "notes.txt").unlink(missing_ok=True)
        write_left_out(folder, self.left_out)


def run_images(
    config: Config,
    folder: Path,
    streams: Mapping[str, StreamVariant],
    state: ResumeState,
    *,
    workers: int,
    keep_going: bool,
) -> RunImages:
    """Prepare the images of all streams.

    Parameters
    ----------
    config, folder, streams
        The run.
    state
        What the run's folder held before.
    workers
        Processes that simulate and prepare.
    keep_going
        Leave out rows of the manifest whose images cannot be used; otherwise they are an error.

    Raises
    ------
    ConfigError
        If a run that has learned something was started with other images, or patience has nothing to count.
    ManifestError, ImageError
        If images cannot be used, and `keep_going` is not given, or no image of a structure remains.
    """
    structures = [name for variant in streams.values() for names in variant.experiences for name in names]
    left_out: list[tuple[int, str]] = []
    samples, notes = prepared_samples(
        config.data,
        folder,
        structures=list(dict.fromkeys(structures)),
        held_out=HeldOutCheck(config.patch.size),
        workers=workers,
        skipped=left_out if keep_going else None,
    )
    if state.learned:
        check_images_are_the_same(folder, samples)
    notes = [*notes, *check_images(samples, streams)]
    for variant in streams.values():
        for names in variant.experiences:
            validating = sum(one.split == "val" and one.structure in names for one in samples)
            check_patience(config.training, names, validating)
    if left_out:
        verb = "was" if len(left_out) == 1 else "were"
        notes.append(
            f"{counted(len(left_out), 'row')} of the manifest {verb} left out, as their images cannot be used: "
            f"{LEFT_OUT}"
        )
    return RunImages(samples, notes, left_out)
