"""Add a structure to a model that must not change otherwise (paper, section 4.4)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from repmode_cl.data.manifest import Manifest
from repmode_cl.data.pipeline import HeldOutCheck, prepared_samples
from repmode_cl.errors import ModelError
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec
from repmode_cl.scenarios import StructureStream
from repmode_cl.store import Candidate, Entry, VerifyReport, make_candidate
from repmode_cl.store.staging import OUTCOME, REQUEST, clear_pending, training_lock
from repmode_cl.store.staging import stage as stage_candidate
from repmode_cl.strategies.experts_frozen import ExpertsFrozen, training_options
from repmode_cl.structures import check_structure_name
from repmode_cl.training import has_checkpoint, refuse_distributed
from repmode_cl.utils.atomic_files import read_json, write_json
from repmode_cl.utils.command_text import command
from repmode_cl.utils.devices import resolve_device
from repmode_cl.verdict import EVIDENCE, Verdict
from repmode_cl.workflows.addition_plan import (
    AdditionPlan,
    check_held_out,
    check_min_r2,
    check_not_staged,
    name_conflict_error,
    plan_addition,
)
from repmode_cl.workflows.initialisation import Initialisation, initialise
from repmode_cl.workflows.options import AdditionOptions, TrainingOverrides
from repmode_cl.workflows.pending_training import (
    CHECKPOINT,
    IMAGES,
    INITIALISATION,
    PendingOutcome,
    committed_outcome,
    record_images,
)
from repmode_cl.workflows.reliability import measure_reliability
from repmode_cl.workflows.train_one_experience import (
    evaluate_held_out,
    make_stream,
    record_request,
    train_experience,
    verdict_evidence,
)
from repmode_cl.workflows.training_settings import base_provenance, precision_note, refuse_voxel_sizes

__all__ = ["add_structure", "run_addition", "AddResult", "AdditionRun"]


def add_structure(
    model: str | Path | Model,
    structure: str,
    data: str | Path | Manifest,
    *,
    setting: str | None = None,
    spec: AdditionSpec | None = None,
    init_from: str | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    time_limit: float | None = None,
    patience: int | None = None,
    min_r2: float | None = None,
    stage: bool = False,
    learning_rate: float | Mapping[str, float] | None = None,
    decay_to_base: float | None = None,
    gate_steps: float | None = None,
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
    setting
        ``small`` or ``best``: what the structure gets, its rate and its start. ``None``: ``small``, unless `spec` is
        given; with `replace`, that of the version that it replaces.
    spec
        What the structure gets, `AdditionSpec()` for the paper's. ``None``: what the setting says, or, with `replace`,
        what the version has that it replaces. Without a `setting` beside it, rate and start are not those of one.
    init_from
        What it starts from: ``none`` is chance; the name of a known structure, near whose mode it starts; ``best``, the
        known structure whose mode has the lowest squared error on a sample of the training patches. ``None``: ``best``
        of a setting, ``none`` of a specification.
    steps, epochs, learning_rate, batch_size
        ``None``: as the base was trained with (for the rate, what its configuration named for additions). A mapping
        gives rates to the groups ``expert``, ``gate``, ``norm`` and ``resampling``, and those that it leaves out have
        the base's.
    decay_to_base
        Decay of what is trained towards the base, for an expert outside the softmax: a step at the learning rate r
        goes the share r times this of the way. ``None``: what the base's configuration named, or 0.
    gate_steps
        Share of the steps in which the gates learn; then they are fixed, and steps cost less. ``None``: that of the
        setting, unless the base's configuration names another for it; without one, what that names, or 1.
    time_limit
        Seconds of training, validation excluded, after which it is validated and ends.
    patience
        Validations without an improvement after which it ends.
    min_r2
        Smallest R2 on held-out images with which it becomes part of the model; below it is staged.
    stage
        Stage it whatever it reaches: it becomes part of the model when it is accepted.
    patch
        Voxels (z, y, x); ``None``: what the base was trained with, or, with `replace`, what the version was that it
        replaces.
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
        Train another version of an addition that the model has; the present one is kept until ``gc``.
    force
        Learn from images whose voxel size is missing or far from what the base was trained on, with a note.

    Returns
    -------
    AddResult
        Figures on held-out images, cost, and the proof.

    Notes
    -----
    The model is verified before and after. It is locked only for the commit: others may read and change it during the
    training. An interrupted addition lies under ``pending/<structure>`` of the model; the same call resumes it, to the
    same bits in the same environment.

    Raises
    ------
    ConfigError
        If a value is out of range, an interrupted addition had other settings or other images, or several processes
        were started together.
    ModelError
        If the model has the structure already, or does not verify, or another process is adding the structure at this
        moment. With `replace`: if the model lacks the structure, or another addition needs it.
    ManifestError
        If the manifest has no usable row of it, or `min_r2` is demanded and no image is held out.
    """
    return run_addition(
        model,
        structure,
        data,
        AdditionOptions(
            spec=spec, setting=setting, init_from=init_from, min_r2=min_r2, stage=stage, replace=replace
        ),
        TrainingOverrides(
            steps=steps,
            epochs=epochs,
            time_limit=time_limit,
            patience=patience,
            learning_rate=learning_rate,
            decay_to_base=decay_to_base,
            gate_steps=gate_steps,
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
    )


def run_addition(
    model: str | Path | Model,
    structure: str,
    data: str | Path | Manifest,
    options: AdditionOptions,
    overrides: TrainingOverrides,
) -> AddResult:
    """Add a structure with options that are made already; see `add_structure`.

    Parameters
    ----------
    model, structure, data
        As of `add_structure`.
    options, overrides
        Choices for the addition and for its training.

    Raises
    ------
    ConfigError, ModelError, ManifestError
        As of `add_structure`.
    """
    refuse_distributed("adding a structure")
    given = model if isinstance(model, Model) else None
    opened = Model.open(model.path if isinstance(model, Model) else model)
    check_structure_name(structure)
    check_min_r2(options.min_r2)
    if committed_outcome(opened, structure) is None:
        # A mistake is reported before anything is written, even a lock.
        plan = plan_addition(opened, structure, data, options, overrides)
        refuse_voxel_sizes(opened, plan.manifest, structure, force=overrides.force)
    with training_lock(opened, structure):
        # Read again under the lock: another process may have added it meanwhile.
        finished = _finish_committed(Model.open(opened.path), structure, data, options, overrides)
        if finished is not None:
            return finished
        plan = plan_addition(opened, structure, data, options, overrides)
        check_not_staged(plan.model, structure)
        before = _verified(plan.model)
        return AdditionRun(plan, given or opened, before, options, overrides.workers).run()


@dataclass(frozen=True)
class AddResult:
    """Result of adding a structure.

    Attributes
    ----------
    model
        The model, with the structure unless it is `staged`.
    structure
        Its name.
    metrics
        Mean figures on the images held out; empty if there were none.
    held_out
        Which images those are: test, val, or none.
    parameters, bytes
        Parameters that the addition owns, and the size of its file.
    seconds
        Training, validation excluded.
    verified
        Proof that all structures, the earlier ones too, are as they were stored.
    notes
        What a person should know of the split and of the training.
    stopped
        Why training ended: all its steps, no improvement, or the time limit.
    init
        What it was initialised from.
    unchanged
        Earlier structures, and whether each has the same tensors, and computes the same kernels and the same
        prediction, bit for bit as before, in this environment. Empty where nothing was written.
    entry
        What the model, or what is staged, records about it.
    staged
        Whether it waits for a person to accept it, and is no part of the model yet.
    reached
        Whether its R2 is at least `min_r2`.
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
    stopped: str
    init: Initialisation
    unchanged: dict[str, bool]
    entry: Entry
    staged: bool = False
    reached: bool = True

    @property
    def verdict(self) -> Verdict:
        """What the figures say: learned nothing, weak, useful, or unknown."""
        return self.entry.verdict


class AdditionRun:
    """One addition under way: trained without a lock on the model, committed under it, proved afterwards.

    Parameters
    ----------
    plan
        The addition.
    model
        Model that gets the structure.
    before
        Verification of the model as it was.
    options
        Says whether to stage the structure, and from which R2 on it is not staged.
    workers
        Processes that prepare images.
    """

    def __init__(
        self, plan: AdditionPlan, model: Model, before: VerifyReport, options: AdditionOptions, workers: int
    ) -> None:
        self.plan = plan
        self.model = model
        self.before = before
        self.options = options
        self.workers = workers
        self.work = plan.work

    def run(self) -> AddResult:
        """Prepare the images, train, and commit or stage."""
        plan, name = self.plan, self.plan.structure
        warnings = refuse_voxel_sizes(plan.model, plan.manifest, name, force=plan.force)
        record_request(self.work / REQUEST, plan.request(), plan.title, plan.restart_hint)
        samples, notes = prepared_samples(
            plan.config.data,
            self.work,
            structures=[name],
            manifest=plan.manifest,
            held_out=HeldOutCheck(plan.config.patch.size, plan.records()),
            workers=self.workers,
        )
        check_held_out(self.options.min_r2, name, [sample.split for sample in samples])
        started = has_checkpoint(self.work / CHECKPOINT)
        record_images(self.work / IMAGES, samples, plan.title, plan.restart_hint, started=started)
        stream = make_stream(plan.config, samples, ((name,),), depth=plan.model.architecture.depth)
        strategy, init = self._prepare(stream)
        train_experience(strategy, self.work, f"adding {name}")
        metrics, split = evaluate_held_out(strategy, stream)
        evidence = verdict_evidence(strategy, samples, split)
        notes = [*plan.notes, *notes, *warnings, *self._training_notes(strategy)]
        outcome = PendingOutcome(
            "", metrics.get(name, {}), split, strategy.progress.seconds, notes, strategy.stop_reason
        )
        reliability = measure_reliability(
            strategy.network, name, samples, split, plan.model.inference, plan.config.patch.flips
        )
        candidate = make_candidate(
            plan.model,
            name,
            strategy.network,
            self.work,
            provenance={
                **plan.provenance(strategy, samples, held_out=split, notes=notes, init=init.to_json()),
                EVIDENCE: evidence,
            },
            metrics=outcome.metrics,
            reliability=reliability,
        )
        if self.options.stage or not outcome.reaches(self.options.min_r2):
            return self._stage(candidate, outcome, init)
        return self._commit(candidate, outcome, init)

    def _prepare(self, stream: StructureStream) -> tuple[ExpertsFrozen, Initialisation]:
        """Build the strategy with an initialised network; one that is resumed gets its weights from the checkpoint."""
        plan = self.plan
        device = resolve_device(plan.config.training.device)
        network = plan.network()
        path = self.work / INITIALISATION
        if path.is_file() and has_checkpoint(self.work / CHECKPOINT):
            init = Initialisation.from_json(read_json(path, f"{plan.restart_hint} to start again"))
        else:
            init = initialise(plan, network, stream.patches[0], device)
            write_json(path, init.to_json())
        strategy = ExpertsFrozen(
            model=network,
            stream=stream,
            training=plan.config.training,
            patch=plan.config.patch.size,
            inference=plan.config.inference,
            seed=plan.seed,
            spec=plan.spec,
            device=device,
            precision=plan.precision,
            **training_options(plan.strategy_config),
        )
        return strategy, init

    def _training_notes(self, strategy: ExpertsFrozen) -> list[str]:
        """Return notes on the training: another number format than the base's, a schedule cut short."""
        plan, notes = self.plan, []
        if note := precision_note(base_provenance(plan.model), strategy.precision, plan.structure):
            notes.append(note)
        training, step = plan.config.training, strategy.progress.step
        if step < strategy.budget.steps and training.schedule != "constant":
            notes.append(
                f"training ended at step {step} of {strategy.budget.steps} ({strategy.stop_reason}), before the "
                f"learning rate had come down: with {step} steps from the start it may well do better"
            )
        return notes

    def _commit(self, candidate: Candidate, outcome: PendingOutcome, init: Initialisation) -> AddResult:
        """Make the structure part of the model, verify the model, and remove the pending folder."""
        name, replacing = self.plan.structure, self.plan.replace
        path = self.model.path
        last_change = Model.open(path).history[-1].number
        # Should this process die after the commit, the same call finds that it is done.
        committed = replace(outcome, digest=candidate.entry.digest, after=last_change)
        write_json(self.work / OUTCOME, committed.to_json())
        try:
            entry = self.model.commit(candidate, action="replace" if replacing else "add", replace=replacing)
        except ModelError as error:
            if not replacing and name in Model.open(path).structures:
                raise name_conflict_error(path, name) from error
            raise
        done = "replaced" if replacing else "added"
        after = _verified(self.model, f"after {name!r} was {done}")
        unchanged = self._unchanged(after)
        if changed := [other for other, same in unchanged.items() if not same]:
            raise ModelError(
                f"{', '.join(changed)} of {path} no longer computes what it did before {name!r} was {done}: go back "
                f"with {command('rollback', path)}, and check this machine's memory"
            )
        clear_pending(self.work)
        return _result(self.model, entry, outcome, after, init, unchanged)

    def _unchanged(self, after: VerifyReport) -> dict[str, bool]:
        """Compare the structures that are the same versions as before; others may change the model meanwhile."""
        before, now = self.plan.model.entries, Model.open(self.model.path).entries
        return {
            name: same
            for name, same in after.same_as(self.before).items()
            if name in before and name in now and before[name].digest == now[name].digest
        }

    def _stage(self, candidate: Candidate, outcome: PendingOutcome, init: Initialisation) -> AddResult:
        """Leave the structure in the pending folder, to be accepted or discarded."""
        min_r2 = self.options.min_r2
        reached = outcome.reaches(min_r2)
        reason = "staged as requested"
        if not reached:
            reason = f"below the R2 that was demanded, on the {outcome.held_out} images"
        stage_candidate(self.model, candidate, why=reason, replace=self.plan.replace, min_r2=min_r2)
        # What cannot be removed now goes when it is accepted or discarded.
        for folder in (CHECKPOINT, "cache", "tensorboard"):
            shutil.rmtree(self.work / folder, ignore_errors=True)
        for file in (REQUEST, IMAGES, OUTCOME, INITIALISATION):
            (self.work / file).unlink(missing_ok=True)
        return _result(
            self.model, candidate.entry, outcome, self.before, init, {}, staged=True, reached=reached
        )


def _finish_committed(
    model: Model,
    structure: str,
    data: str | Path | Manifest,
    options: AdditionOptions,
    overrides: TrainingOverrides,
) -> AddResult | None:
    """Finish an addition that was committed before its process died, if the same is requested again.

    If something else is requested, or the version is not active any more, the pending folder is removed.

    Parameters
    ----------
    model, structure
        As it is on disk now, and the structure; its training is locked.
    data, options, overrides
        The present request.

    Returns
    -------
    AddResult
        None if nothing was committed, or not this.
    """
    outcome = committed_outcome(model, structure)
    if outcome is None:
        return None
    work, entry = model.pending(structure), model.entries.get(structure)
    active = entry is not None and entry.digest == outcome.digest
    if entry is None or not active or options.stage or not outcome.reaches(options.min_r2):
        clear_pending(work)
        return None
    plan = plan_addition(model, structure, data, options, overrides, check_conflicts=False)
    if plan.pending_request() != plan.request():
        clear_pending(work)
        return None
    report = _verified(model)
    remedy = f"{command('discard', model.path, structure)} removes the rest of its training"
    init = Initialisation.from_json(read_json(work / INITIALISATION, remedy))
    clear_pending(work)
    outcome.notes.append(
        "it became part of the model before an interruption: there was no comparison with before, but all "
        "structures are as they were stored"
    )
    return _result(model, entry, outcome, report, init, {})


def _verified(model: Model, when: str = "as it is") -> VerifyReport:
    """Verify the whole model.

    Raises
    ------
    ModelError
        If anything of it is damaged, naming each damage once.
    """
    report = model.verify()
    if not report.ok:
        damaged: dict[str, list[str]] = {}
        for result in (*report.results, *report.earlier):
            if not result.ok:
                damaged.setdefault(result.detail, []).append(result.structure)
        failed = "; ".join(
            f"{', '.join(names) if len(names) < 4 else f'{names[0]} and {len(names) - 1} more'}: FAILED ({detail})"
            for detail, names in damaged.items()
        )
        raise ModelError(
            f"{model.path} does not verify {when}: {failed}. Run {command('verify', model.path)}"
        )
    return report


def _result(
    model: Model,
    entry: Entry,
    outcome: PendingOutcome,
    verified: VerifyReport,
    init: Initialisation,
    unchanged: dict[str, bool],
    *,
    staged: bool = False,
    reached: bool = True,
) -> AddResult:
    return AddResult(
        model=model,
        structure=entry.name,
        metrics=outcome.metrics,
        held_out=outcome.held_out,
        parameters=entry.parameters,
        bytes=entry.bytes,
        seconds=outcome.seconds,
        verified=verified,
        notes=tuple(outcome.notes),
        stopped=outcome.stopped,
        init=init,
        unchanged=unchanged,
        entry=entry,
        staged=staged,
        reached=reached,
    )
