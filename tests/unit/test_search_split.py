"""Which images a search sees: none that the study tests on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from repmode_cl.data.sample import Sample
from repmode_cl.data.search_split import without_test
from repmode_cl.errors import ManifestError
from repmode_cl.evaluation.search_score import bytes_of_trial, score_of_trial
from repmode_cl.results import ResultsTable

FRACTIONS = {"seed": 0, "test_fraction": 0.25, "val_fraction": 0.1}


def sample(structure: str, image: str, split: str, group: str | None = None) -> Sample:
    path = Path(f"{image}.npy")
    return Sample(structure, split, 2, image, path, path, None, (4, 8, 8), group or image)


def images(structure: str, train: int, val: int, test: int) -> list[Sample]:
    splits = ["train"] * train + ["val"] * val + ["test"] * test
    return [sample(structure, f"image-{number}", split) for number, split in enumerate(splits)]


def test_what_the_study_tests_on_is_left_out_and_what_validates_is_measured_on() -> None:
    study = [*images("dna", 16, 2, 6), *images("nucleolus", 16, 2, 6)]
    seen = without_test(study, **FRACTIONS)
    assert {one.image_id for one in seen} == {f"image-{number}" for number in range(18)}
    counts = Counter((one.structure, one.split) for one in seen)
    for structure in ("dna", "nucleolus"):
        # A quarter of 18, and a tenth of the rest, as in every split.
        assert [counts[structure, split] for split in ("train", "val", "test")] == [12, 1, 5]
    split = {one.image_id: one.split for one in seen}
    assert {split["image-16"], split["image-17"]} == {"test"}
    # An image that shows several structures stays in one split, whatever the order of the rows.
    assert all(one.split == split[one.image_id] for one in seen)
    assert {one.image_id: one.split for one in without_test(study[::-1], **FRACTIONS)} == split
    assert {one.image_id: one.split for one in without_test(study, **{**FRACTIONS, "seed": 1})} != split


def test_an_image_that_tests_one_structure_is_left_out_of_all() -> None:
    study = [*images("dna", 6, 0, 2), sample("nucleolus", "image-7", "train", "another group")]
    study += [sample("nucleolus", f"other-{number}", "train") for number in range(4)]
    assert "image-7" not in {one.image_id for one in without_test(study, **FRACTIONS)}


def test_too_few_images_are_refused() -> None:
    with pytest.raises(
        ManifestError, match=r"at least two images of nucleolus that the study does not test on.* 1: add"
    ):
        without_test([*images("dna", 6, 0, 2), *images("nucleolus", 1, 0, 3)], **FRACTIONS)
    assert {one.split for one in without_test(images("dna", 2, 0, 1), **FRACTIONS)} == {"train", "test"}


# -- what a trial is worth ----------------------------------------------------------------------------------------

EXPERIENCES = (("a", "b"), ("c",), ("d",))
VALUES = {
    (0, "a"): 0.8, (0, "b"): 0.6,
    (1, "a"): 0.5, (1, "b"): 0.5, (1, "c"): 0.9,
    (2, "a"): 0.1, (2, "b"): 0.3, (2, "c"): 0.4, (2, "d"): 0.7,
}  # fmt: skip


def table(values: dict[tuple[int, str], float]) -> ResultsTable:
    results = ResultsTable()
    for (step, name), value in values.items():
        results.append("one", 3, step, name, "r2", value)
        results.append("one", 3, step, name, "mse", 99.0)
    return results


@pytest.mark.parametrize(
    ("rule", "whole", "without_base", "at_once"),
    [
        ("end", (0.1 + 0.3 + 0.4 + 0.7) / 4, (0.4 + 0.7) / 2, (0.1 + 0.3 + 0.4 + 0.7) / 4),
        ("after_learning", (0.9 + 0.7) / 2, (0.9 + 0.7) / 2, (0.4 + 0.7) / 2),
        ("end_by_group", (0.2 + 0.55) / 2, 0.55, (0.2 + 0.55) / 2),
    ],
)
def test_rules(rule: str, whole: float, without_base: float, at_once: float) -> None:
    def score(values: dict[tuple[int, str], float]) -> float | None:
        return score_of_trial(table(values), "one", EXPERIENCES, seed=3, rule=rule)  # type: ignore[arg-type]

    assert score(VALUES) == pytest.approx(whole)
    assert score({key: value for key, value in VALUES.items() if key[1] in "cd"}) == pytest.approx(
        without_base
    )
    # Joint training is measured in the end only.
    assert score({key: value for key, value in VALUES.items() if key[0] == 2}) == pytest.approx(at_once)
    assert score(VALUES | {(2, "d"): float("nan")}) is None
    assert score(VALUES | {(2, "d"): float("-inf")}) is None
    assert score({}) is None


def test_the_bytes_of_a_trial_are_what_it_adds_and_the_most_that_it_keeps() -> None:
    results = ResultsTable()
    for seed, extra in ((1, 0.0), (2, 4.0)):
        for step, (added, buffer, kept) in enumerate(((100, 10, 1), (20, 30, 2), (3, 20, 7))):
            for metric, value in (
                ("added_bytes", added),
                ("buffer_bytes", buffer),
                ("kept_bytes", kept + extra),
            ):
                results.append("one", seed, step, "a", metric, value)
    assert bytes_of_trial(results, "one") == 123 + 30 + 7 + 4
    assert bytes_of_trial(results, "another") == 0
