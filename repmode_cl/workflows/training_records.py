"""Records of the images that a model was trained on, for a training or a comparison that builds on the model."""

from __future__ import annotations

from collections.abc import Iterable

from repmode_cl.data.split_record import SplitRecord, TrainingRecords, read_split_record
from repmode_cl.model import Model

__all__ = ["BASE", "base_split", "records_of"]

#: Name of the base's record; its structures were trained jointly and share it.
BASE = "the base"


def base_split(model: Model) -> SplitRecord:
    """Return the record of the base: settings of its split, and its images."""
    return read_split_record(model.entries[model.base_structures[0]].provenance)


def records_of(model: Model, learned_from: Iterable[str] = ()) -> TrainingRecords:
    """Return the records of a model.

    Parameters
    ----------
    model
        As it is on disk.
    learned_from
        Additions whose weights are used, in addition to the base: seen, started from, or measured. Names of base
        structures count as the base.
    """
    records = {BASE: base_split(model)}
    for name, entry in model.entries.items():
        if name not in model.base_structures:
            records[name] = read_split_record(entry.provenance)
    additions = [name for name in dict.fromkeys(learned_from) if name not in model.base_structures]
    return TrainingRecords(records, [BASE, *additions])
