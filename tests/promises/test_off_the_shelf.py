"""Avalanche's own strategies on our streams: which run, what they see, and what a benchmark makes of them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from repmode_cl.scenarios import dense_regression_benchmark  # isort: skip - it imports Avalanche quietly

import numpy as np
import pytest
import torch
from avalanche.models import MultiTaskModule
from avalanche.training.plugins import GEMPlugin
from avalanche.training.supervised import Naive
from tiny_run import ADDED, BASE, SEED, Done, changed, make_manifest, tiny
from tiny_strategies import BASE as JOINT
from tiny_strategies import PATCH, STREAM, TRAINING, configured, differing, learn, state_of
from torch import nn

from repmode_cl.benchmark import run_benchmark
from repmode_cl.config import Config, StrategyConfig
from repmode_cl.config.load import dump_config, load_config, parse_config
from repmode_cl.data.sample import Sample
from repmode_cl.errors import ConfigError
from repmode_cl.nn import PlainUNet
from repmode_cl.results import ResultsTable
from repmode_cl.strategies.off_the_shelf import MultiTaskUNet, solve_gem
from repmode_cl.strategies.registry import strategy_class, strategy_file_digest

DOCS = Path(__file__).parents[2] / "docs" / "avalanche-strategies.md"
TWO = STREAM[:2]

#: Strategy -> its options; the rows of the table.
TABLE: dict[str, dict[str, Any]] = {
    "Naive": {},
    "Replay": {"mem_size": 4},
    "EWC": {"ewc_lambda": 100.0},
    "SynapticIntelligence": {"si_lambda": 1.0},
    "MAS": {"lambda_reg": 1.0},
    "AGEM": {"patterns_per_exp": 4, "sample_size": 4},
    "GEM": {"patterns_per_exp": 4},
    "Cumulative": {},
    "JointTraining": {},
    "FromScratchTraining": {},
    "LwF": {"alpha": 1.0, "temperature": 2.0},
    "DER": {"mem_size": 4},
}
RUN = [name for name in TABLE if name not in ("SynapticIntelligence", "LwF", "DER")]


@pytest.fixture(scope="module")
def opposed(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Return images whose third structure is the negative of what it is, so that learning it harms the others."""
    folder, changed_samples = tmp_path_factory.mktemp("opposed"), []
    for sample in samples:
        if sample.structure == "nucleolus":
            path = folder / sample.target.name
            np.save(path, -np.load(sample.target))
            sample = replace(sample, target=path)
        changed_samples.append(sample)
    return changed_samples


def adapted(name: str, samples: list[Sample], stream: Any = TWO, **options: Any) -> Any:
    return configured(f"avalanche:{name}", samples, stream, options={**TABLE.get(name, {}), **options})


def weights_of(strategy: Any) -> dict[str, torch.Tensor]:
    """Return the weights, without the statistics of norms, which the importances of MAS move."""
    return {name: parameter.detach().clone() for name, parameter in strategy.network.named_parameters()}


def seen_of(strategy: Any, number: int) -> set[str]:
    return {structure for structure, _ in strategy.trained_patches[number]}


def row_of(name: str, samples: list[Sample], naive: Mapping[str, torch.Tensor]) -> str:
    """Return the row of a strategy, of what is seen when it learns two structures and then a third."""
    config = Config(name="row", training=TRAINING)
    section = StrategyConfig(name=f"avalanche:{name}", options=TABLE[name])
    try:
        strategy_class(section).check(config, section, TWO)
        strategy = learn(adapted(name, samples))
    except ConfigError as error:
        return f"| `{name}` | refused | | {str(error).partition(': ')[2].partition(': ')[2]} |"
    last = len(strategy.stream.experiences) - 1
    earlier = seen_of(strategy, last) & set(JOINT)
    saw = "all structures at once" if last == 0 else "the new and earlier" if earlier else "the new"
    same = not differing(dict(naive), weights_of(strategy))
    return f"| `{name}` | runs | {saw} | {'the same weights as Naive' if same else 'differs from Naive'} |"


@pytest.fixture(scope="module")
def naive(opposed: list[Sample]) -> dict[str, torch.Tensor]:
    return weights_of(learn(adapted("Naive", opposed)))


@pytest.mark.slow
def test_the_table_of_the_documentation_is_what_is_seen(
    opposed: list[Sample], naive: dict[str, torch.Tensor]
) -> None:
    found = [row_of(name, opposed, naive) for name in TABLE]
    text = DOCS.read_text(encoding="utf-8")
    shown = [line for line in text.splitlines() if re.match(r"\| `[A-Z]\w+` \| (runs|refused)", line)]
    assert shown == found


