"""The verdict of a structure: its rule, its words, what is read of untrusted figures, and the evidence it needs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repmode_cl.verdict import (
    FLOOR,
    FLOOR_WITHOUT_INTERVAL,
    USEFUL,
    HeldOutFigures,
    VerdictLevel,
    held_out_evidence,
    judge,
    structure_verdict,
    validation_rise,
)

ORDER = [VerdictLevel.NOTHING, VerdictLevel.WEAK, VerdictLevel.USEFUL]

few = settings(max_examples=30, deadline=None)
r2_values = st.floats(-5, 1, allow_nan=False)
errors = st.floats(0, 1)
counts = st.integers(2, 60)


@pytest.mark.parametrize(
    ("r2", "groups", "error", "level"),
    [
        (0.6, 8, 0.03, "useful"),
        (0.30, 8, 0.03, "weak"),  # 2.365 errors below it is 0.229
        (0.20, 8, 0.03, "weak"),
        (0.06, 8, 0.03, "learned nothing"),
        (-0.4, 8, 0.03, "learned nothing"),
        (0.009, 50, 0.0001, "learned nothing"),  # above 0 beyond noise, and yet nothing
        (0.6, 2, 0.2, "weak"),  # 12.7 errors below it is far below 0: too few images to say
        (0.04, 1, None, "learned nothing"),
        (0.9, 1, None, "weak"),
        (0.9, None, None, "weak"),
        (None, None, None, "unknown"),
    ],
)
def test_the_rule_by_hand(r2: float | None, groups: int | None, error: float | None, level: str) -> None:
    verdict = judge(HeldOutFigures(r2=r2, images=groups, groups=groups, standard_error=error))
    assert verdict.level == level
    assert verdict.useful == (verdict.reason == "") == (level == "useful")


@pytest.mark.parametrize(("groups", "t"), [(2, 12.706), (5, 2.776), (10, 2.262), (30, 2.045), (61, 2.000)])
def test_the_interval_is_students(groups: int, t: float) -> None:
    """The quantiles of a printed table."""
    verdict = judge(HeldOutFigures(r2=0.4, images=groups, groups=groups, standard_error=0.1))
    assert verdict.low == pytest.approx(0.4 - 0.1 * t, abs=6e-5)
    assert verdict.high == pytest.approx(0.4 + 0.1 * t, abs=6e-5)


@few
@given(r2_values, r2_values, counts, errors)
def test_a_better_figure_never_has_a_worse_verdict(
    first: float, second: float, groups: int, error: float
) -> None:
    low, high = sorted((first, second))
    figures = HeldOutFigures(r2=low, images=groups, groups=groups, standard_error=error)
    assert ORDER.index(judge(figures).level) <= ORDER.index(judge(replace(figures, r2=high)).level)


@few
@given(r2_values, counts, errors, errors)
def test_more_noise_never_makes_it_useful(r2: float, groups: int, first: float, second: float) -> None:
    low, high = sorted((first, second))
    figures = HeldOutFigures(r2=r2, images=groups, groups=groups, standard_error=high)
    assert ORDER.index(judge(figures).level) <= ORDER.index(judge(replace(figures, standard_error=low)).level)


@few
@given(r2_values, st.none() | st.integers(1, 60), st.none() | st.just(1))
def test_without_an_interval_nothing_is_useful(r2: float, images: int | None, groups: int | None) -> None:
    verdict = judge(HeldOutFigures(r2=r2, images=images, groups=groups, standard_error=0.001))
    assert (verdict.low, verdict.high) == (None, None)
    assert verdict.level is (VerdictLevel.NOTHING if r2 < FLOOR_WITHOUT_INTERVAL else VerdictLevel.WEAK)


@few
@given(r2_values, counts, errors)
def test_the_levels_mean_what_the_documents_say(r2: float, groups: int, error: float) -> None:
    verdict = judge(HeldOutFigures(r2=r2, images=groups, groups=groups, standard_error=error))
    assert verdict.low is not None
    if verdict.useful:
        assert verdict.low >= USEFUL
    elif verdict.level is VerdictLevel.NOTHING:
        assert r2 < FLOOR or (verdict.low <= 0 and r2 < USEFUL)
    else:
        assert verdict.low < USEFUL
        assert verdict.low > 0 or r2 >= USEFUL


def test_its_words() -> None:
    figures = HeldOutFigures(0.6123, 8, 8, 0.02, "test", 0.1, 200)
    verdict = judge(figures)
    assert verdict.text == "useful: R2 0.612 (95% interval 0.565 to 0.660) on 8 test images"
    assert (
        verdict.curve_text
        == "the learning curve still rises: validation R2 gained 0.100 in the second half of its 200 steps"
    )
    level = judge(replace(figures, rise=0.004))
    assert level.rises is False
    assert level.curve_text == "validation R2 gained 0.004 in the second half of its 200 steps: it is level"
    assert judge(replace(figures, rise=None)).rises is None
    one = judge(HeldOutFigures(0.9, 1, 1, None, "val"))
    assert one.text == (
        "weak: R2 0.900 on 1 validation image; no interval, so it is not called useful: there is one image"
    )
    grouped = judge(HeldOutFigures(0.02, 6, 2, 0.01, "test"))
    assert "on 6 test images of 2 groups; not above 0 beyond the noise between images" in grouped.text
    crops = judge(HeldOutFigures(0.5, 6, 1, None, "test"))
    assert crops.text.endswith("on 6 test images of 1 group; no interval, so it is not called useful: all images are "
                               "of one group")  # fmt: skip
    assert judge(HeldOutFigures()).text == "unknown: no held-out figures"
    pale = HeldOutFigures(0.027, 2, 1, None, "test", pearson=0.243)
    assert judge(pale).text.endswith(
        "of one group; yet at the right brightness R2 would be about 0.059 (Pearson 0.243): look at the pictures"
    )
    for other in (replace(pale, pearson=0.2), replace(pale, pearson=-0.9), replace(pale, r2=0.06)):
        assert "pictures" not in judge(other).text
    assert "validation R2 gained more than 1 in the" in judge(replace(figures, rise=50.2)).curve_text


def test_an_odd_correlation_is_no_figure() -> None:
    for odd in (3, "x", float("nan"), True):
        assert structure_verdict("dna", {"r2": 0.0, "pearson": odd}, {}).figures.pearson is None
    assert "look at the pictures" in structure_verdict("dna", {"r2": 0.0, "pearson": 0.5}, {}).text


def test_json_holds_all_of_it() -> None:
    value = judge(HeldOutFigures(0.6, 8, 8, 0.02, "test", 0.1, 200)).to_json()
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert value["level"] == "useful"
    assert (value["images"], value["groups"], value["rises"]) == (8, 8, True)
    assert value["low"] == pytest.approx(0.6 - 2.364624 * 0.02)


# -- evidence -----------------------------------------------------------------------------------------------------


@few
@given(st.lists(st.floats(-2, 1), min_size=2, max_size=30))
def test_the_standard_error_of_independent_images_is_the_usual_one(r2: list[float]) -> None:
    evidence = held_out_evidence(r2, [str(i) for i in range(len(r2))])
    assert evidence["images"] == evidence["groups"] == len(r2)
    assert evidence["r2_standard_error"] == pytest.approx(np.std(r2, ddof=1) / math.sqrt(len(r2)), abs=1e-12)


def test_copies_of_an_image_in_one_group_add_no_certainty() -> None:
    single = held_out_evidence([0.2, 0.5, 0.6], ["a", "b", "c"])
    copied = held_out_evidence([0.2] * 4 + [0.5] * 4 + [0.6] * 4, ["a"] * 4 + ["b"] * 4 + ["c"] * 4)
    assert copied["r2_standard_error"] == pytest.approx(single["r2_standard_error"])
    assert (copied["images"], copied["groups"]) == (12, 3)


@pytest.mark.parametrize(
    ("r2", "groups"), [([0.5], ["a"]), ([0.5, 0.6], ["a", "a"]), ([math.nan, 0.6], ["a", "b"])]
)
def test_no_error_is_made_up(r2: list[float], groups: list[str]) -> None:
    assert "r2_standard_error" not in held_out_evidence(r2, groups)


@pytest.mark.parametrize(("r2", "groups"), [([], []), ([0.5], ["a", "b"])])
def test_images_and_groups_must_agree(r2: list[float], groups: list[str]) -> None:
    with pytest.raises(ValueError, match="give one group for each image"):
        held_out_evidence(r2, groups)


@pytest.mark.parametrize(
    ("curve", "rise"),
    [
        ([(50, 0.1), (100, 0.2), (150, 0.4), (200, 0.35)], 0.2),
        ([(100, 0.5), (200, 0.4)], 0.0),  # it falls: more steps do not help
        ([(0, 0.9), (100, 0.2), (200, 0.3)], 0.1),  # before the first step nothing was learned
        ([(100, math.nan), (50, 0.1), (200, 0.3)], 0.2),
        ([(200, 0.3)], None),
        ([(100, 0.3)], None),
        ([(100, 0.3), (200, math.nan)], None),
        ([], None),
    ],
)
def test_the_rise_of_a_curve(curve: Sequence[tuple[int, float]], rise: float | None) -> None:
    found = validation_rise(curve, 200)
    assert found == (None if rise is None else pytest.approx(rise))


# -- what a model records ----------------------------------------------------------------------------------------


def test_figures_of_an_earlier_version() -> None:
    old = structure_verdict("dna", {"r2": 0.8}, {"held_out": "test", "steps": 300})
    assert old.text == (
        "weak: R2 0.800 on the test images; no interval, so it is not called useful: the spread between images is not "
        "recorded"
    )
    assert old.rises is None
    listed = {"held_out": "test", "splits": {"test": "0123456789ab 0123456789ab/t1", "train": "", "val": ""}}
    assert structure_verdict("dna", {"r2": 0.8}, listed, recorded_images=True).figures.images == 2
    assert structure_verdict("dna", {"r2": 0.8}, listed).figures.images is None
    assert structure_verdict("dna", {}, {}).text == "unknown: no held-out figures"


JUNK: list[Any] = [None, True, "0.9", [1], {}, math.nan, math.inf, -math.inf, 10**400, -1e300, -3, 0, 0.5, 7]


def junk(*keys: str) -> Any:
    return st.fixed_dictionaries({}, optional={key: st.sampled_from(JUNK) for key in keys})


@few
@given(
    junk("r2"),
    junk("held_out", "steps", "splits", "evidence"),
    junk("dna") | junk("images", "groups", "r2_standard_error", "r2_rise").map(lambda own: {"dna": own}),
)
def test_nothing_that_a_stranger_writes_breaks_it(
    metrics: dict[str, Any], provenance: dict[str, Any], evidence: dict[str, Any]
) -> None:
    for recorded in (provenance, {**provenance, "evidence": evidence}):
        verdict = structure_verdict("dna", metrics, recorded, recorded_images=True)
        json.dumps(verdict.to_json(), allow_nan=False)
        assert verdict.text.isprintable()
        assert verdict.curve_text.isprintable()
        if verdict.useful:
            assert metrics["r2"] == 0.5


def test_an_r2_above_1_is_no_figure() -> None:
    evidence = {"dna": {"images": 4, "groups": 4, "r2_standard_error": 0.01}}
    assert structure_verdict("dna", {"r2": 7}, {"evidence": evidence}).level == "unknown"
    assert structure_verdict("dna", {"r2": 0.7}, {"evidence": evidence}).level == "useful"
    # Those of another structure of the same base are not taken.
    assert structure_verdict("golgi", {"r2": 0.7}, {"evidence": evidence}).level == "weak"
