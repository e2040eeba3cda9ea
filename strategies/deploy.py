"""Models for use: train a base, and add a structure to a model that must not change otherwise.

The same loop, streams and checkpoints as a benchmark's.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repmode_cl.scenarios import StructureStream, experience_names, prepared_samples, stream_of_samples
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.build import build_strategy
from repmode_cl.strategies.checkpoints import StrategyCheckpoint
from repmode_cl.strategies.experts_frozen import ExpertsFrozen
from repmode_cl.strategies.recording import Events, write_curve
from repmode_cl.strategies.run import create_model, provenance_of

from repmode_cl.config import (
    Config,
    DataConfig,
    InferenceConfig,
    PatchConfig,
    PreprocessingConfig,
    StrategyConfig,
    TrainingConfig,
)
from repmode_cl.config.loading import dump_config
from repmode_cl.data.manifest import Manifest, read_manifest
from repmode_cl.data.sample import Sample, digest_of
from repmode_cl.errors import ConfigError, ManifestError, ModelError
from repmode_cl.files import write_json
from repmode_cl.nn import AdditionSpec
from repmode_cl.progress import task
from repmode_cl.store import Model
from repmode_cl.store.verify import VerifyReport
from repmode_cl.structures import TWELVE_STRUCTURES, check_structure_name
from repmode_cl.training import budget_of

__all__ = ["AddResult", "add_structure", "train_base"]


@dataclass(frozen=True)
class AddResult:
    """What adding a structure came to.

    Attributes
    ----------
    model
        The model, with the structure.
    structure
        Its name.
    metrics
        Mean figures on the images held out; empty if there were none.
    held_out
        Which images those are: test, val, or none.
    parameters, bytes
        What the addition owns, and its file's size.
    seconds
        Training, validation excluded.
    verified
        Proof that all structures, the earlier ones too, are as they were stored.
    notes
        What a person should know of the split.
    """

    model: Model
    structure: str
    metrics: dict[str, float]
    held_out: str
    parameters: int
    bytes: int
    seconds: float
    verified: VerifyReport
    notes: tuple[str, ...]


def train_base(config: Config, out: str | Path, *, workers: int = 1) -> Model:
    """Train the structures of ``stream.base`` jointly and write a model directory.

    Parameters
    ----------
    config
        What to train on and how; its `strategies` and what follows the base are not used.
    out
        The model's folder. While training goes on, ``<out>.training`` beside it holds prepared images, curves and
        checkpoints; the same call goes on from there after an interruption.
    workers
        Processes that simulate and prepare images.

    Returns
    -------
    Model
        With test figures for each structure.

    Raises
    ------
    ConfigError
        If the base is empty, or an interrupted training had another configuration.
    ModelError
        If `out` holds something already.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out} exists already: give a new folder, or grow a model with `repmode-cl add`")
    if not config.stream.base:
        raise ConfigError(
            "stream.base is empty: name the structures that the base learns jointly, such as [dna]"
        )
    known = (
        TWELVE_STRUCTURES
        if config.data.manifest is None
        else read_manifest(Path(config.data.manifest)).structures
    )
    only_base = config.stream.model_copy(update={"order": (), "order_file": None, "order_seed": None})
    experiences = experience_names(only_base, known)
    work = out.with_name(f"{out.name}.training")
    _same_request(work / "request.json", {"config": dump_config(config)}, "training")
    samples, notes = prepared_samples(config.data, work, structures=experiences[0], workers=workers)
    stream = _stream(config, samples, experiences)
    options = next(
        (s for s in config.strategies if s.name == "experts_frozen"), StrategyConfig(name="experts_frozen")
    )
    seed = config.seeds[0]
    strategy = build_strategy(config, options, stream, seed)
    _learn(strategy, work, f"base: {' + '.join(experiences[0])}")
    metrics, held_out = _held_out(strategy, stream)
    provenance = {**provenance_of(config, options, seed, samples), "held_out": held_out, "notes": notes}
    model = create_model(out, strategy.network, config, provenance, metrics)
    write_curve(work / "learning.csv", strategy.progress.curve)
    return model


