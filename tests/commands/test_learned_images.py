"""Images that a model has learned from are never held out by what builds on it, whatever its split was made with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from tiny_addition import added, dry_run, make_base
from tiny_run import BASE, changed, make_manifest, tiny

from repmode_cl.config import DataConfig, StreamConfig
from repmode_cl.data.manifest import Row, read_manifest, write_manifest
from repmode_cl.data.readers import Region
from repmode_cl.data.split_record import ImagePart, read_split_record
from repmode_cl.errors import ConfigError, ManifestError
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec
from repmode_cl.results.comparison import Comparison
from repmode_cl.scenarios import StructureStream, structure_stream
from repmode_cl.workflows.add_structure import add_structure
from repmode_cl.workflows.advise import advise
from repmode_cl.workflows.compare_structure import ComparisonRun, compare_structure
from repmode_cl.workflows.evaluate_model import evaluate_model
from repmode_cl.workflows.options import EvaluationOptions, TrainingOverrides
from repmode_cl.workflows.train_base import train_base

#: With this seed the base trains on images that the default seed holds out.
SPLIT_SEED = 1


def fields_of(path: Path, *splits: str) -> set[str]:
    """Return the digests of the files that a model records in these splits of its base."""
    record = read_split_record(Model.open(path).entries["dna"].provenance)
    return {content for content, parts in record.images.items() if any(split in splits for _, split in parts)}


def with_splits(manifest: Path, splits: dict[str, str], name: str) -> Path:
    """Write a manifest in which the rows of some signals name their split."""
    rows = [
        Row(**{**vars(row), "split": splits.get(row.signal.name)}) for row in read_manifest(manifest).rows
    ]
    path = manifest.with_name(name)
    write_manifest(path, rows)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_manifest(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model whose base was trained with another split than the default one."""
    folder = tmp_path_factory.mktemp("trained")
    data = DataConfig(manifest=str(images), split_seed=SPLIT_SEED, test_fraction=0.3)
    train_base(changed(tiny(images, folder), data=data), folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def split_of_base(trained: Path, images: Path) -> dict[str, str]:
    """Return the split that the base had each signal file in, by the file's name."""
    from repmode_cl.data.preprocessing.content_digest import content_digest

    record = read_split_record(Model.open(trained).entries["dna"].provenance)
    signals = {row.signal for row in read_manifest(images).rows}
    return {path.name: record.images[content_digest(path)[:12]][0][1] for path in signals}


def test_a_model_records_the_split_of_its_images(trained: Path, split_of_base: dict[str, str]) -> None:
    record = read_split_record(Model.open(trained).entries["dna"].provenance)
    assert record.settings == {"split_seed": SPLIT_SEED, "test_fraction": 0.3, "val_fraction": 0.1}
    assert sorted(split_of_base.values()) == ["test", "test", "train", "train", "train", "val"]


def test_an_addition_keeps_the_split_of_the_base(
    trained: Path, images: Path, split_of_base: dict[str, str]
) -> None:
    report = dry_run(trained, images, steps=2)
    note = "images that the model knows keep the split that they had there: 3 train, 1 val, 2 test"
    assert note in report.notes
    result = added(trained, images, steps=2, stage=True, name="mitochondria")
    assert note in result.notes
    staged = json.loads((trained / "pending" / "mitochondria" / "staged.json").read_text(encoding="utf-8"))
    record = read_split_record(staged["entry"]["provenance"])
    assert {content: parts[0][1] for content, parts in record.images.items()} == {
        content: parts[0][1]
        for content, parts in read_split_record(Model.open(trained).entries["dna"].provenance).images.items()
    }
    assert record.settings["split_seed"] == SPLIT_SEED


def trained_and_tested(stream: StructureStream) -> dict[str, str]:
    """Return the split of each signal file that trains or tests, by its digest."""
    parts = (*stream.images, *stream.tests)
    return {sample.source: sample.split for part in parts for sample in part}


def test_a_stream_of_a_stored_model_prepares_and_splits_as_the_model_did(
    trained: Path, images: Path, tmp_path: Path
) -> None:
    model = Model.open(trained)
    options: dict[str, Any] = {"cache": tmp_path / "cache", "patch": (4, 8, 8)}
    stream = structure_stream(images, ["nucleolus"], model=model, **options)
    assert stream.experiences == (model.base_structures, ("nucleolus",))
    splits = trained_and_tested(stream)
    others = trained_and_tested(structure_stream(images, ["nucleolus"], base=BASE, **options))
    recorded = read_split_record(model.entries["dna"].provenance)
    assert splits == {
        content: split for content, [(_, split), *_] in recorded.images.items() if split != "val"
    }
    assert others != splits
    with pytest.raises(ConfigError, match="leave out data"):
        structure_stream(images, ["nucleolus"], model=model, data=DataConfig(), **options)
    with pytest.raises(ConfigError, match=r"base of the model .* is \['dna', .*leave base out"):
        structure_stream(images, ["nucleolus"], base=("dna",), model=model, **options)


def test_what_trained_the_base_is_not_held_out(
    trained: Path, images: Path, split_of_base: dict[str, str], tmp_path: Path
) -> None:
    train = sorted(name for name, split in split_of_base.items() if split == "train")
    [val] = [name for name, split in split_of_base.items() if split == "val"]
    splits = dict.fromkeys(split_of_base, "train") | {train[0]: "test", val: "test", train[1]: "val"}
    manifest = with_splits(images, splits, "contradicting.csv")
    problems = [problem for problem in dry_run(trained, manifest).problems if problem.column == "split"]
    assert len(problems) == 3
    text = "\n".join(map(str, problems))
    assert f"{train[0]} is held out (test), but it trained the base of the model" in text
    assert f"{val} is held out (test), but it validated the base of the model" in text
    assert "set its split to val, or leave the row out" in text
    for run in (
        lambda: added(trained, manifest),
        lambda: compare_structure(trained, "nucleolus", manifest, out=tmp_path / "compare"),
    ):
        with pytest.raises(
            ManifestError, match=r"3 rows .*(\n.*)*is held out \(test\), but it trained the base"
        ):
            run()


def compared_fields(
    patch: pytest.MonkeyPatch, model: Path, manifest: Path, out: Path
) -> tuple[dict[str, set[str]], Comparison]:
    """Compare, and return the signals that each known structure is measured on."""
    held: dict[str, set[str]] = {}
    known_images = ComparisonRun._known_images

    def spy(self: ComparisonRun, images: Any) -> Any:
        found = known_images(self, images)
        for name, own in found[0].items():
            held[name] = {one.sample.source for one in own if one.has_truth}
        return found

    patch.setattr(ComparisonRun, "_known_images", spy)
    return held, compare_structure(model, "nucleolus", manifest, out=out, steps=2)


def test_a_comparison_measures_known_structures_on_images_they_never_saw(
    trained: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, _ = compared_fields(monkeypatch, trained, images, tmp_path / "out")
    assert held == dict.fromkeys(BASE, fields_of(trained, "test"))


def test_a_comparison_leaves_out_images_of_known_structures_and_says_so(
    trained: Path,
    images: Path,
    split_of_base: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The new structure has its own images; rows of known structures hold out what trained the base."""
    train = sorted(name for name, split in split_of_base.items() if split == "train")
    rows = []
    for row in read_manifest(images).rows:
        known = row.structure in BASE
        split = (
            ("test" if row.signal.name in (train[0], *names_that_test(split_of_base)) else "train")
            if known
            else None
        )
        rows.append(
            Row(**{**vars(row), "split": split, "group": "known" + row.signal.name if known else None})
        )
    manifest = images.with_name("known.csv")
    write_manifest(manifest, rows)
    held, comparison = compared_fields(monkeypatch, trained, manifest, tmp_path / "out")
    assert held == dict.fromkeys(BASE, fields_of(trained, "test"))
    [note, *_] = [
        note for note in comparison.notes if note.startswith("dna is not measured on an image: line")
    ]
    assert f"{train[0]} is held out (test), but it trained the base" in note


def names_that_test(split_of_base: dict[str, str]) -> list[str]:
    return [name for name, split in split_of_base.items() if split == "test"]


def test_a_model_without_a_record_is_warned_of(tmp_path: Path, images: Path) -> None:
    base = make_base(tmp_path / "base", recorded=False)
    notes = dry_run(base, images, steps=2).notes
    assert any("does not record which images trained the base" in note for note in notes)
    result = add_structure(base, "nucleolus", images, steps=2)
    assert any("cannot be checked that no held-out image is among them" in note for note in result.notes)


@pytest.fixture(scope="module")
def chained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model in which nucleolus learned from the first fields, and mitochondria, from others, began as it."""
    model = make_base(tmp_path_factory.mktemp("chained") / "model")
    for number, (name, start) in enumerate((("nucleolus", "dna"), ("mitochondria", "nucleolus"))):
        fields = {
            f"signal{2 * number}.tif": "train",
            f"signal{2 * number + 1}.tif": "train",
            "signal5.tif": "test",
        }
        added(model, of_fields(images, fields, name), name=name, init_from=start, setting="small", steps=2)
    return model


def of_fields(manifest: Path, splits: dict[str, str], name: str) -> Path:
    """Write a manifest of one structure in some fields."""
    rows = [
        Row(**{**vars(row), "structure": name, "split": splits[row.signal.name]})
        for row in read_manifest(manifest).rows
        if row.signal.name in splits and row.structure == "nucleolus"
    ]
    path = manifest.with_name(f"{name}-{'-'.join(splits)}.csv")
    write_manifest(path, rows)
    return path


def test_what_a_structure_builds_on_is_not_held_out_either(
    chained: Path, images: Path, tmp_path: Path
) -> None:
    """Mitochondria began as nucleolus, whose images decided its weights, too: it is an image of both."""
    splits = {"signal0.tif": "test", "signal4.tif": "train", "signal5.tif": "train"}
    manifest = of_fields(images, splits, "golgi")
    message = r"signal0.tif is held out \(test\), but it trained nucleolus of the model"
    seen = {"spec": AdditionSpec(expert="conv1", sees="all"), "init_from": "none"}
    for number, how in enumerate(({"init_from": "mitochondria"}, {}, seen)):
        with pytest.raises(ManifestError, match=message):
            added(chained, manifest, name="golgi", steps=2, **how)
        with pytest.raises(ManifestError, match=message):
            compare_structure(chained, "golgi", manifest, out=tmp_path / str(number), steps=2, **how)
    with pytest.raises(ManifestError, match=message):
        advise(chained, "golgi", manifest, TrainingOverrides(steps=2), out=tmp_path / "advice")
    added(chained, manifest, name="golgi", steps=2, init_from="dna", stage=True)

    new = of_fields(images, {"signal0.tif": "test", "signal4.tif": "test"}, "mitochondria")
    evaluation = evaluate_model(chained, new, EvaluationOptions(measures=(), out=tmp_path / "evaluation"))
    assert [one.image for one in evaluation.structures[0].images] == ["signal4.tif"]
    assert any(note.startswith("mitochondria is not evaluated on line 2") for note in evaluation.notes)


def test_a_record_that_is_not_understood_counts_as_none() -> None:
    good = {
        "seed": 3,
        "test_fraction": 0.25,
        "val_fraction": 0.0,
        "train": "0123456789ab",
        "val": "",
        "test": "",
    }
    assert read_split_record({"splits": good}).recorded
    for key, value in {"train": "0123", "val": None, "test": "0123456789ab/1:2"}.items():
        assert not read_split_record({"splits": {**good, key: value}}).recorded
    assert read_split_record({"splits": {**good, "seed": True, "test_fraction": "1"}}).settings == {
        "val_fraction": 0.0
    }
    assert not read_split_record({"splits": [1]}).recorded


@pytest.mark.parametrize(
    "part", [ImagePart("0123456789ab"), ImagePart("0123456789ab", 2, 3, ((0, 4), (8, 16), (0, 9)))]
)
def test_parts_are_read_as_they_are_written(part: ImagePart) -> None:
    assert ImagePart.parse(str(part)) == part


def test_regions_of_one_image_are_told_apart(tmp_path: Path) -> None:
    """One half of a field trains the base: the other may be held out, if half a patch lies between."""
    rng = np.random.default_rng(0)
    for name in ("light", "nucleolus", *BASE):
        volume = rng.integers(0, 4096, (4, 16, 40)).astype(np.uint16)
        tifffile.imwrite(tmp_path / f"{name}.tif", volume, photometric="minisblack", metadata={"axes": "ZYX"})

    def manifest(name: str, structures: tuple[str, ...], **regions: str) -> Path:
        rows = [
            Row(
                0,
                one,
                tmp_path / "light.tif",
                None,
                tmp_path / f"{one}.tif",
                None,
                split,
                None,
                Region.parse(region),
            )
            for one in structures
            for split, region in regions.items()
        ]
        write_manifest(tmp_path / name, rows)
        return tmp_path / name

    first = manifest("base.csv", BASE, train="0:4,0:16,0:16", test="0:4,0:16,24:40")
    config = changed(tiny(first, tmp_path / "runs"), stream=StreamConfig(base=BASE))
    train_base(config, tmp_path / "model")
    same = manifest("same.csv", ("nucleolus",), train="0:4,0:16,0:16", test="0:4,0:16,24:40")
    assert dry_run(tmp_path / "model", same, steps=2).ok
    swapped = manifest("swapped.csv", ("nucleolus",), test="0:4,0:16,0:14", train="0:4,0:16,24:40")
    [problem] = dry_run(tmp_path / "model", swapped).problems
    assert "light.tif is held out (test), but it or what lies near it trained the base" in str(problem)
    near = manifest("near.csv", ("nucleolus",), test="0:4,0:16,18:34")
    assert "or what lies near it trained the base" in str(dry_run(tmp_path / "model", near).problems[0])
