"""One addition from its images to its place in the model: trained without a lock, committed under it, proved.

Everything that a process may die between is kept in ``pending/<structure>`` of the model, and taken up again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from repmode_cl.scenarios import StructureStream, prepared_samples
from repmode_cl.strategies.addition import BEGUN, IMAGES, REQUEST, Addition, check_held_out, taken_meanwhile
from repmode_cl.strategies.beginning import Beginning, begin
from repmode_cl.strategies.committed import OUTCOME, Outcome, was_committed
from repmode_cl.strategies.experts_frozen import ExpertsFrozen
from repmode_cl.strategies.guarding import guard_voxels
from repmode_cl.strategies.one_experience import held_out, learn, same_request, stream_of
from repmode_cl.strategies.preparing import command, origin_of, other_precision, same_images
from repmode_cl.strategies.run import provenance_of

from repmode_cl.data.sample import Sample
from repmode_cl.devices import resolve_device
from repmode_cl.errors import ModelError
from repmode_cl.files import write_json
from repmode_cl.store import Candidate, Entry, Model, VerifyReport, make_candidate
from repmode_cl.store.staging import clear_pending
from repmode_cl.store.staging import stage as put_aside
from repmode_cl.training import has_checkpoint

__all__ = ["AddResult", "Adding", "finish_committed", "sound"]

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
    init: Beginning
    unchanged: dict[str, bool]
    staged: bool = False
    reached: bool = True


class Adding:
    """One addition under way: trained without a lock on the model, committed under it, proved afterwards."""

    def __init__(self, addition: Addition, model: Model, before: VerifyReport, workers: int) -> None:
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
        begun = has_checkpoint(self.work / BEGUN)
        same_images(self.work / IMAGES, samples, addition.what, addition.anew, begun=begun)
        stream = stream_of(addition.config, samples, ((name,),))
        strategy, beginning = self._prepare(stream)
        learn(strategy, self.work, f"adding {name}")
        metrics, images = held_out(strategy, stream)
        notes = [*notes, *warnings, *self._notes(strategy)]
        outcome = Outcome(
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

    def _prepare(self, stream: StructureStream) -> tuple[ExpertsFrozen, Beginning]:
        """Build the strategy with a network that has begun; one that goes on with a checkpoint has it from there."""
        addition = self.addition
        device = resolve_device(addition.config.training.device)
        network = addition.network()
        path = self.work / _BEGINNING
        if path.is_file() and has_checkpoint(self.work / BEGUN):
            beginning = Beginning.from_json(json.loads(path.read_text(encoding="utf-8")))
        else:
            beginning = begin(addition, network, stream.patches[0], device)
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
        self, strategy: ExpertsFrozen, samples: list[Sample], outcome: Outcome, beginning: Beginning
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

    def _commit(self, candidate: Candidate, outcome: Outcome, beginning: Beginning) -> AddResult:
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
                raise taken_meanwhile(path, name) from error
            raise
        after = sound(self.model, f"after {name!r} was {'replaced' if again else 'added'}")
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
        outcome: Outcome,
        beginning: Beginning,
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
    outcome: Outcome,
    verified: VerifyReport,
    beginning: Beginning,
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


def sound(model: Model, when: str = "as it is") -> VerifyReport:
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
    model: Model, name: str, plan: Callable[..., Addition], *, min_r2: float | None, stage: bool
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
    report = sound(model)
    beginning = Beginning.from_json(json.loads((work / _BEGINNING).read_text(encoding="utf-8")))
    clear_pending(work)
    outcome.notes.append(
        "it became part of the model before an interruption: there was no comparison with before, but all "
        "structures are as they were stored"
    )
    return _result(model, entry, outcome, report, beginning, {})
