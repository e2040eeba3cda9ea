"""Avalanche streams of structures (imported as `repmode_cl.scenarios`)."""

import warnings

with warnings.catch_warnings():
    # Importing Avalanche complains of solvers and modules that nothing here uses.
    warnings.simplefilter("ignore")
    import avalanche.training  # noqa: F401

from repmode_cl.scenarios.batches import LabelledBatches
from repmode_cl.scenarios.images import check_images, training_images
from repmode_cl.scenarios.sources import known_structures, prepared_samples
from repmode_cl.scenarios.stream import StructureStream, stream_of_samples, structure_stream
from repmode_cl.scenarios.variants import (
    StreamVariant,
    base_structures,
    experience_names,
    stream_variants,
    task_labels,
)

__all__ = [
    "LabelledBatches",
    "StreamVariant",
    "StructureStream",
    "base_structures",
    "check_images",
    "experience_names",
    "known_structures",
    "prepared_samples",
    "stream_of_samples",
    "stream_variants",
    "structure_stream",
    "task_labels",
    "training_images",
]
