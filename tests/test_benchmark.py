"""A whole benchmark, tiny: its files and figures, and that an interrupted run goes on as if it had not been."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from repmode_cl.strategies import DryRun, StructureStrategy, run_benchmark
from repmode_cl.strategies import benchmark as benchmark_module
from repmode_cl.strategies import run as run_module
from repmode_cl.strategies.checkpoints import StrategyCheckpoint
from scipy.ndimage import gaussian_filter

from repmode_cl.config import (
    Config,
    DataConfig,
    NetworkConfig,
    PatchConfig,
    StrategyConfig,
    StreamConfig,
    TrainingConfig,
    load_config,
)
from repmode_cl.config.loading import dump_config
from repmode_cl.data.manifest import Row, write_manifest
from repmode_cl.errors import ConfigError, UnknownStructureError
from repmode_cl.evaluation import HIGHER_IS_BETTER, ResultsTable, forgetting, performance_matrix
from repmode_cl.evaluation.results import COSTS
from repmode_cl.nn import Architecture, RepModeUNet
from repmode_cl.store import Model

BASE, ADDED = ("dna", "cell_membrane"), ("nucleolus", "mitochondria")
STRUCTURES = (*BASE, *ADDED)
TITLES = ("experts_frozen", "fine_tuning", "multi_net_k3")
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


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a manifest of fields whose one signal shows all structures, differently blurred."""
    folder = tmp_path_factory.mktemp("images")
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


