"""Streams of structures: Avalanche experiences in which only the current structures' images are reachable.

Integers exist here and nowhere else, because Avalanche's task labels are integers: one mapping, kept with the run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

from avalanche.benchmarks import CLExperience, CLStream, benchmark_from_datasets, with_task_labels
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data_attribute import TaskLabels
from avalanche.benchmarks.utils.flat_data import ConstantSequence
from torch.utils.data import Dataset

from repmode_cl.config import Config, DataConfig, StreamConfig
from repmode_cl.data.manifest import Manifest, read_manifest
from repmode_cl.data.patches.dataset import PatchDataset, VolumeDataset
from repmode_cl.data.pipeline import HeldOutCheck, prepared_samples
from repmode_cl.data.sample import Sample
from repmode_cl.errors import ConfigError
from repmode_cl.model import Model
from repmode_cl.scenarios.image_allocation import refuse_count, training_images
from repmode_cl.scenarios.stream_variants import experience_names, task_labels

__all__ = [
    "PatchSampling",
    "StructureStream",
    "check_stream_arguments",
    "stream_of_samples",
    "structure_labels",
    "structure_stream",
]

_log = logging.getLogger("repmode_cl.scenarios.stream")

#: (structures of an experience, number of its training images) -> number of patches it trains on.
PatchCount = Callable[[tuple[str, ...], int], int]


@dataclass(frozen=True)
class PatchSampling:
    """Rules by which training patches are cut and put in batches, the same in every experience.

    Attributes
    ----------
    patch
        Voxels (z, y, x) of a patch.
    flips
        Flip at random on each axis, on none, or on the axes listed.
    batch, structures_per_batch
        Each batch of `batch` patches shows at most so many structures; ``None`` mixes freely.
    foreground
        Share of patches that are centred on a bright voxel of the target.
    """

    patch: Sequence[int]
    flips: bool | Sequence[str] = True
    batch: int | None = None
    structures_per_batch: int | None = None
    foreground: float = 0.0

    @classmethod
    def of_config(cls, config: Config) -> PatchSampling:
        """Return the rules of a configuration; a batch is what one pass through the network takes."""
        training = config.training
        return cls(
            patch=config.patch.size,
            flips=config.patch.flips,
            batch=training.batch_size // training.accumulate,
            structures_per_batch=training.structures_per_batch,
            foreground=config.patch.foreground,
        )


@dataclass(frozen=True)
class StructureStream:
    """A task-incremental benchmark over structures.

    It has the names that Avalanche gives a benchmark: `train_stream`, `val_stream`, `test_stream`, `streams` and
    `n_experiences`; streams can be sliced. Each experience knows its ``benchmark``, which is this object, and its
    ``classes_in_this_experience``, the task labels of its structures.

    Attributes
    ----------
    benchmark
        Avalanche's scenario with the streams ``train``, ``val`` and ``test``.
    experiences
        Structures of each experience, in order; a structure may come again, with other training images.
    labels
        Avalanche's task label of each structure: the only place where a structure has a number.
    images, tests
        Training and test images of each experience.
    patches
        Training patches of each experience, as workers can read them: without task labels, and without Avalanche.
    """

    benchmark: Any
    experiences: tuple[tuple[str, ...], ...]
    labels: Mapping[str, int]
    images: tuple[tuple[Sample, ...], ...]
    tests: tuple[tuple[Sample, ...], ...]
    patches: tuple[PatchDataset, ...]

    def __post_init__(self) -> None:
        """Give each experience what Avalanche's plugins and loggers ask of it."""
        for stream in self.benchmark.streams.values():
            for experience in stream:
                experience.benchmark = self
                experience.classes_in_this_experience = sorted(
                    self.labels[name] for name in self.names_of(experience)
                )

    @property
    def train_stream(self) -> CLStream[Any]:
        """Training stream: patches, one experience per step."""
        return self.benchmark.train_stream

    @property
    def val_stream(self) -> CLStream[Any]:
        """Validation stream: whole volumes; an experience of it may be empty."""
        return self.benchmark.val_stream

    @property
    def test_stream(self) -> CLStream[Any]:
        """Test stream: whole volumes."""
        return self.benchmark.test_stream

    @property
    def streams(self) -> dict[str, CLStream[Any]]:
        """All streams by name: ``train``, ``val`` and ``test``."""
        return dict(self.benchmark.streams)

    @property
    def n_experiences(self) -> int:
        """Number of experiences of each stream."""
        return len(self.experiences)

    @property
    def patch(self) -> tuple[int, int, int]:
        """Voxels (z, y, x) of the training patches."""
        return self.patches[0].patch

    # Shorter names of the streams.
    train, val, test = train_stream, val_stream, test_stream

    @classmethod
    def of(cls, experience: CLExperience) -> StructureStream:
        """Return the stream that an experience belongs to.

        Raises
        ------
        ConfigError
            If it is an experience of another kind of benchmark.
        """
        stream = getattr(experience, "benchmark", None)
        if not isinstance(stream, cls):
            raise ConfigError(
                f"found {type(experience).__name__} of a benchmark that does not name structures: take the experiences "
                "of a StructureStream (structure_stream makes one)"
            )
        return stream

    def names_of(self, experience: CLExperience) -> tuple[str, ...]:
        """Return the structures of an experience of any of the streams."""
        return self.experiences[int(experience.current_experience)]

    def samples_of(self, experience: CLExperience) -> tuple[Sample, ...]:
        """Return the images that an experience of the training stream draws its patches from."""
        return self.images[int(experience.current_experience)]

    def patches_of(self, experience: CLExperience) -> PatchDataset:
        """Return the patches of an experience of the training stream."""
        return self.patches[int(experience.current_experience)]

    def held_out(self, experience: CLExperience) -> tuple[Sample, ...]:
        """Return the test images of an experience."""
        return self.tests[int(experience.current_experience)]

    def known_after(self, number: int) -> list[CLExperience]:
        """Return the test experiences that show each structure of the experiences up to `number` once."""
        covered: set[str] = set()
        test_experiences = []
        for place, names in enumerate(self.experiences[: number + 1]):
            if not covered.issuperset(names):
                test_experiences.append(self.test[place])
            covered.update(names)
        return test_experiences

    def known_before(self, number: int) -> list[CLExperience]:
        """Return validation experiences that show the structures of all experiences before `number` once each.

        Structures of experience `number` are left out where an experience holds no others; those without an image to
        validate on are never in it.
        """
        covered: set[str] = set(self.experiences[number])
        chosen = []
        for place, names in enumerate(self.experiences[:number]):
            if not covered.issuperset(names) and len(self.val[place].dataset):
                chosen.append(self.val[place])
            covered.update(names)
        return chosen

    def names(self, labels: Sequence[int]) -> list[str]:
        """Return the structures that task labels stand for."""
        by_label = {label: name for name, label in self.labels.items()}
        return [by_label[int(label)] for label in labels]