@pytest.mark.parametrize("name", [name for name in RUN if name != "Naive"])
def test_a_baseline_differs_from_naive_after_the_first_experience(
    name: str, opposed: list[Sample], naive: dict[str, torch.Tensor]
) -> None:
    if name == "JointTraining":
        strategy = learn(adapted(name, opposed))
        assert strategy.stream.experiences == ((*JOINT, "nucleolus"),)
        assert seen_of(strategy, 0) == {*JOINT, "nucleolus"}
        return
    plain, strategy = learn(adapted("Naive", opposed), 0), learn(adapted(name, opposed), 0)
    if name != "FromScratchTraining":  # which starts with other weights
        # The first experience has nothing earlier to remember: it is learned to the same bits.
        assert not differing(weights_of(plain), weights_of(strategy))
    learn(strategy, 1)
    assert differing(naive, weights_of(strategy))
    assert "nucleolus" in seen_of(strategy, 1)
    assert seen_of(strategy, 0) == set(JOINT)


def test_it_sees_each_image_and_makes_the_steps_of_the_configuration(samples: list[Sample]) -> None:
    strategy = learn(adapted("Naive", samples), 0)
    # Avalanche's loader shows the structures of a base equally often, the rarer ones again.
    assert 4 <= strategy.progress.step <= 8
    assert sum(strategy.trained_patches[0].values()) == strategy.progress.step * TRAINING.batch_size
    assert len(strategy.trained_patches[0]) == 6
    learn(strategy, 1)
    assert seen_of(strategy, 1) == {"nucleolus"}
    assert len(strategy.trained_patches[1]) == 3
    replay = learn(adapted("Replay", samples))
    # As many earlier patches as new ones, of no more than the memory holds.
    new = sum(count for (name, _), count in replay.trained_patches[1].items() if name == "nucleolus")
    assert new == 4 * TRAINING.batch_size
    assert sum(replay.trained_patches[1].values()) == 2 * new


def test_a_strength_of_zero_is_naive(opposed: list[Sample], naive: dict[str, torch.Tensor]) -> None:
    for name, options in (("EWC", {"ewc_lambda": 0.0}), ("MAS", {"lambda_reg": 0.0})):
        assert not differing(naive, weights_of(learn(adapted(name, opposed, **options))))


def test_the_rate_and_the_schedule_are_the_configurations(samples: list[Sample]) -> None:
    rates: list[float] = []
    strategy = configured("avalanche:Naive", samples, TWO, learning_rate=0.5)
    strategy.listeners.append(lambda one: rates.append(one.optimizer.param_groups[0]["lr"]))
    learn(strategy)
    base, added = rates[:-4], rates[-4:]
    assert max(base) < TRAINING.learning_rate * 1.001
    assert max(added) > 0.2
    assert len(base) >= 4
    assert len(set(base)) >= 3


def test_gem_projects_onto_what_harms_no_memory() -> None:
    random = np.random.default_rng(0)
    for count in (1, 3):
        plugin = GEMPlugin(4, 0.5)
        plugin.G = torch.from_numpy(random.normal(size=(count, 20))).float()
        gradient = -plugin.G.sum(dim=0) + torch.from_numpy(random.normal(size=20)).float()
        projected = solve_gem(plugin, gradient)
        memories, given = plugin.G.double().numpy(), gradient.double().numpy()
        v = np.linalg.lstsq(memories.T, projected.double().numpy() - given, rcond=None)[0]
        # The conditions of Karush, Kuhn and Tucker of: minimise v'Pv/2 + (Gg)'v with v >= 0.5.
        slope = (memories @ memories.T + 1e-3 * np.eye(count)) @ v + memories @ given
        assert v.min() > 0.5 - 1e-5
        assert slope.min() > -1e-3
        assert abs(slope @ (v - 0.5)) < 1e-3


def test_a_plain_network_predicts_all_structures_alike_and_one_with_tasks_does_not(
    samples: list[Sample],
) -> None:
    volume = torch.randn(6, 12, 12)
    plain = learn(adapted("Naive", samples))
    assert np.array_equal(plain.predict(volume, "dna"), plain.predict(volume, "nucleolus"))
    tasks = learn(adapted("EWC", samples, model="multi_head"))
    assert isinstance(tasks.network.model, MultiTaskUNet)
    assert not np.array_equal(tasks.predict(volume, "dna"), tasks.predict(volume, "nucleolus"))
    assert set(tasks.evaluate(tasks.stream.known_after(1))) == {*JOINT, "nucleolus"}


