"""Advice on a structure before it is added: short trainings say whether, from what, how, and from how many images."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from repmode_cl.config import Config
from repmode_cl.config.addition_settings import AdditionSetting
from repmode_cl.data.manifest import Manifest
from repmode_cl.data.pipeline import HeldOutCheck, prepared_samples
from repmode_cl.data.sample import Sample
from repmode_cl.data.splits import order_of_group
from repmode_cl.errors import ConfigError, ManifestError
from repmode_cl.evaluation.learning_curve import GAIN, LearningCurve, fit_learning_curve
from repmode_cl.model import Model
from repmode_cl.results.comparison import ADDING
from repmode_cl.structures import check_structure_name
from repmode_cl.training import inherit_precision, refuse_distributed
from repmode_cl.utils.atomic_files import write_json
from repmode_cl.utils.command_text import command
from repmode_cl.utils.devices import resolve_device
from repmode_cl.verdict import HeldOutFigures, Verdict, judge
from repmode_cl.workflows.addition_dry_run import addition_file_bytes
from repmode_cl.workflows.addition_plan import AdditionPlan
from repmode_cl.workflows.compare_structure import held_out_images, known_structures, refuse_folder_in_model
from repmode_cl.workflows.comparison_folder import exclusive_comparison
from repmode_cl.workflows.comparison_methods import ComparisonMethods
from repmode_cl.workflows.initialisation import initialise
from repmode_cl.workflows.options import TrainingOverrides
from repmode_cl.workflows.pending_training import IMAGES, record_images, rows_digest
from repmode_cl.workflows.train_one_experience import (
    evaluate_held_out,
    make_stream,
    resume_config_text,
    train_experience,
    verdict_evidence,
)
from repmode_cl.workflows.training_settings import (
    addition_strategy,
    base_provenance,
    open_manifest,
    refuse_voxel_sizes,
    resolve_addition,
    run_config,
    training_config,
)

__all__ = ["ADVICE", "Advice", "Difference", "Trial", "TrialResult", "advice_command", "advise", "trials_of"]

#: File of the folder with all figures; written last.
ADVICE = "advice.json"
_RESULT = "result.json"
#: Steps of a trial, and most images that one learns from.
STEPS, MOST_IMAGES = 60, 8
_COUNTS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Trial:
    """One short training.

    Attributes
    ----------
    setting
        ``small`` or ``best``.
    images
        Number of training images.
    init_from
        What it starts from: ``none``, or ``best`` for the known structure that fits best.
    """

    setting: AdditionSetting
    images: int
    init_from: str = "none"

    @property
    def key(self) -> str:
        """Name of its folder."""
        return f"{self.setting}-{self.images}" + ("" if self.init_from == "none" else "-from-known")


@dataclass(frozen=True)
class TrialResult:
    """Figures of one short training.

    Attributes
    ----------
    r2
        R2 of each held-out image.
    bytes
        Approximate size of the addition's file.
    seconds
        Of training.
    steps
        Optimiser steps.
    evidence
        What a verdict needs besides (`repmode_cl.verdict.held_out_evidence`).
    began
        The known structure that it started from; None for chance.
    known
        R2 of each known structure's mode on the new structure, before any training.
    """

    r2: tuple[float, ...]
    bytes: int
    seconds: float
    steps: int
    evidence: Mapping[str, float]
    began: str | None = None
    known: Mapping[str, float] | None = None

    @property
    def mean(self) -> float:
        """Mean R2 over the held-out images."""
        return float(np.mean(self.r2))


@dataclass(frozen=True)
class Difference:
    """Mean difference of R2 between two trials on the same held-out images.

    Attributes
    ----------
    mean
        The first minus the second.
    low, high
        Ends of the 95% interval over images; None for one image.
    """

    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, first: Sequence[float], second: Sequence[float]) -> Difference:
        """Return the paired difference."""
        differences = np.subtract(first, second)
        mean = float(differences.mean())
        if len(differences) < 2:
            return cls(mean, None, None)
        from scipy.special import stdtrit  # imported here for a fast start

        error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
        half = float(stdtrit(len(differences) - 1, 0.975)) * error
        return cls(mean, mean - half, mean + half)

    @property
    def clear(self) -> bool:
        """Whether the first is better by at least `GAIN`, and beyond the spread between images."""
        return self.mean >= GAIN and self.low is not None and self.low > 0


@dataclass(frozen=True)
class Advice:
    """All that the short trainings say.

    Attributes
    ----------
    structure
        Its name.
    folder
        Where the figures are.
    trials
        Results by the keys of the trials.
    largest
        Training images of the largest trials.
    available
        Training images of the manifest.
    verdict
        Of the best trial.
    setting
        The setting to take.
    setting_gain
        ``best`` minus ``small``.
    init_from
        What to start from: a known structure or ``none``.
    init_gain
        Start from the known structure that fits best, minus start from chance.
    curve
        R2 over the number of images; None with one training image.
    steps
        Of each trial.
    notes
        What a person should know.
    """

    structure: str
    folder: Path
    trials: Mapping[str, TrialResult]
    largest: int
    available: int
    verdict: Verdict
    setting: AdditionSetting
    setting_gain: Difference
    init_from: str
    init_gain: Difference
    curve: LearningCurve | None
    steps: int
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able values."""
        curve = None
        if self.curve is not None:
            counts = sorted({*self.curve.counts, 2 * self.largest, 4 * self.largest})
            curve = {
                "limit": self.curve.limit,
                "loss_of_one_image": self.curve.loss,
                "predicted": [asdict(self.curve.at(count)) for count in counts],
                "enough": self.curve.enough(),
                "enough_range": self.curve.enough_range(),
            }
        return {
            "structure": self.structure,
            "verdict": self.verdict.to_json(),
            "setting": self.setting,
            "setting_gain": asdict(self.setting_gain),
            "init_from": self.init_from,
            "init_gain": asdict(self.init_gain),
            "known": dict(self.trials[Trial("small", self.largest, "best").key].known or {}),
            "curve": curve,
            "images": {"largest": self.largest, "available": self.available},
            "steps": self.steps,
            "trials": {key: asdict(one) for key, one in self.trials.items()},
            "notes": list(self.notes),
        }


