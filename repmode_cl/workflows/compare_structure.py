"""Compare three methods to learn a structure that a model lacks: adding, fine-tuning a copy, a separate network."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from repmode_cl.config import Config, StrategyConfig, TrainingConfig
from repmode_cl.config.addition_settings import AdditionSetting, start_of_setting
from repmode_cl.data.manifest import Manifest
from repmode_cl.data.patches.dataset import VolumeDataset
from repmode_cl.data.pipeline import HeldOutCheck, prepared_samples
from repmode_cl.data.preprocessing.prepare import prepare
from repmode_cl.data.preprocessing.volume_cache import ContentDigests
from repmode_cl.data.sample import Sample
from repmode_cl.data.splits import assign_splits
from repmode_cl.data.validation.held_out import follow_records, learned_images
from repmode_cl.errors import ConfigError, ManifestError, ModelError, UnknownStructureError
from repmode_cl.inference.prepare_volume import target_scales
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
from repmode_cl.store.reliability import Reliability
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.structures import check_structure_name
from repmode_cl.training import has_checkpoint, inherit_precision, refuse_distributed
from repmode_cl.utils.atomic_files import write_json
from repmode_cl.utils.devices import resolve_device
from repmode_cl.verdict import EVIDENCE
from repmode_cl.workflows.addition_plan import INIT_CHOICES, AdditionPlan, seen_versions
from repmode_cl.workflows.comparison_folder import exclusive_comparison
from repmode_cl.workflows.comparison_methods import ComparisonMethods
from repmode_cl.workflows.initialisation import Initialisation, initialise
from repmode_cl.workflows.measured_images import record_measured, refuse_other_images
from repmode_cl.workflows.options import AdditionOptions, ComparisonOptions, TrainingOverrides
from repmode_cl.workflows.pending_training import CHECKPOINT, IMAGES, record_images, rows_digest
from repmode_cl.workflows.prediction_changes import HeldOutImage, compare_predictions, model_predictor
from repmode_cl.workflows.reliability import measure_reliability
from repmode_cl.workflows.train_one_experience import (
    evaluate_held_out,
    make_stream,
    resume_config_text,
    train_experience,
    verdict_evidence,
)
from repmode_cl.workflows.training_settings import (
    addition_notes,
    addition_strategy,
    base_provenance,
    open_manifest,
    refuse_voxel_sizes,
    resolve_addition,
    run_config,
    training_config,
)

__all__ = [
    "compare_structure",
    "run_comparison",
    "ComparisonRun",
    "held_out_images",
    "known_structures",
    "refuse_folder_in_model",
]

#: File of a method's folder with its figures; written last.
_RESULT = "result.json"


def compare_structure(
    model: str | Path | Model,
    structure: str,
    data: str | Path | Manifest,
    *,
    out: str | Path | None = None,
    restart: bool = False,
    spec: AdditionSpec | None = None,
    init_from: str | None = None,
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
    """Learn a structure by three methods on the same images, and compare their results, damage and cost.

    The methods are adding it to the model (paper, section 4.4), fine-tuning all shared weights of a copy, and training
    a plain network only for it (Multi-Net; paper, section 4.2). All see the same patches in the same order for as
    many steps, with the base's settings. The model is read and not changed.

    Parameters
    ----------
    model
        A model directory; one that cannot be written to is enough.
    structure
        Name of the structure. If it was added to the model already, it is compared as if it had not been.
    data
        Manifest of image pairs. Rows of structures that the model knows, where any are held out, show what
        fine-tuning costs these.
    out
        Folder of the comparison; ``None``: ``runs/compare-<structure>``.
    restart
        Start again in a folder that holds a comparison.
    spec
        What the addition gets, ``AdditionSpec()`` for the paper's conv3; ``None``: that of the setting ``small``.
    init_from
        What the addition starts from, as of `add_structure`: ``none``, ``best``, or a structure of the model. ``None``:
        ``best`` of a setting, ``none`` of a specification.
    kernel
        Edge of the separate network's kernels, 3 or 5.
    steps, epochs, batch_size
        ``None``: as the base was trained with. Steps or epochs, not both.
    learning_rate
        Peak rate of adding; ``None``: as `add_structure` chooses it.
    fine_tuning_rate, network_rate
        Peak rates of the other two; ``None``: the base's for fine-tuning, and for the separate network that of adding
        unless a setting gives it, which was chosen for what the setting trains: then the one that the base's
        configuration names for additions, or else the base's.
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
    The same call resumes an interrupted comparison, and returns a finished one of the same images at once. The trained
    networks are not kept: to have the addition, add it.

    Raises
    ------
    ConfigError
        If the folder holds something else, a comparison with other settings or of images that changed since, or one
        that another process is at work on.
    ManifestError
        If the manifest has no usable row of the structure, or holds no image of it out.
    ModelError
        If the structure belongs to the base, or another addition needs its experts.
    """
    return run_comparison(
        model,
        structure,
        data,
        AdditionOptions(spec=spec, init_from=init_from),
        TrainingOverrides(
            steps=steps,
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=batch_size,
            patch=patch,
            seed=seed,
            device=device,
            precision=precision,
            cache=cache,
            workers=workers,
            loader_workers=loader_workers,
            force=force,
        ),
        ComparisonOptions(
            out=out,
            restart=restart,
            kernel=kernel,
            fine_tuning_rate=fine_tuning_rate,
            network_rate=network_rate,
        ),
    )


def run_comparison(
    model: str | Path | Model,
    structure: str,
    data: str | Path | Manifest,
    addition: AdditionOptions,
    overrides: TrainingOverrides,
    options: ComparisonOptions,
) -> Comparison:
    """Compare with options that are made already; see `compare_structure`.

    Parameters
    ----------
    model, structure, data
        As of `compare_structure`.
    addition
        What the addition gets and starts from; its other choices are not used.
    overrides
        Settings of all three trainings; the learning rate is that of adding. Patience and time limit are not used:
        all methods train for equally many steps.
    options
        Folder, and choices for the other two methods.

    Raises
    ------
    ConfigError, ManifestError, ModelError
        As of `compare_structure`.
    """
    refuse_distributed("a comparison")
    model = model if isinstance(model, Model) else Model.open(model)
    check_structure_name(structure)
    if options.kernel not in (3, 5):
        raise ConfigError(f"kernel {options.kernel}: the separate network has kernels of 3 or 5")
    known = known_structures(model, structure)
    if addition.init_from not in (None, *INIT_CHOICES, *known):
        raise UnknownStructureError(
            str(addition.init_from), (*INIT_CHOICES, *known), f"what an addition to {model.path} starts from"
        )
    manifest = open_manifest(data, structure)
    folder = Path(options.out) if options.out is not None else Path("runs") / f"compare-{structure}"
    refuse_folder_in_model(model, folder)
    spec, setting = resolve_addition(addition.spec, addition.setting, model.architecture)
    training, rates = _training(model, overrides, setting)
    config = run_config(
        model,
        manifest,
        training,
        name=f"compare-{structure}",
        cache=overrides.cache if overrides.cache is not None else folder / "cache",
        patch=overrides.patch,
        seed=overrides.seed,
        strategy=addition_strategy(base_provenance(model), overrides, spec, setting),
    )
    methods = ComparisonMethods(
        network=model.network(known),
        structure=structure,
        config=config,
        rates={
            ADDING: training.learning_rate,
            FINE_TUNING: options.fine_tuning_rate or rates[FINE_TUNING],
            OWN_NETWORK: options.network_rate or rates[OWN_NETWORK],
        },
        spec=spec,
        init_from=start_of_setting(setting) if addition.init_from is None else addition.init_from,
        kernel=options.kernel,
    )
    finished = (folder / COMPARISON).exists() and not options.restart
    notes = [] if finished else refuse_voxel_sizes(model, manifest, structure, force=overrides.force)
    notes += addition_notes(base_provenance(model), overrides, spec, setting, methods.init_from)
    with exclusive_comparison(folder, _request(model, manifest, methods, known), restart=options.restart):
        if (folder / COMPARISON).exists():
            refuse_other_images(folder, manifest.rows, "a comparison", overrides.cache, overrides.workers)
        else:
            run = ComparisonRun(model, manifest, methods, folder, known, overrides.workers)
            run.run(overrides.precision, notes)
            if overrides.cache is None:
                shutil.rmtree(folder / "cache", ignore_errors=True)
        build_comparison(folder)  # also after an update of this software
        return read_comparison(folder)


def known_structures(model: Model, structure: str) -> tuple[str, ...]:
    """Return the structures that the model is compared with: all but the one to learn."""
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


def refuse_folder_in_model(model: Model, folder: Path) -> None:
    """Refuse to write into the model's own folder, which is not changed."""
    resolved = folder.resolve()
    if model.path.resolve() in (resolved, *resolved.parents):
        raise ConfigError(f"{folder} lies in the model, which is not to be changed: give another folder")