def test_avalanches_own_multi_task_module_is_of_classes() -> None:
    class Heads(MultiTaskModule):
        def forward_single_task(self, x: torch.Tensor, task_label: int) -> torch.Tensor:
            return x

    with pytest.raises(AssertionError, match="mini-batches of 2 dimensions"):
        Heads()(torch.zeros(2, 1, 4, 8, 8), torch.tensor([0, 1]))


MODEL = """
import torch
from torch import nn


def make_model():
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 1, 1))


def wrong():
    return 3


three = 3
"""


def test_a_network_and_a_strategy_of_ones_own(samples: list[Sample], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        MODEL + "\nfrom avalanche.training.supervised import Naive\n\nclass Mine(Naive): ...\n"
    )
    (tmp_path / "mine.yaml").write_text(
        "name: mine\ntraining: {steps: 4}\nstrategies:\n"
        "- {name: 'avalanche:mine.py:Mine', options: {model: mine.py:make_model}}\n"
    )
    config = load_config(tmp_path / "mine.yaml")
    [options] = config.strategies
    assert options.name == f"avalanche:{tmp_path / 'mine.py'}:Mine"
    assert options.options["model"] == f"{tmp_path / 'mine.py'}:make_model"
    assert options.title == "avalanche_Mine"
    assert parse_config(dump_config(config)) == config
    strategy = learn(configured(options.name, samples, TWO, options=options.options))
    assert type(strategy.foreign).__name__ == "Mine"
    assert [type(layer) for layer in strategy.network.model] == [nn.Conv3d, nn.ReLU, nn.Conv3d]
    again = configured(options.name, samples, TWO, options=options.options)
    fresh = configured(options.name, samples, TWO, options=options.options)
    assert not differing(state_of(again), state_of(fresh))
    before = strategy_file_digest(options)
    (tmp_path / "mine.py").write_text((tmp_path / "mine.py").read_text() + "\n# changed\n")
    assert strategy_file_digest(options) not in (before, None)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Naiv", {}, r"has no Naiv \(did you mean 'Naive'\?\): it has"),
        ("EWC", {}, r"needs options: \{ewc_lambda: \.\.\.\}"),
        ("Replay", {"mem_siz": 4}, r"unexpected keyword argument: mem_siz \(did you mean 'mem_size'\?\)"),
        ("Replay", {"train_epochs": 4}, "options.train_epochs: the configuration's other keys decide it"),
        ("Naive", {"model": "plan"}, "options.model is 'plan': choose plain or multi_head, or a function"),
        ("Naive", {"model": "nowhere.py:make"}, "there is no file nowhere.py"),
        ("LwF", {"alpha": 1.0, "temperature": 2.0}, "LwF is for classification: it distils by a softmax"),
        ("DER", {}, "DER is for classification: its buffer is balanced by class"),
        ("SynapticIntelligence", {"si_lambda": 1.0}, "on a CPU .* every importance is 0 and it is Naive"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_written(
    tmp_path: Path, name: str, options: dict[str, Any], message: str
) -> None:
    wrong = StrategyConfig(name=f"avalanche:{name}", options=options)
    config = changed(tiny(make_manifest(tmp_path), tmp_path / "out"), strategies=(wrong,))
    with pytest.raises(ConfigError, match=message):
        run_benchmark(config)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("function", "message"),
    [("wrong", "returned int: a torch module is needed"), ("three", "has three, which is not: a function"),
     ("make_modl", r"has no make_modl \(did you mean 'make_model'")],
)  # fmt: skip
def test_a_factory_that_makes_no_network_is_refused(tmp_path: Path, function: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(MODEL)
    options = {"model": f"{tmp_path / 'mine.py'}:{function}"}
    config = changed(
        tiny(make_manifest(tmp_path), tmp_path / "out"),
        strategies=(StrategyConfig(name="avalanche:Naive", options=options),),
    )
    with pytest.raises(ConfigError, match=message):
        run_benchmark(config)


@pytest.mark.parametrize("key", ["accumulate", "patience", "activation_checkpointing"])
def test_settings_that_its_loop_does_not_have_are_refused(tmp_path: Path, key: str) -> None:
    value = {"accumulate": 2, "patience": 3, "activation_checkpointing": True}[key]
    config = tiny(make_manifest(tmp_path), tmp_path / "out")
    config = changed(
        config,
        training=config.training.model_copy(update={key: value}),
        strategies=(StrategyConfig(name="avalanche:Naive"),),
    )
    with pytest.raises(ConfigError, match=rf"training\.{key} is {value}, and the loop of Avalanche"):
        run_benchmark(config, dry_run=True)


def masked_stream() -> Any:
    random = torch.Generator().manual_seed(0)
    items = [
        (
            *(torch.randn(6, 12, 12, generator=random) for _ in range(2)),
            (torch.arange(12) > k) * torch.ones(6, 12, 12),
        )
        for k in range(4)
    ]
    return dense_regression_benchmark({"dna": (items[:2], None, items[2:])}, patch=PATCH, patches=8)


def test_streams_with_masks_are_refused() -> None:
    stream = masked_stream()
    model = PlainUNet(4, 1, 3, seed=0)
    message = "the patches of dna say which voxels count .* would take that for a target"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Avalanche warns that nothing is logged
        theirs = Naive(
            model=model,
            optimizer=torch.optim.Adam(model.parameters()),
            criterion=nn.MSELoss(),
            evaluator=None,
        )
        with pytest.raises(ConfigError, match=message):
            theirs.train(stream.train_stream[0], eval_streams=[])
    section = StrategyConfig(name="avalanche:Naive")
    config = Config(name="masks", training=TRAINING)
    kind = strategy_class(section)
    with pytest.raises(ConfigError, match=message):
        kind.build(config, section, stream, 0, training=TRAINING)


@pytest.mark.slow
def test_it_stands_in_a_benchmark_and_its_report(tmp_path: Path) -> None:
    sections = tuple(
        StrategyConfig(name=f"avalanche:{name}", options=TABLE[name])
        for name in ("Naive", "Replay", "JointTraining")
    )
    config = changed(
        tiny(make_manifest(tmp_path), tmp_path / "out"),
        strategies=(StrategyConfig(name="fine_tuning"), *sections),
    )
    folder = run_benchmark(config)
    results = ResultsTable.read(folder / "results.csv")
    for title in ("avalanche_Naive", "avalanche_Replay"):
        rows = results.select(strategy=title)
        assert {(row.step, row.structure) for row in rows if row.metric == "r2"} == {
            (step, name) for step in range(3) for name in (*BASE, *ADDED[:step])
        }
        steps = [row.value for row in rows if row.metric == "steps"]
        assert 6 <= steps[0] <= 12
        assert steps[1:] == [4, 4]
    joint = results.select(strategy="avalanche_JointTraining")
    assert {row.step for row in joint} == {2}
    [steps] = [row.value for row in joint if row.metric == "steps"]
    assert 14 <= steps <= 28
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "avalanche_Replay" in page
    before = (folder / "results.csv").read_bytes()
    run_benchmark(config, resume=True)
    assert (folder / "results.csv").read_bytes() == before


@pytest.mark.slow
def test_an_interrupted_trial_starts_again_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = changed(
        tiny(make_manifest(tmp_path), tmp_path / "out"),
        strategies=(StrategyConfig(name="avalanche:Replay", options=TABLE["Replay"]),),
    )
    whole = run_benchmark(changed(config, name="whole"))
    calls: list[int] = []

    def dies(self: Any, *args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt

    step = "repmode_cl.strategies.off_the_shelf._Recorder.before_update"
    with monkeypatch.context() as patch:
        patch.setattr("repmode_cl.benchmark.check_strategies.rehearse", lambda *args: None)
        patch.setattr(step, dies)
        with pytest.raises(KeyboardInterrupt):
            run_benchmark(config)
    assert len(calls) == 8
    assert not list((tmp_path / "out" / "tiny").glob("**/checkpoint*"))
    capfd.readouterr()
    folder = run_benchmark(config, resume=True)
    text = capfd.readouterr().err
    assert (
        f"avalanche_Replay seed {SEED}: starts again: the state of a strategy of Avalanche is in no checkpoint"
        in text
    )
    measured = ("train_seconds", "cpu_seconds", "peak_memory_bytes")
    figures = [
        [row for row in ResultsTable.read(one / "results.csv") if row.metric not in measured]
        for one in (whole, folder)
    ]
    assert figures[0] == figures[1]


def test_strategies_of_the_package_resume_as_before(done: Done) -> None:
    assert list(done.folder.glob("fine_tuning/**/checkpoint"))
