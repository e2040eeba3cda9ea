"""Avalanche streams of structures (imported as `repmode_cl.scenarios`)."""

import warnings

with warnings.catch_warnings():
    # Importing Avalanche complains of solvers and modules that nothing here uses.
    warnings.simplefilter("ignore")
    import avalanche.training  # noqa: F401

from repmode_cl.scenarios.dense_regression import dense_regression_benchmark
from repmode_cl.scenarios.image_allocation import check_images, training_images
from repmode_cl.scenarios.labelled_loader import LabelledBatches
from repmode_cl.scenarios.stream import (
    PatchSampling,
    StructureStream,
    stream_of_samples,
    structure_labels,
    structure_stream,
)
from repmode_cl.scenarios.stream_variants import (
    StreamVariant,
    base_structures,
    experience_names,
    stream_variants,
    task_labels,
)

__all__ = [
    "LabelledBatches",
    "PatchSampling",
    "StreamVariant",
    "StructureStream",
    "base_structures",
    "check_images",
    "dense_regression_benchmark",
    "experience_names",
    "stream_of_samples",
    "stream_variants",
    "structure_labels",
    "structure_stream",
    "task_labels",
    "training_images",
]
