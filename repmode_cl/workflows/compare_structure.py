"""Three ways to a structure that a model lacks: adding it, fine-tuning a copy, a network of its own; compared."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from repmode_cl.config import StrategyConfig
from repmode_cl.data.manifest import Manifest
from repmode_cl.data.patches.dataset import VolumeDataset
from repmode_cl.data.pipeline import prepared_samples
from repmode_cl.data.preprocessing.prepare import prepare
from repmode_cl.data.preprocessing.volume_cache import ContentDigests
from repmode_cl.data.sample import Sample
from repmode_cl.data.splits import assign_splits
from repmode_cl.errors import ConfigError, ManifestError, ModelError, UnknownStructureError
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec, RepModeUNet
from repmode_cl.report.comparison.page import build_comparison
from repmode_cl.results.comparison import (
    ADDING,
    COMPARISON,
    FINE_TUNING,
    METHODS,
    OWN_NETWORK,
    Comparison,
    MethodResult,
    PredictionChange,
    read_comparison,
    write_comparison,
)
from repmode_cl.results.predictions import Prediction, write_prediction
from repmode_cl.scenarios import StructureStream
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.plugins.model_export import provenance_of
from repmode_cl.structures import check_structure_name
from repmode_cl.training import Precision, has_checkpoint, inherit_precision, refuse_several
from repmode_cl.utils.atomic_files import write_json
from repmode_cl.utils.devices import resolve_device
from repmode_cl.workflows.addition_plan import INIT_CHOICES, AdditionPlan
from repmode_cl.workflows.comparison_folder import exclusive_comparison
from repmode_cl.workflows.comparison_methods import ComparisonMethods
from repmode_cl.workflows.initialisation import Initialisation, initialise
from repmode_cl.workflows.pending_training import rows_digest, same_images
from repmode_cl.workflows.prediction_changes import HeldOut, changes_of, predictor
from repmode_cl.workflows.train_one_experience import dump_what_counts, held_out, learn, stream_of
from repmode_cl.workflows.training_settings import (
    configuration_for,
    guard_voxels,
    manifest_of,
    origin_of,
    training_for,
)

__all__ = ["ComparisonRun", "compare_structure"]


def compare_structure(
    model: str | Path | Model,
    structure: str,
    data: str | Path | Manifest,
    *,
    out: str | Path | None = None,
    restart: bool = False,
    spec: AdditionSpec | None = None,
    init_from: str = "none",
    kernel: Literal[3, 5] = 3,
    steps: int | None = None,
    epochs: int | None = None,
    learning_rate: float | None = None,
    fine_tuning_rate: float | None = None,
    network_rate: float | None = None,
    batch_size: int | None = None,
    patch: Sequence[int] | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    cache: str | Path | None = None,
    workers: int = 1,
    loader_workers: int = 0,
    force: bool = False,
) -> Comparison:
    """Learn a structure in three ways on the same images and say what each gives, damages and costs.

    The ways are adding it to the model (paper, section 4.4), fine-tuning all shared weights of a copy, and training
    a plain network for it alone (Multi-Net; paper, section 4.2). All see the same patches in the same order for as
    many steps, with the base's settings. The model is read and not touched.

    Parameters
    ----------
    model
        A model directory; one that cannot be written to is enough.
    structure
        Name of the structure. If it was added to the model already, it is compared as if it had not been.
    data
        Manifest of image pairs. Rows of structures that the model knows, where there are any held out, tell what
        fine-tuning costs these.
    out
        Folder of the comparison; ``None``: ``runs/compare-<structure>``.
    restart
        Begin anew in a folder that holds a comparison.
    spec
        What the addition gets; the default is the paper's conv3, with own norms and resampling layers.
    init_from
        What the addition starts from, as of `add_structure`: ``none``, ``best``, or a structure of the model.
    kernel
        Edge of the own network's kernels, 3 or 5.
    steps, epochs, batch_size
        ``None``: as the base was trained with. Steps or epochs, not both.
    learning_rate
        Peak rate of adding; ``None``: as `add_structure` chooses it.
    fine_tuning_rate, network_rate
        Peak rates of the other two; ``None``: the base's for fine-tuning, that of adding for the network of its own, as
        in the shipped configurations: fresh weights bear, and want, a higher rate than trained ones.
    patch
        Voxels (z, y, x); ``None``: what the base was trained with.
    seed
        Seed of new weights and of patches.
    device, precision
        As of the configuration; with ``auto`` the precision is the base's, where the device has instructions for it.
    cache
        Folder of prepared images; ``None`` keeps them in the comparison's folder until it is done.
    workers
        Processes that prepare images.
    loader_workers
        Processes that cut patches ahead of the training; 0 cuts them in this one.
    force
        As of `add_structure`.

    Returns
    -------
    Comparison
        The figures; ``report`` is the page.

    Notes
    -----
    The same call goes on with an interrupted comparison, and returns a finished one at once. What the ways learned is
    not kept: to have the addition, add it.

    Raises
    ------
    ConfigError
        If the folder holds something else, a comparison with other settings, or one that another process is at work
        on.
    ManifestError
        If the manifest has no usable row of the structure, or holds no image of it out.
    ModelError
        If the structure belongs to the base, or another addition needs its experts.
    """
    refuse_several("a comparison")
    model = model if isinstance(model, Model) else Model.open(model)
    check_structure_name(structure)
    if kernel not in (3, 5):
        raise ConfigError(f"kernel {kernel}: the network of its own has kernels of 3 or 5")
    known = _known(model, structure)
    if init_from not in (*INIT_CHOICES, *known):
        raise UnknownStructureError(
            init_from, (*INIT_CHOICES, *known), f"what an addition to {model.path} begins from"
        )
    manifest = manifest_of(data, structure)
    folder = _folder(model, Path(out) if out is not None else Path("runs") / f"compare-{structure}")
    origin = origin_of(model)
    asked: dict[str, Any] = {
        "steps": steps,
        "epochs": epochs,
        "batch_size": batch_size,
        "device": device,
        "precision": precision,
    }
    training = training_for(origin, learning_rate=learning_rate, loader_workers=loader_workers, **asked)
    # Equal steps for all: none may stop earlier than the others.
    training = training.model_copy(update={"patience": None, "time_limit": None})
    base_rate = training_for({**origin, "addition": None}, **asked).learning_rate
    config = configuration_for(
        model,
        manifest,
        training,
        name=f"compare-{structure}",
        cache=cache if cache is not None else folder / "cache",
        patch=patch,
        seed=seed,
    )
    ways = ComparisonMethods(
        network=model.network(known),
        structure=structure,
        config=config,
        rates={
            ADDING: training.learning_rate,
            FINE_TUNING: fine_tuning_rate or base_rate,
            OWN_NETWORK: network_rate or training.learning_rate,
        },
        spec=spec or AdditionSpec(),
        init_from=init_from,
        kernel=kernel,
    )
    done = (folder / COMPARISON).exists() and not restart
    notes = [] if done else guard_voxels(model, manifest, structure, force=force)
    with exclusive_comparison(folder, _request(model, manifest, ways, known), restart=restart):
        if not (folder / COMPARISON).exists():
            ComparisonRun(model, manifest, ways, folder, known, workers).run(precision, notes)
            if cache is None:
                shutil.rmtree(folder / "cache", ignore_errors=True)
        build_comparison(folder)  # after an update of this software too
        return read_comparison(folder)


def _known(model: Model, structure: str) -> tuple[str, ...]:
    """Return the structures that the model is compared with: all but the one that is learned anew."""
    if structure in model.base_structures:
        raise ModelError(
            f"{structure!r} belongs to the base of {model.path}, which cannot be without it: compare with a structure "
            "that the model lacks, or that was added"
        )
    for name, entry in model.entries.items():
        if structure in dict(entry.needs):
            raise ModelError(
                f"{name!r} of {model.path} needs the experts of {structure!r}, so the model cannot be compared as if "
                f"{structure!r} had not been added"
            )
    return tuple(name for name in model.structures if name != structure)


def _folder(model: Model, folder: Path) -> Path:
    inside = folder.resolve()
    if model.path.resolve() in (inside, *inside.parents):
        raise ConfigError(
            f"{folder} lies in the model, which a comparison does not touch: give another folder"
        )
    return folder


def _request(
    model: Model, manifest: Manifest, ways: ComparisonMethods, known: Sequence[str]
) -> dict[str, Any]:
    """Return what decides the figures: a comparison goes on only if it is the same."""
    # Where prepared images and the manifest lie decides nothing; what the rows name does.
    data = ways.config.data.model_copy(update={"cache": None, "manifest": None})
    return {
        "comparison of": ways.structure,
        "config": dump_what_counts(ways.config.model_copy(update={"data": data})),
        "learning rates": dict(ways.rates),
        "spec": ways.spec.to_json(),
        "init_from": ways.init_from,
        "kernel": ways.kernel,
        "model": {name: model.entries[name].digest for name in known},
        "rows": rows_digest(manifest, [ways.structure, *known]),
    }


#: Which images the ways are learned from and measured on.
IMAGES = "images.json"
#: What a way came to, in its folder; written last.
RESULT = "result.json"


class ComparisonRun:
    """One comparison under way: each way is learned, measured, and written down before the next."""

    def __init__(
        self,
        model: Model,
        manifest: Manifest,
        ways: ComparisonMethods,
        folder: Path,
        known: tuple[str, ...],
        workers: int,
    ) -> None:
        self.model, self.manifest, self.ways, self.folder, self.known = model, manifest, ways, folder, known
        self.workers = workers
        self.config = ways.config
        self.device = resolve_device(self.config.training.device)
        self.samples: list[Sample] = []

    def run(self, precision: str, warnings: Sequence[str] = ()) -> None:
        """Learn what is not learned yet, and write the comparison, with `warnings` among its notes."""
        structure = self.ways.structure
        samples, about = prepared_samples(
            self.config.data,
            self.folder,
            structures=[structure],
            manifest=self.manifest,
            workers=self.workers,
        )
        self.samples, notes = samples, [*about, *warnings]
        split, images = _held_out(samples)
        if not images:
            raise ManifestError(
                f"{self.manifest.path}: no image of {structure!r} is held out, so nothing could be said of how well it "
                "is learned: give at least two images, or name rows with split test"
            )
        stream = stream_of(self.config, samples, ((structure,),))
        of_known = self._images_of_known(images)
        known = {held.sample for found in of_known.values() for held in found} - set(samples)
        same_images(
            self.folder / IMAGES,
            [*samples, *sorted(known, key=lambda sample: (sample.row, sample.structure))],
            f"comparison of {structure!r}",
            "give another folder with --out or begin with --restart",
            begun=any(
                has_checkpoint(self.folder / key / "checkpoint") or (self.folder / key / RESULT).exists()
                for key in METHODS
            ),
        )
        format_of = inherit_precision(precision, self.device, origin_of(self.model).get("precision"))
        done = []
        for key in METHODS:
            if not (self.folder / key / RESULT).exists():
                network = self.ways.fresh(key)
                began = (
                    self._begin(network, stream, format_of)
                    if isinstance(network, RepModeUNet) and key == ADDING
                    else None
                )
                strategy = self.ways.strategy(key, network, stream, format_of)
                learn(strategy, self.folder / key, f"{self.ways.title(key)}: {structure}")
                self._measure(key, strategy, stream, images[0], of_known, began)
                shutil.rmtree(self.folder / key / "checkpoint", ignore_errors=True)
            done.append(
                MethodResult.from_json(json.loads((self.folder / key / RESULT).read_text(encoding="utf-8")))
            )
        if structure in self.model.structures:
            notes = [*notes, f"the model has {structure} already; it was compared as if it had not"]
        write_comparison(
            Comparison(
                structure=structure,
                known=self.known,
                held_out=split,
                images=len(images),
                training_images=len(stream.images[0]),
                ways=tuple(done),
                settings=self._settings(format_of.format, done[0].began),
                notes=tuple(notes),
                folder=self.folder,
            )
        )

    def _begin(self, network: RepModeUNet, stream: StructureStream, precision: Precision) -> Initialisation:
        """Let the addition start from what was asked for.

        Measured anew when a training goes on, whose checkpoint then replaces what is set here.
        """
        addition = AdditionPlan(
            model=self.model,
            structure=self.ways.structure,
            replace=False,
            manifest=self.manifest,
            config=self.config,
            spec=self.ways.spec,
            needs=(),
            init_from=self.ways.init_from,
            precision=precision,
        )
        return initialise(addition, network, stream.patches[0], self.device)

    def _images_of_known(self, images: Sequence[Sample]) -> dict[str, list[HeldOut]]:
        """Return for each known structure the held-out images of it, and those of the new structure besides."""
        data = self.config.data
        digests = ContentDigests(Path(str(data.cache)) / "contents.json")
        splits = assign_splits(
            self.manifest,
            seed=data.split_seed,
            test_fraction=data.test_fraction,
            val_fraction=data.val_fraction,
            record=Path(str(data.cache)) / "splits.json",
            digest=digests.of,
        )
        rows = []
        for name in self.known:
            mine = [row for row in self.manifest.rows if row.structure == name]
            rows += next(
                (f for s in ("test", "val") if (f := [row for row in mine if splits[row.number] == s])), []
            )
        # Only these: a facility's manifest may list years of training images.
        held = replace(self.manifest, rows=tuple(rows))
        samples = (
            prepare(held, splits, data.preprocessing, str(data.cache), workers=self.workers) if rows else []
        )
        found: dict[str, list[HeldOut]] = {}
        for name in self.known:
            found[name] = [HeldOut(sample, True) for sample in samples if sample.structure == name]
            there = {held_out.sample.signal for held_out in found[name]}
            found[name] += [HeldOut(sample, False) for sample in images if sample.signal not in there]
        return found

    def _measure(
        self,
        key: str,
        strategy: StructureStrategy,
        stream: StructureStream,
        shown: Sample,
        of_known: Mapping[str, Sequence[HeldOut]],
        began: Initialisation | None,
    ) -> None:
        """Write down what a trained way came to, and the pictures of it; the figures last."""
        structure, folder = self.ways.structure, self.folder / key
        figures, _ = held_out(strategy, stream)
        changes: tuple[PredictionChange, ...] = ()
        worst = None
        if (after := self.ways.known(key, strategy)) is not None:
            changes, worst = changes_of(
                self.ways.network.to(self.device),
                after.to(self.device),
                of_known,
                predictor(self.model.inference, self.device),
                f"{self.ways.title(key)}: what became of the others",
            )
        signal, target = VolumeDataset([shown])[0]
        prediction = strategy.predict(signal[0], structure)
        write_prediction(
            folder / "prediction.npz", Prediction(signal[0].numpy(), target[0].numpy(), prediction)
        )
        if worst is not None:
            write_prediction(folder / f"worst-{worst[0]}.npz", worst[1])
        metrics = figures.get(structure, {})
        curve = [
            (int(row["train_step"]), float(row["value"]))
            for row in strategy.progress.curve
            if row["metric"] == "r2" and math.isfinite(row["value"])
        ]
        way = MethodResult(
            key=key,
            title=self.ways.title(key),
            metrics=metrics,
            changes=changes,
            steps=strategy.progress.step,
            selected_step=strategy.selection.step,
            learning_rate=self.ways.rates[key],
            seconds=strategy.progress.seconds,
            parameters=self.ways.parameters(key, strategy),
            bytes=self.ways.size(
                key,
                strategy,
                self.model,
                folder,
                provenance=self._provenance(strategy, began),
                metrics=metrics,
            ),
            curve=tuple(curve),
            began=None if began is None else began.structure,
        )
        write_json(folder / RESULT, way.to_json())

    def _provenance(self, strategy: StructureStrategy, began: Initialisation | None) -> dict[str, Any]:
        """Return what `add` would record of such a training: its file holds that too."""
        training = self.config.training
        options = StrategyConfig(name="experts_frozen", learning_rate=training.learning_rate)
        return {
            **provenance_of(self.config, options, self.config.seeds[0], self.samples, strategy.precision),
            "held_out": _held_out(self.samples)[0],
            "notes": [],
            "manifest": self.manifest.path.name,
            "steps": strategy.progress.step,
            "selected_step": strategy.selection.step,
            "stopped": strategy.stopped,
            "seconds": round(strategy.progress.seconds, 3),
            "init": {"asked": self.ways.init_from, **(began.to_json() if began else {})},
        }

    def _settings(self, precision: str, began: str | None) -> tuple[tuple[str, str], ...]:
        training, architecture = self.config.training, self.model.architecture
        budget = f"{training.epochs} epochs" if training.epochs is not None else f"{training.steps} steps"
        return (
            ("model", self.model.path.resolve().name),
            ("images", self.manifest.path.name),
            ("network", f"width {architecture.width}, depth {architecture.depth}"),
            ("addition", _addition(self.ways.spec)),
            ("begun from", began or "chance"),
            ("own network", f"kernel {self.ways.kernel}"),
            ("budget", budget),
            ("batch", str(training.batch_size)),
            ("patch (z, y, x)", " \N{MULTIPLICATION SIGN} ".join(str(n) for n in self.config.patch.size)),
            ("schedule", training.schedule),
            ("precision", precision),
            ("seed", str(self.config.seeds[0])),
        )


def _addition(spec: AdditionSpec) -> str:
    said = [spec.expert, f"sees {spec.sees}"]
    said += [f"base's {part}" for part in ("norm", "resampling") if getattr(spec, part) == "base"]
    return ", ".join(said)


def _held_out(samples: Sequence[Sample]) -> tuple[str, list[Sample]]:
    """Return the images that the figures are of, as `held_out` chooses them."""
    for split in ("test", "val"):
        if found := [sample for sample in samples if sample.split == split]:
            return split, found
    return "none", []