def check_stream_arguments(
    *, order: object, base: object, patches: object, images_each: object, order_is: str
) -> None:
    """Refuse arguments of a stream that would be taken for something else, before an image is prepared.

    Parameters
    ----------
    order, base, patches, images_each
        As for `structure_stream`.
    order_is
        What `order` may be, for the message.

    Raises
    ------
    ConfigError
        If names are a bare text, or a number is no whole number of at least 1.
    """
    for name, names, needed in (
        ("order", order, order_is),
        ("base", base, "a list of names of structures"),
    ):
        if isinstance(names, str):
            raise ConfigError(
                f"{name} {names!r}: found a text, and its letters are no structures; give {needed}, such as [{names!r}]"
            )
    if not callable(patches):
        refuse_count("patches", patches, "one of each image")
    refuse_count("images_each", images_each, "all images")


def structure_stream(
    manifest: Manifest | str | Path,
    order: Sequence[str] | int | Path | None = None,
    *,
    base: Sequence[str] = (),
    cache: str | Path,
    patch: Sequence[int] = (32, 128, 128),
    patches: int | PatchCount | None = None,
    seed: int = 0,
    flips: bool | Sequence[str] = True,
    data: DataConfig | None = None,
    model: Model | None = None,
    batch: int | None = None,
    structures_per_batch: int | None = None,
    images_each: int | None = None,
    foreground: float = 0.0,
) -> StructureStream:
    """Make Avalanche train, validation and test streams of structures from a manifest.

    Parameters
    ----------
    manifest
        A manifest, or the path of one.
    order
        Structures after the base: their names, a seed that shuffles the manifest's, the path of a text file
        with one a line, or ``None`` for the manifest's order. One that is named again comes again, with new images:
        its training images are divided among its arrivals.
    base
        Structures learned jointly in the first experience; without any, each experience holds one structure.
    cache
        Folder of prepared volumes.
    patch
        Voxels (z, y, x) of training patches.
    patches
        Patches an experience trains on: a number, or a function of its structures and its number of images.
        ``None`` takes one of each image.
    seed
        Seed of crops, flips and the order of images.
    flips
        Flip at random on each axis, on none, or on the axes listed.
    data
        Splits and preprocessing; its `manifest` is not used. ``None``: those of `model`, or the defaults.
    model
        A stored model whose network is trained on: images are prepared as its own were, and those that it knows keep
        their splits.
    batch, structures_per_batch
        Arrange the patches so that each batch of `batch` shows at most so many structures; ``None`` mixes freely.
    images_each
        Most training images of each structure after the first experience; ``None`` takes all. See
        `repmode_cl.scenarios.training_images`.
    foreground
        Share of patches that are centred on a bright voxel of the target.

    Returns
    -------
    StructureStream
        One experience per structure after the base. Building it prepares the images; each experience reaches
        its own structures' images only.

    Raises
    ------
    ConfigError
        If `data` and `model` are given, `base` is not the model's, `order` or `base` is a bare text, or `patches` or
        `images_each` is below 1.

    Notes
    -----
    Which images are held out is the script's decision: where they lie too near those that are trained on, which
    ``bench`` refuses, the logger ``repmode_cl.scenarios.stream`` warns. It also says which structures have too few
    images to hold any out, and which images have missing chunks.
    """
    check_stream_arguments(
        order=order,
        base=base,
        patches=patches,
        images_each=images_each,
        order_is="a list of names of structures, a seed, the Path of a file, or None",
    )
    manifest = manifest if isinstance(manifest, Manifest) else read_manifest(Path(manifest))
    if model is not None:
        if data is not None:
            raise ConfigError(
                "data and model are given: images are prepared as the model says; leave out data"
            )
        if tuple(base) not in ((), model.base_structures):
            raise ConfigError(
                f"base {list(base)}: the base of the model {model.path} is {list(model.base_structures)}; leave base "
                "out"
            )
        base, data = model.base_structures, model.data_settings()
    values: dict[str, Any] = {"base": tuple(base)}
    given: Any = order  # a number of NumPy is one, which its type does not say
    if isinstance(given, Integral):
        values["order_seed"] = int(given)
    elif isinstance(given, Path):
        values["order_file"] = str(given)
    elif given is not None:
        values["order"] = tuple(given)
    experiences = experience_names(StreamConfig(**values), manifest.structures)
    structures = list(dict.fromkeys(name for names in experiences for name in names))
    data = (data or DataConfig()).model_copy(update={"cache": str(cache)})
    samples, notes = prepared_samples(
        data,
        Path(cache),
        structures=structures,
        manifest=manifest,
        held_out=HeldOutCheck(patch, None if model is None else model.training_records(), refuse=False),
    )
    for note in notes:
        _log.warning(note)
    count: PatchCount = (
        patches if callable(patches) else lambda _, images: images if patches is None else patches
    )
    return stream_of_samples(
        samples,
        experiences,
        PatchSampling(patch, flips, batch, structures_per_batch, foreground),
        count=count,
        seed=seed,
        images_each=images_each,
    )


