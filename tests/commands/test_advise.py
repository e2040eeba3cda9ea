"""Advice from short trainings: what it rests on, that it changes nothing, and that it continues."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_addition import Interruption, add_untrained, cut_off, files_of, make_base
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.data.manifest import read_manifest, write_manifest
from repmode_cl.errors import ConfigError, ManifestError, ModelError
from repmode_cl.model import Model
from repmode_cl.workflows.advise import Advice, Difference, Trial, advice_command, advise, trials_of
from repmode_cl.workflows.options import TrainingOverrides

OVERRIDES = TrainingOverrides(steps=2, batch_size=2, device="cpu", precision="float32", seed=3)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("advise") / "model")


@pytest.fixture(scope="module")
def advice(base: Path, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Advice:
    """Return an advice after an interruption in its second trial, with the model checked to be as it was."""
    out = tmp_path_factory.mktemp("advised") / "out"
    before = files_of(base)
    with pytest.MonkeyPatch.context() as patch:
        from repmode_cl.workflows import advise as module

        learn = module._AdviceRun._learn

        def interrupted(self: Any, trial: Trial, *rest: Any) -> None:
            if trial.setting == "best":
                raise Interruption
            learn(self, trial, *rest)

        patch.setattr(module._AdviceRun, "_learn", interrupted)
        with pytest.raises(Interruption):
            advise(base, "nucleolus", manifest, OVERRIDES, out=out)
    done = {path: path.stat().st_mtime_ns for path in out.glob("*/result.json")}
    assert len(done) == 1
    advice = advise(base, "nucleolus", manifest, OVERRIDES, out=out)
    assert {path: path.stat().st_mtime_ns for path in done} == done  # not trained again
    assert files_of(base) == before
    return advice


def test_trials_are_nested_and_bounded() -> None:
    assert [trial.key for trial in trials_of(20)] == [
        "small-8", "best-8", "small-8-from-known", "small-1", "small-2", "small-4",
    ]  # fmt: skip
    assert [trial.key for trial in trials_of(3)] == [
        "small-3", "best-3", "small-3-from-known", "small-1", "small-2",
    ]  # fmt: skip
    assert [trial.key for trial in trials_of(1)] == ["small-1", "best-1", "small-1-from-known"]


def test_the_advice_follows_from_its_trials(advice: Advice) -> None:
    small = advice.trials[Trial("small", advice.largest).key]
    best = advice.trials[Trial("best", advice.largest).key]
    warm = advice.trials[Trial("small", advice.largest, "best").key]
    assert {one.steps for one in advice.trials.values()} == {2}
    assert best.bytes > small.bytes
    assert warm.began in ("dna", "cell_membrane")
    assert set(warm.known or {}) == {"dna", "cell_membrane"}
    assert warm.began == max(warm.known or {}, key=(warm.known or {}).__getitem__)
    assert advice.setting_gain == Difference.of(best.r2, small.r2)
    assert advice.setting == ("best" if advice.setting_gain.clear else "small")
    assert advice.verdict.figures.r2 == pytest.approx(max(small.mean, best.mean, warm.mean))
    assert advice.verdict.figures.images == len(small.r2)
    assert advice.curve is not None
    assert advice.curve.counts == tuple(sorted({1, 2, 4, advice.largest} & set(range(1, advice.largest + 1))))
    written = json.loads((advice.folder / "advice.json").read_text())
    assert written["setting"] == advice.setting
    assert written["trials"].keys() == advice.trials.keys()
    assert not (advice.folder / "cache").exists()


def test_fewer_images_are_some_of_the_more(advice: Advice) -> None:
    """The trials differ: another number of images trains other weights."""
    means = {key: one.r2 for key, one in advice.trials.items() if key in ("small-1", "small-2")}
    assert len(set(means.values())) == 2


def test_the_command_repeats_a_finished_advice_and_tells_it(
    advice: Advice, base: Path, manifest: Path
) -> None:
    words = [
        "advise",
        base,
        "--structure",
        "nucleolus",
        "--data",
        manifest,
        "--steps",
        "2",
        "--batch-size",
        "2",
    ]
    words += ["--device", "cpu", "--precision", "float32", "--seed", "3", "--out", advice.folder]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    text = result.output
    for said in (
        "can nucleolus be learned here: ",
        "known structures as they are",
        "setting ",
        "images needed: about ",
    ):
        assert said in text
    assert advice_command(advice, base, manifest) in text
    assert "the model was not changed" in text
    words[words.index("--seed") + 1] = "4"
    refused = CliRunner().invoke(app, [str(word) for word in words])
    assert refused.exit_code == 2
    assert "holds an advice with other settings" in " ".join(refused.output.split())


def test_a_gain_is_clear_only_beyond_the_spread_between_images() -> None:
    assert Difference.of([0.5, 0.6, 0.55], [0.4, 0.5, 0.46]).clear
    assert not Difference.of([0.9, 0.1, 0.5], [0.4, 0.4, 0.5]).clear
    assert not Difference.of([0.5], [0.1]).clear  # one image says nothing about the spread
    assert not Difference.of([0.501, 0.502], [0.5, 0.501]).clear  # clear, and not worth it
    one = Difference.of([0.5, 0.6, 0.55], [0.4, 0.5, 0.46])
    differences = np.array([0.1, 0.1, 0.09])
    assert one.mean == pytest.approx(differences.mean())
    assert one.low == pytest.approx(
        differences.mean() - 4.3027 * differences.std(ddof=1) / np.sqrt(3), abs=1e-4
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"structure": "dna"}, ModelError, "belongs to the base"),
        ({"out": "inside"}, ConfigError, "lies in the model"),
        ({"rate": 0.1}, ConfigError, "with their own rates"),
        ({"split": "train"}, ManifestError, "no image|held out"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, Mapping) else "",
)
def test_what_is_refused(
    base: Path, manifest: Path, tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    out = base / "runs" if change.get("out") == "inside" else tmp_path / "out"
    data, overrides = manifest, OVERRIDES
    if "rate" in change:
        overrides = TrainingOverrides(learning_rate=change["rate"])
    if "split" in change:
        from dataclasses import replace

        rows = [replace(row, split="train") for row in read_manifest(manifest).rows]
        data = tmp_path / "train.csv"
        write_manifest(data, rows)
    with pytest.raises(error, match=message):
        advise(base, change.get("structure", "nucleolus"), data, overrides, out=out)


@pytest.mark.slow
def test_a_trial_continues_from_its_checkpoint_and_an_added_structure_is_as_if_it_were_not(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_base(tmp_path / "model", checkpoint_every=1)
    add_untrained(path, "nucleolus")
    with monkeypatch.context() as patch:
        cut_off(patch, 1)
        with pytest.raises(Interruption):
            advise(path, "nucleolus", manifest, OVERRIDES, out=tmp_path / "out")
    assert list(tmp_path.glob("out/*/checkpoint"))
    assert "nucleolus" in Model.open(path).structures
    add_untrained(path, "mitochondria")
    with pytest.raises(ConfigError, match="other settings"):
        advise(path, "nucleolus", manifest, OVERRIDES, out=tmp_path / "out")
