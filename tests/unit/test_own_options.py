"""Options of a user's own class reach it, whatever it inherits from; unknown and unused ones are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_run import changed, make_manifest, tiny
from tiny_strategies import APART, STREAM, TRAINING, configured, stream_of

from repmode_cl.benchmark import run_benchmark
from repmode_cl.config import StrategyConfig
from repmode_cl.data.sample import Sample
from repmode_cl.errors import ConfigError
from repmode_cl.nn import RepModeUNet
from repmode_cl.strategies import EWC, MAS, FineTuning, Replay, StructureStrategy
from repmode_cl.strategies.registry import STRATEGIES, base_key_of, strategy_class, strategy_section

TWO = STREAM[:2]

CODE = """
from repmode_cl.strategies import EWC, AGEM, ExpertsFrozen, FineTuning, LwF, MultiHead, MultiNet, Replay


class MyReplay(Replay):
    def __init__(self, *, alpha: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.alpha = alpha


class Smaller(Replay):
    def __init__(self, *, buffer: int = 5, **kwargs):
        super().__init__(buffer=buffer, **kwargs)


class Strong(EWC):
    def __init__(self, *, strength: float = 5.0, **kwargs):
        super().__init__(strength=strength, **kwargs)


class Reads(Replay):
    def __init__(self, *, rate: float, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate

    @classmethod
    def own_options(cls, options):
        return {**super().own_options(options), "rate": options.options["percent"] / 100}


class TakesAll(Replay):
    @classmethod
    def own_options(cls, options):
        return dict(options.options)


class Wide(FineTuning):
    @classmethod
    def own_options(cls, options):
        return {}

    @classmethod
    def make_network(cls, config, options, base, seed):
        cls.seen = options.options.get("width")
        return super().make_network(config, options, base, seed)


class Closed(Replay):
    def __init__(self, *, model, stream, training, patch, inference=None, addition_learning_rate=None, seed=0,
                 device=None, precision=None, ranks=None, plugins=(), evaluator=None, beta: int = 3):
        super().__init__(model=model, stream=stream, training=training, seed=seed)
        self.beta = beta


class MyFrozen(ExpertsFrozen): ...
class MyNets(MultiNet): ...
class MyHeads(MultiHead): ...
class MyLwF(LwF): ...
class MyGem(AGEM): ...
"""


@pytest.fixture
def made(samples: list[Sample], tmp_path: Path) -> Any:
    file = tmp_path / "own2.py"
    file.write_text(CODE)

    def make(name: str, stream: Sequence[Sequence[str]] = TWO, **options: Any) -> Any:
        experiences = tuple(map(tuple, stream))
        return configured(f"{file}:{name}", samples, experiences, options=options)

    return make


def test_the_options_of_a_class_and_of_its_parent_reach_it(made: Any) -> None:
    assert (made("MyReplay").alpha, made("MyReplay").buffer.capacity) == (1.0, 64)
    both = made("MyReplay", alpha=7, buffer=8, replay_batch=1)
    assert (both.alpha, both.buffer.capacity, both.replay_batch) == (7, 8, 1)
    assert made("MyReplay", buffer_bytes=4096).buffer.capacity_bytes == 4096
    assert made("MyFrozen", expert="conv1", sees="all").spec.expert == "conv1"
    assert made("MyNets", APART, kernel=5).network.kernel == 5
    assert made("MyNets", kernel=5, networks="added").stream.experiences == (("nucleolus",),)
    assert made("MyHeads", head="last").network.head_kind == "last"
    assert made("MyLwF", distilled=1, strength=0.5).distilled == 1
    assert made("MyGem", buffer=3).buffer.capacity == 3


def test_a_class_may_change_the_defaults_of_its_parent(made: Any) -> None:
    assert made("Smaller").buffer.capacity == 5
    assert made("Smaller", buffer=9).buffer.capacity == 9
    assert made("Strong").strength == 5.0
    assert made("Strong", strength=2.0).strength == 2.0


def test_what_a_class_reads_itself_is_not_given_twice(made: Any) -> None:
    reads = made("Reads", percent=40, buffer=8)
    assert (reads.rate, reads.buffer.capacity) == (0.4, 8)
    assert made("TakesAll", buffer=8, replay_batch=1).buffer.capacity == 8
    assert type(made("Wide", width=3)).seen == 3
    assert made("Closed", beta=4).beta == 4


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("MyReplay", {"alpah": 7}, r"unexpected keyword argument: alpah \(did you mean 'alpha'\?\)"),
        (
            "MyReplay",
            {"buffr": 8},
            r"buffr \(did you mean 'buffer'\?\): its options are alpha, buffer, buffer_bytes",
        ),
        ("MyReplay", {"strength": 8}, "unexpected keyword argument: strength"),
        ("MyReplay", {"buffer": "many"}, 'options of replay: buffer: found "many": a whole number is needed'),
        ("MyReplay", {"buffer": 2, "buffer_bytes": 4096}, "give either buffer or buffer_bytes"),
        ("MyReplay", {"seed": 3}, "seed is no option: the configuration's other keys decide it"),
        ("MyFrozen", {"expret": "conv1"}, r"expret \(did you mean 'expert'\?\)"),
        ("MyFrozen", {"expert": "conv9"}, "options of experts_frozen: expert: .*conv9"),
        ("TakesAll", {"bufer": 8}, r"bufer \(did you mean 'buffer'\?\)"),
        ("Reads", {"percent": 40, "percnt": 1}, "unexpected keyword argument: percnt"),
        ("Wide", {"with": 3}, "unexpected keyword argument: with"),
        ("Closed", {"buffr": 8}, "unexpected keyword argument: buffr"),
    ],
)
def test_unknown_and_unused_options_are_refused(
    made: Any, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        made(name, **options)


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_benchmark_refuses_them_before_it_writes(made: Any, tmp_path: Path, dry_run: bool) -> None:
    wrong = StrategyConfig(name=f"{tmp_path / 'own2.py'}:MyReplay", options={"buffr": 8})
    config = changed(tiny(make_manifest(tmp_path), tmp_path / "out"), strategies=(wrong,))
    with pytest.raises(ConfigError, match="did you mean 'buffer'"):
        run_benchmark(config, dry_run=dry_run)
    assert not (tmp_path / "out").exists()


def test_an_option_of_a_parent_beside_the_name_says_where_it_stands() -> None:
    with pytest.raises(ValueError, match=r"what a class inherits stands in its options: \{buffer: \.\.\.\}"):
        StrategyConfig(name="mine.py:Mine", buffer=8)


def test_class_methods_see_the_options_of_the_parent(made: Any, tmp_path: Path) -> None:
    made("MyReplay")
    options = StrategyConfig(name=f"{tmp_path / 'own2.py'}:MyReplay", options={"replay_batch": 6, "alpha": 2})
    section = strategy_section(options)
    kind = strategy_class(options)
    assert kind.cost_of_step(section, TRAINING, 1) == 1 + 6 / TRAINING.batch_size
    assert kind.cost_of_step(options, TRAINING, 1) == 2
    assert section.title == options.title == "MyReplay"


def test_constructors_name_the_nearest_keyword(samples: list[Sample]) -> None:
    stream = stream_of(samples)
    network = RepModeUNet.__new__(RepModeUNet)
    with pytest.raises(
        TypeError, match=r"Replay\(\) got an unexpected keyword argument: buffr \(did you mean 'buffer'"
    ):
        Replay(model=network, stream=stream, training=TRAINING, patch=(4, 8, 8), buffr=8)
    with pytest.raises(TypeError, match="unexpected keyword argument: buffer; it takes"):
        FineTuning(model=network, stream=stream, training=TRAINING, patch=(4, 8, 8), buffer=8)


def test_only_a_class_that_declares_it_shares_a_base(tmp_path: Path) -> None:
    class Inherits(FineTuning): ...

    class Declares(FineTuning):
        shares_base = True

    class Defines(FineTuning):
        @classmethod
        def shared_base(cls, options: StrategyConfig) -> str | None:
            return "mine"

    class Below(Defines): ...

    class Not(FineTuning):
        shares_base = False

    options = StrategyConfig(name="fine_tuning")
    kinds: list[type[StructureStrategy]] = [
        Inherits,
        Declares,
        Defines,
        Below,
        Not,
        FineTuning,
        Replay,
        EWC,
        MAS,
    ]
    keys = [kind.declared_base(options) for kind in kinds]
    assert keys == [None, "repmode", "mine", None, None, *["repmode"] * 4]
    # Inheritance itself is not undone: the method is the parent's.
    assert Inherits.shared_base(options) == "repmode"


def test_the_bases_that_the_package_shares(tmp_path: Path) -> None:
    config = tiny(tmp_path / "manifest.csv", tmp_path)
    keys = {name: base_key_of(config, StrategyConfig(name=name)) for name in STRATEGIES}
    alike = (
        "experts_frozen",
        "fine_tuning",
        "frozen_encoder",
        "replay",
        "a_gem",
        "ewc",
        "mas",
        "lwf",
        "cumulative",
    )
    assert {keys[name] for name in alike} == {"repmode"}
    assert {keys[name] for name in ("multi_net", "synaptic_intelligence", "joint")} == {None}
    assert keys["multi_head"] == "multi_head_decoder_k3"
