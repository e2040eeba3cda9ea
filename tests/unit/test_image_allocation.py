"""Training images of structures that come again, or with few images; on tiny files of a real manifest."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from tiny_stream import PATCH, Images, make_images

from repmode_cl.data.sample import Sample
from repmode_cl.errors import ConfigError, ManifestError
from repmode_cl.scenarios import (
    PatchSampling,
    StreamVariant,
    StructureStream,
    check_images,
    stream_of_samples,
    training_images,
)

SPLITS = ("train",) * 7 + ("val", "test")
REPEATED = ["nucleolus", "mitochondria", "nucleolus", "nucleolus"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return make_images(tmp_path_factory.mktemp("images"), SPLITS)


@pytest.fixture(scope="module")
def samples(images: Images) -> list[Sample]:
    """Return the prepared images of all structures."""
    stream = images.stream()
    held = [s for part in (stream.val, stream.test) for e in part for s in e.dataset._datasets[0].samples]
    return [*(sample for group in stream.images for sample in group), *held]


def shown(stream: StructureStream, number: int) -> set[str]:
    """Return the images that patches of experience `number` are really cut from."""
    patches = stream.patches[number]
    return {patches.sample_of(item).image_id for item in range(len(patches))}


def identities(chosen: Sequence[Sample]) -> set[str]:
    return {sample.image_id for sample in chosen}


# -- a structure comes again ------------------------------------------------------------------------------------


def test_each_arrival_brings_new_images_and_all_of_them_come(images: Images) -> None:
    stream = images.stream(REPEATED, base=("dna",), patches=20)
    assert stream.experiences == (("dna",), *((name,) for name in REPEATED))
    first, second, third = (shown(stream, number) for number in (1, 3, 4))
    assert sorted(map(len, (first, second, third))) == [2, 2, 3]
    assert len(first | second | third) == 7  # disjoint, and none is left out
    assert [shown(stream, number) for number in (0, 2)] == [first | second | third] * 2
    assert [len(group) for group in stream.images] == [7, *map(len, (first, shown(stream, 2), second, third))]
    # What is validated and tested on is the same each time, and one structure has one label.
    for part in (stream.val, stream.test):
        assert [len(experience.dataset) for experience in part] == [1] * 5
    assert len({stream.tests[number] for number in (1, 3, 4)}) == 1
    assert dict(stream.labels) == {"dna": 0, "nucleolus": 1, "mitochondria": 2}
    assert [experience.task_labels for experience in stream.train] == [[0], [1], [2], [1], [1]]


def test_each_structure_is_tested_once(images: Images) -> None:
    stream = images.stream(REPEATED, base=("dna", "cell_membrane"))
    tested = [stream.names_of(experience) for experience in stream.known_after(4)]
    assert tested == [("dna", "cell_membrane"), ("nucleolus",), ("mitochondria",)]
    assert len(stream.known_after(1)) == 2


def test_parts_depend_on_the_seed_and_on_nothing_else(images: Images, samples: list[Sample]) -> None:
    def parts(seed: int, order: Sequence[str], given: Sequence[Sample] = samples) -> list[set[str]]:
        chosen = training_images(given, [("dna",), *((name,) for name in order)], seed=seed)
        return [
            identities(group) for group, name in zip(chosen[1:], order, strict=True) if name == "nucleolus"
        ]

    expected = parts(0, REPEATED)
    shuffled = random.Random(1).sample(samples, len(samples))
    assert parts(0, ["nucleolus", "nucleolus", "cell_membrane", "nucleolus"], shuffled) == expected
    assert any(parts(seed, REPEATED) != expected for seed in range(1, 4))


def test_fewer_images_than_arrivals_are_refused(images: Images) -> None:
    manifest = images.subset("two", images.rows(["dna", "nucleolus"], ("train", "train", "val", "test")))
    with pytest.raises(ManifestError, match=r"nucleolus comes 3 times, .* there are 2 training images"):
        images.stream(["nucleolus"] * 3, base=("dna",), manifest=manifest)
    stream = images.stream(["nucleolus"] * 2, base=("dna",), manifest=manifest)
    assert [len(group) for group in stream.images] == [2, 1, 1]


# -- few images -------------------------------------------------------------------------------------------------


def test_a_new_structure_comes_with_few_images_and_the_base_with_all(images: Images) -> None:
    few = {
        n: images.stream(
            ["nucleolus", "mitochondria"], base=("dna", "cell_membrane"), images_each=n, patches=30
        )
        for n in (1, 2, 4, 7, 50)
    }
    for n, stream in few.items():
        assert [len(group) for group in stream.images] == [14, min(n, 7), min(n, 7)]
        for number in (1, 2):
            assert shown(stream, number) == identities(stream.images[number])
        # As many patches from few images, and the same figures to be had: only what is trained on shrinks.
        assert [len(patches) for patches in stream.patches] == [30] * 3
        assert [len(experience.dataset) for experience in stream.test] == [2, 1, 1]
    for fewer, more in ((1, 2), (2, 4), (4, 7)):
        for number in (1, 2):
            assert shown(few[fewer], number) < shown(few[more], number)
    # Structures with the same signals do not all come with the same fields.
    assert any(
        shown(stream, 1) != shown(stream, 2)
        for stream in (images.stream(["nucleolus", "mitochondria"], base=("dna",), images_each=2, seed=seed, patches=8)
                       for seed in range(4))
    )  # fmt: skip


@pytest.mark.parametrize("count", [-1, 0, 1.5])
def test_fewer_than_one_image_is_refused(samples: list[Sample], count: int) -> None:
    with pytest.raises(ConfigError, match=f"images_each {count}: a whole number of at least 1 is needed"):
        training_images(samples, [("dna",), ("nucleolus",)], seed=0, images_each=count)


def test_each_seed_chooses_others(samples: list[Sample]) -> None:
    def choice(seed: int) -> frozenset[str]:
        [_, chosen] = training_images(samples, [("dna",), ("nucleolus",)], seed=seed, images_each=2)
        return frozenset(identities(chosen))

    assert choice(0) == choice(0)
    assert len({choice(seed) for seed in range(8)}) > 2


def test_few_of_each_part_where_a_structure_comes_again(samples: list[Sample]) -> None:
    arrivals = [("dna",), ("nucleolus",), ("nucleolus",)]
    whole = training_images(samples, arrivals, seed=0)
    few = training_images(samples, arrivals, seed=0, images_each=2)
    assert [len(group) for group in few] == [7, 2, 2]
    assert all(identities(few[k]) < identities(whole[k]) for k in (1, 2))


def test_all_strategies_of_a_stream_train_on_the_same_images(samples: list[Sample]) -> None:
    arrivals = [("dna", "cell_membrane"), ("nucleolus",), ("mitochondria",), ("nucleolus",)]
    ours = training_images(samples, arrivals, seed=3, images_each=2)
    # One network for each structure: those of the base are not few, whichever is trained first.
    apart = [(name,) for group in arrivals for name in group]
    alone = training_images(samples, apart, seed=3, images_each=2, arrivals=arrivals)
    assert [len(group) for group in alone] == [7, 7, 2, 2, 2]
    assert set(alone[0] + alone[1]) == set(ours[0])
    assert alone[2:] == ours[1:]
    # All at once: everything that ever came, and nothing else.
    everything = [tuple(dict.fromkeys(name for group in arrivals for name in group))]
    [joint] = training_images(samples, everything, seed=3, images_each=2, arrivals=arrivals)
    assert Counter(sample.structure for sample in joint) == {
        "dna": 7, "cell_membrane": 7, "nucleolus": 4, "mitochondria": 2,
    }  # fmt: skip
    assert set(joint) == {sample for group in ours for sample in group}
    stream = stream_of_samples(
        samples, apart, PatchSampling(PATCH), count=lambda _, __: 9, seed=3, images_each=2, arrivals=arrivals
    )
    assert stream.images == alone
    with pytest.raises(ValueError, match="nucleolus is trained 3 times and arrives 2 times"):
        training_images(samples, [*apart, ("nucleolus",)], seed=3, arrivals=arrivals)
    with pytest.raises(ValueError, match="microtubule is trained 1 times and arrives 0 times"):
        training_images(samples, [("microtubule",)], seed=3, arrivals=arrivals)


def test_rows_of_one_image_stay_together(samples: list[Sample]) -> None:
    doubled = [*samples, *(replace(s, row=s.row + 1000) for s in samples if s.structure == "nucleolus")]
    arrivals = [("dna",), ("nucleolus",), ("nucleolus",)]
    chosen = training_images(doubled, arrivals, seed=0, images_each=2)
    assert [(len(group), len(identities(group))) for group in chosen] == [(7, 7), (4, 2), (4, 2)]
    assert not identities(chosen[1]) & identities(chosen[2])
    # A row that is held out does not train, even where another of the same image does.
    held = [*samples, *(replace(s, row=s.row + 1000, split="val") for s in samples if s.structure == "dna")]
    assert training_images(held, arrivals, seed=0) == training_images(samples, arrivals, seed=0)


def test_more_images_than_there_are_is_a_note_and_no_error(samples: list[Sample]) -> None:
    base = ("dna", "cell_membrane")
    plain = (base, ("nucleolus",), ("mitochondria",))
    again = (*plain, ("nucleolus",))
    assert check_images(samples, {"": StreamVariant(plain), "few": StreamVariant(plain, 7)}) == []
    notes = check_images(
        samples, {"images-8": StreamVariant(plain, 8), "images-9": StreamVariant(plain[:2], 9)}
    )
    assert [note.split(";")[0] for note in notes] == [
        "nucleolus: 8 training images are requested, and there are 7",
        "mitochondria: 8 training images are requested, and there are 7",
        "nucleolus: 9 training images are requested, and there are 7",
    ]
    [note] = check_images(samples, {"": StreamVariant(again, 4)})
    assert "nucleolus: 4 training images are requested, and there are 3 at one of its 2 arrivals" in note
    with pytest.raises(ManifestError, match="no training image of 'microtubule'"):
        check_images(samples, {"": StreamVariant((base, ("microtubule",)))})
