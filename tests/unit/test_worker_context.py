"""The file work.json: its processes read what the run holds, down to the types, because samples are hashed."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from tiny_run import tiny

from repmode_cl.benchmark.worker_context import WorkerContext
from repmode_cl.data.sample import Sample
from repmode_cl.scenarios import StreamVariant
from repmode_cl.training import recall_precision

ROOT = Path("runs").absolute()
names = some.text(min_size=1)
files = some.sampled_from(["a.npy", "b/c d.npy", "\N{GREEK SMALL LETTER MU}.npy"]).map(
    lambda name: ROOT / name
)
sizes = some.integers(1, 4000)
edges = some.floats(1e-3, 1e3)
samples = some.builds(
    Sample,
    structure=names,
    split=some.sampled_from(["train", "val", "test"]),
    row=some.integers(2, 10**6),
    image_id=names,
    signal=files,
    target=files,
    mask=some.none() | files,
    shape=some.tuples(sizes, sizes, sizes),
    group=names,
    voxel_size=some.none() | some.tuples(edges, edges, edges),
    source=names,
    light_scale=some.none() | some.tuples(edges, edges),
    target_scale=some.none() | some.tuples(edges, edges),
)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(some.lists(samples, max_size=3), some.none() | some.integers(1, 8))
def test_work_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, held: list[Sample], images: int | None
) -> None:
    folder = tmp_path_factory.mktemp("work")
    config = tiny(Path("cells.csv").absolute(), Path("runs"))
    work = WorkerContext(
        folder=folder,
        config=config,
        streams={"s": StreamVariant((("dna", "nucleolus"), ("golgi_apparatus",)), images)},
        samples=held,
        precision=recall_precision("float32", torch.device("cpu"), "a test"),
        threads=2,
    )
    work.save()
    read = WorkerContext.load(folder)
    assert read == work
    assert len(set(read.samples)) == len(set(held))


def test_no_value_of_a_sample_is_forgotten_above() -> None:
    assert {field.name for field in fields(Sample)} == {
        "structure", "split", "row", "image_id", "signal", "target", "mask", "shape", "group", "voxel_size",
        "source", "light_scale", "target_scale",
    }  # fmt: skip
