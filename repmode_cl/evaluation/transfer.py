"""How well a structure was learned, against a network of its own and against joint training.

Both measures compare the value just after learning, before anything later can spoil it, with that of another
strategy with the same seed and stream. Nothing is clipped; NaN in either value gives NaN.
"""

from __future__ import annotations

from repmode_cl.errors import RepmodeError
from repmode_cl.evaluation.performance_matrix import PerformanceMatrix

__all__ = ["learned_values", "forward_transfer", "intransigence"]


def learned_values(matrix: PerformanceMatrix) -> dict[str, float]:
    """Return each structure's value just after it was first learned."""
    return {
        name: float(matrix.values[step, column])
        for column, (name, step) in enumerate(zip(matrix.structures, matrix.learned, strict=True))
    }


def forward_transfer(matrix: PerformanceMatrix, alone: PerformanceMatrix) -> dict[str, float]:
    """Return for each structure what knowing others was worth when it was learned.

    The value just after learning, minus that of a network that learned the structure alone. Wolczyk et al.,
    "Continual World" (NeurIPS 2021), compare with such a network too, but over whole curves of training, and
    relative to what it left to gain. The measure of this name in Lopez-Paz and Ranzato, "Gradient episodic
    memory" (NeurIPS 2017), looks at a task before it is learned: here nothing predicts an unknown structure.

    Parameters
    ----------
    matrix
        The strategy.
    alone
        Multi-Net, of the same metric, seed and stream.

    Returns
    -------
    dict
        Structure -> difference; positive means better, for metrics of either direction. Structures that `alone`
        does not know are left out.

    Raises
    ------
    RepmodeError
        If the two are of different metrics.
    """
    _same_metric(matrix, alone)
    reference = learned_values(alone)
    return {
        name: matrix.sign * (value - reference[name])
        for name, value in learned_values(matrix).items()
        if name in reference
    }


def intransigence(matrix: PerformanceMatrix, joint: PerformanceMatrix) -> dict[str, float]:
    """Return for each structure how far its learning stayed behind joint training of all structures.

    Joint training's final value, minus the strategy's just after it (last) learned the structure (Chaudhry et
    al., "Riemannian walk for incremental learning", ECCV 2018; their reference is trained on the tasks so far,
    this one on all structures of the stream).

    Parameters
    ----------
    matrix
        The strategy.
    joint
        Joint training, of the same metric, seed and stream.

    Returns
    -------
    dict
        Structure -> difference; positive means worse, for metrics of either direction. Structures that `joint`
        does not know are left out.

    Raises
    ------
    RepmodeError
        If the two are of different metrics.
    """
    _same_metric(matrix, joint)
    reference = dict(zip(joint.structures, joint.values[-1].tolist(), strict=True))
    columns = zip(matrix.structures, matrix.last_learned, strict=True)
    return {
        name: matrix.sign * (reference[name] - float(matrix.values[step, column]))
        for column, (name, step) in enumerate(columns)
        if name in reference
    }


def _same_metric(one: PerformanceMatrix, other: PerformanceMatrix) -> None:
    if one.metric != other.metric:
        raise RepmodeError(
            f"{one.metric} cannot be compared with {other.metric}: take matrices of one metric"
        )
