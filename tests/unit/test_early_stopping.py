"""Early end of training, decided by what a checkpoint holds, in a benchmark's experiences too."""

from __future__ import annotations

import math

import pytest
from tiny_strategies import BASE, TRAINING, experts_frozen, stream_of

from repmode_cl.config import TrainingConfig
from repmode_cl.data.sample import Sample
from repmode_cl.strategies import StructureStrategy
from repmode_cl.training import BestState
from repmode_cl.training.early_stopping import idle_validations, out_of_patience, out_of_time, validated_at

CURVE = [
    {"experience": experience, "train_step": step, "structure": name, "metric": metric, "value": math.nan}
    for experience, steps in ((0, (10, 20, 30)), (1, (10,)))
    for step in steps
    for name in ("dna", "nucleolus")
    for metric in ("mse", "r2")
]


def test_validations_are_counted_once_and_by_experience() -> None:
    assert [idle_validations(CURVE, 0, best) for best in (0, 10, 20, 30)] == [3, 2, 1, 0]
    assert idle_validations(CURVE, 1, 0) == 1
    assert idle_validations(CURVE, 2, 0) == 0
    assert validated_at(CURVE, 0, 20)
    assert not validated_at(CURVE, 1, 20)


@pytest.mark.parametrize(
    ("limit", "words"), [(45, "45 s"), (1800, "30 min"), (5400, "1.5 h"), (90, "1.5 min"), (7200, "2 h")]
)
def test_reasons_say_how_much(limit: float, words: str) -> None:
    training = TrainingConfig(steps=1, time_limit=limit, patience=2)
    assert out_of_time(training, limit - 1e-3) is None
    assert out_of_time(training, limit) == f"the time limit of {words}"
    assert out_of_patience(training, 1) is None
    assert out_of_patience(training, 2) == "no improvement in 2 validations"
    assert out_of_time(TRAINING, 1e9) is out_of_patience(TRAINING, 1000) is None


def test_each_experience_ends_by_itself(samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience in the base, whose validations are not the addition's."""
    offered: list[int] = []
    offer = BestState.offer

    def offering(self: BestState, network: object, step: int, mse: float) -> bool:
        offered.append(step)
        return offer(self, network, step, 1.0)  # type: ignore[arg-type]

    monkeypatch.setattr(BestState, "offer", offering)
    training = TRAINING.model_copy(update={"validate_every": 1, "patience": 2})
    stream = stream_of(samples, (BASE, ("nucleolus",)))
    strategy: StructureStrategy = experts_frozen(stream, training=training)
    for experience in stream.train:
        strategy.train(experience, eval_streams=[])
        assert strategy.stop_reason == "no improvement in 2 validations"
    assert offered == [1, 2, 3, 1, 2, 3]  # of four steps
