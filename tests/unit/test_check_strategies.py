"""Mistakes that are found before a benchmark writes anything, and a training that diverges and yet ends."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import ADDED, BASE, SEED, changed, make_manifest, tiny

from repmode_cl.benchmark import run_benchmark
from repmode_cl.benchmark.check_strategies import check_strategies
from repmode_cl.config import Config, DataConfig, PatchConfig, StrategyConfig, StreamConfig, TrainingConfig
from repmode_cl.config.strategy_schema import STRATEGY_NAMES
from repmode_cl.data.manifest import read_manifest, write_manifest
from repmode_cl.errors import ConfigError, RepmodeError
from repmode_cl.model import Model
from repmode_cl.results import ResultsTable
from repmode_cl.results.run_folder import read_run
from repmode_cl.scenarios import StreamVariant
from repmode_cl.strategies import EWC

OWN = "from repmode_cl.strategies import FineTuning\n\nclass Mine(FineTuning):\n"


def check(config: Config, *orders: tuple[str, ...]) -> None:
    streams = {
        f"order-{number}": StreamVariant((BASE, *((name,) for name in order)))
        for number, order in enumerate(orders or [ADDED])
    }
    check_strategies(config, streams)


def configuration(tmp_path: Path, **options: Any) -> Config:
    return changed(tiny(tmp_path / "manifest.csv", tmp_path), strategies=(StrategyConfig(**options),))


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_wrong_class_is_found_before_anything_is_written(tmp_path: Path, dry_run: bool) -> None:
    manifest, file = make_manifest(tmp_path), tmp_path / "mine.py"
    file.write_text("Mine = 3\n")
    output = tmp_path / "out"
    wrong = StrategyConfig(name=f"{file}:Mine")
    config = changed(tiny(manifest, output), strategies=(StrategyConfig(name="fine_tuning"), wrong))
    with pytest.raises(ConfigError, match="has Mine, which is no subclass of StructureStrategy") as caught:
        run_benchmark(config, dry_run=dry_run)
    assert str(file) in str(caught.value)
    assert not output.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "depth", "batch", "message"),
    [
        ((4, 8, 8), 4, 2, r"patch\.size is \[4, 8, 8\].* network\.depth 4 needs at least 6 voxels"),
        ((4, 4, 4), 2, 1, "batch norm needs two values"),
        ((4, 4, 4), 2, 2, None),
        ((4, 4, 5), 2, 1, None),
        # Of thousands of windows.
        pytest.param((2, 2, 2), 2, 2, None, marks=pytest.mark.slow),
    ],
)
def test_patches_that_no_network_can_learn_from_are_refused(
    tmp_path: Path, size: tuple[int, int, int], depth: int, batch: int, message: str | None
) -> None:
    config = configuration(tmp_path, name="multi_net")
    config = changed(
        config,
        patch=PatchConfig(size=size),
        network=config.network.model_copy(update={"depth": depth}),
        training=config.training.model_copy(update={"batch_size": batch, "steps": 1, "validate_every": 1}),
    )
    if message is not None:
        with pytest.raises(ConfigError, match=message):
            check(config)
        return
    check(config)
    run_benchmark(changed(config, data=DataConfig(manifest=str(make_manifest(tmp_path)))))


@pytest.mark.parametrize(
    ("split", "training", "message"),
    [
        ("test", {}, "no test image of 'nucleolus'"),
        ("val", {"patience": 1}, "no image of nucleolus validates"),
        ("val", {}, None),
    ],
)
def test_an_added_structure_without_held_out_images(
    tmp_path: Path, split: str, training: dict[str, Any], message: str | None
) -> None:
    manifest = make_manifest(tmp_path)
    splits = ("train", "train", "train", "val", "test", "test")
    rows = [
        replace(row, split=splits[place // 4])
        for place, row in enumerate(read_manifest(manifest).rows)
        if row.structure != "nucleolus" or splits[place // 4] != split
    ]
    write_manifest(manifest, rows)
    config = tiny(manifest, tmp_path)
    short = {"steps": 2, "base_steps": 2, "validate_every": 1, **training}
    config = changed(
        config,
        training=config.training.model_copy(update=short),
        stream=StreamConfig(base=BASE, order=("nucleolus",)),
        strategies=(StrategyConfig(name="fine_tuning"),),
    )
    if message is None:
        assert len(ResultsTable.read(run_benchmark(config) / "results.csv"))
        return
    with pytest.raises(RepmodeError, match=message):
        run_benchmark(config)
    assert not (tmp_path / "tiny" / "run.json").exists()


def test_a_stream_that_a_strategy_cannot_learn_is_found_by_each_order(tmp_path: Path) -> None:
    config = configuration(tmp_path, name="experts_frozen", sees="all")
    check(config, ADDED, (*ADDED, "mitochondria"))
    with pytest.raises(ConfigError, match="nucleolus comes again after mitochondria"):
        check(config, ADDED, (*ADDED, "nucleolus"))
    check(configuration(tmp_path, name="experts_frozen"), (*ADDED, "nucleolus"))
    config = changed(
        configuration(tmp_path, name="joint", steps=3), training=TrainingConfig(batch_size=2, epochs=2)
    )
    with pytest.raises(ConfigError, match="joint: steps needs"):
        check(config)


@pytest.mark.parametrize("name", ["replay", "a_gem"])
def test_a_buffer_smaller_than_one_patch_is_refused(tmp_path: Path, name: str) -> None:
    make_manifest(tmp_path)
    config = configuration(tmp_path, name=name, buffer_bytes=10)
    with pytest.raises(ConfigError, match=f"{name}_bytes10: .* give at least 2048, or 0 to keep none"):
        run_benchmark(config, dry_run=True)
    with pytest.raises(ConfigError, match="give at least 2048"):
        check(configuration(tmp_path, name=name, buffer_bytes=2047))
    for enough in (0, 2048):
        check(configuration(tmp_path, name=name, buffer_bytes=enough))


@pytest.mark.parametrize(
    ("body", "options", "message"),
    [
        ("    pass", {"shar": 1}, "unexpected keyword argument: shar"),
        (
            "    def __init__(self, *, share, **kwargs):\n        super().__init__(**kwargs)\n"
            "        if share > 1:\n            raise ValueError('share is at most 1')",
            {"share": 2},
            "ValueError: share is at most 1",
        ),
        (
            "    @classmethod\n    def check(cls, config, options, experiences):\n        return experiences[9]",
            {},
            "IndexError",
        ),
        (
            "    @classmethod\n    def steps_of(cls, *asked):\n        return 0",
            {},
            "steps_of says 0 for dna, cell_membrane; at least 1 is needed",
        ),
        (
            "    @classmethod\n    def cost_of_step(cls, *asked):\n        return 1 / 0",
            {},
            "ZeroDivisionError",
        ),
    ],
)
def test_a_strategy_of_ones_own_is_tried_with_its_options(
    tmp_path: Path, body: str, options: dict[str, Any], message: str
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN + body + "\n")
    with pytest.raises(ConfigError, match=message) as caught:
        check(configuration(tmp_path, name=f"{file}:Mine", options=options))
    assert str(file) in str(caught.value)


def test_a_strategy_of_ones_own_that_cannot_grow_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN.replace("FineTuning", "StructureStrategy") + "    pass\n")
    with pytest.raises(ConfigError, match=r"does not know nucleolus, .* has no method grow"):
        check(configuration(tmp_path, name=f"{file}:Mine"), ("nucleolus",))
    knows_all = "    @classmethod\n    def make_network(cls, config, options, base, seed):\n"
    knows_all += "        return super().make_network(config, options, [*base, 'nucleolus'], seed)\n"
    file.write_text(OWN.replace("FineTuning", "StructureStrategy") + knows_all)
    check(configuration(tmp_path, name=f"{file}:Mine"), ("nucleolus",))


def test_what_reads_images_when_it_is_made_is_left_to_its_run(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        OWN + "    def __init__(self, *, seed, **kwargs):\n        super().__init__(seed=seed, **kwargs)\n"
        "        self.first = self.stream.patches[0][0]\n"
    )
    before = torch.random.get_rng_state()
    check(configuration(tmp_path, name=f"{file}:Mine"))
    assert torch.equal(before, torch.random.get_rng_state())


def test_all_strategies_of_the_package_pass(tmp_path: Path) -> None:
    config = changed(
        tiny(tmp_path / "manifest.csv", tmp_path),
        strategies=tuple(StrategyConfig(name=name) for name in STRATEGY_NAMES),
    )
    check(config, ADDED, (*ADDED, "nucleolus"))


@pytest.fixture(scope="module")
def diverged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of two strategies that diverge and one that does not, which computes importances for a while."""
    folder = tmp_path_factory.mktemp("diverged")
    config = changed(
        tiny(make_manifest(folder), folder / "out"),
        stream=StreamConfig(base=BASE, order=("nucleolus",)),
        strategies=(
            StrategyConfig(name="fine_tuning", learning_rate=1e30),
            StrategyConfig(name="experts_frozen", learning_rate=1e30),
            StrategyConfig(name="ewc"),
        ),
    )
    importance_of = EWC.importance_of

    def slow(self: EWC, number: int) -> Mapping[str, torch.Tensor]:
        self.progress.seconds = 0.0
        time.sleep(0.2)
        return importance_of(self, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EWC, "importance_of", slow)
        return run_benchmark(config)