@pytest.fixture(scope="module")
def done(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    config = tiny(manifest, tmp_path_factory.mktemp("runs"))
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


# -- what a run leaves ------------------------------------------------------------------------------------------


def test_the_files_of_a_run(done: Done) -> None:
    top = {path.name for path in done.folder.iterdir()}
    assert top >= {"config.yaml", "environment.json", "run.json", "results.csv", "report.html", *TITLES}
    for title in TITLES:
        folder = done.folder / title / f"seed-{SEED}"
        assert {path.stem for path in (folder / "predictions").glob("*.npz")} == set(STRUCTURES)
        assert any(path.stat().st_size for path in (folder / "tensorboard").iterdir())
        assert (folder / "learning.csv").stat().st_size
        assert (folder / "gates.json").is_file() == (title != "multi_net_k3")
        assert (folder / "model").is_dir() == (title == "experts_frozen")
    assert load_config(done.folder / "config.yaml") == done.config
    environment = json.loads((done.folder / "environment.json").read_text(encoding="utf-8"))
    assert environment["precision"] == "float32"
    assert {"torch", "repmode-cl", "avalanche-lib"} <= environment["packages"].keys()
    page = (done.folder / "report.html").read_text(encoding="utf-8")
    assert all(title in page for title in TITLES)
    assert not list(done.folder.rglob("*.writing-*"))


def test_the_rows_of_results(done: Done) -> None:
    costs = {"train_seconds", "added_parameters", "added_bytes", "steps"}
    seen = {0: BASE, 1: (*BASE, "nucleolus"), 2: STRUCTURES}
    learned = {
        title: [(0, "base"), (1, "nucleolus"), (2, "mitochondria")]
        for title in ("experts_frozen", "fine_tuning")
    }
    learned["multi_net_k3"] = [(0, "dna"), (0, "cell_membrane"), (1, "nucleolus"), (2, "mitochondria")]
    results = done.results
    assert results.strategies == TITLES
    for title in TITLES:
        assert results.seeds(title) == (SEED,)
        rows = [row for row in results if row.strategy == title]
        quality = {(row.step, row.structure, row.metric) for row in rows if row.metric in HIGHER_IS_BETTER}
        assert quality == {
            (step, name, metric)
            for step, names in seen.items()
            for name in names
            for metric in HIGHER_IS_BETTER
        }
        assert all(np.isfinite(row.value) for row in rows)
        others = {row.metric for row in rows} - set(HIGHER_IS_BETTER)
        assert costs <= others <= set(COSTS)
        for metric in others:
            assert [row[2:4] for row in rows if row.metric == metric] == learned[title]
        assert [row.value for row in rows if row.metric == "steps"] == [
            6 if name == "base" else 4 for _, name in learned[title]
        ]


def test_what_a_structure_costs(done: Done) -> None:
    def of(title: str, structure: str, metric: str = "added_parameters") -> float:
        [row] = done.results.select(strategy=title, structure=structure, metric=metric)
        return row.value

    network = RepModeUNet(Architecture(4, 1, ("conv3", "conv1", "avg3")), BASE)
    gates = sum(p.numel() for n, p in network.named_parameters() if n.endswith("gates.dna"))
    assert of("fine_tuning", "nucleolus") == of("fine_tuning", "mitochondria") == gates
    network.add_structure("nucleolus")
    owned = sum(t.numel() for t in network.structure_state("nucleolus").values() if t.is_floating_point())
    assert of("experts_frozen", "nucleolus") == owned
    assert of("multi_net_k3", "dna") == of("multi_net_k3", "mitochondria") > gates
    for title in TITLES:
        assert of(title, "nucleolus", "added_bytes") == 4 * of(title, "nucleolus")
        assert of(title, "nucleolus", "train_seconds") > 0


def test_forgetting_is_exactly_nothing_but_for_fine_tuning(done: Done) -> None:
    for metric in HIGHER_IS_BETTER:
        lost = {
            title: forgetting(performance_matrix(done.results, title, metric, SEED, done.info["experiences"]))
            for title in TITLES
        }
        assert lost["experts_frozen"] == lost["multi_net_k3"] == dict.fromkeys((*BASE, "nucleolus"), 0.0)
        assert all(value != 0.0 for value in lost["fine_tuning"].values())


def test_run_json(done: Done) -> None:
    info = done.info
    assert info["experiences"] == [list(BASE), ["nucleolus"], ["mitochondria"]]
    assert info["seeds"] == [SEED]
    assert info["multi_net"] == "multi_net_k3"
    assert info["finished"] == [[title, SEED] for title in TITLES]
    assert {title: entry["bit_identical"] for title, entry in info["strategies"].items()} == {
        "experts_frozen": True,
        "fine_tuning": None,
        "multi_net_k3": None,
    }
    model = Model.open(done.folder / "experts_frozen" / f"seed-{SEED}" / "model")
    assert model.structures == STRUCTURES
    assert model.verify().bit_identical


def test_the_base_is_trained_once_and_shared(done: Done) -> None:
    assert done.trained == {
        ("ExpertsFrozen", BASE): 1,
        **{(name, (one,)): 1 for name in ("ExpertsFrozen", "FineTuning") for one in ADDED},
        **{("MultiNet", (one,)): 1 for one in STRUCTURES},
    }
    first = {
        title: {
            (row.structure, row.metric): row.value
            for row in done.results.select(strategy=title, step=0)
            if row.metric in HIGHER_IS_BETTER
        }
        for title in TITLES
    }
    assert first["experts_frozen"] == first["fine_tuning"]
    assert len(first["experts_frozen"]) == 8
    assert first["experts_frozen"] != first["multi_net_k3"]


# -- interrupted ------------------------------------------------------------------------------------------------


class Interruption(Exception):  # noqa: N818 - it stands for a power cut
    """What ends a run in the middle."""


#: Where the run is cut off, again and again: strategy, experience, step, and what was just done there.
CUTS = (
    ("experts_frozen", 0, 1, "step"),  # before there is any checkpoint
    ("experts_frozen", 0, 5, "step"),  # some steps after one
    ("experts_frozen", 0, 6, "checkpoint"),  # at the last step's
    ("experts_frozen", 1, 3, "step"),
    ("experts_frozen", 2, 0, "stored"),  # the model holds it, the checkpoint does not say so
    ("experts_frozen", 2, 2, "checkpoint"),
    ("experts_frozen", 3, 0, "checkpoint"),  # all is learned, nothing is finished
    ("fine_tuning", 1, 3, "step"),
    ("fine_tuning", 2, 0, "checkpoint"),
    ("fine_tuning", 3, 0, "finished"),  # results are written, that it is finished is not
    ("multi_net", 0, 3, "step"),
    ("multi_net", 3, 3, "step"),
)


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int, str]]:
    """Interrupt at the first of the list that this returns, wherever that is, and take it off the list."""
    waiting = list(CUTS)
    names: dict[Path, str] = {}

    def reached(name: str, experience: int, step: int, what: str) -> None:
        if waiting and waiting[0] == (name, experience, step, what):
            waiting.pop(0)
            raise Interruption

    build: Callable[..., StructureStrategy] = run_module.build_strategy

    def building(config: Config, options: StrategyConfig, *args: Any, **kwargs: Any) -> StructureStrategy:
        strategy = build(config, options, *args, **kwargs)
        strategy.listeners.append(
            lambda s: reached(options.name, s.progress.experience, s.progress.step, "step")
        )
        names[Path(options.title)] = options.name
        return strategy

    save = StrategyCheckpoint.save

    def saving(self: StrategyCheckpoint, strategy: StructureStrategy) -> None:
        name, progress = names[Path(self.folder.parts[-3])], strategy.progress
        if not progress.step:
            reached(name, progress.experience, 0, "stored")
        save(self, strategy)
        reached(name, progress.experience, progress.step, "checkpoint")

    finish = benchmark_module._finish

    def finishing(info: dict[str, Any], title: str, *args: Any) -> None:
        reached(names[Path(title)], 3, 0, "finished")
        finish(info, title, *args)

    monkeypatch.setattr(run_module, "build_strategy", building)
    monkeypatch.setattr(StrategyCheckpoint, "save", saving)
    monkeypatch.setattr(benchmark_module, "_finish", finishing)
    return waiting


