"""A whole benchmark of seconds: what the tests of benchmarks share."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from scipy.ndimage import gaussian_filter

from repmode_cl.benchmark import run_benchmark
from repmode_cl.config import (
    Config,
    DataConfig,
    NetworkConfig,
    PatchConfig,
    StrategyConfig,
    StreamConfig,
    TrainingConfig,
)
from repmode_cl.data.manifest import Row, write_manifest
from repmode_cl.results import ResultsTable
from repmode_cl.strategies import StructureStrategy

BASE, ADDED = ("dna", "cell_membrane"), ("nucleolus", "mitochondria")
STRUCTURES = (*BASE, *ADDED)
TITLES = ("experts_frozen", "fine_tuning", "multi_net_k3")
#: Figures that no two runs have alike.
MEASURED = ("train_seconds", "cpu_seconds", "peak_memory_bytes")
SHAPE, PATCH, FIELDS, SEED = (4, 16, 16), (4, 8, 8), 6, 3


@dataclass
class Done:
    """An uninterrupted run."""

    folder: Path
    config: Config
    manifest: Path
    trained: Counter[tuple[str, tuple[str, ...]]]

    @property
    def results(self) -> ResultsTable:
        return ResultsTable.read(self.folder / "results.csv")

    @property
    def info(self) -> dict[str, Any]:
        info: dict[str, Any] = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        return info


def tiny(manifest: Path, output: Path) -> Config:
    return Config(
        name="tiny",
        seeds=(SEED,),
        output=str(output),
        data=DataConfig(manifest=str(manifest)),
        stream=StreamConfig(base=BASE, order=ADDED),
        network=NetworkConfig(width=4, depth=1, experts=("conv3", "conv1", "avg3")),
        patch=PatchConfig(size=PATCH),
        training=TrainingConfig(
            batch_size=2,
            steps=4,
            base_steps=6,
            learning_rate=0.02,
            schedule="one_cycle",
            validate_every=2,
            precision="float32",
            device="cpu",
        ),
        strategies=(
            StrategyConfig(name="experts_frozen"),
            StrategyConfig(name="fine_tuning"),
            StrategyConfig(name="multi_net"),
        ),
    )


def changed(config: Config, **values: Any) -> Config:
    return Config(**{**{key: getattr(config, key) for key in Config.model_fields}, **values})


def make_manifest(folder: Path) -> Path:
    """Return a manifest of fields whose one signal shows all structures, differently blurred."""
    random, rows = np.random.default_rng(0), []

    def save(name: str, volume: np.ndarray) -> Path:
        path = folder / f"{name}.tif"
        tifffile.imwrite(path, volume.astype(np.float32), photometric="minisblack", metadata={"axes": "ZYX"})
        return path

    for field in range(FIELDS):
        volume = gaussian_filter(random.normal(size=SHAPE), 0.7)
        signal = save(f"signal{field}", volume)
        for number, name in enumerate(STRUCTURES):
            target = save(f"{name}{field}", gaussian_filter(volume, 0.4 + number / 3))
            rows.append(Row(0, name, signal, None, target, None))
    path = folder / "manifest.csv"
    write_manifest(path, rows)
    return path


def run_tiny(manifest: Path, output: Path) -> Done:
    """Run the benchmark once, counting what is trained."""
    config = tiny(manifest, output)
    trained: Counter[tuple[str, tuple[str, ...]]] = Counter()
    train = StructureStrategy.train

    def spy(self: StructureStrategy, experience: Any, **kwargs: Any) -> Any:
        trained[type(self).__name__, self.stream.names_of(experience)] += 1
        return train(self, experience, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StructureStrategy, "train", spy)
        folder = run_benchmark(config)
    assert folder == Path(config.output) / "tiny"
    return Done(folder, config, manifest, trained)
