"""Forward transfer and intransigence: a structure's learning against its own network and against joint training.

Both measures compare the value just after learning, before later learning can change it, with that of another
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


def forward_transfer(matrix: PerformanceMatrix, multi_net: PerformanceMatrix) -> dict[str, float]:
    """Return for each structure how much knowing others helped when it was learned.

    That is the value just after learning, minus that of a network that learned only this structure. Wolczyk et al.,
    "Continual World" (NeurIPS 2021), compare with such a network too, but over whole curves of training, and
    relative to what it left to gain. The measure of this name in Lopez-Paz and Ranzato, "Gradient episodic
    memory" (NeurIPS 2017), looks at a task before it is learned: here nothing predicts an unknown structure.

    Parameters
    ----------
    matrix
        The strategy.
    multi_net
        Multi-Net, of the same metric, seed and stream.

    Returns
    -------
    dict
        Structure -> difference; positive means better, for metrics of either direction. Structures that `multi_net`
        does not know are left out.

    Raises
    ------
    RepmodeError
        If the two are of different metrics.
    """
    _check_same_metric(matrix, multi_net)
    reference = learned_values(multi_net)
    return {
        name: matrix.sign * (value - reference[name])
        for name, value in learned_values(matrix).items()
        if name in reference
    }


def intransigence(matrix: PerformanceMatrix, joint: PerformanceMatrix) -> dict[str, float]:
    """Return for each structure how far its learning fell short of joint training of all structures.

    That is the final value of joint training, minus the strategy's just after it (last) learned the structure
    (Chaudhry et al., "Riemannian walk for incremental learning", ECCV 2018; their reference is trained on the tasks so
    far, this one on all structures of the stream).

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
    _check_same_metric(matrix, joint)
    reference = dict(zip(joint.structures, joint.values[-1].tolist(), strict=True))
    columns = zip(matrix.structures, matrix.last_learned, strict=True)
    return {
        name: matrix.sign * (reference[name] - float(matrix.values[step, column]))
        for column, (name, step) in enumerate(columns)
        if name in reference
    }


def _check_same_metric(one: PerformanceMatrix, other: PerformanceMatrix) -> None:
    if one.metric != other.metric:
        raise RepmodeError(
            f"{one.metric} cannot be compared with {other.metric}: pass matrices of one metric"
        )
