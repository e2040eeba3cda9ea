"""Avalanche streams of structures (imported as `repmode_cl.scenarios`)."""

import warnings

with warnings.catch_warnings():
    # Importing Avalanche complains of solvers and modules that nothing here uses.
    warnings.simplefilter("ignore")
    import avalanche.training  # noqa: F401

from repmode_cl.scenarios.batches import LabelledBatches
from repmode_cl.scenarios.sources import prepared_samples
from repmode_cl.scenarios.stream import StructureStream, experience_names, stream_of_samples, structure_stream

__all__ = [
    "LabelledBatches",
    "StructureStream",
    "experience_names",
    "prepared_samples",
    "stream_of_samples",
    "structure_stream",
]
