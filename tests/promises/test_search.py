"""A search that is killed ends as if it had not been; its tables and choices are those of a plain computation."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from tiny_run import BASE, MEASURED, changed, tiny

from repmode_cl.benchmark import run as run_module
from repmode_cl.benchmark import run_benchmark
from repmode_cl.benchmark.search import SearchResult, run_search
from repmode_cl.benchmark.search.trial_store import STORE, TrialStore
from repmode_cl.config import Config, SearchConfig, StrategyConfig, StreamConfig, load_config
from repmode_cl.config.load import dump_config
from repmode_cl.config.strategy_schema import STRATEGY_NAMES
from repmode_cl.data.pipeline import prepared_samples
from repmode_cl.errors import ConfigError
from repmode_cl.report import write_tables
from repmode_cl.results import ResultsTable
from repmode_cl.results.predictions import prediction_path, read_prediction

SEARCH_SEED = 7

#: Every strategy, and the two trials that it gets.
KEYS: dict[str, dict[str, Any]] = {
    "experts_frozen": {"learning_rate": [0.01, 0.02]},
    "fine_tuning": {"learning_rate": [0.01, 0.02]},
    "frozen_encoder": {"learning_rate": [0.01, 0.02]},
    "multi_net_k3": {"learning_rate": [0.01, 0.02]},
    "multi_head_decoder_k3": {"learning_rate": [0.01, 0.02]},
    "replay": {"buffer": [2, 4]},
    "a_gem": {"buffer": [2, 4]},
    "ewc": {"strength": [10, 1000]},
    "synaptic_intelligence": {"strength": [0.1, 10]},
    "mas": {"strength": [0.1, 10]},
    "lwf": {"strength": {"low": 0.1, "high": 10, "log": True, "points": 2}},
    "cumulative": {"replay_batch": [1, 2]},
    "joint": {"learning_rate": [0.01, 0.02]},
    "der_pp": {"alpha": [0.1, 1.0]},
    "warm_copy": {"learning_rate": [0.01, 0.02]},
    "frozen_trunk_decoder_k3": {"learning_rate": [0.01, 0.02]},
    "norm_only_k3": {"learning_rate": [0.01, 0.02]},
    "lora_k3_rank4": {"rank": [1, 2]},
    "ssf_k3": {"learning_rate": [0.01, 0.02]},
    "adapter_k3_bottleneck4": {"bottleneck": {"low": 1, "high": 2, "points": 2}},
    "piggyback_k3": {"learning_rate": [0.01, 0.02]},
    "packnet_k3": {"prune": [0.4, 0.6]},
    "progressive_k3": {"learning_rate": [0.01, 0.02]},
    "dodnet_k3": {"learning_rate": [0.01, 0.02]},
    "tgnet_k3": {"learning_rate": [0.01, 0.02]},
    "condnet_k3": {"learning_rate": [0.01, 0.02]},
    "tsns_k3": {"learning_rate": [0.01, 0.02]},
    "pipo_fan_k3": {"learning_rate": [0.01, 0.02]},
}


#: One strategy of each kind: frozen experts, a shared base, a buffer, a plain network that is frozen.
SOME = ("experts_frozen", "multi_net_k3", "replay", "lora_k3_rank4")

#: Strategy -> the key that is searched, and its values.
Keys = dict[str, dict[str, Any]]


@pytest.fixture(scope="module", params=["some", pytest.param("every", marks=pytest.mark.slow)])
def keys(request: pytest.FixtureRequest) -> Keys:
    """Return the strategies that are searched; every one takes minutes."""
    return KEYS if request.param == "every" else {title: KEYS[title] for title in SOME}


def study_of(keys: Keys, manifest: Path, output: Path) -> Config:
    """Return a study of the strategies of `keys`, with a search."""
    strategies = [one for one in (StrategyConfig(name=name) for name in STRATEGY_NAMES) if one.title in keys]
    return small_search(
        manifest, output, *strategies, search=SearchConfig(seeds=(SEARCH_SEED,), keys=keys), seeds=(0, 1)
    )


def small_search(
    manifest: Path, output: Path, *strategies: StrategyConfig, search: SearchConfig, **values: Any
) -> Config:
    config = tiny(manifest, output)
    training = config.training.model_copy(update={"steps": 2, "base_steps": 2, "validate_every": 1})
    return changed(
        config, name="small", training=training, strategies=strategies, search=search,
        stream=StreamConfig(base=BASE, order=("nucleolus",)), **values,
    )  # fmt: skip


@pytest.fixture(scope="module")
def searched(keys: Keys, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    """Return an uninterrupted search."""
    result = run_search(study_of(keys, manifest, tmp_path_factory.mktemp("search")), threads=1)
    assert isinstance(result, SearchResult)
    return result


def figures(folder: Path) -> list[str]:
    """Return every figure as text: NaN, a constant prediction's correlation, is not equal to itself."""
    table = ResultsTable.read(folder / "results.csv")
    return [repr(row) for row in table if row.metric not in MEASURED]


def relocated(path: Path, output: Path) -> str:
    """Return a file's text without the folder that the runs are below."""
    return path.read_text(encoding="utf-8").replace(str(output), "OUTPUT")


