"""Images of a search: none that the study tests on; the others are split again.

Values that are chosen by how well they do on some images do well on those by chance, too. A study that measured on the
same images would find the chosen ones better than they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from repmode_cl.data.sample import Sample
from repmode_cl.data.splits import order_of_group, place_groups
from repmode_cl.errors import ManifestError

__all__ = ["without_test"]


def without_test(
    samples: Sequence[Sample], *, seed: int, test_fraction: float, val_fraction: float
) -> list[Sample]:
    """Return the samples that no image which tests is part of, split again.

    A structure's images that validated become the first that test, images that trained the others; the next validate.
    So a search measures on validation images of the study, and on as many of its training images as these lack to
    `test_fraction`; it trains on training images only.

    Parameters
    ----------
    samples
        Prepared images of all structures, as the study splits them.
    seed
        Orders the groups, as in the study.
    test_fraction, val_fraction
        Part of each structure's remaining groups that tests, and of the rest that validates.

    Returns
    -------
    list of Sample
        In the same order, with their new splits.

    Raises
    ------
    ManifestError
        If no image of a structure remains to train or to measure on.
    """
    tested = {sample.image_id for sample in samples if sample.split == "test"}
    remaining = [sample for sample in samples if sample.image_id not in tested]
    validated = {sample.group for sample in remaining if sample.split == "val"}
    groups: dict[str, list[str]] = {}
    for sample in remaining:
        groups.setdefault(sample.structure, []).append(sample.group)
    splits: dict[str, str] = {}
    place_groups(
        groups,
        splits,
        {},
        order=lambda group: (group not in validated, order_of_group(seed, group)),
        test_fraction=test_fraction,
        val_fraction=val_fraction,
    )
    for structure in dict.fromkeys(sample.structure for sample in samples):
        found = {splits[group] for group in groups.get(structure, ())}
        if not {"train", "test"} <= found:
            count = len(set(groups.get(structure, ())))
            raise ManifestError(
                f"a search needs at least two images of {structure} that the study does not test on, one to train and "
                f"one to measure on, and there are {count}: add images of it, or search with other images "
                "(search.study in docs/search.md)"
            )
    return [replace(sample, split=splits[sample.group]) for sample in remaining]