def stream_of_samples(
    samples: Sequence[Sample],
    experiences: Sequence[Sequence[str]],
    sampling: PatchSampling,
    *,
    count: PatchCount,
    seed: int,
    labels: Mapping[str, int] | None = None,
    images_each: int | None = None,
    arrivals: Sequence[Sequence[str]] | None = None,
) -> StructureStream:
    """Make a stream of prepared samples; see `structure_stream`.

    Parameters
    ----------
    samples
        Prepared images; what is in no experience is left out.
    experiences
        Structures of each experience, as a strategy trains them.
    sampling
        Rules by which training patches are cut and put in batches.
    count
        Structures of an experience and number of its training images -> patches it trains on.
    seed
        Seed of crops, flips and the order of images.
    labels
        Task label of each structure; by default in the order in which they first arrive.
    images_each, arrivals
        Most images of a structure that is not in the first of `arrivals`, and the structures of each experience as
        they arrive, where `experiences` arranges them otherwise: see `repmode_cl.scenarios.training_images`.

    Raises
    ------
    ManifestError
        If a structure has no training image, or fewer than the number of times that it arrives.
    """
    chosen = training_images(samples, experiences, seed=seed, images_each=images_each, arrivals=arrivals)
    labels = dict(labels) if labels is not None else task_labels(experiences)
    train: list[AvalancheDataset[Any]] = []
    val: list[AvalancheDataset[Any]] = []
    test: list[AvalancheDataset[Any]] = []
    images: list[tuple[Sample, ...]] = []
    tests: list[tuple[Sample, ...]] = []
    sequences: list[PatchDataset] = []
    for group, training in zip(experiences, chosen, strict=True):
        samples_by_split = {
            "train": training,
            **{
                split: tuple(s for s in samples if s.structure in group and s.split == split)
                for split in ("val", "test")
            },
        }
        length = count(tuple(group), len(samples_by_split["train"]))
        patches = PatchDataset(
            samples_by_split["train"],
            seed=seed,
            length=length,
            patch=sampling.patch,
            flips=sampling.flips,
            batch=sampling.batch,
            structures_per_batch=sampling.structures_per_batch,
            foreground=sampling.foreground,
        )
        sequences.append(patches)
        images.append(tuple(samples_by_split["train"]))
        tests.append(tuple(samples_by_split["test"]))
        single_label = labels[group[0]] if len(group) == 1 else None  # one sequence for all items
        patch_labels = (labels[patches.structure_of(i)] for i in range(length))
        train.append(
            _labelled(
                _MaskedPatches(patches) if patches.weighted else patches,
                list(patch_labels) if single_label is None else ConstantSequence(single_label, length),
            )
        )
        for stream, split in ((val, "val"), (test, "test")):
            volumes: Dataset[Any] = (
                VolumeDataset(samples_by_split[split]) if samples_by_split[split] else _NoVolumes()
            )
            stream.append(
                _labelled(volumes, [labels[sample.structure] for sample in samples_by_split[split]])
            )
    benchmark = with_task_labels(benchmark_from_datasets(train=train, val=val, test=test))
    return StructureStream(
        benchmark,
        tuple(tuple(group) for group in experiences),
        labels,
        tuple(images),
        tuple(tests),
        tuple(sequences),
    )


