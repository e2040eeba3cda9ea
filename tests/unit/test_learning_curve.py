"""Extrapolated learning curves: exact on curves of the family, honest about noise."""

from __future__ import annotations

import numpy as np
import pytest

from repmode_cl.evaluation.learning_curve import GAIN, fit_learning_curve

COUNTS = (1, 2, 4, 8)


def test_a_curve_of_the_family_is_found_exactly() -> None:
    curve = fit_learning_curve(COUNTS, [0.6 - 0.2 / np.sqrt(n) for n in COUNTS])
    assert curve is not None
    assert (curve.limit, curve.loss) == pytest.approx((0.6, 0.2))
    point = curve.at(32)
    assert point.r2 == pytest.approx(0.6 - 0.2 / np.sqrt(32))
    assert point.low == pytest.approx(point.r2)
    # 0.2 (1 - 1/sqrt 2) / sqrt n < 0.02 from n = 9 on.
    assert curve.enough() == 9
    n = curve.enough()
    assert curve.at(2 * n).r2 - curve.at(n).r2 < GAIN
    assert curve.at(2 * (n - 1)).r2 - curve.at(n - 1).r2 >= GAIN


def test_the_prediction_interval_covers_what_comes() -> None:
    generator = np.random.default_rng(0)
    truth = lambda n: 0.5 - 0.3 / np.sqrt(n)  # noqa: E731
    covered = 0
    for _ in range(600):
        noisy = [truth(n) + generator.normal(0, 0.02) for n in (*COUNTS, 16)]
        point = fit_learning_curve(COUNTS, noisy[:4])
        assert point is not None
        at = point.at(16)
        assert at.low is not None
        assert at.high is not None
        covered += at.low <= noisy[4] <= at.high
    assert covered / 600 == pytest.approx(0.95, abs=0.025)


def test_what_does_not_rise_needs_one_image() -> None:
    curve = fit_learning_curve(COUNTS, [0.5, 0.48, 0.47, 0.46])
    assert curve is not None
    assert curve.loss < 0
    assert curve.enough() == 1


def test_few_points_give_no_interval_and_one_gives_no_curve() -> None:
    curve = fit_learning_curve((1, 2), [0.2, 0.3])
    assert curve is not None
    assert curve.at(4).low is None
    assert curve.enough_range() is None
    assert fit_learning_curve((1,), [0.2]) is None
    with pytest.raises(ValueError, match="give one for each"):
        fit_learning_curve((1, 2), [0.2])
    with pytest.raises(ValueError, match="finite"):
        fit_learning_curve((1, 2), [0.2, float("nan")])
