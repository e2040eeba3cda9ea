"""Planned comparisons: what the configuration may ask, what run.json keeps of it, and what the tables answer."""

from __future__ import annotations

import json
import math

import pytest
from tabled_run import KINDS, luck, make

from repmode_cl.config import parse_config
from repmode_cl.config.comparison_schema import PlannedComparison, check_planned_streams, planned_digest
from repmode_cl.errors import RepmodeError
from repmode_cl.report.tables.planned import planned_table
from repmode_cl.report.tables.terminal import render_planned
from repmode_cl.results import RunInfo

TEXT = """
name: plan
training: {steps: 2}
strategies: [{name: experts_frozen, label: ours}, {name: multi_net, label: multi}]
comparisons:
"""


def planned(info, *claims):
    listed = [PlannedComparison(**claim).model_dump(mode="json") for claim in claims]
    return {**info, "comparisons": listed, "comparisons_sha256": planned_digest(listed)}


def rows_of(table, info, *claims):
    return planned_table(table, planned(info, *claims))


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ("{first: ours, second: multi_nett}", "there is no strategy 'multi_nett'.*did you mean 'multi'"),
        ("{first: ours, second: ours}", "ours is compared with itself"),
        ("{first: ours, second: multi, margin: 0.01}", "margin belongs to claim: not_lower"),
        ("{first: ours, second: multi, second_stream: images-4}", "second_stream needs first_stream"),
        ("{first: ours, second: multi, claim: better}", "'ahead' or 'not_lower'"),
    ],
)
def test_a_claim_that_makes_no_sense_is_refused(claim, message):
    with pytest.raises(RepmodeError, match=message):
        parse_config(f"{TEXT}  - {claim}\n", "plan.yaml")


def test_ten_claims_at_most_and_none_twice():
    eleven = "".join(
        f"  - {{first: ours, second: multi, claim: not_lower, margin: 0.0{k:02}}}\n" for k in range(1, 12)
    )
    with pytest.raises(RepmodeError, match="11 are planned, and at most 10"):
        parse_config(TEXT + eleven, "plan.yaml")
    with pytest.raises(RepmodeError, match=r"comparisons\[1\].*there twice"):
        parse_config(TEXT + 2 * "  - {first: ours, second: multi}\n", "plan.yaml")
    assert len(parse_config(TEXT + eleven.rsplit("  -", 1)[0], "plan.yaml").comparisons) == 10


def test_a_stream_that_the_run_does_not_have_is_named():
    claim = PlannedComparison(first="ours", second="ours", first_stream="images-1", second_stream="images-3")
    check_planned_streams([claim], [["images-1"], ["images-3"]])
    with pytest.raises(RepmodeError, match=r"comparisons\[0\]: the run has no stream 'images-3'"):
        check_planned_streams([claim], [["images-1"], ["images-2"]])
    everywhere = PlannedComparison(first="ours", second="multi")
    check_planned_streams([everywhere], [["order-0", "order-1"]])
    with pytest.raises(
        RepmodeError, match=r"comparisons\[0\]: ours is ahead of multi: in which stream\?.*'images-2'"
    ):
        check_planned_streams([everywhere], [["images-1"], ["images-2"]])


def test_run_info_keeps_the_plan_and_notices_a_change():
    _, info = make()
    kept = RunInfo.from_json(planned(info, {"first": "ours", "second": "multi"}))
    written = json.loads(json.dumps(kept.to_json()))
    assert RunInfo.from_json(written).comparisons == kept.comparisons
    written["comparisons"][0]["claim"] = "not_lower"
    with pytest.raises(RepmodeError, match="changed after the run began"):
        RunInfo.from_json(written)
    # A run without a plan is written as before.
    assert "comparisons" not in RunInfo.from_json(info).to_json()