def trials_of(available: int) -> list[Trial]:
    """Return the short trainings for a number of training images, in the order in which they are made."""
    largest = min(available, MOST_IMAGES)
    counts = [count for count in _COUNTS if count < largest]
    return [
        Trial("small", largest),
        Trial("best", largest),
        Trial("small", largest, "best"),
        *(Trial("small", count) for count in counts),
    ]


def advise(
    model: str | Path | Model,
    structure: str,
    data: str | Path | Manifest,
    overrides: TrainingOverrides | None = None,
    *,
    out: str | Path | None = None,
    restart: bool = False,
) -> Advice:
    """Say from short trainings whether a structure can be learned here, and how; the model is read and not changed.

    Parameters
    ----------
    model
        A model directory; one that cannot be written to is enough.
    structure
        Name of the structure. If it was added already, the advice is given as if it had not been.
    data
        Manifest of image pairs.
    overrides
        Settings of the trainings; without steps or epochs each has `STEPS` steps. The learning rates are those of
        the settings ``small`` and ``best``.
    out
        Folder of the figures; ``None``: ``runs/advise-<structure>``.
    restart
        Start again in a folder that holds an advice.

    Notes
    -----
    The same call resumes an interrupted advice, within a trial from its last checkpoint.

    Raises
    ------
    ConfigError
        If the folder holds something else or an advice with other settings.
    ManifestError
        If the manifest has no usable row of the structure, or holds no image of it out.
    ModelError
        If the structure belongs to the base, or another addition needs its experts.
    """
    refuse_distributed("an advice")
    overrides = overrides or TrainingOverrides()
    if overrides.learning_rate is not None:
        raise ConfigError(
            "learning_rate: an advice is about the settings small and best, with their own rates"
        )
    model = model if isinstance(model, Model) else Model.open(model)
    check_structure_name(structure)
    known = known_structures(model, structure)
    manifest = open_manifest(data, structure)
    folder = Path(out) if out is not None else Path("runs") / f"advise-{structure}"
    refuse_folder_in_model(model, folder)
    if overrides.steps is None and overrides.epochs is None:
        overrides = replace(overrides, steps=STEPS)
    run = _AdviceRun(
        model, structure, manifest, folder, known, replace(overrides, patience=None, time_limit=None)
    )
    with exclusive_comparison(folder, run.request(), restart=restart, kind="advice"):
        notes = refuse_voxel_sizes(model, manifest, structure, force=overrides.force)
        advice = run.run(notes)
        write_json(folder / ADVICE, advice.to_json())
        if overrides.cache is None:
            shutil.rmtree(folder / "cache", ignore_errors=True)
    return advice


