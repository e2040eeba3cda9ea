from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from tiny_run import BASE, STRUCTURES, TITLES, Done

from repmode_cl.results.results_table import Result
from repmode_cl.strategies.plugins.tensorboard import TensorBoardLogger, hyper_parameters
from repmode_cl.strategies.state import Example, TrainingProgress


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def scalars(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


def fake(experience: int = 0, step: int = 0, curve: list[dict[str, Any]] | None = None) -> Any:
    """Return what `TensorBoardLogger` asks of a strategy whose experiences have 20 steps each."""
    flat = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    return SimpleNamespace(
        progress=TrainingProgress(experience, step, curve=curve or []),
        budget_for=lambda number: SimpleNamespace(steps=20),
        last_loss=1.0 / (1 + step),
        optimizer=SimpleNamespace(param_groups=[{"lr": 0.1}]),
        examples={"dna": Example(flat, flat, flat[::-1])},
    )


def train(events: TensorBoardLogger, experience: int, steps: range, validate: int = 5) -> None:
    """Write what a training of one experience writes."""
    curve: list[dict[str, Any]] = []
    for step in steps:
        strategy = fake(experience, step, curve)
        events.after_step(strategy)
        if step % validate == 0:
            row = {"experience": experience, "structure": "dna", "train_step": step}
            curve.append({**row, "metric": "r2", "value": step / 100})
            events.after_validation(strategy)


def test_a_benchmark_leaves_figures_pictures_and_hyper_parameters(done: Done) -> None:
    for title in TITLES:
        events = read(done.folder / title / "seed-3" / "tensorboard")
        tags = events.Tags()
        rows = done.results.select(strategy=title)
        for name in STRUCTURES:
            measured = [(row.step, row.value) for row in rows if (row.structure, row.metric) == (name, "r2")]
            written = scalars(events, f"test/{name}/r2")
            # As often as it was evaluated, at ascending steps of the stream, with the run's figures.
            assert [value for _, value in written] == pytest.approx([value for _, value in sorted(measured)])
            assert [step for step, _ in written] == sorted({step for step, _ in written})
            assert f"val/{name}/r2" in tags["scalars"]
            pictures = events.Images(f"slices/{name}")
            assert [picture.step for picture in pictures] == [step for step, _ in written]
            assert (pictures[0].height, pictures[0].width) == (16, 3 * 16 + 2 * 3)
        last = [row.value for row in rows if (row.step, row.metric) == (2, "r2")]
        assert len(last) == len(STRUCTURES)
        assert scalars(events, "final/r2")[0][1] == pytest.approx(np.mean(last))
        content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        given = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
        assert given["strategy"].string_value == title
        assert given["learning_rate"].number_value == 0.02
        assert given["seed"].number_value == 3


def test_structures_of_the_base_stand_where_the_base_was_trained_also_if_it_was_taken(done: Done) -> None:
    by_title = {
        title: scalars(read(done.folder / title / "seed-3" / "tensorboard"), f"val/{BASE[0]}/r2")
        for title in ("experts_frozen", "fine_tuning")
    }
    assert by_title["experts_frozen"] == by_title["fine_tuning"]
    assert max(step for step, _ in by_title["fine_tuning"]) == done.config.training.base_steps


def test_what_is_written_again_after_an_interruption_does_not_stand_twice(tmp_path: Path) -> None:
    events = TensorBoardLogger(tmp_path, every=1)
    events.begin(fake())
    train(events, 0, range(1, 21))
    events.after_experience(fake(0, 20), {"dna": {"r2": 0.5}})
    train(events, 1, range(1, 14))
    events.close()  # killed: the last checkpoint is from step 10 of the second experience
    events = TensorBoardLogger(tmp_path, every=1)
    events.begin(fake(1, 10))
    train(events, 1, range(11, 21))
    events.after_experience(fake(1, 20), {"dna": {"r2": 0.25}})
    events.close()
    found = read(tmp_path)
    assert [step for step, _ in scalars(found, "train/mse")] == list(range(1, 41))
    assert [step for step, _ in scalars(found, "val/dna/r2")] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert scalars(found, "test/dna/r2") == [(20, 0.5), (40, 0.25)]


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_over(tmp_path: Path) -> None:
    for _ in range(2):
        events = TensorBoardLogger(tmp_path, every=1)
        events.begin(fake())
        train(events, 0, range(1, 4))
        events.close()
    assert [step for step, _ in scalars(read(tmp_path), "train/mse")] == [1, 2, 3]


def test_a_run_that_ends_twice_has_one_end(tmp_path: Path) -> None:
    rows = [Result("a", 0, step, name, "r2", 0.25 * step) for step in (1, 2) for name in ("dna", "golgi")]
    for _ in range(2):
        events = TensorBoardLogger(tmp_path)
        events.begin(fake(2, 0))
        events.finished(fake(2, 0), {"strategy": "a"}, rows)
        events.close()
    assert scalars(read(tmp_path), "final/r2") == [(41, 0.5)]


def test_slices_are_shown_side_by_side_truth_and_prediction_with_one_contrast(tmp_path: Path) -> None:
    strategy = fake()
    truth = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    strategy.examples = {"dna": Example(truth, truth, truth / 2)}
    events = TensorBoardLogger(tmp_path)
    events.begin(strategy)
    events.after_experience(strategy, {"dna": {"r2": 0.5}, "golgi": {"r2": 0.5}})
    events.close()
    [picture] = read(tmp_path).Images("slices/dna")
    levels = np.asarray(Image.open(io.BytesIO(picture.encoded_image_string)).convert("L")).astype(int)
    assert levels.shape == (3, 3 * 4 + 2 * 3)
    shown_truth, shown = levels[:, 7:11], levels[:, 14:]
    assert shown_truth[-1, -1] == 255
    assert np.abs(shown - shown_truth / 2).max() <= 2


def test_nothing_is_written_before_it_is_known_where_the_run_stands(tmp_path: Path) -> None:
    events = TensorBoardLogger(tmp_path / "tensorboard")
    with pytest.raises(ValueError, match="begin"):
        events.after_experience(fake(), {"dna": {"r2": 0.5}})
    events.close()
    assert not (tmp_path / "tensorboard").exists()


def test_hyper_parameters_are_what_tensorboard_can_hold(done: Done) -> None:
    for options in done.config.strategies:
        found = hyper_parameters(done.config, options, 3, "order-1")
        assert (found["strategy"], found["kind"], found["stream"]) == (options.title, options.name, "order-1")
        assert all(isinstance(value, bool | str | int | float) for value in found.values())
