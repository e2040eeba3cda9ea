"""Streams of structures: who comes when, and that only the images of who is there can be reached."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_stream import PATCH, STRUCTURES, Images, make_images

from repmode_cl.config import DataConfig
from repmode_cl.errors import ConfigError, ManifestError, RepmodeError, UnknownStructureError
from repmode_cl.scenarios import LabelledBatches
from repmode_cl.training.patch_loader import patch_loader


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return make_images(tmp_path_factory.mktemp("stream"))


# -- order ------------------------------------------------------------------------------------------------------


def test_one_experience_for_each_structure(images: Images) -> None:
    stream = images.stream()
    assert stream.experiences == tuple((name,) for name in STRUCTURES)
    for part in (stream.train, stream.val, stream.test):
        assert len(part) == 4
        assert [stream.names_of(experience) for experience in part] == list(stream.experiences)
    # An experience is of one task, whose number stands for the structure's name.
    assert [stream.names(experience.task_labels) for experience in stream.train] == [[n] for n in STRUCTURES]


def test_a_base_is_one_joint_experience(images: Images) -> None:
    stream = images.stream(["mitochondria"], base=("cell_membrane", "dna"))
    assert stream.experiences == (("cell_membrane", "dna"), ("mitochondria",))
    first = stream.train[0]
    assert stream.names_of(first) == ("cell_membrane", "dna")
    assert {stream.names([label])[0] for *_, label in first.dataset} == {"cell_membrane", "dna"}


def test_the_order_is_a_list_a_seed_or_a_file(images: Images, tmp_path: Path) -> None:
    assert images.stream(["nucleolus", "dna"]).experiences == (("nucleolus",), ("dna",))
    orders = [images.stream(seed, base=("dna",)).experiences for seed in range(8)]
    assert orders[3] == images.stream(3, base=("dna",)).experiences
    assert len(set(orders)) > 1
    for order in orders:  # a seed moves what follows the base, and loses nothing
        assert order[0] == ("dna",)
        assert sorted(order) == sorted((name,) for name in STRUCTURES)
    path = tmp_path / "order.txt"
    path.write_text("# by hand\nnucleolus  # easy\n\n dna\n", encoding="utf-8")
    assert images.stream(path).experiences == (("nucleolus",), ("dna",))
    with pytest.raises(ConfigError, match=r"absent\.txt"):
        images.stream(tmp_path / "absent.txt")


def test_a_structure_is_learned_once(images: Images, tmp_path: Path) -> None:
    path = tmp_path / "order.txt"
    path.write_text("nucleolus\ndna\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="dna named twice"):
        images.stream(path, base=("dna",))


def test_an_unknown_structure_is_refused_with_the_nearest(images: Images, tmp_path: Path) -> None:
    with pytest.raises(UnknownStructureError, match=r"'nucleolis'.*did you mean 'nucleolus'"):
        images.stream(["dna", "nucleolis"])
    path = tmp_path / "order.txt"
    path.write_text("mitochondrion\n", encoding="utf-8")
    with pytest.raises(UnknownStructureError, match="did you mean 'mitochondria'"):
        images.stream(path)
    with pytest.raises(RepmodeError, match="golgi"):
        images.stream(["dna"], base=("golgi",))


# -- what can be reached ----------------------------------------------------------------------------------------


def opened(dataset: object, monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """Read every item of `dataset`, and return the files that were opened for it."""
    paths: set[Path] = set()
    load = np.load

    def spy(path: Path, *args: object, **kwargs: object) -> object:
        paths.add(Path(path))
        return load(path, *args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(np, "load", spy)
        for item in dataset:  # type: ignore[attr-defined]
            assert len(item) == 3  # signal, target, task label
    return paths


def test_only_the_images_of_the_experience_are_opened(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = images.stream(["nucleolus", "mitochondria"], base=("dna", "cell_membrane"), patches=8)
    everything = images.stream(base=STRUCTURES, patches=1)
    held = {"train": everything.images[0], "test": everything.tests[0]}
    held["val"] = tuple(everything.val[0].dataset._datasets[0].samples)
    assert {split: len(samples) for split, samples in held.items()} == {"train": 8, "val": 4, "test": 4}
    targets = [sample.target for samples in held.values() for sample in samples]
    assert len(set(targets)) == len(targets) == 16  # each target is one file: whoever opens it is known
    for number, names in enumerate(stream.experiences):
        for split, part in (("train", stream.train), ("val", stream.val), ("test", stream.test)):
            mine = [s for s in held[split] if s.structure in names]
            assert all(s.split == split for s in mine)
            expected = {s.target for s in mine} | {s.signal for s in mine}
            assert opened(part[number].dataset, monkeypatch) == expected
        assert {s.target for s in stream.samples_of(stream.train[number])} == {
            s.target for s in held["train"] if s.structure in names
        }
        assert {s.target for s in stream.held_out(stream.test[number])} == {
            s.target for s in held["test"] if s.structure in names
        }


def test_no_held_out_image_trains_without_named_splits(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = images.subset("unnamed", images.rows(splits=(None,) * 4))
    for seed in range(3):
        stream = images.stream(
            base=STRUCTURES,
            manifest=manifest,
            patches=16,
            data=DataConfig(split_seed=seed),
            cache=images.folder / "cache-unnamed",
        )
        files = {
            split: opened(part[0].dataset, monkeypatch)
            for split, part in (("train", stream.train), ("val", stream.val), ("test", stream.test))
        }
        # Signals too: one image of four structures must not straddle splits.
        assert not files["train"] & files["val"]
        assert not files["train"] & files["test"]
        assert not files["val"] & files["test"]
        assert [len(files[split]) for split in ("train", "val", "test")] == [10, 5, 5]


def test_patches_do_not_depend_on_who_else_is_in_the_stream(images: Images) -> None:
    alone = images.stream(["nucleolus"], patches=6, seed=5)
    late = images.stream(["mitochondria", "nucleolus"], base=("dna",), patches=6, seed=5)
    other = images.stream(["nucleolus"], patches=6, seed=6)
    patches = {
        name: [item[:2] for item in stream.train[k].dataset]
        for name, stream, k in (("alone", alone, 0), ("late", late, 2), ("other", other, 0))
    }
    assert patches["alone"][0][0].shape == (1, *PATCH)
    same = {
        name: [all(map(torch.equal, a, b)) for a, b in zip(patches["alone"], patches[name], strict=True)]
        for name in ("late", "other")
    }
    assert all(same["late"])
    assert not all(same["other"])
    # In a mixed base a structure's images come in another order among others', but are cut alike.
    base = images.stream(base=("dna", "nucleolus"), patches=8, seed=5).train[0].dataset
    mixed = [item for item in base if images_name(images, item[2]) == "nucleolus"]
    first = patches["alone"][:2]
    assert len(mixed) == 4
    assert all(any(torch.equal(target, item[1]) for item in mixed) for _, target in first)


def images_name(images: Images, label: int) -> str:
    return images.stream(base=("dna", "nucleolus"), patches=1).names([label])[0]


def test_patches_are_one_for_each_image_a_number_or_a_rule(images: Images) -> None:
    assert len(images.stream(["dna"]).train[0].dataset) == 2
    assert len(images.stream(["dna"], patches=7).train[0].dataset) == 7
    stream = images.stream(
        ["nucleolus"], base=("dna", "cell_membrane"), patches=lambda names, n: 10 * len(names) + n
    )
    assert [len(experience.dataset) for experience in stream.train] == [24, 12]


def test_patches_come_labelled_and_of_few_structures_where_asked_for(images: Images) -> None:
    stream = images.stream(
        ["nucleolus"],
        base=("dna", "cell_membrane", "mitochondria"),
        patches=24,
        batch=4,
        structures_per_batch=1,
    )
    for experience in stream.train:
        data = stream.patches_of(experience)
        batches = list(LabelledBatches(patch_loader(data, batch_size=4), stream.labels))
        assert len(batches) == 6
        # The same items, in the same order, as Avalanche would give; and of one structure each.
        items = [experience.dataset[k] for k in range(24)]
        for number, (signal, target, labels) in enumerate(batches):
            assert labels.dtype == torch.int64
            assert len(set(labels.tolist())) == 1
            assert stream.names(labels.tolist())[0] in stream.names_of(experience)
            for place in range(4):
                x, y, label = items[4 * number + place]
                assert torch.equal(signal[place], x)
                assert torch.equal(target[place], y)
                assert labels[place] == label
    free = images.stream(base=("dna", "cell_membrane", "mitochondria"), patches=24).patches[0]
    assert any(len({free.structure_of(4 * n + k) for k in range(4)}) > 1 for n in range(6))


# -- few images -------------------------------------------------------------------------------------------------


def test_a_structure_without_a_training_image_is_refused(images: Images) -> None:
    manifest = images.subset("untrained", images.rows(["dna"]) + images.rows(["nucleolus"], ("test", "val")))
    with pytest.raises(ManifestError, match="no training image of 'nucleolus'"):
        images.stream(manifest=manifest)
    with pytest.raises(ManifestError, match="no training image of 'nucleolus'"):
        images.stream(manifest=manifest, base=("dna", "nucleolus"))  # the other's do not count
    assert images.stream(["dna"], manifest=manifest).experiences == (("dna",),)


def test_nothing_to_validate_or_test_is_allowed(images: Images) -> None:
    manifest = images.subset(
        "few", images.rows(["dna"], ("train", "train")) + images.rows(["nucleolus"], ("train", "val"))
    )
    stream = images.stream(manifest=manifest)
    assert [len(experience.dataset) for experience in stream.train] == [2, 1]
    assert [len(experience.dataset) for experience in stream.val] == [0, 1]
    assert [len(experience.dataset) for experience in stream.test] == [0, 0]
    assert list(stream.val[0].dataset) == []
