"""Add a structure to a model that must not change otherwise (paper, section 4.4)."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from repmode_cl.scenarios import prepared_samples
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.experts_frozen import ExpertsFrozen
from repmode_cl.strategies.one_experience import dump_what_counts, held_out, learn, same_request, stream_of
from repmode_cl.strategies.run import provenance_of

from repmode_cl.config import (
    Config,
    DataConfig,
    InferenceConfig,
    PatchConfig,
    PreprocessingConfig,
    StrategyConfig,
    TrainingConfig,
)
from repmode_cl.data.manifest import Manifest, read_manifest
from repmode_cl.data.sample import digest_of
from repmode_cl.devices import resolve_device
from repmode_cl.errors import ManifestError, ModelError
from repmode_cl.nn import AdditionSpec
from repmode_cl.store import Model
from repmode_cl.store.verify import VerifyReport
from repmode_cl.structures import check_structure_name
from repmode_cl.training import Precision, inherit_precision, refuse_several

__all__ = ["AddResult", "add_structure"]


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
    loader_workers: int = 0,
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
        As of the configuration; with ``auto`` the precision is the base's, where the device has instructions for it.
    cache
        Folder of prepared images; ``None`` keeps them in ``pending/`` until the addition is done.
    workers
        Processes that prepare images.
    loader_workers
        Processes that cut patches ahead of the training; 0 cuts them in this one.

    Returns
    -------
    AddResult
        Figures on held-out images, cost, and the proof.

    Notes
    -----
    An interrupted addition is under ``pending/<structure>`` of the model and goes on with the same call.

    Raises
    ------
    ConfigError
        If an interrupted addition had other settings, or several processes were started together.
    ModelError
        If the model has the structure.
    ManifestError
        If the manifest has no usable row of it.
    """
    refuse_several("adding a structure")
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
    # Not the base's: that was another machine, perhaps.
    training = training.model_copy(update={"loader_workers": loader_workers})
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
        "config": dump_what_counts(config),
        "spec": spec.to_json(),
        "base": model.base_digest,
        "rows": digest_of(*rows).hex(),
    }
    same_request(work / "request.json", request, f"addition of {structure!r}")
    samples, notes = prepared_samples(
        config.data, work, structures=[structure], manifest=manifest, workers=workers
    )
    stream = stream_of(config, samples, ((structure,),))
    own_device = resolve_device(training.device)
    strategy = ExpertsFrozen(
        network=model.network(),
        stream=stream,
        training=training,
        patch=size,
        inference=config.inference,
        seed=seed,
        spec=spec,
        device=own_device,
        precision=inherit_precision(precision, own_device, origin.get("precision")),
    )
    learn(strategy, work, f"adding {structure}")
    if (note := _other_precision(origin, strategy, structure)) is not None:
        notes = [*notes, note]
    metrics, images = held_out(strategy, stream)
    options = StrategyConfig(name="experts_frozen", learning_rate=training.learning_rate)
    provenance = {
        **provenance_of(config, options, seed, samples, strategy.precision),
        "held_out": images,
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
        images,
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
        # As many micro-batches as divide it, at most as many as the base had.
        values["accumulate"] = math.gcd(batch_size, values.get("accumulate", 1))
    return TrainingConfig(**values)


def _other_precision(origin: Mapping[str, Any], strategy: StructureStrategy, structure: str) -> str | None:
    """Say it if the structure was trained in another number format than the base."""
    base, own = origin.get("precision"), strategy.precision.format
    if base in (None, own):
        return None
    native = Precision(cast(Any, base), strategy.device.type).native
    why = "" if native else ", for which this device has no instructions"
    return f"the base was trained in {base}{why}; {structure} is trained in {own}"