def table_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "search.csv").open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


# -- killed and continued -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_search_that_is_killed_ends_as_if_it_had_not_been(
    keys: Keys, manifest: Path, searched: SearchResult, tmp_path: Path
) -> None:
    config = study_of(keys, manifest, tmp_path / "runs")
    file = tmp_path / "small.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    folder = tmp_path / "runs" / "small-search"
    command = [sys.executable, "-m", "repmode_cl", "bench", str(file), "--threads", "1"]

    def finished() -> int:
        return sum(1 for _ in folder.glob("*/seed-*/unit.json"))

    for kill_at in (1, len(keys)):
        options = ["--resume"] if (folder / "run.json").exists() else []
        process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 300
        while finished() < kill_at and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None, process.communicate()[0].decode()
        process.kill()
        process.communicate()
        assert kill_at <= finished() < 2 * len(keys)
        assert not (folder / "search.csv").exists()
    ended = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert f"study: repmode-cl bench {folder / 'study.yaml'}" in ended.stdout
    assert figures(folder) == figures(searched.folder)
    assert (folder / "search.csv").read_bytes() == (searched.folder / "search.csv").read_bytes()
    for name in ("study.yaml", "search.html"):
        assert relocated(folder / name, tmp_path / "runs") == relocated(
            searched.folder / name, searched.folder.parent
        )


class Interruption(BaseException):
    """What ends a search in the middle."""