def _training(
    model: Model, overrides: TrainingOverrides, setting: AdditionSetting | None
) -> tuple[TrainingConfig, dict[str, float]]:
    """Return the training section of all methods, and the rates of the other two where none is given.

    Fine-tuning has the base's. The separate network has that of adding, unless that is of a named setting, which was
    chosen for what the setting trains: then it has the one that the base's configuration names for additions.
    """
    provenance = base_provenance(model)
    # Equal steps for all: none may stop earlier than the others.
    overrides = replace(overrides, patience=None, time_limit=None)
    without_rate = replace(overrides, learning_rate=None)
    base_rate = training_config({**provenance, "addition": None}, without_rate).learning_rate
    network_rate = training_config(provenance, overrides).learning_rate
    return training_config(provenance, overrides, setting), {
        FINE_TUNING: base_rate,
        OWN_NETWORK: network_rate,
    }


def _request(
    model: Model, manifest: Manifest, methods: ComparisonMethods, known: Sequence[str]
) -> dict[str, Any]:
    """Return all that decides the figures: a comparison is resumed only with the same request."""
    # Where prepared images and the manifest lie decides nothing; the rows decide.
    data = methods.config.data.model_copy(update={"cache": None, "manifest": None})
    return {
        "comparison of": methods.structure,
        "config": resume_config_text(methods.config.model_copy(update={"data": data})),
        "learning rates": dict(methods.rates),
        "spec": methods.spec.to_json(),
        "init_from": methods.init_from,
        "kernel": methods.kernel,
        "model": {name: model.entries[name].digest for name in known},
        "rows": rows_digest(manifest, [methods.structure, *known]),
    }


