"""Add a structure to a model that must not change otherwise (paper, section 4.4)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from repmode_cl.data.manifest import Manifest
from repmode_cl.data.pipeline import prepared_samples
from repmode_cl.data.sample import Sample
from repmode_cl.errors import ModelError
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec
from repmode_cl.scenarios import StructureStream
from repmode_cl.store import Candidate, Entry, VerifyReport, make_candidate
from repmode_cl.store.staging import clear_pending, training_lock
from repmode_cl.store.staging import stage as put_aside
from repmode_cl.strategies.experts_frozen import ExpertsFrozen
from repmode_cl.strategies.plugins.model_export import provenance_of
from repmode_cl.structures import check_structure_name
from repmode_cl.training import has_checkpoint, refuse_several
from repmode_cl.utils.atomic_files import write_json
from repmode_cl.utils.command_text import command
from repmode_cl.utils.devices import resolve_device
from repmode_cl.workflows.addition_plan import (
    AdditionPlan,
    check_held_out,
    check_min_r2,
    check_not_staged,
    name_conflict,
    plan_addition,
)
from repmode_cl.workflows.initialisation import Initialisation, initialise
from repmode_cl.workflows.pending_training import (
    CHECKPOINT,
    IMAGES,
    OUTCOME,
    REQUEST,
    PendingOutcome,
    same_images,
    was_committed,
)
from repmode_cl.workflows.train_one_experience import held_out, learn, same_request, stream_of
from repmode_cl.workflows.training_settings import guard_voxels, origin_of, other_precision

__all__ = ["AddResult", "AdditionRun", "add_structure", "finish_committed", "verify_before_adding"]


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
    check_min_r2(min_r2)
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
        before = verify_before_adding(addition.model)
        return AdditionRun(addition, given or opened, before, workers).run(min_r2=min_r2, stage=stage)


_BEGINNING = "beginning.json"


@dataclass(frozen=True)
class AddResult:
    """What adding a structure came to.

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
        What the addition owns, and its file's size.
    seconds
        Training, validation excluded.
    verified
        Proof that all structures, the earlier ones too, are as they were stored.
    notes
        What a person should know of the split and of the training.
    stopped
        Why training ended: all its steps, no improvement, or the time limit.
    init
        What it began from.
    unchanged
        Earlier structures, and whether each has the same tensors, and computes the same kernels and the same
        prediction bit for bit, as before, in this environment. Empty where nothing was written.
    staged
        Whether it waits for a person to accept it, and is no part of the model yet.
    reached
        Whether its R2 is at least what was demanded.
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
    staged: bool = False
    reached: bool = True