def add_structure(
    model: str | Path | Model,
    structure: str,
    data: str | Path | Manifest,
    *,
    spec: AdditionSpec | None = None,
    steps: int | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    patch: Sequence[int] | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    cache: str | Path | None = None,
    workers: int = 1,
) -> AddResult:
    """Add a structure to a model; what it predicts already does not change by one bit (paper, section 4.4).

    Parameters
    ----------
    model
        A model directory.
    structure
        Name of the new structure; only the manifest's rows of that name are read.
    data
        Manifest of image pairs.
    spec
        What the structure gets; the default is the paper's conv3, with own norms and resampling layers.
    steps, learning_rate, batch_size
        ``None``: as the base was trained with (for the rate, what its configuration named for additions).
    patch
        Voxels (z, y, x); ``None``: the model's window.
    seed
        Seed of new weights and of patches.
    device, precision
        As of the configuration.
    cache
        Folder of prepared images; ``None`` keeps them in ``pending/`` until the addition is done.
    workers
        Processes that prepare images.

    Returns
    -------
    AddResult
        Figures on held-out images, cost, and the proof.

    Notes
    -----
    An interrupted addition is under ``pending/<structure>`` of the model and goes on with the same call.

    Raises
    ------
    ModelError
        If the model has the structure, or an interrupted addition of it had other settings.
    ManifestError
        If the manifest has no usable row of it.
    """
    model = model if isinstance(model, Model) else Model.open(model)
    check_structure_name(structure)
    if structure in model.structures:
        raise ModelError(
            f"{model.path} knows {structure!r} already: structures are never trained again, or others that need "
            "them would change; add it under another name"
        )
    manifest = data if isinstance(data, Manifest) else read_manifest(Path(data))
    if structure not in manifest.structures:
        raise ManifestError(
            f"{manifest.path} has no row of {structure!r}: it has {', '.join(manifest.structures)}"
        )
    origin = model.entries[model.base_structures[0]].provenance
    training = _training_of(origin, steps, learning_rate, batch_size, device, precision)
    spec = spec or AdditionSpec()
    work = model.pending(structure)
    z, y, x = (int(n) for n in patch or model.inference["window"])
    size = (z, y, x)
    # A benchmark's configuration, with what the model fixes: the same code trains both.
    config = Config(
        name=f"add-{structure}".replace("_", "-"),
        seeds=(seed,),
        training=training,
        data=DataConfig(
            manifest=str(manifest.path),
            cache=str(cache if cache is not None else work / "cache"),
            preprocessing=PreprocessingConfig(
                voxel_size=model.voxel_size, order=model.preprocessing.get("order", 1)
            ),
        ),
        patch=PatchConfig(size=size, flips=origin.get("flips", True)),
        inference=InferenceConfig(overlap=model.inference["overlap"], batch_size=model.inference["batch"]),
    )
    rows = [str(row) for row in manifest.rows if row.structure == structure]
    request = {
        "config": dump_config(config),
        "spec": spec.to_json(),
        "base": model.base_digest,
        "rows": digest_of(*rows).hex(),
    }
    _same_request(work / "request.json", request, f"addition of {structure!r}")
    samples, notes = prepared_samples(
        config.data, work, structures=[structure], manifest=manifest, workers=workers
    )
    stream = _stream(config, samples, ((structure,),))
    strategy = ExpertsFrozen(
        network=model.network(),
        stream=stream,
        training=training,
        patch=size,
        inference=config.inference,
        seed=seed,
        spec=spec,
    )
    _learn(strategy, work, f"adding {structure}")
    metrics, held_out = _held_out(strategy, stream)
    options = StrategyConfig(name="experts_frozen", learning_rate=training.learning_rate)
    provenance = {
        **provenance_of(config, options, seed, samples),
        "held_out": held_out,
        "notes": notes,
        "manifest": manifest.path.name,
        "steps": strategy.budget.steps,
        "selected_step": strategy.selection.step,
    }
    entry = model.add(structure, strategy.network, provenance=provenance, metrics=metrics.get(structure, {}))
    report = model.verify()
    if not report.ok:
        raise ModelError(f"{model.path} does not verify after adding {structure!r}: run `repmode-cl verify`")
    shutil.rmtree(work)
    return AddResult(
        model,
        structure,
        metrics.get(structure, {}),
        held_out,
        entry.parameters,
        entry.bytes,
        strategy.progress.seconds,
        report,
        tuple(notes),
    )