def test_claims_are_answered_by_paired_differences():
    ahead, behind, near, learned = rows_of(
        *make(range(10)),
        {"first": "ours", "second": "multi"},
        {"first": "ours", "second": "joint"},
        {"first": "ours", "second": "joint", "claim": "not_lower", "margin": 0.06},
        {"first": "ours", "second": "fine", "when": "learned"},
    )
    assert (ahead["verdict"], ahead["seeds"]) == ("holds", 10)
    assert ahead["difference"] == pytest.approx(0.05)
    # b .50 and c .40, with the seeds' luck.
    assert ahead["first_r2"] == pytest.approx(0.45 + sum(map(luck, range(10))) / 10)
    # Three claims of being ahead are corrected for; "not lower" is not one.
    assert ahead["p_holm"] == pytest.approx(3 * 2 / 2**10)
    assert (ahead["seconds_share"], ahead["bytes_share"]) == (1.0, None)
    assert behind["verdict"] == "does not hold"
    assert (near["verdict"], near["p"], near["p_holm"]) == ("holds", None, None)
    # Just after learning fine-tuning had .30 and .42; its later loss of b does not count.
    assert learned["difference"] == pytest.approx(0.45 - 0.36)


def test_a_rival_that_diverged_does_not_make_other_claims_easier():
    claims = [{"first": "ours", "second": other} for other in ("multi", "fine", "joint")]
    sound = rows_of(*make(range(8)), *claims)
    nan = make(range(8), jitter=lambda title, seed, stream: math.nan if title in ("fine", "joint") else 0.0)
    diverged = rows_of(*nan, *claims)
    assert diverged[0]["p_holm"] == sound[0]["p_holm"] == pytest.approx(3 * 2 / 2**8)
    assert [row["verdict"] for row in diverged[1:]] == ["open", "open"]


def test_not_lower_needs_the_whole_interval():
    (strict,) = rows_of(*make(), {"first": "ours", "second": "joint", "claim": "not_lower", "margin": 0.05})
    assert strict["low"] == pytest.approx(-0.05)
    spread = make(jitter=lambda title, seed, stream: 0.03 * (seed % 2) if title == "ours" else 0.0)
    (wide,) = rows_of(*spread, {"first": "ours", "second": "joint", "claim": "not_lower", "margin": 0.04})
    assert wide["difference"] > -0.04 > wide["low"]
    assert wide["verdict"] == "does not hold"


def test_too_few_seeds_leave_a_claim_open():
    table, info = make(range(5))
    (row,) = rows_of(table, info, {"first": "ours", "second": "multi"})
    assert (row["verdict"], row["difference"]) == ("open", pytest.approx(0.05))
    (one,) = rows_of(*make(range(1)), {"first": "ours", "second": "joint", "claim": "not_lower"})
    assert one["verdict"] == "open"
    # So is one that is not even the clearest: no outcome of five seeds could have held.
    mixed = make(range(5), jitter=lambda title, seed, stream: 0.1 * (seed == 0) if title == "multi" else 0.0)
    (unclear,) = rows_of(*mixed, {"first": "ours", "second": "multi"})
    assert (unclear["verdict"], unclear["p"] > 0.1) == ("open", True)
    # Not finished at all.
    (none,) = rows_of(table, {**info, "finished": []}, {"first": "ours", "second": "multi"})
    assert (none["verdict"], none["seeds"], none["difference"]) == ("open", 0, None)


def test_streams_of_the_two_may_differ():
    table, info = make(streams=("images-1", "images-4"), jitter=lambda *key: 0.1 * (key[2] == "images-4"))
    claim = {"first": "ours", "second": "multi", "first_stream": "images-1", "second_stream": "images-4"}
    (row,) = rows_of(table, info, claim)
    assert row["difference"] == pytest.approx(0.05 - 0.1)
    assert row["claim"] == "ours (images-1) is ahead of multi (images-4)"


def test_orders_enter_the_interval_of_a_claim():
    def jitter(title: str, seed: int, stream: str) -> float:
        return 0.04 * (stream == "order-1") if title == "ours" else 0.0

    table, info = make(range(10), streams=("order-0", "order-1"), jitter=jitter)
    both, one = rows_of(
        table,
        info,
        {"first": "ours", "second": "multi"},
        {"first": "ours", "second": "multi", "first_stream": "order-0"},
    )
    assert both["difference"] == pytest.approx(0.05 + 0.02)
    # All seeds agree: the whole spread is that of the two orders.
    assert (both["low"], both["high"]) == (pytest.approx(0.05), pytest.approx(0.09))
    assert (one["low"], one["high"]) == (pytest.approx(0.05), pytest.approx(0.05))


def test_the_terminal_says_the_verdict():
    table = render_planned(rows_of(*make(range(8)), {"first": "ours", "second": "multi"}))
    assert list(table.columns[-1].cells) == ["holds"]
    assert next(iter(KINDS)) in next(iter(table.columns[0].cells))