class AdditionRun:
    """One addition under way: trained without a lock on the model, committed under it, proved afterwards."""

    def __init__(self, addition: AdditionPlan, model: Model, before: VerifyReport, workers: int) -> None:
        self.addition = addition
        self.model = model
        self.before = before
        self.workers = workers
        self.work = addition.work

    def run(self, *, min_r2: float | None, stage: bool) -> AddResult:
        """Prepare the images, train, and commit or stage."""
        addition = self.addition
        name = addition.structure
        warnings = guard_voxels(addition.model, addition.manifest, name, force=addition.force)
        same_request(self.work / REQUEST, addition.request(), addition.what, addition.anew)
        samples, notes = prepared_samples(
            addition.config.data,
            self.work,
            structures=[name],
            manifest=addition.manifest,
            workers=self.workers,
        )
        check_held_out(min_r2, name, [sample.split for sample in samples])
        begun = has_checkpoint(self.work / CHECKPOINT)
        same_images(self.work / IMAGES, samples, addition.what, addition.anew, begun=begun)
        stream = stream_of(addition.config, samples, ((name,),))
        strategy, beginning = self._prepare(stream)
        learn(strategy, self.work, f"adding {name}")
        metrics, images = held_out(strategy, stream)
        notes = [*notes, *warnings, *self._notes(strategy)]
        outcome = PendingOutcome(
            "", metrics.get(name, {}), images, strategy.progress.seconds, notes, strategy.stopped
        )
        candidate = make_candidate(
            addition.model,
            name,
            strategy.network,
            self.work,
            provenance=self._provenance(strategy, samples, outcome, beginning),
            metrics=outcome.metrics,
        )
        reached = outcome.reaches(min_r2)
        if stage or not reached:
            return self._stage(candidate, outcome, beginning, min_r2, reached)
        return self._commit(candidate, outcome, beginning)

    def _prepare(self, stream: StructureStream) -> tuple[ExpertsFrozen, Initialisation]:
        """Build the strategy with a network that has begun; one that goes on with a checkpoint has it from there."""
        addition = self.addition
        device = resolve_device(addition.config.training.device)
        network = addition.network()
        path = self.work / _BEGINNING
        if path.is_file() and has_checkpoint(self.work / CHECKPOINT):
            beginning = Initialisation.from_json(json.loads(path.read_text(encoding="utf-8")))
        else:
            beginning = initialise(addition, network, stream.patches[0], device)
            write_json(path, beginning.to_json())
        strategy = ExpertsFrozen(
            network=network,
            stream=stream,
            training=addition.config.training,
            patch=addition.config.patch.size,
            inference=addition.config.inference,
            seed=addition.seed,
            spec=addition.spec,
            device=device,
            precision=addition.precision,
        )
        return strategy, beginning

    def _notes(self, strategy: ExpertsFrozen) -> list[str]:
        """Say what is odd of the training: another number format than the base's, a schedule cut short."""
        addition, found = self.addition, []
        if note := other_precision(origin_of(addition.model), strategy.precision, addition.structure):
            found.append(note)
        training, step = addition.config.training, strategy.progress.step
        if step < strategy.budget.steps and training.schedule != "constant":
            found.append(
                f"training ended at step {step} of {strategy.budget.steps} ({strategy.stopped}), before the learning "
                f"rate had come down: with {step} steps from the start it may well do better"
            )
        return found

    def _provenance(
        self,
        strategy: ExpertsFrozen,
        samples: list[Sample],
        outcome: PendingOutcome,
        beginning: Initialisation,
    ) -> dict[str, Any]:
        addition = self.addition
        return {
            **provenance_of(addition.config, addition.options, addition.seed, samples, strategy.precision),
            "held_out": outcome.held_out,
            "notes": outcome.notes,
            "manifest": addition.manifest.path.name,
            "steps": strategy.progress.step,
            "selected_step": strategy.selection.step,
            "stopped": outcome.stopped,
            "seconds": round(outcome.seconds, 3),
            "init": {"asked": addition.init_from, **beginning.to_json()},
        }

    def _commit(self, candidate: Candidate, outcome: PendingOutcome, beginning: Initialisation) -> AddResult:
        name, again = self.addition.structure, self.addition.replace
        path = self.model.path
        last = Model.open(path).history[-1].number
        # Should this process die after the commit, the same call finds that it is done.
        kept = replace(outcome, digest=candidate.entry.digest, after=last)
        write_json(self.work / OUTCOME, kept.to_json())
        try:
            entry = self.model.commit(candidate, action="replace" if again else "add", replace=again)
        except ModelError as error:
            if not again and name in Model.open(path).structures:
                raise name_conflict(path, name) from error
            raise
        after = verify_before_adding(self.model, f"after {name!r} was {'replaced' if again else 'added'}")
        unchanged = self._unchanged(after)
        if changed := [other for other, same in unchanged.items() if not same]:
            raise ModelError(
                f"{', '.join(changed)} of {path} no longer computes what it did before {name!r} was "
                f"{'replaced' if again else 'added'}: go back with {command('rollback', path)}, and check this "
                "machine's memory"
            )
        clear_pending(self.work)
        return _result(self.model, entry, outcome, after, beginning, unchanged)

    def _unchanged(self, after: VerifyReport) -> dict[str, bool]:
        """Compare the structures that are the same versions as before; others may change the model meanwhile."""
        before, now = self.addition.model.entries, Model.open(self.model.path).entries
        return {
            name: same
            for name, same in after.same_as(self.before).items()
            if name in before and name in now and before[name].digest == now[name].digest
        }

    def _stage(
        self,
        candidate: Candidate,
        outcome: PendingOutcome,
        beginning: Initialisation,
        min_r2: float | None,
        reached: bool,
    ) -> AddResult:
        why = "staged as asked for"
        if not reached:
            why = f"below the R2 that was demanded, on the {outcome.held_out} images"
        put_aside(self.model, candidate, why=why, replace=self.addition.replace, min_r2=min_r2)
        # What cannot be removed now goes when it is accepted or discarded.
        for left in ("checkpoint", "cache", "tensorboard"):
            shutil.rmtree(self.work / left, ignore_errors=True)
        for left in (REQUEST, IMAGES, OUTCOME, _BEGINNING):
            (self.work / left).unlink(missing_ok=True)
        return _result(
            self.model, candidate.entry, outcome, self.before, beginning, {}, staged=True, reached=reached
        )


def _result(
    model: Model,
    entry: Entry,
    outcome: PendingOutcome,
    verified: VerifyReport,
    beginning: Initialisation,
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
        init=beginning,
        unchanged=unchanged,
        staged=staged,
        reached=reached,
    )


def verify_before_adding(model: Model, when: str = "as it is") -> VerifyReport:
    """Verify the whole model; refuse to go on if anything of it is damaged, and name each damage once."""
    report = model.verify()
    if not report.ok:
        damage: dict[str, list[str]] = {}
        for result in (*report.results, *report.earlier):
            if not result.ok:
                damage.setdefault(result.detail, []).append(result.structure)
        failed = "; ".join(
            f"{', '.join(names) if len(names) < 4 else f'{names[0]} and {len(names) - 1} more'}: FAILED ({detail})"
            for detail, names in damage.items()
        )
        raise ModelError(
            f"{model.path} does not verify {when}: {failed}. Run {command('verify', model.path)}"
        )
    return report


def finish_committed(
    model: Model, name: str, plan: Callable[..., AdditionPlan], *, min_r2: float | None, stage: bool
) -> AddResult | None:
    """Finish an addition that was committed before its process died, if the same is asked for again.

    If something else is asked for, or the version is active no more, what was left of it is cleared away.

    Parameters
    ----------
    model, name
        As it is on disk now, and the structure; its training is locked.
    plan
        Plans what is asked for now; with ``place=False``, also for a model that has the structure.
    min_r2, stage
        As of `add_structure`.

    Returns
    -------
    AddResult
        None if nothing was committed, or not this.
    """
    outcome = was_committed(model, name)
    if outcome is None:
        return None
    work, entry = model.pending(name), model.entries.get(name)
    if entry is None or entry.digest != outcome.digest or stage or not outcome.reaches(min_r2):
        clear_pending(work)
        return None
    addition = plan(place=False)
    if addition.begun() != addition.request():
        clear_pending(work)
        return None
    report = verify_before_adding(model)
    beginning = Initialisation.from_json(json.loads((work / _BEGINNING).read_text(encoding="utf-8")))
    clear_pending(work)
    outcome.notes.append(
        "it became part of the model before an interruption: there was no comparison with before, but all "
        "structures are as they were stored"
    )
    return _result(model, entry, outcome, report, beginning, {})