def structure_labels(experience: CLExperience) -> Mapping[str, int] | None:
    """Return the task label of each structure of an experience's benchmark; None where it is no stream of structures.

    There a label may come again in a later experience, and stands for the same structure: in other benchmarks,
    experiences that share a label may have nothing else in common.
    """
    stream = getattr(experience, "benchmark", None)
    return stream.labels if isinstance(stream, StructureStream) else None


class _MaskedPatches(Dataset[Any]):
    """Stands in a training stream whose targets say in a second channel which voxels count.

    Strategies of this package read the patches by themselves. Whatever reads the stream would take the channel for a
    target: a loss joins it with the prediction's one channel, and says nothing.
    """

    def __init__(self, patches: PatchDataset) -> None:
        self.patches = patches

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, index: int) -> Any:
        raise ConfigError(
            f"the patches of {self.patches.structure_of(index)} say which voxels count (a mask, or an image smaller "
            "than the patch), and Avalanche's own strategies would take that for a target: leave masks out, make "
            "patches smaller, or take a strategy of this package"
        )


class _NoVolumes(Dataset[Any]):
    """Stands in a stream where an experience has no image to validate or test on."""

    samples: tuple[Sample, ...] = ()

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Any:
        raise IndexError(f"item {index} of 0")


def _labelled(dataset: Dataset[Any], labels: Sequence[int]) -> AvalancheDataset[Any]:
    return AvalancheDataset([dataset], data_attributes=[TaskLabels(labels)])
