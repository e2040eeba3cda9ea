"""What an addition is to be, before anything is computed: the model, the images, the settings, and what it will see.

Adding a structure and its dry run begin here, so that both refuse the same mistakes with the same words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from repmode_cl.config import Config, StrategyConfig
from repmode_cl.data.manifest import Manifest
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
from repmode_cl.store.preconditions import check_place
from repmode_cl.store.registry import Registry
from repmode_cl.store.staging import pending
from repmode_cl.structures import check_structure_name
from repmode_cl.training import Precision, has_checkpoint, inherit_precision
from repmode_cl.utils.command_text import command
from repmode_cl.utils.devices import resolve_device
from repmode_cl.workflows.pending_training import CHECKPOINT, read_request, rows_digest
from repmode_cl.workflows.train_one_experience import dump_what_counts
from repmode_cl.workflows.training_settings import (
    configuration_for,
    manifest_of,
    origin_of,
    spec_of,
    training_for,
)

__all__ = [
    "INIT_CHOICES",
    "AdditionPlan",
    "check_min_r2",
    "check_held_out",
    "check_not_staged",
    "plan_addition",
    "name_conflict",
]


#: What `init_from` may be besides the name of a structure.
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
        Whether images are taken whose voxels are not of a size that the model was trained for.
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

    @property
    def work(self) -> Path:
        """Folder of what the training keeps, below ``pending/`` of the model."""
        return self.model.pending(self.structure)

    @property
    def seed(self) -> int:
        """Seed of new weights and of patches."""
        return self.config.seeds[0]

    @property
    def options(self) -> StrategyConfig:
        """What the provenance says of the strategy."""
        return StrategyConfig(name="experts_frozen", learning_rate=self.config.training.learning_rate)

    @property
    def what(self) -> str:
        """How messages name it."""
        return f"{'replacement' if self.replace else 'addition'} of {self.structure!r}"

    @property
    def anew(self) -> str:
        """How messages say what to do to begin anew."""
        return f"run {command('discard', self.model.path, self.structure)}"

    def begun(self) -> dict[str, Any] | None:
        """Return what the training that is in `work` was asked for; None if there is none, or it can be no other."""
        return read_request(self.model, self.structure)

    def request(self) -> dict[str, Any]:
        """Return all that the result depends on: an interrupted addition goes on with the same alone."""
        # Where images lie changes no result; what they are stands in the rows.
        data = self.config.data.model_copy(update={"manifest": None, "cache": None})
        return {
            "config": dump_what_counts(self.config.model_copy(update={"data": data})),
            "spec": self.spec.to_json(),
            "needs": [list(need) for need in self.needs],
            "init_from": self.init_from,
            "replace": self.replace,
            "base": self.model.base_digest,
            "rows": rows_digest(self.manifest, [self.structure]),
        }

    def network(self) -> RepModeUNet:
        """Load what the structure needs of the model, and give it its own fresh layers; on the CPU."""
        network = self.model.network([name for name, _ in self.needs])
        network.add_structure(self.structure, self.spec, seed=self.seed)
        return network


def plan_addition(
    model: str | Path | Model,
    structure: str,
    data: str | Path | Manifest,
    *,
    spec: AdditionSpec | None = None,
    init_from: str = "none",
    steps: int | None = None,
    epochs: int | None = None,
    time_limit: float | None = None,
    patience: int | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    patch: Sequence[int] | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    cache: str | Path | None = None,
    loader_workers: int = 0,
    replace: bool = False,
    place: bool = True,
    force: bool = False,
) -> AdditionPlan:
    """Check what is asked for and complete it from the model; see `add_structure`. Nothing is written.

    With `place` false, whether the model can take the structure is not looked at.
    """
    model = Model.open(model.path if isinstance(model, Model) else model)
    check_structure_name(structure)
    spec = spec_of(spec)
    needs = _needs(model, structure, spec)
    if place:
        if (
            not replace
            and structure in model.entries
            and has_checkpoint(model.pending(structure) / CHECKPOINT)
        ):
            raise name_conflict(model.path, structure)
        check_place(model.path, Registry.read(model.path), structure, needs, replace=replace)
    if init_from not in INIT_CHOICES and init_from not in model.structures:
        raise StructureError(
            f"init_from {init_from!r}: the model {model.path} knows {', '.join(model.structures)}"
            f"{did_you_mean(str(init_from), (*INIT_CHOICES, *model.structures))}; give one of these, or none or best"
        )
    manifest = manifest_of(data, structure)
    training = training_for(
        origin_of(model),
        steps=steps,
        epochs=epochs,
        patience=patience,
        time_limit=time_limit,
        learning_rate=learning_rate,
        batch_size=batch_size,
        device=device,
        precision=precision,
        loader_workers=loader_workers,
    )
    config = configuration_for(
        model,
        manifest,
        training,
        name=f"add-{structure}",
        cache=cache if cache is not None else model.pending(structure) / "cache",
        patch=patch,
        seed=seed,
    )
    return AdditionPlan(
        model=model,
        structure=structure,
        replace=replace,
        manifest=manifest,
        config=config,
        spec=_completed(spec, needs),
        needs=needs,
        init_from=init_from,
        precision=inherit_precision(precision, resolve_device(device), origin_of(model).get("precision")),
        force=force,
    )


def _completed(spec: AdditionSpec, needs: Sequence[tuple[str, str]]) -> AdditionSpec:
    return replace(spec, needs=tuple(name for name, _ in needs))


def _needs(model: Model, structure: str, spec: AdditionSpec) -> tuple[tuple[str, str], ...]:
    """Return the additions that the structure will see, by digest; those of an interrupted training stay.

    Raises
    ------
    ModelError
        If the model no longer has one of them as it was when the training began.
    """
    if spec.sees == "own":
        return ()
    begun = read_request(model, structure)
    if begun is not None and begun["spec"]["sees"] == "all":
        needs = tuple((str(name), str(digest)) for name, digest in begun["needs"])
        for name, digest in needs:
            if name not in model.entries or model.entries[name].digest != digest:
                raise ModelError(
                    f"the interrupted training of {structure!r} sees version {digest[:8]} of {name!r}, which is no "
                    f"longer that of {model.path}: begin anew after {command('discard', model.path, structure)}"
                )
        return needs
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
    """Refuse an R2 that nothing can be measured against."""
    if min_r2 is None:
        return
    if not isinstance(min_r2, (int, float)) or not math.isfinite(min_r2) or min_r2 > 1:
        raise ConfigError(
            f"min_r2 {min_r2!r}: a finite number of at most 1 is needed, which a perfect prediction has"
        )


def check_held_out(min_r2: float | None, structure: str, splits: Sequence[str]) -> None:
    """Refuse to demand an R2 where none can be measured."""
    if min_r2 is not None and not {"test", "val"} & set(splits):
        raise ManifestError(
            f"an R2 of at least {min_r2:g} is demanded, but no image of {structure!r} is held out to measure it on: "
            "name rows with split test in the manifest, give at least two images, or leave the demand out"
        )


def check_not_staged(model: Model, structure: str) -> None:
    """Refuse to train what is trained and waits for a person."""
    if any(one.name == structure and (one.entry is not None or one.problem) for one in pending(model)):
        raise ModelError(
            f"{structure!r} is trained and waits in {model.path}: take it with "
            f"{command('accept', model.path, structure)}, or remove it with "
            f"{command('discard', model.path, structure)}"
        )


def name_conflict(model: Path, structure: str) -> ModelError:
    """Return what is said where the model got a structure of that name while another was trained."""
    return ModelError(
        f"the model {model} got {structure!r} from elsewhere while it was trained here: to have the one that was "
        f"trained here, remove the other with {command('remove', model, structure)} and repeat the same command, which "
        f"goes on where it was; to keep the other, remove this one with {command('discard', model, structure)}"
    )
