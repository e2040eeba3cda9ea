"""Configuration of a training on a stored model: the base's settings, unless overridden.

Used for adding a structure and for comparing, before either trains. Images whose voxel size the base was not
trained on are refused here too.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from repmode_cl.config import (
    Config,
    InferenceConfig,
    PatchConfig,
    StrategyConfig,
    TrainingConfig,
)
from repmode_cl.config.addition_settings import (
    ADDITION_SETTINGS,
    DEFAULT_SETTING,
    AdditionSetting,
    expert_of_setting,
    kind_of_setting,
)
from repmode_cl.config.error_messages import describe_errors
from repmode_cl.config.field_types import check_fresh_expert
from repmode_cl.data.manifest import Manifest, Problem, read_manifest
from repmode_cl.data.pipeline import check_cache
from repmode_cl.data.preprocessing.prepare import voxel_size_of
from repmode_cl.data.voxel_size_check import check_voxel_size, trained_voxels
from repmode_cl.errors import ConfigError, ImageError, ManifestError, RepmodeError, did_you_mean
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec, Architecture
from repmode_cl.training import Precision
from repmode_cl.training.size_check import check_patches
from repmode_cl.workflows.options import TrainingOverrides

__all__ = [
    "base_provenance",
    "base_patch",
    "open_manifest",
    "training_config",
    "addition_strategy",
    "run_config",
    "resolve_addition",
    "addition_rate",
    "addition_notes",
    "precision_note",
    "voxel_size_problems",
    "refuse_voxel_sizes",
]

_REMEDY = "state the right one in the column voxel_size_zyx, or give --force (force=True) to learn from it all the same"

#: Rows that a message lists at most.
_LISTED = 5


def base_provenance(model: Model) -> Mapping[str, Any]:
    """Return how the base of `model` was trained; empty where that was never recorded."""
    return model.entries[model.base_structures[0]].provenance


def base_patch(model: Model) -> tuple[int, int, int]:
    """Return the patch (z, y, x), in voxels, that the base of `model` was trained with."""
    # Models of earlier revisions do not record the patch that they were trained with: it was their window.
    return _patch_size(base_provenance(model).get("patch", model.inference["window"]))


def open_manifest(data: str | Path | Manifest, structure: str) -> Manifest:
    """Return the manifest `data`, opened.

    Raises
    ------
    ManifestError
        If it cannot be read, or has no row of `structure`.
    """
    manifest = data if isinstance(data, Manifest) else read_manifest(Path(data))
    if structure not in manifest.structures:
        raise ManifestError(
            f"{manifest.path} has no row of {structure!r}: it has {', '.join(manifest.structures)}"
            f"{did_you_mean(structure, manifest.structures)}"
        )
    return manifest


def addition_rate(
    provenance: Mapping[str, Any], overrides: TrainingOverrides, setting: AdditionSetting | None
) -> float | Mapping[str, float] | None:
    """Return the rate of an addition, or one for each group of its parameters; None is the base's.

    Parameters
    ----------
    provenance
        Of the base, from `base_provenance`.
    overrides
        Their rate comes first.
    setting
        Named setting of the addition. Its rate yields to that which the base's configuration names for this setting;
        without one, any rate that it names for additions holds.
    """
    if overrides.learning_rate is not None:
        return overrides.learning_rate
    named = provenance.get("addition") or {}
    rate: float | Mapping[str, float] | None = named.get("learning_rate")
    if setting is None or (rate is not None and named.get("setting") == setting):
        return rate
    own: float | Mapping[str, float] | None = ADDITION_SETTINGS[setting].get("learning_rate")
    return own


def addition_notes(
    provenance: Mapping[str, Any],
    overrides: TrainingOverrides,
    spec: AdditionSpec,
    setting: AdditionSetting | None,
    init_from: str,
) -> list[str]:
    """Return what a person should know of an addition's kind and rate, where one of them is not that of a setting.

    Parameters
    ----------
    provenance
        Of the base, from `base_provenance`.
    overrides
        Their rate is none to speak of: it was asked for.
    spec, setting, init_from
        As of the addition; without a setting the specification was given.
    """
    if setting is None:
        from_base = (
            "" if overrides.learning_rate is not None else ", the rate is that of the base's configuration"
        )
        start = {"none": "from chance", "best": "from what fits best"}.get(init_from, f"from {init_from}")
        return [
            f"this is no setting: the kind is {spec.text}, what is not named is the paper's{from_base}, and it starts "
            f"{start}; with a setting named, small or best, what is not named is the setting's"
        ]
    named = provenance.get("addition") or {}
    rate, own = named.get("learning_rate"), ADDITION_SETTINGS[setting]["learning_rate"]
    if overrides.learning_rate is not None or named.get("setting") == setting or rate in (None, own):
        return []
    whose = f" for {named['setting']}" if named.get("setting") else ""
    return [f"the rate {rate}{whose} in the base's configuration is not used: {setting} has its own, {own:g}"]


def training_config(
    provenance: Mapping[str, Any], overrides: TrainingOverrides, setting: AdditionSetting | None = None
) -> TrainingConfig:
    """Return the training section: the base's, with `overrides`.

    Parameters
    ----------
    provenance
        Of the base, from `base_provenance`.
    overrides
        Patience, time limit, device, precision and loader workers are never the base's: that may have been another
        machine. Nor is what the state is selected by: an addition has only images of its own structure, and changes no
        other.
    setting
        Named setting of the addition that is trained; see `addition_rate`.

    Raises
    ------
    ConfigError
        If both steps and epochs are given, or a value is out of range.
    """
    _check_ranges(overrides)
    steps, epochs, batch_size = overrides.steps, overrides.epochs, overrides.batch_size
    values: dict[str, Any] = dict(
        provenance.get("training", {"steps": 300, "learning_rate": 2e-3, "schedule": "one_cycle"})
    )
    rate = addition_rate(provenance, overrides, setting)
    # Rates by group stand with the strategy (`addition_strategy`); what they leave out has the base's rate.
    values |= {
        "base_steps": None,
        "gate": "rows",
        "select_by": "new",
        "patience": overrides.patience,
        "time_limit": overrides.time_limit,
        "learning_rate": values["learning_rate"] if rate is None or isinstance(rate, Mapping) else rate,
        "device": overrides.device,
        "precision": overrides.precision,
        "loader_workers": overrides.loader_workers,
    }
    if steps is not None or epochs is not None:
        values |= {"steps": steps, "epochs": epochs, "validate_every": None, "validate_every_epochs": None}
        if epochs is None:
            values["last_batch"] = "continuous"
    if batch_size is not None:
        values["batch_size"] = batch_size
        # As many micro-batches as divide it, at most as many as the base had.
        values["accumulate"] = math.gcd(batch_size, values.get("accumulate", 1))
    with _config_errors(values):
        return TrainingConfig(**values)


def addition_strategy(
    provenance: Mapping[str, Any],
    overrides: TrainingOverrides,
    spec: AdditionSpec,
    setting: AdditionSetting | None = None,
) -> StrategyConfig:
    """Return the strategy's section by which a structure is added: the base's configuration, with `overrides`.

    Where it trains additions as by default, the section names neither the specification nor the rate: those stand in
    the request of the training and in its training section.

    Parameters
    ----------
    provenance
        Of the base, from `base_provenance`.
    overrides
        Those of additions.
    spec
        How the structure is added. What the base's configuration names for additions is used as far as it fits: rates
        of groups that this one trains, and a decay where the fresh expert is outside the softmax.
    setting
        Named setting that `spec` is of.

    Raises
    ------
    ConfigError
        If `overrides` do not fit `spec`.
    """
    named = provenance.get("addition") or {}
    rate = addition_rate(provenance, overrides, setting)
    values: dict[str, Any] = {"setting": setting} if setting is not None else {}
    choices = {key: value for key, value in spec.to_json().items() if key != "needs"}
    if isinstance(overrides.learning_rate, Mapping):
        values["learning_rate"] = dict(overrides.learning_rate)
    elif isinstance(rate, Mapping):
        groups = StrategyConfig(name="experts_frozen", **choices).rate_groups
        fitting = {group: one for group, one in rate.items() if group in groups}
        values |= {"learning_rate": fitting} if fitting else {}
    decay = overrides.decay_to_base
    if decay is None and spec.gate == "outside":
        decay = named.get("decay_to_base")
    if decay:
        values["decay_to_base"] = decay
    if setting is not None and "learning_rate" not in values and isinstance(rate, (int, float)):
        values["learning_rate"] = rate  # else the setting would fill in its own
    learning = overrides.gate_steps
    if learning is None and setting in (None, named.get("setting")):
        learning = named.get("gate_steps")
    if learning is not None and (learning != 1 or setting is not None):
        values["gate_steps"] = learning
    values = {"name": "experts_frozen", **(choices if values else {}), **values}
    with _config_errors(values):
        return StrategyConfig(**values)


def run_config(
    model: Model,
    manifest: Manifest,
    training: TrainingConfig,
    *,
    name: str,
    cache: str | Path,
    patch: Sequence[int] | None = None,
    seed: int = 0,
    strategy: StrategyConfig | None = None,
) -> Config:
    """Return a benchmark's configuration with what the model fixes: the same code trains both.

    Parameters
    ----------
    model
        Fixes voxel size, preprocessing, window, and the settings of the split.
    manifest
        The images.
    training
        From `training_config`.
    name
        Of the run; underscores become hyphens.
    cache
        Folder of prepared images.
    patch
        Voxels (z, y, x) of a patch; ``None``: what the model's base was trained with.
    seed
        Seed of new weights and of patches.
    strategy
        From `addition_strategy`; ``None``: that of an addition by default.

    Raises
    ------
    ConfigError
        If `patch` is not three sizes in voxels that the network can compute, `seed` is not a whole number of at least
        0, or `cache` is a file.
    """
    _whole_number(seed, "seed", least=0)
    provenance = base_provenance(model)
    window = model.inference["window"]
    z, y, x = base_patch(model) if patch is None else _patch_size(patch)
    config = Config(
        name=name.replace("_", "-"),
        seeds=(seed,),
        training=training,
        strategies=(strategy or StrategyConfig(name="experts_frozen"),),
        # Images are split as for the base, as far as that is recorded.
        data=model.data_settings().model_copy(
            update={"manifest": str(manifest.path), "cache": str(check_cache(cache))}
        ),
        patch=PatchConfig(
            size=(z, y, x),
            flips=provenance.get("flips", True),
            foreground=provenance.get("foreground", 0.0),
        ),
        inference=InferenceConfig(
            overlap=model.inference["overlap"],
            batch_size=model.inference["batch"],
            window=_patch_size(window),
            weights=model.inference.get("weights", "floored"),
        ),
    )
    check_patches(config, model.architecture.depth)
    return config


def resolve_addition(
    spec: object, setting: str | None, architecture: Architecture
) -> tuple[AdditionSpec, AdditionSetting | None]:
    """Return how a structure is added, and the named setting that this is of; None is none.

    Parameters
    ----------
    spec
        An `AdditionSpec`; ``None``: that of the setting.
    setting
        Its name; ``None``: no setting if there is a `spec`, else the default one.
    architecture
        The network's.

    Raises
    ------
    ConfigError
        If there is no such setting, `spec` is no `AdditionSpec`, its expert is unknown, or its ranks are not as many
        as the network has levels.
    """
    if setting is not None and setting not in ADDITION_SETTINGS:
        raise ConfigError(
            f"setting {setting!r}{did_you_mean(str(setting), tuple(ADDITION_SETTINGS))}: there are "
            f"{' and '.join(ADDITION_SETTINGS)}"
        )
    known = cast(AdditionSetting | None, setting)
    if spec is None:
        known = known or DEFAULT_SETTING
        spec = AdditionSpec(**kind_of_setting(known))
    if (
        known is not None
        and isinstance(spec, AdditionSpec)
        and spec.expert == ADDITION_SETTINGS[known]["expert"]
    ):
        fitting = expert_of_setting(known, width=architecture.width, depth=architecture.depth)
        spec = replace(spec, expert=fitting)
    return _check_spec(spec, architecture.depth), known


def _check_spec(spec: object, depth: int) -> AdditionSpec:
    if not isinstance(spec, AdditionSpec):
        raise ConfigError(
            f"spec {spec!r}: an AdditionSpec is needed, such as AdditionSpec(expert='lowrank:4')"
        )
    try:
        check_fresh_expert(spec.expert)
        spec.check_depth(depth)
    except ValueError as error:
        raise ConfigError(f"spec: {error}") from error
    return spec


def precision_note(provenance: Mapping[str, Any], precision: Precision, structure: str) -> str | None:
    """Return a note if `structure` is trained in another number format than the base was.

    Parameters
    ----------
    provenance
        Of the base, from `base_provenance`.
    precision
        Of the training.
    structure
        Its name.
    """
    base, own = provenance.get("precision"), precision.format
    if base not in ("float32", "bfloat16", "float16") or base == own:
        return None
    native = Precision(base, precision.device).native
    reason = "" if native else ", for which this device has no instructions"
    return f"the base was trained in {base}{reason}; {structure} is trained in {own}"


def voxel_size_problems(
    model: Model, manifest: Manifest, structure: str, *, force: bool = False
) -> tuple[list[Problem], list[str]]:
    """Compare the voxel size of each image of a structure with those that the base was trained on.

    Parameters
    ----------
    model, manifest, structure
        The manifest's rows of `structure`; headers are read. Those that cannot be read are reported when the images
        are prepared.
    force
        Make notes of problems.

    Returns
    -------
    problems
        Rows that are refused.
    notes
        What a person should know; of many rows the first few.
    """
    trained = trained_voxels(base_provenance(model), model.voxel_size)
    problems: list[Problem] = []
    notes: list[str] = []
    for row in manifest.for_structure(structure):
        try:
            voxel_size = voxel_size_of(row)
        except (RepmodeError, OSError):
            continue
        try:
            note = check_voxel_size(voxel_size, trained, row.signal.name, force, remedy=_REMEDY)
        except ImageError as error:
            problems.append(Problem(row.number, "voxel_size_zyx", str(error)))
        else:
            notes += [f"line {row.number}: {note}"] if note else []
    return problems, _shortened(notes)


def refuse_voxel_sizes(model: Model, manifest: Manifest, structure: str, *, force: bool = False) -> list[str]:
    """Refuse images whose voxels are not of a size that the model was trained for; return notes.

    Raises
    ------
    ManifestError
        Naming each such row, unless `force`.
    """
    problems, notes = voxel_size_problems(model, manifest, structure, force=force)
    if problems:
        listed = "\n".join(f"  {line}" for line in _shortened([str(problem) for problem in problems]))
        raise ManifestError(
            f"{manifest.path}: voxels of another size than the model was trained on\n{listed}"
        )
    return notes


def _check_ranges(overrides: TrainingOverrides) -> None:
    """Refuse numbers that the configuration's schema would report under names that the caller did not give."""
    for key in ("learning_rate", "time_limit"):
        number = getattr(overrides, key)
        if isinstance(number, Mapping):
            continue  # `addition_strategy` checks them
        if number is not None and not (isinstance(number, (int, float)) and 0 < number < math.inf):
            raise ConfigError(f"{key} {number!r}: a positive number is needed")
    for key in ("steps", "epochs", "patience", "batch_size"):
        count = getattr(overrides, key)
        if count is not None:
            _whole_number(count, key, least=1)
    if overrides.steps is not None and overrides.epochs is not None:
        raise ConfigError(f"{overrides.steps} steps and {overrides.epochs} epochs: give one or the other")


def _patch_size(patch: object) -> tuple[int, int, int]:
    sizes = list(patch) if isinstance(patch, Sequence) and not isinstance(patch, str) else []
    if len(sizes) != 3:
        raise ConfigError(
            f"patch {patch!r}: three sizes in voxels (z, y, x) are needed, such as (32, 128, 128)"
        )
    z, y, x = (_whole_number(size, f"patch {tuple(sizes)}:", least=1) for size in sizes)
    return z, y, x


def _whole_number(value: object, name: str, *, least: int) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if number < least:
        raise ConfigError(f"{name} {value!r}: a whole number of at least {least} is needed")
    return number


@contextmanager
def _config_errors(values: Mapping[str, Any]) -> Iterator[None]:
    """Raise what a schema refuses as a `ConfigError`: it is a mistake of the caller."""
    try:
        yield
    except ValidationError as error:
        raise ConfigError(describe_errors(error, values, "settings of the training", {}, {})) from error


def _shortened(lines: Sequence[str]) -> list[str]:
    more = len(lines) - _LISTED
    return [*lines[:_LISTED], *([f"and {more} more such images"] if more > 0 else [])]
