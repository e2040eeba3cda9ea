"""A whole benchmark, tiny: what it leaves, and what it finds out before it runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_run import ADDED, BASE, SEED, STRUCTURES, TITLES, Done, changed, tiny

from repmode_cl.benchmark import DryRun, run_benchmark
from repmode_cl.config import DataConfig, StreamConfig, load_config
from repmode_cl.errors import UnknownStructureError
from repmode_cl.evaluation import forgetting, performance_matrix
from repmode_cl.metrics import HIGHER_IS_BETTER
from repmode_cl.model import Model
from repmode_cl.nn import Architecture, RepModeUNet
from repmode_cl.results.results_table import COSTS

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
    costs = {
        "train_seconds",
        "cpu_seconds",
        "added_parameters",
        "added_bytes",
        "steps",
        "images",
    }
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
        # Measured only by the first training of a process.
        others = {row.metric for row in rows} - {*HIGHER_IS_BETTER, "peak_memory_bytes"}
        assert costs <= others <= set(COSTS)
        for metric in others:
            assert [(row.step, row.structure) for row in rows if row.metric == metric] == learned[title]
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
        assert of(title, "nucleolus", "cpu_seconds") > 0
        assert of(title, "nucleolus", "images") == 3


def test_forgetting_is_exactly_nothing_but_for_fine_tuning(done: Done) -> None:
    for metric in HIGHER_IS_BETTER:
        lost = {
            title: forgetting(performance_matrix(done.results, title, metric, SEED, done.info["streams"][""]))
            for title in TITLES
        }
        assert lost["experts_frozen"] == lost["multi_net_k3"] == dict.fromkeys((*BASE, "nucleolus"), 0.0)
        assert all(value != 0.0 for value in lost["fine_tuning"].values())


def test_run_json(done: Done) -> None:
    info = done.info
    assert info["version"] == 2
    assert info["streams"] == {"": [list(BASE), ["nucleolus"], ["mitochondria"]]}
    assert list(info["strategies"]) == list(TITLES)
    assert info["strategies"]["multi_net_k3"]["name"] == "multi_net"
    assert info["strategies"]["multi_net_k3"]["options"]["kernel"] == 3
    assert info["seeds"] == [SEED]
    assert info["multi_net"] == "multi_net_k3"
    assert info["joint"] is None
    assert info["finished"] == [[title, "", SEED] for title in TITLES]
    assert info["failed"] == []
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
