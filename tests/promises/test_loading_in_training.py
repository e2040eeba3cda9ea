"""Training with patches that workers cut: the same bits, whoever cuts them; and batches of few structures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_run import Done, changed
from tiny_strategies import PATCH, TRAINING, differing, experts_frozen, learn, state_of
from typer.testing import CliRunner

from repmode_cl import benchmark
from repmode_cl.cli.app import app
from repmode_cl.data.sample import Sample
from repmode_cl.errors import ConfigError
from repmode_cl.scenarios import PatchSampling, stream_of_samples
from repmode_cl.utils import process_pool
from repmode_cl.utils.process_pool import workers_here
from repmode_cl.workflows.options import TrainingOverrides

STREAM = (("dna", "cell_membrane", "nucleolus"), ("mitochondria",))


@pytest.mark.slow
def test_workers_train_the_same_network(samples: list[Sample]) -> None:
    stream = stream_of_samples(samples, STREAM, PatchSampling(PATCH), count=lambda _, __: 8, seed=0)
    alone = learn(experts_frozen(stream), 0)
    workers = TRAINING.model_copy(update={"loader_workers": 1})
    ahead = learn(experts_frozen(stream, training=workers), 0)
    assert not differing(state_of(alone), state_of(ahead))
    assert ahead.last_loss == alone.last_loss
    assert ahead.progress.curve == alone.progress.curve
    untrained = experts_frozen(stream)
    assert differing(state_of(untrained), state_of(alone))


def test_every_batch_shows_few_structures(samples: list[Sample]) -> None:
    stream = stream_of_samples(
        samples, STREAM, PatchSampling(PATCH, batch=2, structures_per_batch=1), count=lambda _, __: 8, seed=0
    )
    strategy = experts_frozen(stream)
    seen: list[set[str]] = []
    strategy.listeners.append(lambda s: seen.append(set(stream.names(s.mb_task_id.tolist()))))
    learn(strategy, 0)
    assert [len(names) for names in seen] == [1] * 4
    assert len(set.union(*seen)) == 3


def test_a_run_goes_on_with_another_number_of_workers(done: Done, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(done.folder, tmp_path / "tiny"))
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    assert str(done.folder.parent) in text
    (folder / "config.yaml").write_text(
        text.replace(str(done.folder.parent), str(tmp_path)), encoding="utf-8"
    )
    before = (folder / "results.csv").read_bytes()

    def config(**training: Any) -> Any:
        return changed(
            done.config, output=str(tmp_path), training=done.config.training.model_copy(update=training)
        )

    assert benchmark.run_benchmark(config(loader_workers=3), resume=True) == folder
    assert (folder / "results.csv").read_bytes() == before
    with pytest.raises(ConfigError, match=r"training\.steps was 4 and is 5"):
        benchmark.run_benchmark(config(loader_workers=3, steps=5), resume=True)


@pytest.mark.parametrize(
    ("command", "function"),
    [
        ("bench quickstart", "repmode_cl.benchmark.run_benchmark"),
        ("train quickstart --out {folder}/new", "repmode_cl.workflows.train_base.train_base"),
        (
            "add {folder} --structure dna --data {folder}/m.csv",
            "repmode_cl.workflows.add_structure.run_addition",
        ),
    ],
)
def test_commands_take_a_number_of_processes(
    command: str, function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Called(Exception):  # noqa: N818
        pass

    given: dict[str, Any] = {}

    def spy(*arguments: Any, **options: Any) -> None:
        given.update(options)
        for one in arguments:
            given.update(vars(one) if isinstance(one, TrainingOverrides) else {})
        raise Called

    monkeypatch.setattr(function, spy)
    monkeypatch.setattr(process_pool, "workers_here", workers_here)  # as outside of tests: one per processor
    words = command.format(folder=tmp_path).split()
    for more, workers in (([], workers_here()), (["--workers", "3"], 3)):
        result = CliRunner().invoke(app, [*words, *more])
        assert isinstance(result.exception, Called), result.output
        assert given["workers"] == workers
    if function.endswith("run_addition"):
        CliRunner().invoke(app, [*words, "--loader-workers", "2"])
        assert given["loader_workers"] == 2
    assert CliRunner().invoke(app, [*words, "--workers", "0"]).exit_code == 2
