"""A comparison under way: each way is learned, measured, and written down before the next one begins."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from repmode_cl.scenarios import StructureStream, prepared_samples
from repmode_cl.strategies.addition import Addition
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.beginning import Beginning, begin
from repmode_cl.strategies.damage import HeldOut, changes_of, predictor
from repmode_cl.strategies.one_experience import held_out, learn, stream_of
from repmode_cl.strategies.preparing import origin_of, same_images
from repmode_cl.strategies.run import provenance_of
from repmode_cl.strategies.ways import Ways

from repmode_cl.config import StrategyConfig
from repmode_cl.data.cache import ContentDigests
from repmode_cl.data.manifest import Manifest
from repmode_cl.data.patches import VolumeDataset
from repmode_cl.data.prepare import prepare
from repmode_cl.data.sample import Sample
from repmode_cl.data.splits import assign_splits
from repmode_cl.devices import resolve_device
from repmode_cl.errors import ManifestError
from repmode_cl.files import replacing, write_json
from repmode_cl.nn import AdditionSpec, RepModeUNet
from repmode_cl.report.comparison import ADDING, WAYS, Change, Comparison, Way, write_comparison
from repmode_cl.report.images import Prediction
from repmode_cl.store import Model
from repmode_cl.training import Precision, has_checkpoint, inherit_precision

__all__ = ["Comparing"]

#: Which images the ways are learned from and measured on.
IMAGES = "images.json"
#: What a way came to, in its folder; written last.
RESULT = "result.json"


class Comparing:
    """One comparison under way: each way is learned, measured, and written down before the next."""

    def __init__(
        self,
        model: Model,
        manifest: Manifest,
        ways: Ways,
        folder: Path,
        known: tuple[str, ...],
        workers: int,
    ) -> None:
        self.model, self.manifest, self.ways, self.folder, self.known = model, manifest, ways, folder, known
        self.workers = workers
        self.config = ways.config
        self.device = resolve_device(self.config.training.device)
        self.samples: list[Sample] = []

    def run(self, precision: str, warnings: Sequence[str] = ()) -> None:
        """Learn what is not learned yet, and write the comparison, with `warnings` among its notes."""
        structure = self.ways.structure
        samples, about = prepared_samples(
            self.config.data,
            self.folder,
            structures=[structure],
            manifest=self.manifest,
            workers=self.workers,
        )
        self.samples, notes = samples, [*about, *warnings]
        split, images = _held_out(samples)
        if not images:
            raise ManifestError(
                f"{self.manifest.path}: no image of {structure!r} is held out, so nothing could be said of how well it "
                "is learned: give at least two images, or name rows with split test"
            )
        stream = stream_of(self.config, samples, ((structure,),))
        of_known = self._images_of_known(images)
        known = {held.sample for found in of_known.values() for held in found} - set(samples)
        same_images(
            self.folder / IMAGES,
            [*samples, *sorted(known, key=lambda sample: (sample.row, sample.structure))],
            f"comparison of {structure!r}",
            "give another folder with --out or begin with --restart",
            begun=any(
                has_checkpoint(self.folder / key / "checkpoint") or (self.folder / key / RESULT).exists()
                for key in WAYS
            ),
        )
        format_of = inherit_precision(precision, self.device, origin_of(self.model).get("precision"))
        done = []
        for key in WAYS:
            if not (self.folder / key / RESULT).exists():
                network = self.ways.fresh(key)
                began = (
                    self._begin(network, stream, format_of)
                    if isinstance(network, RepModeUNet) and key == ADDING
                    else None
                )
                strategy = self.ways.strategy(key, network, stream, format_of)
                learn(strategy, self.folder / key, f"{self.ways.title(key)}: {structure}")
                self._measure(key, strategy, stream, images[0], of_known, began)
                shutil.rmtree(self.folder / key / "checkpoint", ignore_errors=True)
            done.append(Way.from_json(json.loads((self.folder / key / RESULT).read_text(encoding="utf-8"))))
        if structure in self.model.structures:
            notes = [*notes, f"the model has {structure} already; it was compared as if it had not"]
        write_comparison(
            Comparison(
                structure=structure,
                known=self.known,
                held_out=split,
                images=len(images),
                training_images=len(stream.images[0]),
                ways=tuple(done),
                settings=self._settings(format_of.format, done[0].began),
                notes=tuple(notes),
                folder=self.folder,
            )
        )

    def _begin(self, network: RepModeUNet, stream: StructureStream, precision: Precision) -> Beginning:
        """Let the addition start from what was asked for.

        Measured anew when a training goes on, whose checkpoint then replaces what is set here.
        """
        addition = Addition(
            model=self.model,
            structure=self.ways.structure,
            replace=False,
            manifest=self.manifest,
            config=self.config,
            spec=self.ways.spec,
            needs=(),
            init_from=self.ways.init_from,
            precision=precision,
        )
        return begin(addition, network, stream.patches[0], self.device)

    def _images_of_known(self, images: Sequence[Sample]) -> dict[str, list[HeldOut]]:
        """Return for each known structure the held-out images of it, and those of the new structure besides."""
        data = self.config.data
        digests = ContentDigests(Path(str(data.cache)) / "contents.json")
        splits = assign_splits(
            self.manifest,
            seed=data.split_seed,
            test_fraction=data.test_fraction,
            val_fraction=data.val_fraction,
            record=Path(str(data.cache)) / "splits.json",
            digest=digests.of,
        )
        rows = []
        for name in self.known:
            mine = [row for row in self.manifest.rows if row.structure == name]
            rows += next(
                (f for s in ("test", "val") if (f := [row for row in mine if splits[row.number] == s])), []
            )
        # Only these: a facility's manifest may list years of training images.
        held = replace(self.manifest, rows=tuple(rows))
        samples = (
            prepare(held, splits, data.preprocessing, str(data.cache), workers=self.workers) if rows else []
        )
        found: dict[str, list[HeldOut]] = {}
        for name in self.known:
            found[name] = [HeldOut(sample, True) for sample in samples if sample.structure == name]
            there = {held_out.sample.signal for held_out in found[name]}
            found[name] += [HeldOut(sample, False) for sample in images if sample.signal not in there]
        return found

    def _measure(
        self,
        key: str,
        strategy: StructureStrategy,
        stream: StructureStream,
        shown: Sample,
        of_known: Mapping[str, Sequence[HeldOut]],
        began: Beginning | None,
    ) -> None:
        """Write down what a trained way came to, and the pictures of it; the figures last."""
        structure, folder = self.ways.structure, self.folder / key
        figures, _ = held_out(strategy, stream)
        changes: tuple[Change, ...] = ()
        worst = None
        if (after := self.ways.known(key, strategy)) is not None:
            changes, worst = changes_of(
                self.ways.network.to(self.device),
                after.to(self.device),
                of_known,
                predictor(self.model.inference, self.device),
                f"{self.ways.title(key)}: what became of the others",
            )
        signal, target = VolumeDataset([shown])[0]
        prediction = strategy.predict(signal[0], structure)
        _save(folder / "prediction.npz", Prediction(signal[0].numpy(), target[0].numpy(), prediction))
        if worst is not None:
            _save(folder / f"worst-{worst[0]}.npz", worst[1])
        metrics = figures.get(structure, {})
        curve = [
            (int(row["train_step"]), float(row["value"]))
            for row in strategy.progress.curve
            if row["metric"] == "r2" and math.isfinite(row["value"])
        ]
        way = Way(
            key=key,
            title=self.ways.title(key),
            metrics=metrics,
            changes=changes,
            steps=strategy.progress.step,
            selected_step=strategy.selection.step,
            learning_rate=self.ways.rates[key],
            seconds=strategy.progress.seconds,
            parameters=self.ways.parameters(key, strategy),
            bytes=self.ways.size(
                key,
                strategy,
                self.model,
                folder,
                provenance=self._provenance(strategy, began),
                metrics=metrics,
            ),
            curve=tuple(curve),
            began=None if began is None else began.structure,
        )
        write_json(folder / RESULT, way.to_json())

    def _provenance(self, strategy: StructureStrategy, began: Beginning | None) -> dict[str, Any]:
        """Return what `add` would record of such a training: its file holds that too."""
        training = self.config.training
        options = StrategyConfig(name="experts_frozen", learning_rate=training.learning_rate)
        return {
            **provenance_of(self.config, options, self.config.seeds[0], self.samples, strategy.precision),
            "held_out": _held_out(self.samples)[0],
            "notes": [],
            "manifest": self.manifest.path.name,
            "steps": strategy.progress.step,
            "selected_step": strategy.selection.step,
            "stopped": strategy.stopped,
            "seconds": round(strategy.progress.seconds, 3),
            "init": {"asked": self.ways.init_from, **(began.to_json() if began else {})},
        }

    def _settings(self, precision: str, began: str | None) -> tuple[tuple[str, str], ...]:
        training, architecture = self.config.training, self.model.architecture
        budget = f"{training.epochs} epochs" if training.epochs is not None else f"{training.steps} steps"
        return (
            ("model", self.model.path.resolve().name),
            ("images", self.manifest.path.name),
            ("network", f"width {architecture.width}, depth {architecture.depth}"),
            ("addition", _addition(self.ways.spec)),
            ("begun from", began or "chance"),
            ("own network", f"kernel {self.ways.kernel}"),
            ("budget", budget),
            ("batch", str(training.batch_size)),
            ("patch (z, y, x)", " \N{MULTIPLICATION SIGN} ".join(str(n) for n in self.config.patch.size)),
            ("schedule", training.schedule),
            ("precision", precision),
            ("seed", str(self.config.seeds[0])),
        )


def _addition(spec: AdditionSpec) -> str:
    said = [spec.expert, f"sees {spec.sees}"]
    said += [f"base's {part}" for part in ("norm", "resampling") if getattr(spec, part) == "base"]
    return ", ".join(said)


def _held_out(samples: Sequence[Sample]) -> tuple[str, list[Sample]]:
    """Return the images that the figures are of, as `held_out` chooses them."""
    for split in ("test", "val"):
        if found := [sample for sample in samples if sample.split == split]:
            return split, found
    return "none", []


def _save(path: Path, volumes: Prediction) -> None:
    with replacing(path) as beside, beside.open("wb") as handle:
        np.savez_compressed(
            handle,
            signal=volumes.signal.astype(np.float16),
            target=volumes.target.astype(np.float16),
            prediction=volumes.prediction.astype(np.float16),
        )