class _AdviceRun:
    """An advice under way: each trial is trained, measured and written down before the next."""

    def __init__(
        self,
        model: Model,
        structure: str,
        manifest: Manifest,
        folder: Path,
        known: tuple[str, ...],
        overrides: TrainingOverrides,
    ) -> None:
        self.model, self.structure, self.manifest = model, structure, manifest
        self.folder, self.known, self.overrides = folder, known, overrides

    def config(self, setting: AdditionSetting) -> Config:
        """Return the configuration of the trials of a setting."""
        overrides, provenance = self.overrides, base_provenance(self.model)
        spec, name = resolve_addition(None, setting, self.model.architecture)
        training = training_config(provenance, overrides, name)
        if training.steps is not None:
            # Two validations: one at the middle, so that it is seen whether the curve still rises.
            training = training.model_copy(
                update={"validate_every": max(1, training.steps // 2), "validate_every_epochs": None}
            )
        return run_config(
            self.model,
            self.manifest,
            training,
            name=f"advise-{self.structure}",
            cache=overrides.cache if overrides.cache is not None else self.folder / "cache",
            patch=overrides.patch,
            seed=overrides.seed,
            strategy=addition_strategy(provenance, overrides, spec, name),
        )

    def request(self) -> dict[str, Any]:
        """Return all that decides the figures."""
        configs = {}
        for setting in ("small", "best"):
            config = self.config(setting)
            data = config.data.model_copy(update={"cache": None, "manifest": None})
            configs[f"config of {setting}"] = resume_config_text(config.model_copy(update={"data": data}))
        return {
            "advice on": self.structure,
            **configs,
            "model": {name: self.model.entries[name].digest for name in self.known},
            "rows": rows_digest(self.manifest, [self.structure]),
        }

    def run(self, warnings: Sequence[str]) -> Advice:
        """Make the trials that have no result yet, and draw the conclusions."""
        config = self.config("small")
        samples, notes = prepared_samples(
            config.data,
            self.folder,
            structures=[self.structure],
            manifest=self.manifest,
            held_out=HeldOutCheck(config.patch.size, self._plan("small", "best").records()),
            workers=self.overrides.workers,
        )
        split, held_out = held_out_images(samples)
        training = _nested(samples, self.overrides.seed)
        if not held_out or not training:
            raise ManifestError(
                f"{self.manifest.path}: {len(training)} images of {self.structure!r} to learn from and "
                f"{len(held_out)} held out: give at least two images, or name rows with split train and test"
            )
        trials = trials_of(len(training))
        record_images(
            self.folder / IMAGES,
            samples,
            f"advice on {self.structure!r}",
            "give another folder with --out or begin with --restart",
            started=any((self.folder / trial.key).exists() for trial in trials),
        )
        results = {}
        for number, trial in enumerate(trials, 1):
            path = self.folder / trial.key / _RESULT
            if not path.exists():
                rows = {sample.row for sample in training[: trial.images]}
                chosen = [one for one in samples if one.split != "train" or one.row in rows]
                self._learn(trial, chosen, f"{number} of {len(trials)}: {trial.key}")
            results[trial.key] = _read_result(path)
        return _conclude(self.structure, self.folder, results, len(training), (split, (*notes, *warnings)))

    def _plan(self, setting: AdditionSetting, init_from: str) -> AdditionPlan:
        spec, _ = resolve_addition(None, setting, self.model.architecture)
        config = self.config(setting)
        return AdditionPlan(
            model=self.model,
            structure=self.structure,
            replace=False,
            manifest=self.manifest,
            config=config,
            spec=spec,
            needs=(),
            init_from=init_from,
            precision=inherit_precision(
                self.overrides.precision,
                resolve_device(config.training.device),
                base_provenance(self.model).get("precision"),
            ),
        )

    def _learn(self, trial: Trial, samples: list[Sample], title: str) -> None:
        """Train one trial, measure it, and write its result."""
        plan = self._plan(trial.setting, trial.init_from)
        config, name = plan.config, self.structure
        device = resolve_device(config.training.device)
        methods = ComparisonMethods(
            network=self.model.network(self.known),
            structure=name,
            config=config,
            rates={ADDING: config.training.learning_rate},
            spec=plan.spec,
            init_from=trial.init_from,
            kernel=3,
        )
        stream = make_stream(config, samples, ((name,),), depth=self.model.architecture.depth)
        network = methods.new_network(ADDING)
        init = initialise(plan, network, stream.patches[0], device)  # type: ignore[arg-type]
        strategy = methods.strategy(ADDING, network, stream, plan.precision)
        folder = self.folder / trial.key
        train_experience(strategy, folder, title)
        _, split = evaluate_held_out(strategy, strategy.stream)
        result = TrialResult(
            r2=tuple(image["r2"] for image in strategy.image_figures[name]),
            bytes=addition_file_bytes(strategy.network, name),
            seconds=strategy.progress.seconds,
            steps=strategy.progress.step,
            evidence=verdict_evidence(strategy, samples, split)[name],
            began=init.structure,
            known={one: figures["r2"] for one, figures in init.figures.items() if "r2" in figures} or None,
        )
        write_json(folder / _RESULT, asdict(result))
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)


def _nested(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Return the training images in an order of which each trial takes the first ones."""
    training = [sample for sample in samples if sample.split == "train"]
    return sorted(training, key=lambda sample: order_of_group(seed, f"{sample.group} {sample.image_id}"))


def _read_result(path: Path) -> TrialResult:
    values = json.loads(path.read_text(encoding="utf-8"))
    return TrialResult(**{**values, "r2": tuple(values["r2"])})


def _conclude(
    structure: str,
    folder: Path,
    results: Mapping[str, TrialResult],
    available: int,
    said: tuple[str, tuple[str, ...]],
) -> Advice:
    """Return the advice that results give."""
    split, notes = said
    largest = min(available, MOST_IMAGES)
    small, best, warm = (
        results[trial.key]
        for trial in (Trial("small", largest), Trial("best", largest), Trial("small", largest, "best"))
    )
    setting_gain = Difference.of(best.r2, small.r2)
    init_gain = Difference.of(warm.r2, small.r2)
    top = max((small, best, warm), key=lambda one: one.mean)
    counts = [count for count in _COUNTS if count < largest] + [largest]
    curve = fit_learning_curve(counts, [results[Trial("small", count).key].mean for count in counts])
    evidence = top.evidence
    verdict = judge(
        HeldOutFigures(
            r2=top.mean,
            images=int(evidence["images"]),
            groups=int(evidence["groups"]),
            standard_error=evidence.get("r2_standard_error"),
            split=split,
            rise=evidence.get("r2_rise"),
            steps=top.steps,
        )
    )
    return Advice(
        structure=structure,
        folder=folder,
        trials=results,
        largest=largest,
        available=available,
        verdict=verdict,
        setting="best" if setting_gain.clear else "small",
        setting_gain=setting_gain,
        init_from=str(warm.began) if init_gain.clear else "none",
        init_gain=init_gain,
        curve=curve,
        steps=small.steps,
        notes=notes,
    )


def advice_command(advice: Advice, model: str | Path, data: str | Path) -> str:
    """Return the command that adds the structure as the advice says."""
    how = ("--setting", advice.setting, "--init-from", advice.init_from)
    return command("add", model, "--structure", advice.structure, "--data", data, *how)