class ComparisonRun:
    """One comparison under way: each method is trained, measured, and written down before the next.

    Parameters
    ----------
    model
        The model; read, not changed.
    manifest
        The images.
    methods
        Makes the strategies.
    folder
        Folder of the comparison.
    known
        Structures of the model that changes are measured on.
    workers
        Processes that prepare images.
    """

    def __init__(
        self,
        model: Model,
        manifest: Manifest,
        methods: ComparisonMethods,
        folder: Path,
        known: tuple[str, ...],
        workers: int,
    ) -> None:
        self.model = model
        self.manifest = manifest
        self.methods = methods
        self.folder = folder
        self.known = known
        self.workers = workers
        self.config: Config = methods.config
        self.device = resolve_device(self.config.training.device)
        self.samples: list[Sample] = []

    def run(self, precision: str, warnings: Sequence[str] = ()) -> None:
        """Train the methods that have no result yet, and write the comparison, with `warnings` among its notes."""
        structure = self.methods.structure
        base_precision = base_provenance(self.model).get("precision")
        plan = AdditionPlan(
            model=self.model,
            structure=structure,
            replace=False,
            manifest=self.manifest,
            config=self.config,
            spec=self.methods.spec,
            needs=seen_versions(self.model, structure, self.methods.spec),
            init_from=self.methods.init_from,
            precision=inherit_precision(precision, self.device, base_precision),
            notes=tuple(warnings),
        )
        self.samples, notes = prepared_samples(
            self.config.data,
            self.folder,
            structures=[structure],
            manifest=self.manifest,
            held_out=HeldOutCheck(self.config.patch.size, plan.records()),
            workers=self.workers,
        )
        split, images = held_out_images(self.samples)
        if not images:
            raise ManifestError(
                f"{self.manifest.path}: no image of {structure!r} is held out, so it is not possible to measure how "
                "well it is learned: give at least two images, or name rows with split test"
            )
        stream = make_stream(self.config, self.samples, ((structure,),), depth=self.model.architecture.depth)
        known_images, left_out = self._known_images(images)
        notes += left_out
        self._record_images(known_images)
        results = []
        for method in METHODS:
            path = self.folder / method / _RESULT
            if not path.exists():
                self._learn(method, plan, stream, images[0], known_images)
            results.append(MethodResult.from_json(json.loads(path.read_text(encoding="utf-8"))))
        notes = [*notes, *warnings]
        if structure in self.model.structures:
            notes.append(f"the model has {structure} already; it was compared as if it had not")
        write_comparison(
            Comparison(
                structure=structure,
                known=self.known,
                held_out=split,
                images=len(images),
                training_images=len(stream.images[0]),
                methods=tuple(results),
                settings=self._settings(plan.precision.format, results[0].began),
                notes=tuple(notes),
                folder=self.folder,
            )
        )

    def _record_images(self, known_images: Mapping[str, Sequence[HeldOutImage]]) -> None:
        """Write digests of all images, those of known structures after the others; refuse images that changed."""
        known = {image.sample for images in known_images.values() for image in images} - set(self.samples)
        record_images(
            self.folder / IMAGES,
            [*self.samples, *sorted(known, key=lambda sample: (sample.row, sample.structure))],
            f"comparison of {self.methods.structure!r}",
            "give another folder with --out or begin with --restart",
            started=any(
                has_checkpoint(self.folder / method / CHECKPOINT) or (self.folder / method / _RESULT).exists()
                for method in METHODS
            ),
        )
        used = {sample.row for sample in (*self.samples, *known)}
        rows = [row for row in self.manifest.rows if row.number in used]
        digests = ContentDigests(Path(str(self.config.data.cache)) / "contents.json")
        record_measured(self.folder, rows, digests, self.workers)

    def _learn(
        self,
        method: str,
        plan: AdditionPlan,
        stream: StructureStream,
        example: Sample,
        known_images: Mapping[str, Sequence[HeldOutImage]],
    ) -> None:
        """Train one method, and write its result to its folder."""
        network = self.methods.new_network(method)
        init = None
        if isinstance(network, RepModeUNet) and method == ADDING:
            # Measured again when a training is resumed, whose checkpoint then replaces the weights that are set here.
            init = initialise(plan, network, stream.patches[0], self.device)
        strategy = self.methods.strategy(method, network, stream, plan.precision)
        title = f"{self.methods.title(method)}: {self.methods.structure}"
        train_experience(strategy, self.folder / method, title)
        self._measure(method, plan, strategy, example, known_images, init)
        shutil.rmtree(self.folder / method / CHECKPOINT, ignore_errors=True)

    def _known_images(self, images: Sequence[Sample]) -> tuple[dict[str, list[HeldOutImage]], list[str]]:
        """Return for each known structure its held-out images, and those of the new structure in addition; and notes.

        Images that a structure or the base has learned from are left out, as the notes say.
        """
        data = self.config.data
        cache = Path(str(data.cache))
        digest = ContentDigests(cache / "contents.json").of
        splits = assign_splits(
            self.manifest,
            seed=data.split_seed,
            test_fraction=data.test_fraction,
            val_fraction=data.val_fraction,
            record=cache / "splits.json",
            earlier=follow_records(self.manifest.rows, self.model.training_records(), digest),
            digest=digest,
        )
        rows, notes = [], []
        for name in self.known:
            own_rows = [row for row in self.manifest.rows if row.structure == name]
            problems = learned_images(
                own_rows,
                splits,
                self.model.training_records([name]),
                patch=self.config.patch.size,
                preprocessing=data.preprocessing,
                digest=digest,
            )
            notes += [f"{name} is not measured on an image: {problem}" for problem in problems]
            learned = {problem.row for problem in problems}
            for split in ("test", "val"):
                held_out = [
                    row for row in own_rows if splits[row.number] == split and row.number not in learned
                ]
                if held_out:
                    rows += held_out
                    break
        # Only these: a facility's manifest may list years of training images.
        manifest = replace(self.manifest, rows=tuple(rows))
        names = list(dict.fromkeys(row.structure for row in rows))
        # Not measured on these images: each is predicted in the units that its structure was learned in.
        preprocessing = data.preprocessing.model_copy(update={"targets": target_scales(self.model, names)})
        samples = prepare(manifest, splits, preprocessing, str(cache), workers=self.workers) if rows else []
        known_images: dict[str, list[HeldOutImage]] = {}
        for name in self.known:
            own = [sample for sample in samples if sample.structure == name]
            signals = {sample.signal for sample in own}
            others = [sample for sample in images if sample.signal not in signals]
            known_images[name] = [
                *(HeldOutImage(sample, True) for sample in own),
                *(HeldOutImage(sample, False) for sample in others),
            ]
        return known_images, notes

    def _measure(
        self,
        method: str,
        plan: AdditionPlan,
        strategy: StructureStrategy,
        example: Sample,
        known_images: Mapping[str, Sequence[HeldOutImage]],
        init: Initialisation | None,
    ) -> None:
        """Write the pictures and figures of a trained method; the figures last."""
        methods, folder = self.methods, self.folder / method
        structure = methods.structure
        figures, split = evaluate_held_out(strategy, strategy.stream)
        metrics = figures.get(structure, {})
        evidence = verdict_evidence(strategy, self.samples, split).get(structure, {})
        changes: tuple[PredictionChange, ...] = ()
        worst = None
        if (after := methods.network_after(method, strategy)) is not None:
            changes, worst = compare_predictions(
                methods.network.to(self.device),
                after.to(self.device),
                known_images,
                model_predictor(self.model.inference, self.device),
                f"{methods.title(method)}: predictions of the other structures",
            )
        signal, target = VolumeDataset([example])[0]
        prediction = strategy.predict(signal[0], structure)
        write_prediction(
            folder / "prediction.npz", Prediction(signal[0].numpy(), target[0].numpy(), prediction)
        )
        if worst is not None:
            write_prediction(folder / f"worst-{worst[0]}.npz", worst[1])
        curve = [
            (int(row["train_step"]), float(row["value"]))
            for row in strategy.progress.curve
            if row["metric"] == "r2" and math.isfinite(row["value"])
        ]
        result = MethodResult(
            key=method,
            title=methods.title(method),
            metrics=metrics,
            changes=changes,
            steps=strategy.progress.step,
            selected_step=strategy.selection.step,
            learning_rate=methods.rates[method],
            seconds=strategy.progress.seconds,
            parameters=methods.stored_parameters(method, strategy),
            bytes=methods.stored_bytes(
                method,
                strategy,
                self.model,
                folder,
                provenance=plan.provenance(
                    strategy,
                    self.samples,
                    held_out=held_out_images(self.samples)[0],
                    notes=plan.notes,
                    init={} if init is None else init.to_json(),
                )
                | {EVIDENCE: {structure: evidence}},
                metrics=metrics,
                reliability=self._reliability(strategy) if method == ADDING else None,
            ),
            curve=tuple(curve),
            began=None if init is None else init.structure,
            evidence=evidence,
        )
        write_json(folder / _RESULT, result.to_json())

    def _reliability(self, strategy: StructureStrategy) -> Reliability:
        """Return the records that `add` stores with the structure, so that its bytes are counted with them."""
        return measure_reliability(
            strategy.network,
            self.methods.structure,
            self.samples,
            held_out_images(self.samples)[0],
            self.model.inference,
            self.config.patch.flips,
        )

    def _settings(self, precision: str, init_structure: str | None) -> tuple[tuple[str, str], ...]:
        """Return the settings that the page shows."""
        training, architecture = self.config.training, self.model.architecture
        budget = f"{training.epochs} epochs" if training.epochs is not None else f"{training.steps} steps"
        return (
            ("model", self.model.path.resolve().name),
            ("images", self.manifest.path.name),
            ("network", f"width {architecture.width}, depth {architecture.depth}"),
            ("addition", _spec_text(self.methods.spec)),
            *_training_texts(self.config.strategies[0]),
            ("begun from", init_structure or "chance"),
            ("own network", f"kernel {self.methods.kernel}"),
            ("budget", budget),
            ("batch", str(training.batch_size)),
            ("patch (z, y, x)", " \N{MULTIPLICATION SIGN} ".join(str(n) for n in self.config.patch.size)),
            ("schedule", training.schedule),
            ("precision", precision),
            ("seed", str(self.config.seeds[0])),
        )


def _spec_text(spec: AdditionSpec) -> str:
    parts = [spec.expert, f"sees {spec.sees}"]
    parts += [f"base's {part}" for part in ("norm", "resampling") if getattr(spec, part) == "base"]
    parts += spec.extension_texts
    return ", ".join(parts)


def _training_texts(strategy: StrategyConfig) -> Iterator[tuple[str, str]]:
    """Yield how the addition is trained where that is not by default."""
    if isinstance(strategy.learning_rate, Mapping):
        listed = (f"{group} {rate:g}" for group, rate in strategy.learning_rate.items())
        yield "its learning rates", ", ".join(listed)
    if strategy.decay_to_base:
        yield "its decay to the base", f"{strategy.decay_to_base:g}"
    if strategy.gate_steps != 1:
        yield "its gates learn for", f"{strategy.gate_steps:g} of the steps"


def held_out_images(samples: Sequence[Sample]) -> tuple[str, list[Sample]]:
    """Return the split and the images that the figures are of, as `evaluate_held_out` chooses them."""
    for split in ("test", "val"):
        if images := [sample for sample in samples if sample.split == split]:
            return split, images
    return "none", []