@pytest.mark.slow
def test_proposals_of_an_interrupted_search_are_those_of_an_uninterrupted_one(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after every single proposal, trial and record, and with several processes."""
    search = SearchConfig(
        sampler="tpe", trials=3, batch=2, seeds=(SEARCH_SEED,),
        keys={
            "fine_tuning": {"learning_rate": {"low": 1e-4, "high": 0.5, "log": True}},
            "replay": {"buffer": {"low": 1, "high": 12}, "learning_rate": [0.001, 0.01, 0.1]},
        },
    )  # fmt: skip
    strategies = (StrategyConfig(name="fine_tuning"), StrategyConfig(name="replay"))

    def config(output: str) -> Config:
        return small_search(manifest, tmp_path / output, *strategies, search=search)

    whole = run_search(config("whole"), threads=1)
    assert isinstance(whole, SearchResult)
    parallel = run_search(config("parallel"), threads=1, jobs=2)
    assert isinstance(parallel, SearchResult)
    assert parallel.rows == whole.rows

    def interrupting(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            function(*args, **kwargs)
            raise Interruption

        return call

    monkeypatch.setattr(TrialStore, "_add", interrupting(TrialStore._add))
    monkeypatch.setattr(TrialStore, "record", interrupting(TrialStore.record))
    monkeypatch.setattr(run_module, "perform_trial", interrupting(run_module.perform_trial))
    interruptions, again = 0, None
    while again is None:
        try:
            again = run_search(config("again"), threads=1, resume=True)
        except Interruption:
            interruptions += 1
            assert interruptions <= 18
    # Each of the six trials: proposed, run, recorded.
    assert interruptions == 18
    assert isinstance(again, SearchResult)
    assert again.rows == whole.rows
    assert len({json.dumps(row.values) for row in whole.rows if row.strategy == "fine_tuning"}) == 3


@pytest.mark.slow
def test_another_search_is_not_continued(
    keys: Keys, manifest: Path, searched: SearchResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = study_of(keys, manifest, searched.folder.parent)
    with pytest.raises(ConfigError, match="holds a search already: continue it with --resume"):
        run_search(config)
    other = config.model_copy(
        update={
            "search": config.search.model_copy(update={"rule": "after_learning"}) if config.search else None
        }
    )
    with pytest.raises(ConfigError, match=r"search\.rule was 'end' and is 'after_learning' now"):
        run_search(other, resume=True)
    before = (searched.folder / "search.csv").read_bytes()
    monkeypatch.setattr(run_module, "perform_trial", None)
    again = run_search(config, resume=True)
    assert isinstance(again, SearchResult)
    assert again.rows == searched.rows
    assert (searched.folder / "search.csv").read_bytes() == before


# -- what it sees -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_image_that_the_study_tests_on_and_no_seed_of_it_is_seen(
    manifest: Path, searched: SearchResult, tmp_path: Path
) -> None:
    study = load_config(searched.folder / "study.yaml")
    of_study, _ = prepared_samples(study.data, tmp_path)
    tested = {sample.image_id for sample in of_study if sample.split == "test"}
    assert tested
    seen = json.loads((searched.folder / "work.json").read_text(encoding="utf-8"))["samples"]
    by_split = {
        split: {one["image_id"] for one in seen if one["split"] == split}
        for split in ("train", "val", "test")
    }
    assert all(by_split.values())
    assert not tested & set.union(*by_split.values())
    assert tested | set.union(*by_split.values()) == {sample.image_id for sample in of_study}
    assert not by_split["train"] & by_split["test"]
    # It measures on validation images of the study first.
    assert {sample.image_id for sample in of_study if sample.split == "val"} <= by_split["test"]
    table = ResultsTable.read(searched.folder / "results.csv")
    assert not {row.seed for row in table} & set(study.seeds)


def test_the_split_that_the_study_recorded_is_kept_when_images_are_added(searched: SearchResult) -> None:
    """The search writes it into the study's cache."""
    record = searched.folder.parent / "small" / "cache" / "splits.json"
    assert record.is_file()
    assert load_config(searched.folder / "config.yaml").data.cache == str(record.parent)


# -- what it finds ------------------------------------------------------------------------------------------------


def test_scores_and_choices_recomputed(keys: Keys, searched: SearchResult) -> None:
    """From the predicted volumes and from results.csv, by numpy."""
    table, folder = table_of(searched.folder), searched.folder
    assert len(table) == 2 * len(keys)
    raw: dict[tuple[str, str, str, str], float] = {}
    with (folder / "results.csv").open(encoding="utf-8", newline="") as handle:
        for row in csv.DictReader(handle):
            raw[row["strategy"], row["step"], row["structure"], row["metric"]] = float(row["value"])
    for row in table:
        title = row["title"]
        values = [raw[title, "1", name, "r2"] for name in (*BASE, "nucleolus")]
        assert float(row["score"]) == pytest.approx(np.mean(values), abs=1e-12)
        assert row["score"] == row[f"score_seed_{SEARCH_SEED}"]
        for name, value in zip((*BASE, "nucleolus"), values, strict=True):
            # One image of each is measured on; the volumes are stored as float16.
            volumes = read_prediction(prediction_path(folder / title / f"seed-{SEARCH_SEED}", name))
            truth = volumes.target.astype(np.float64)
            rest = np.sum((truth - volumes.prediction) ** 2) / np.sum((truth - truth.mean()) ** 2)
            assert value == pytest.approx(1 - rest, abs=5e-3)
        added = sum(value for key, value in raw.items() if key[0] == title and key[3] == "added_bytes")
        kept = [
            max((value for key, value in raw.items() if key[0] == title and key[3] == metric), default=0)
            for metric in ("buffer_bytes", "kept_bytes")
        ]
        assert int(row["bytes"]) == added + sum(kept)
    study = load_config(folder / "study.yaml")
    assert study.search is None
    for strategy, options in zip(keys, study.strategies, strict=True):
        own = [row for row in table if row["strategy"] == strategy]
        order = np.lexsort(
            ([0, 1], [int(row["bytes"]) for row in own], [-float(row["score"]) for row in own])
        )
        assert [row["chosen"] for row in own] == ["yes" if place == order[0] else "" for place in (0, 1)]
        [key] = keys[strategy]
        assert getattr(options, key) == pytest.approx(float(own[order[0]][key]))
        # Two values: the better one is always an end of the range.
        assert own[order[0]]["edge"] == key
    text = (folder / "study.yaml").read_text(encoding="utf-8")
    assert text.startswith(f"# small, with values chosen by the search in {folder}: search.csv")
    assert "; at the edge of what was tried: buffer" in text
    page = (folder / "search.html").read_text(encoding="utf-8")
    assert all(f">{title}<" in page for title in keys)
    assert page.count("<small>edge</small>") == len(keys)
    assert (folder / STORE).is_file()


def test_the_study_runs_with_what_was_chosen_and_its_tables_are_recomputed(
    searched: SearchResult, tmp_path: Path
) -> None:
    """Means, forgetting and intervals over seeds, by numpy and scipy."""
    folder = run_benchmark(load_config(searched.folder / "study.yaml"), threads=1)
    assert isinstance(folder, Path)
    raw: dict[tuple[str, int, int, str], float] = {}
    with (folder / "results.csv").open(encoding="utf-8", newline="") as handle:
        for row in csv.DictReader(handle):
            if row["metric"] == "r2":
                raw[row["strategy"], int(row["seed"]), int(row["step"]), row["structure"]] = float(
                    row["value"]
                )
    write_tables(folder, tmp_path)
    with (tmp_path / "strategies.csv").open(encoding="utf-8", newline="") as handle:
        table = {row["strategy"]: row for row in csv.DictReader(handle)}
    chosen = {one.title for one in load_config(searched.folder / "study.yaml").strategies}
    assert set(table) == chosen
    for title, row in table.items():
        final = np.array([[raw[title, seed, 1, name] for name in (*BASE, "nucleolus")] for seed in (0, 1)])
        expected = {"final_r2": final.mean(axis=1), "added_r2": final[:, -1]}
        if (title, 0, 0, BASE[0]) in raw:
            first = np.array([[raw[title, seed, 0, name] for name in BASE] for seed in (0, 1)])
            expected["forgetting_r2"] = (first - final[:, :2]).mean(axis=1)
        for key, values in expected.items():
            assert float(row[key]) == pytest.approx(values.mean(), abs=1e-12)
            low, high = stats.t.interval(0.95, 1, loc=values.mean(), scale=stats.sem(values) or 1e-300)
            assert float(row[f"{key}_ci"]) == pytest.approx((high - low) / 2, rel=1e-9, abs=1e-12)