def _training_of(
    origin: Mapping[str, Any],
    steps: int | None,
    learning_rate: float | None,
    batch_size: int | None,
    device: str,
    precision: str,
) -> TrainingConfig:
    """Return the training that the base's provenance and what was given come to."""
    values: dict[str, Any] = dict(
        origin.get("training", {"steps": 300, "learning_rate": 2e-3, "schedule": "one_cycle"})
    )
    values["base_steps"] = None
    if steps is not None:
        values |= {"steps": steps, "epochs": None, "validate_every": None, "validate_every_epochs": None}
    rate = learning_rate or (origin.get("addition") or {}).get("learning_rate")
    values |= {"learning_rate": rate or values["learning_rate"], "device": device, "precision": precision}
    if batch_size is not None:
        values["batch_size"] = batch_size
    return TrainingConfig(**values)


def _stream(
    config: Config, samples: list[Sample], experiences: tuple[tuple[str, ...], ...]
) -> StructureStream:
    training = config.training

    def patches(structures: tuple[str, ...], images: int) -> int:
        return budget_of(training, len(structures), images).steps * training.batch_size

    return stream_of_samples(
        samples,
        experiences,
        patch=config.patch.size,
        count=patches,
        seed=config.seeds[0],
        flips=config.patch.flips,
    )


def _learn(strategy: StructureStrategy, work: Path, what: str) -> None:
    """Train the stream's one experience, with checkpoints and TensorBoard events in `work`."""
    checkpoint = StrategyCheckpoint(work / "checkpoint")
    checkpoint.resume(strategy)
    events = Events(work / "tensorboard")
    events.resumed(strategy.progress.step, len(strategy.progress.curve))
    strategy.listeners += [events.after_step, checkpoint.after_step]
    strategy.on_validation += [events.after_validation, checkpoint.save]
    names = strategy.stream.experiences[0]
    steps = budget_of(strategy.training_config, len(names), len(strategy.stream.images[0])).steps
    try:
        with task(what, total=steps) as bar:
            bar.update(completed=strategy.progress.step)
            strategy.bar = bar
            strategy.train(strategy.stream.train[0], eval_streams=[])
    finally:
        strategy.bar = None
        events.close()


def _held_out(
    strategy: StructureStrategy, stream: StructureStream
) -> tuple[dict[str, dict[str, float]], str]:
    """Return figures on the test images, or on the validation images where there are none."""
    for name, experiences in (("test", stream.test), ("val", stream.val)):
        if len(experiences[0].dataset):
            figures = strategy.evaluate([experiences[0]])
            # What is not finite (the correlation of a constant prediction) says nothing of a model.
            return {s: {k: v for k, v in f.items() if math.isfinite(v)} for s, f in figures.items()}, name
    return {}, "none"


def _same_request(path: Path, request: dict[str, Any], what: str) -> None:
    """Write down what was asked for; refuse to go on with an interrupted one that was asked for differently."""
    if not path.exists():
        write_json(path, request)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if before == request:
        return
    differing = ", ".join(key for key in request if before.get(key) != request[key])
    raise ConfigError(
        f"{path.parent} holds an interrupted {what} with other settings ({differing}): repeat the same call to go "
        f"on with it, or remove {path.parent} to begin anew"
    )
