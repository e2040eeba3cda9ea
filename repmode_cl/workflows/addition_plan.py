"""Plan of an addition, before anything is computed: model, images, settings, and the additions that it will see.

Adding a structure and its dry run start here, so that both refuse the same mistakes with the same words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from repmode_cl.config import Config, StrategyConfig
from repmode_cl.config.addition_settings import start_of_setting
from repmode_cl.config.load import rows_with_learning_gates
from repmode_cl.config.strict_yaml import read_yaml
from repmode_cl.data.manifest import Manifest
from repmode_cl.data.sample import Sample
from repmode_cl.data.split_record import TrainingRecords
from repmode_cl.errors import (
    ConfigError,
    ManifestError,
    ModelError,
    StructureError,
    UnknownStructureError,
    did_you_mean,
)
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec, RepModeUNet
from repmode_cl.store.preconditions import check_addition
from repmode_cl.store.registry import Registry
from repmode_cl.store.staging import list_pending
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.plugins.model_export import provenance_of
from repmode_cl.structures import check_new_structure_name, check_structure_name
from repmode_cl.training import Precision, has_checkpoint, inherit_precision
from repmode_cl.utils.command_text import command
from repmode_cl.utils.devices import resolve_device
from repmode_cl.workflows.options import AdditionOptions, TrainingOverrides
from repmode_cl.workflows.pending_training import CHECKPOINT, read_request, rows_digest
from repmode_cl.workflows.train_one_experience import resume_config_text
from repmode_cl.workflows.training_settings import (
    addition_notes,
    addition_strategy,
    base_provenance,
    open_manifest,
    resolve_addition,
    run_config,
    training_config,
)

__all__ = [
    "AdditionPlan",
    "plan_addition",
    "replacement_kind",
    "INIT_CHOICES",
    "check_min_r2",
    "check_held_out",
    "check_not_staged",
    "name_conflict_error",
    "seen_versions",
]

#: Values of `init_from` in addition to the names of structures.
INIT_CHOICES = ("none", "best")


@dataclass(frozen=True)
class AdditionPlan:
    """A structure that is to be added to a model, or to be replaced in it.

    Attributes
    ----------
    model
        As it is on disk now.
    structure, replace
        Its name, and whether the model has an earlier version of it.
    manifest, config
        Its images, and a benchmark's configuration for training on them.
    spec, needs
        What it gets; the additions that it will see, by name and digest.
    init_from
        What it starts from: ``none``, ``best``, or a structure.
    precision
        Number format of the training, resolved.
    force
        Whether to use images whose voxels are not of a size that the model was trained for.
    notes
        What a replacement keeps of what it replaces.
    """

    model: Model
    structure: str
    replace: bool
    manifest: Manifest
    config: Config
    spec: AdditionSpec
    needs: tuple[tuple[str, str], ...]
    init_from: str
    precision: Precision
    force: bool = False
    notes: tuple[str, ...] = ()

    @property
    def work(self) -> Path:
        """Folder of the training's files, below ``pending/`` of the model."""
        return self.model.pending(self.structure)

    @property
    def seed(self) -> int:
        """Seed of new weights and of patches."""
        return self.config.seeds[0]

    @property
    def strategy_config(self) -> StrategyConfig:
        """Configuration of the strategy, as the provenance records it."""
        [strategy] = self.config.strategies
        if strategy.learning_rate is not None:
            return strategy
        return strategy.model_copy(update={"learning_rate": self.config.training.learning_rate})

    @property
    def title(self) -> str:
        """Name of the addition in messages."""
        return f"{'replacement' if self.replace else 'addition'} of {self.structure!r}"

    @property
    def restart_hint(self) -> str:
        """Part of messages: how to discard an interrupted training."""
        return f"run {command('discard', self.model.path, self.structure)}"

    def pending_request(self) -> dict[str, Any] | None:
        """Return the request of the interrupted training in `work`; None if there is none to resume."""
        return read_request(self.model, self.structure)

    def request(self) -> dict[str, Any]:
        """Return all that the result depends on: an interrupted addition is resumed only with the same request."""
        # Where images lie changes no result; the rows say which they are.
        data = self.config.data.model_copy(update={"manifest": None, "cache": None})
        return {
            "config": resume_config_text(self.config.model_copy(update={"data": data})),
            "spec": self.spec.to_json(),
            "needs": [list(need) for need in self.needs],
            "init_from": self.init_from,
            "replace": self.replace,
            "base": self.model.base_digest,
            "rows": rows_digest(self.manifest, [self.structure]),
        }

    def records(self) -> TrainingRecords:
        """Return what the model was trained on: what the structure sees, or starts from, must not be held out."""
        started_from = self.model.structures if self.init_from == "best" else [self.init_from]
        if self.init_from == "none":
            started_from = []
        return self.model.training_records([*(name for name, _ in self.needs), *started_from])

    def network(self) -> RepModeUNet:
        """Load what the structure needs of the model, and give it its own fresh layers; on the CPU."""
        network = self.model.network([name for name, _ in self.needs])
        network.add_structure(self.structure, self.spec, seed=self.seed)
        return network

    def provenance(
        self,
        strategy: StructureStrategy,
        samples: Sequence[Sample],
        *,
        held_out: str,
        notes: Sequence[str],
        init: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Return what the model records about the finished training.

        Parameters
        ----------
        strategy
            After its training.
        samples
            Its images.
        held_out
            Split that the figures are of.
        notes
            What a person should know.
        init
            JSON of the `Initialisation`.
        """
        return {
            **provenance_of(self.config, self.strategy_config, self.seed, samples, strategy.precision),
            "held_out": held_out,
            "notes": list(notes),
            "manifest": self.manifest.path.name,
            "steps": strategy.progress.step,
            "selected_step": strategy.selection.step,
            "stopped": strategy.stop_reason,
            "seconds": round(strategy.progress.seconds, 3),
            "init": {"asked": self.init_from, **init},
        }


def plan_addition(
    model: str | Path | Model,
    structure: str,
    data: str | Path | Manifest,
    options: AdditionOptions,
    overrides: TrainingOverrides,
    *,
    check_conflicts: bool = True,
) -> AdditionPlan:
    """Check a request and complete it from the model; nothing is written.

    Parameters
    ----------
    model, structure, data
        As of `add_structure`.
    options, overrides
        Choices for the addition and its training; `min_r2`, `stage` and `workers` are not used here.
    check_conflicts
        Whether to refuse a structure that the model has already, or cannot take.

    Raises
    ------
    ConfigError, ManifestError, ModelError, StructureError
        As of `add_structure`.
    """
    model = Model.open(model.path if isinstance(model, Model) else model)
    if structure in model.entries:
        check_structure_name(structure)
    else:
        check_new_structure_name(structure)
    replaced = model.entries.get(structure) if options.replace else None
    notes: list[str] = []
    spec, setting = resolve_addition(options.spec, options.setting, model.architecture)
    if options.spec is None and options.setting is None:
        if replaced is not None and replaced.spec is not None:
            spec = replace(replaced.spec, needs=())
            setting = (replaced.provenance.get("addition") or {}).get("setting")
            notes.append(f"the kind is that of the version that it replaces: {spec.text}")
        elif _interrupted_with_former_default(model, structure):
            spec, setting = AdditionSpec(), None
            notes.append(f"the kind is that of the training that was interrupted: {spec.text}")
    if (
        setting is not None
        and overrides.gate_steps is None
        and _interrupted_with_learning_gates(model, structure)
    ):
        overrides = replace(overrides, gate_steps=1.0)
        notes.append("its gates learn in all steps, as in the training that was interrupted")
    init_from = start_of_setting(setting) if options.init_from is None else options.init_from
    needs = _needed_versions(model, structure, spec)
    if check_conflicts:
        trained_here = has_checkpoint(model.pending(structure) / CHECKPOINT)
        if not options.replace and structure in model.entries and trained_here:
            raise name_conflict_error(model.path, structure)
        check_addition(model.path, Registry.read(model.path), structure, needs, replace=options.replace)
    if init_from not in INIT_CHOICES and init_from not in model.structures:
        raise StructureError(
            f"init_from {init_from!r}: the model {model.path} knows {', '.join(model.structures)}"
            f"{did_you_mean(str(init_from), (*INIT_CHOICES, *model.structures))}; give one of these, or none or best"
        )
    manifest = open_manifest(data, structure)
    provenance = base_provenance(model)
    patch = overrides.patch
    if patch is None and replaced is not None and replaced.provenance.get("patch") is not None:
        patch = replaced.provenance["patch"]
        if patch != provenance.get("patch"):
            notes.append(f"the patch is that of the version that it replaces: {_patch_text(patch)}")
    if replaced is None:
        notes += addition_notes(provenance, overrides, spec, setting, init_from)
    config = run_config(
        model,
        manifest,
        training_config(provenance, overrides, setting),
        name=f"add-{structure}",
        cache=overrides.cache if overrides.cache is not None else model.pending(structure) / "cache",
        patch=patch,
        seed=overrides.seed,
        strategy=addition_strategy(provenance, overrides, spec, setting),
    )
    device = resolve_device(overrides.device)
    return AdditionPlan(
        model=model,
        structure=structure,
        replace=options.replace,
        manifest=manifest,
        config=config,
        spec=replace(spec, needs=tuple(name for name, _ in needs)),
        needs=needs,
        init_from=init_from,
        precision=inherit_precision(overrides.precision, device, provenance.get("precision")),
        force=overrides.force,
        notes=tuple(notes),
    )


def _interrupted_with_former_default(model: Model, structure: str) -> bool:
    """Return whether a training was interrupted that has the kind which an addition had before there were settings."""
    request = read_request(model, structure)
    return request is not None and request["spec"] == AdditionSpec().to_json()


def _interrupted_with_learning_gates(model: Model, structure: str) -> bool:
    """Return whether a training was interrupted by a setting of the time when its gates learned to the end."""
    request = read_request(model, structure)
    return request is not None and bool(
        rows_with_learning_gates(read_yaml(request["config"], "config").value)
    )


def replacement_kind(
    model: Path, structure: str, changes: Mapping[str, Any]
) -> tuple[AdditionSpec | None, str | None]:
    """Return what a replacement gets, and its setting: those of the version that it replaces, except for `changes`.

    It is for one that names no setting, which stands for all choices.

    No specification where nothing changes, or the model has no such addition, which `plan_addition` reports.
    """
    entry = Model.open(model).entries.get(structure)
    if not changes or entry is None or entry.spec is None:
        return None, None
    kept = (entry.provenance.get("addition") or {}).get("setting")
    return replace(entry.spec, **({"needs": ()} | dict(changes))), kept


def _patch_text(patch: Sequence[object]) -> str:
    return " x ".join(str(extent) for extent in patch)


def _needed_versions(model: Model, structure: str, spec: AdditionSpec) -> tuple[tuple[str, str], ...]:
    """Return the additions that the structure will see, by digest; those of an interrupted training stay.

    Raises
    ------
    ModelError
        If the model no longer has one of them as it was when the training started.
    """
    if spec.sees == "own":
        return ()
    request = read_request(model, structure)
    if request is not None and request["spec"]["sees"] == "all":
        needs = tuple((str(name), str(digest)) for name, digest in request["needs"])
        for name, digest in needs:
            if name not in model.entries or model.entries[name].digest != digest:
                raise ModelError(
                    f"the interrupted training of {structure!r} sees version {digest[:8]} of {name!r}, which is no "
                    f"longer that of {model.path}: start again after {command('discard', model.path, structure)}"
                )
        return needs
    return seen_versions(model, structure, spec)


def seen_versions(model: Model, structure: str, spec: AdditionSpec) -> tuple[tuple[str, str], ...]:
    """Return the additions, by digest, that a structure sees by its specification.

    Raises
    ------
    UnknownStructureError
        If it names one that the model lacks.
    """
    if spec.sees == "own":
        return ()
    names = spec.needs or tuple(
        entry.name
        for entry in model.entries.values()
        if entry.spec is not None and entry.spec.expert != "none" and entry.name != structure
    )
    for name in names:
        if name not in model.entries:
            raise UnknownStructureError(name, model.structures, f"the model {model.path}")
    return tuple((name, model.entries[name].digest) for name in names)


def check_min_r2(min_r2: object) -> None:
    """Refuse a `min_r2` that is no R2."""
    if min_r2 is None:
        return
    if not isinstance(min_r2, (int, float)) or not math.isfinite(min_r2) or min_r2 > 1:
        raise ConfigError(
            f"min_r2 {min_r2!r}: a finite number of at most 1 is needed, which a perfect prediction has"
        )


def check_held_out(min_r2: float | None, structure: str, splits: Sequence[str]) -> None:
    """Refuse to demand an R2 where no image is held out to measure it on."""
    if min_r2 is not None and not {"test", "val"} & set(splits):
        raise ManifestError(
            f"an R2 of at least {min_r2:g} is demanded, but no image of {structure!r} is held out to measure it on: "
            "name rows with split test in the manifest, give at least two images, or leave the demand out"
        )


def check_not_staged(model: Model, structure: str) -> None:
    """Refuse to train a structure that is trained already and waits to be accepted."""
    if any(one.name == structure and (one.entry is not None or one.problem) for one in list_pending(model)):
        raise ModelError(
            f"{structure!r} is trained and waits in {model.path}: take it with "
            f"{command('accept', model.path, structure)}, or remove it with "
            f"{command('discard', model.path, structure)}"
        )


def name_conflict_error(model: Path, structure: str) -> ModelError:
    """Return the error for a model that got a structure of this name while another was trained."""
    return ModelError(
        f"the model {model} got {structure!r} from elsewhere while it was trained here: to have the one that was "
        f"trained here, remove the other with {command('remove', model, structure)} and repeat the same command, which "
        f"resumes the training; to keep the other, remove this one with {command('discard', model, structure)}"
    )