def test_an_interrupted_run_ends_as_if_it_had_not_been(
    done: Done, cuts: list[tuple[str, int, int, str]], tmp_path: Path
) -> None:
    config = tiny(done.manifest, tmp_path)
    for left in range(len(CUTS) - 1, -1, -1):
        with pytest.raises(Interruption):
            run_benchmark(config, resume=left < len(CUTS) - 1)
        assert len(cuts) == left
    folder = run_benchmark(config, resume=True)
    assert isinstance(folder, Path)
    again = Done(folder, config, done.manifest, Counter())

    def figures(run: Done) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in run.results if row.metric != "train_seconds"]

    assert figures(again) == figures(done)  # in the same order, every float the same
    assert len(again.results) == len(done.results)
    assert again.info == done.info
    for title in TITLES:
        mine, other = (run.folder / title / f"seed-{SEED}" for run in (again, done))
        assert (mine / "learning.csv").read_bytes() == (other / "learning.csv").read_bytes()
        for name in STRUCTURES:
            one, two = (np.load(path / "predictions" / f"{name}.npz") for path in (mine, other))
            assert all(np.array_equal(one[key], two[key]) for key in ("signal", "target", "prediction"))
    models = [Model.open(run.folder / "experts_frozen" / f"seed-{SEED}" / "model") for run in (again, done)]
    digests = [{name: entry.digest for name, entry in model.entries.items()} for model in models]
    assert digests[0] == digests[1]
    assert models[0].verify().bit_identical


def test_a_finished_run_is_left_alone(done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(done.folder, tmp_path / "tiny"))
    config = changed(done.config, output=str(tmp_path))
    # What moved with its output is another configuration's run, but for this test.
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    (folder / "config.yaml").write_text(text.replace(done.config.output, str(tmp_path)), encoding="utf-8")
    monkeypatch.setattr(benchmark_module, "StrategyRun", None)
    assert run_benchmark(config, resume=True) == folder
    assert (folder / "results.csv").read_bytes() == (done.folder / "results.csv").read_bytes()


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"training": {"steps": 5}}, "training.steps was 4 and is 5 now"),
        ({"seeds": (SEED, 9)}, r"seeds was \[3\] and is \[3, 9\] now"),
        (
            {"stream": {"order": ADDED[:1]}},
            r"stream\.order was \['nucleolus', 'mitochondria'\] and is \['nucleolus'\]",
        ),
        (
            {"strategies": (StrategyConfig(name="experts_frozen", expert="conv5"),)},
            r"strategies\.0\.expert was None and is 'conv5'",
        ),
        ({"stream": {"base": (), "order": STRUCTURES}}, r"stream\.base was .*'dna'.* and is \[\] now"),
    ],
)
def test_another_configuration_is_not_resumed(done: Done, values: dict[str, Any], key: str) -> None:
    parts = {
        name: getattr(done.config, name).model_copy(update=value) if isinstance(value, dict) else value
        for name, value in values.items()
    }
    before = (done.folder / "results.csv").read_bytes()
    with pytest.raises(ConfigError, match=key):
        run_benchmark(changed(done.config, **parts), resume=True)
    assert (done.folder / "results.csv").read_bytes() == before


def test_an_empty_list_is_not_the_same_as_none(manifest: Path, tmp_path: Path) -> None:
    """Such a change has no key below it, and must be named all the same."""
    config = changed(tiny(manifest, tmp_path), stream=StreamConfig(base=STRUCTURES))
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "run.json").write_text("{}", encoding="utf-8")
    (tmp_path / "tiny" / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    now = changed(config, stream=StreamConfig(base=STRUCTURES, order=()))
    with pytest.raises(ConfigError, match=r"stream\.order was None and is \[\] now"):
        run_benchmark(now, resume=True)


def test_an_existing_run_is_not_run_over(done: Done) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.folder.rglob("*")}
    with pytest.raises(ConfigError, match=r"holds a run already: continue it with --resume"):
        run_benchmark(done.config)
    assert {path: path.stat().st_mtime_ns for path in done.folder.rglob("*")} == before


# -- before running ---------------------------------------------------------------------------------------------


def test_a_dry_run_names_every_strategy_and_writes_nothing(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = set(manifest.parent.iterdir())
    config = tiny(manifest, tmp_path / "runs")
    plan = run_benchmark(config, dry_run=True)
    assert isinstance(plan, DryRun)
    assert plan.seconds > 0
    assert [line.split(":")[0] for line in plan.lines] == ["stream", *TITLES]
    assert "dna + cell_membrane, then nucleolus, then mitochondria" in plan.lines[0]
    assert "nothing was run" in str(plan)
    assert list(tmp_path.iterdir()) == []
    assert set(manifest.parent.iterdir()) == images
    simulated = changed(config, data=DataConfig())
    assert isinstance(run_benchmark(simulated, dry_run=True), DryRun)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_structure_is_found_before_anything_is_written(manifest: Path, tmp_path: Path) -> None:
    config = changed(tiny(manifest, tmp_path / "runs"), stream=StreamConfig(base=BASE, order=("nucleolis",)))
    for dry_run in (True, False):
        with pytest.raises(UnknownStructureError, match="did you mean 'nucleolus'"):
            run_benchmark(config, dry_run=dry_run)
    assert list(tmp_path.iterdir()) == []
