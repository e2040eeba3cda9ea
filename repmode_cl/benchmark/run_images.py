"""The images of a benchmark: prepared, checked against the streams, and what was left out written down."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from repmode_cl.benchmark.resume import ResumeState, check_images_are_the_same
from repmode_cl.config import Config
from repmode_cl.data.pipeline import prepared_samples
from repmode_cl.data.sample import Sample
from repmode_cl.errors import counted
from repmode_cl.results.run_folder import LEFT_OUT
from repmode_cl.scenarios import StreamVariant, check_images
from repmode_cl.training.early_stopping import check_patience
from repmode_cl.utils.atomic_files import write_text

__all__ = ["RunImages", "run_images"]


@dataclass(frozen=True)
class RunImages:
    """What a benchmark learns from.

    Attributes
    ----------
    samples
        Prepared images of all structures of its streams.
    notes
        What a person should see.
    left
        Lines of the manifest that are left out, and why.
    """

    samples: list[Sample]
    notes: list[str]
    left: list[tuple[int, str]]

    def write_notes(self, folder: Path) -> None:
        """Write ``notes.txt`` and ``left_out.csv`` of the run in `folder`, where there is something to tell."""
        if self.notes:
            write_text(folder / "notes.txt", "\n".join(self.notes) + "\n")
        if not self.left:
            (folder / LEFT_OUT).unlink(
                missing_ok=True
            )  # of an earlier attempt, before the images were put right
            return
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([("line", "reason"), *sorted(self.left)])
        write_text(folder / LEFT_OUT, text.getvalue())


def run_images(
    config: Config,
    folder: Path,
    streams: Mapping[str, StreamVariant],
    before: ResumeState,
    *,
    workers: int,
    keep_going: bool,
) -> RunImages:
    """Prepare the images of all streams.

    Parameters
    ----------
    config, folder, streams
        The run.
    before
        What was found of it.
    workers
        Processes that simulate and prepare.
    keep_going
        Leave out rows of the manifest whose images cannot be used, where they would else be an error.

    Raises
    ------
    ConfigError
        If a run that has learned something began with other images, or patience has nothing to count.
    ManifestError, ImageError
        If images cannot be used, and `keep_going` is not given, or nothing is left of a structure.
    """
    structures = [name for variant in streams.values() for names in variant.experiences for name in names]
    left: list[tuple[int, str]] = []
    samples, notes = prepared_samples(
        config.data,
        folder,
        structures=list(dict.fromkeys(structures)),
        workers=workers,
        left=left if keep_going else None,
    )
    if before.learned:
        check_images_are_the_same(folder, samples)
    notes = [*notes, *check_images(samples, streams)]
    for variant in streams.values():
        for names in variant.experiences:
            validating = sum(one.split == "val" and one.structure in names for one in samples)
            check_patience(config.training, names, validating)
    if left:
        were = f"{counted(len(left), 'row')} of the manifest {'was' if len(left) == 1 else 'were'}"
        notes.append(f"{were} left out, as their images cannot be used: {LEFT_OUT}")
    return RunImages(samples, notes, left)
