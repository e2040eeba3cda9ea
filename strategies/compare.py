"""Three ways to a structure that a model lacks: adding it, fine-tuning a copy, a network of its own; compared."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from repmode_cl.strategies.addition import INIT_CHOICES
from repmode_cl.strategies.claim import claimed
from repmode_cl.strategies.comparing import Comparing
from repmode_cl.strategies.guarding import guard_voxels
from repmode_cl.strategies.one_experience import dump_what_counts
from repmode_cl.strategies.preparing import (
    configuration_for,
    manifest_of,
    origin_of,
    rows_digest,
    training_for,
)
from repmode_cl.strategies.ways import Ways

from repmode_cl.data.manifest import Manifest
from repmode_cl.errors import ConfigError, ModelError, UnknownStructureError
from repmode_cl.nn import AdditionSpec
from repmode_cl.report.compare_page import build_comparison
from repmode_cl.report.comparison import (
    ADDING,
    COMPARISON,
    FINE_TUNING,
    OWN_NETWORK,
    Comparison,
    read_comparison,
)
from repmode_cl.store import Model
from repmode_cl.structures import check_structure_name
from repmode_cl.training import refuse_several

__all__ = ["compare_structure"]


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
    ways = Ways(
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
    with claimed(folder, _request(model, manifest, ways, known), restart=restart):
        if not (folder / COMPARISON).exists():
            Comparing(model, manifest, ways, folder, known, workers).run(precision, notes)
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


def _request(model: Model, manifest: Manifest, ways: Ways, known: Sequence[str]) -> dict[str, Any]:
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