@pytest.mark.slow
def test_a_training_that_diverges_ends_with_figures_that_are_none(diverged: Path) -> None:
    results = ResultsTable.read(diverged / "results.csv")
    for title in ("fine_tuning", "experts_frozen"):
        found = [
            r.value for r in results if (r.strategy, r.structure, r.metric) == (title, "nucleolus", "r2")
        ]
        assert found
        assert not np.isfinite(found).any()
        # The report's reader takes what is null.
        path = diverged / title / f"seed-{SEED}" / "gates.json"
        gates = json.loads(path.read_text(encoding="utf-8"))
        assert None in {w for weights in gates["nucleolus"].values() for w in weights.values()}
    model = Model.open(diverged / "experts_frozen" / f"seed-{SEED}" / "model")
    assert model.structures == BASE
    assert model.verify().bit_identical
    run = read_run(diverged)
    assert not [note for note in run.notes if "gates" in note]
    assert not run.gates["experts_frozen"]["nucleolus"]
    assert run.gates["experts_frozen"]["dna"]
    assert run.gates["ewc"]["nucleolus"]


def test_importances_are_counted_as_cost_of_their_experience(diverged: Path) -> None:
    rows = ResultsTable.read(diverged / "results.csv").select(strategy="ewc")
    seconds = [row.value for row in rows if row.metric == "train_seconds"]
    assert len(seconds) == 2
    assert min(seconds) >= 0.2
    assert all(row.value > 0 for row in rows if row.metric == "kept_bytes")
