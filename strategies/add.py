"""Add a structure to a model that must not change otherwise (paper, section 4.4)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from repmode_cl.strategies.adding import Adding, AddResult, finish_committed, sound
from repmode_cl.strategies.addition import check_demand, check_not_staged, plan_addition
from repmode_cl.strategies.committed import was_committed
from repmode_cl.strategies.guarding import guard_voxels

from repmode_cl.data.manifest import Manifest
from repmode_cl.nn import AdditionSpec
from repmode_cl.store import Model
from repmode_cl.store.staging import training_lock
from repmode_cl.structures import check_structure_name
from repmode_cl.training import refuse_several

__all__ = ["AddResult", "add_structure"]


def add_structure(
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
    min_r2: float | None = None,
    stage: bool = False,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    patch: Sequence[int] | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    cache: str | Path | None = None,
    workers: int = 1,
    loader_workers: int = 0,
    replace: bool = False,
    force: bool = False,
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
    init_from
        What it starts from: ``none`` is chance; a known structure, whose mode it begins near; ``best``, the known one
        whose mode has the lowest squared error on a sample of the training patches.
    steps, epochs, learning_rate, batch_size
        ``None``: as the base was trained with (for the rate, what its configuration named for additions).
    time_limit
        Seconds of training, validation excluded, after which it is validated and ends.
    patience
        Validations without an improvement after which it ends.
    min_r2
        Smallest R2 on held-out images with which it becomes part of the model; below it is staged.
    stage
        Stage it whatever it reaches: it becomes part of the model when it is accepted.
    patch
        Voxels (z, y, x); ``None``: what the base was trained with.
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
    replace
        Train another version of an addition that the model has; the one so far is kept until ``gc``.
    force
        Learn from images whose voxel size is missing or far from what the base was trained on, with a note.

    Returns
    -------
    AddResult
        Figures on held-out images, cost, and the proof.

    Notes
    -----
    The model is verified before and after. It is locked for the commit alone: others may read and change it while
    training goes on. An interrupted addition is under ``pending/<structure>`` of the model and goes on with the same
    call, to the same bits in the same environment.

    Raises
    ------
    ConfigError
        If a value is out of range, an interrupted addition had other settings or other images, or several processes
        were started together.
    ModelError
        If the model has the structure (or, to be replaced, has it not, or another needs it), does not verify, or
        another process is adding it at this moment.
    ManifestError
        If the manifest has no usable row of it, or `min_r2` is demanded and no image is held out.
    """
    refuse_several("adding a structure")
    given = model if isinstance(model, Model) else None
    opened = Model.open(model.path if isinstance(model, Model) else model)
    check_structure_name(structure)
    check_demand(min_r2)
    plan = partial(
        plan_addition,
        opened.path,
        structure,
        data,
        spec=spec,
        init_from=init_from,
        steps=steps,
        epochs=epochs,
        time_limit=time_limit,
        patience=patience,
        learning_rate=learning_rate,
        batch_size=batch_size,
        patch=patch,
        seed=seed,
        device=device,
        precision=precision,
        cache=cache,
        loader_workers=loader_workers,
        replace=replace,
        force=force,
    )
    if was_committed(opened, structure) is None:
        asked = plan()  # a mistake is told before anything is written, be it a lock
        guard_voxels(opened, asked.manifest, structure, force=force)
    with training_lock(opened, structure):
        # Looked at under the lock: another process may have added it meanwhile.
        done = finish_committed(Model.open(opened.path), structure, plan, min_r2=min_r2, stage=stage)
        if done is not None:
            return done
        addition = plan()
        check_not_staged(addition.model, structure)
        before = sound(addition.model)
        return Adding(addition, given or opened, before, workers).run(min_r2=min_r2, stage=stage)
