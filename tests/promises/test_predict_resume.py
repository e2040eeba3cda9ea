"""Interrupted predictions: killed at any instant, the same call ends with the same file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from stored_model import make_predictor
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.errors import RepmodeError
from repmode_cl.inference.options import PredictedFile
from repmode_cl.inference.predict_file import predict_file
from repmode_cl.inference.streaming.journal import PredictionJournal
from repmode_cl.inference.streaming.memory_plan import MemoryNeeds
from repmode_cl.inference.streaming.run import PredictionStopped
from repmode_cl.inference.writers import remove_path
from repmode_cl.model import Model

VOXEL = (0.5, 0.3, 0.3)
OTHER = (0.7, 0.3, 0.35)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_predictor(tmp_path_factory.mktemp("models") / "model", VOXEL, (6, 8, 8))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "in.npy"
    np.save(path, np.random.default_rng(0).integers(0, 3000, (13, 21, 45)).astype(np.uint16))
    return path


def attempt(
    model: Model, image: Path, out: Path, *, voxel: tuple[float, ...] = VOXEL, stop: int | None = None
) -> list[PredictedFile] | None:
    try:
        return predict_file(
            model, ["dna", "golgi"], image, out, device="cpu", voxel_size=voxel, stop_after_windows=stop
        )
    except PredictionStopped:
        return None


def journal(out: Path) -> dict:
    return json.loads((out / "dna.ome.tif.unfinished" / "journal.json").read_text())["done"]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    ("step", "voxel"),
    [
        pytest.param(12, OTHER, marks=pytest.mark.slow),
        (50, VOXEL),
        pytest.param(12, VOXEL, marks=pytest.mark.slow),
        pytest.param(50, OTHER, marks=pytest.mark.slow),
    ],
)
def test_stopped_again_and_again_it_ends_with_the_same_bytes(model, image, tmp_path, voxel, step):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert attempt(model, image, whole, voxel=voxel) is not None
    done = [0]
    while attempt(model, image, out, voxel=voxel, stop=step) is None:
        assert not list(out.glob("*.tif")), "nothing has its own name before it is whole"
        done.append(journal(out)["blocks"])
        assert done[-1] > done[-2]
    assert len(done) > 4
    assert content(out) == content(whole)


@pytest.mark.slow
@pytest.mark.parametrize("voxel", [VOXEL, pytest.param(OTHER, marks=pytest.mark.slow)])
def test_a_death_just_before_or_after_any_write_of_the_journal(model, image, tmp_path, monkeypatch, voxel):
    np.save(image, np.load(image)[:7, :18, :37])
    out, copies = tmp_path / "out", tmp_path / "copies"
    states = []

    def save(self, _real=PredictionJournal.save, **changes):
        for then in (lambda: _real(self, **changes), lambda: None):
            states.append(copies / f"{len(states)}")
            shutil.copytree(self.folder.parent, states[-1], ignore=shutil.ignore_patterns("lock"))
            then()

    monkeypatch.setattr(PredictionJournal, "save", save)
    assert attempt(model, image, out, voxel=voxel) is not None
    monkeypatch.undo()
    want = content(out)
    assert len(states) > 20
    for state in states:
        shutil.rmtree(out)
        shutil.move(state, out)
        assert attempt(model, image, out, voxel=voxel) is not None
        assert content(out) == want


@pytest.mark.parametrize(
    ("suffix", "stack"), [(".ome.zarr", True), (".ome.zarr", False), (".ome.tif", False)]
)
def test_a_death_at_any_file_that_is_written(model, image, tmp_path, monkeypatch, suffix, stack):
    """Killed at any write, or just before a folder is put in place of another: the old one or the new one."""
    from repmode_cl.inference import writers
    from repmode_cl.inference.writers import ome_tiff, ome_zarr

    np.save(image, np.load(image)[:5, :9, :11])
    names = ["dna", "golgi"]
    out = tmp_path / "out" / (f"stack{suffix}" if stack else f"{{structure}}{suffix}")
    settings = {"device": "cpu", "voxel_size": OTHER, "stack": stack}
    predict_file(model, names, image, out, rescale="-1:1", **settings)
    old = tree(tmp_path / "out")
    predict_file(model, names, image, out, **settings)
    new = tree(tmp_path / "out")
    count, fatal = 0, 0

    def dying(real, counts=lambda *args: True):
        def call(*args, **kwargs):
            nonlocal count
            count += counts(*args)
            if count == fatal:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr(ome_zarr, "_write", dying(ome_zarr._write))
    monkeypatch.setattr(ome_tiff, "_tiles", dying(ome_tiff._tiles))
    monkeypatch.setattr(Path, "replace", dying(Path.replace, lambda path, _: path.is_dir()))
    monkeypatch.setattr(writers, "put_in_place", dying(writers.put_in_place))
    deaths = 0
    while fatal < 100:
        fatal += 1
        shutil.rmtree(tmp_path / "out")
        for name, data in old.items():
            (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "out" / name).write_bytes(data)
        count = 0
        try:
            predict_file(model, names, image, out, **settings)
            break
        except KeyboardInterrupt:
            deaths += 1
        whole = {name: data for name, data in tree(tmp_path / "out").items() if ".unfinished" not in name}
        seen = {name: data for name, data in whole.items() if ".part" not in name}
        for top in {name.split("/")[0] for name in seen}:
            held = {name: data for name, data in seen.items() if name.split("/")[0] == top}
            states = [{n: d for n, d in state.items() if n.split("/")[0] == top} for state in (old, new)]
            assert held in states, f"half of {top}"
        count = -(10**6)
        predict_file(model, names, image, out, **settings)
        assert tree(tmp_path / "out") == new
    assert deaths >= (4 if suffix == ".ome.tif" else 7)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_killed_command_continues(model, image, tmp_path):
    options = ["--all", "--device", "cpu", "--voxel-size", "0.5,0.3,0.3", "--overlap", "0.6"]
    code = "import sys; from repmode_cl.cli.app import main; main()"
    out = tmp_path / "out"
    call = [sys.executable, "-c", code, "predict", str(model.path), str(image), str(out), *options]
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            if journal(out).get("blocks", 0) >= 2:
                break
        except (FileNotFoundError, json.JSONDecodeError, PermissionError):
            pass
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode != 0, "it ended before it was killed"
    begun = journal(out)["blocks"]
    assert begun >= 2
    assert not list(out.glob("*.tif"))
    seen = []
    voxel, names = VOXEL, list(model.structures)
    settings = {"device": "cpu", "voxel_size": voxel, "overlap": 0.6}
    predict_file(model, names, image, out, progress=lambda done, total: seen.append(done), **settings)
    assert seen[0] > 0
    predict_file(model, names, image, tmp_path / "whole", **settings)
    assert content(out) == content(tmp_path / "whole")


def test_other_settings_are_refused_without_restart(model, image, tmp_path):
    out = tmp_path / "out.npy"
    with pytest.raises(PredictionStopped):
        predict_file(model, "dna", image, out, device="cpu", voxel_size=VOXEL, stop_after_windows=20)
    with pytest.raises(RepmodeError, match=r"overlap was 0\.5, is 0\.25.*--restart"):
        predict_file(model, "dna", image, out, device="cpu", voxel_size=VOXEL, overlap=0.25)
    with pytest.raises(RepmodeError, match=r"structures was .*dna.* is .*golgi"):
        predict_file(model, "golgi", image, out, device="cpu", voxel_size=VOXEL)
    predict_file(model, "golgi", image, out, device="cpu", voxel_size=VOXEL, restart=True)
    predict_file(model, "golgi", image, tmp_path / "again.npy", device="cpu", voxel_size=VOXEL)
    assert out.read_bytes() == (tmp_path / "again.npy").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.npy", "in.npy", "out.npy"]


def test_a_changed_input_is_noticed(model, image, tmp_path):
    assert attempt(model, image, tmp_path / "out", stop=20) is None
    volume = np.load(image)
    volume[0, 0, 0] += 1
    np.save(image, volume)
    with pytest.raises(RepmodeError, match="input was"):
        attempt(model, image, tmp_path / "out")


@pytest.mark.parametrize("missing", ["dna.result", "dna.layer-0", "golgi.row-1"])
def test_missing_scratch_files_are_named(model, image, tmp_path, missing):
    out = tmp_path / "out"
    assert attempt(model, image, out, stop=100) is None
    [path] = out.rglob(missing)
    path.unlink()
    with pytest.raises(RepmodeError, match=f"{missing}: is missing.*--restart"):
        attempt(model, image, out)


@pytest.mark.parametrize("suffix", [".ome.tif", ".ome.zarr"])
def test_a_part_that_goes_before_it_is_put_in_place_is_named(model, image, tmp_path, monkeypatch, suffix):
    from repmode_cl.inference.streaming import outputs

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    names, out = ["dna", "golgi"], tmp_path / f"{{structure}}{suffix}"
    monkeypatch.setattr(outputs, "move_into_place", stop)
    with pytest.raises(KeyboardInterrupt):
        predict_file(model, names, image, out, device="cpu", voxel_size=VOXEL)
    monkeypatch.undo()
    part = tmp_path / f"dna{suffix}.part"
    remove_path(part)
    with pytest.raises(RepmodeError, match=rf"{part.name}: is missing"):
        predict_file(model, names, image, out, device="cpu", voxel_size=VOXEL)


def test_a_damaged_journal_is_refused_and_restarted(model, image, tmp_path):
    out = tmp_path / "out"
    assert attempt(model, image, out, stop=40) is None
    file = out / "dna.ome.tif.unfinished" / "journal.json"
    for text in ("{", '{"format": "another"}'):
        file.write_text(text)
        with pytest.raises(RepmodeError, match="--restart"):
            attempt(model, image, out)
    names = ["dna", "golgi"]
    assert predict_file(model, names, image, out, device="cpu", voxel_size=VOXEL, restart=True)
    assert sorted(content(out)) == ["dna.ome.tif", "golgi.ome.tif"]


def test_two_processes_do_not_predict_the_same_file(model, image, tmp_path):
    folder = tmp_path / "out.npy.unfinished"
    folder.mkdir()
    with FileLock(folder / "lock"), pytest.raises(RepmodeError, match="another process"):
        predict_file(model, "dna", image, tmp_path / "out.npy", device="cpu", voxel_size=VOXEL)


def test_a_call_for_one_of_several_files_does_not_touch_the_others_part(model, image, tmp_path):
    whole = tmp_path / "whole"
    assert attempt(model, image, whole) is not None
    out = tmp_path / "out"
    assert attempt(model, image, out, stop=100) is None
    single = {"device": "cpu", "voxel_size": VOXEL}
    # Another call to the file of the second structure: begun, interrupted, and refused for its memory.
    with pytest.raises(PredictionStopped):
        predict_file(
            model, "golgi", image, out / "golgi.ome.tif", stop_after_windows=12, overlap=0.25, **single
        )
    with pytest.raises(RepmodeError):
        predict_file(model, "golgi", image, out / "golgi.ome.tif", memory="1kB", **single)
    assert attempt(model, image, out) is not None
    for name in ("dna.ome.tif", "golgi.ome.tif"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_a_refusal_keeps_the_image_that_was_prepared(model, image, tmp_path, monkeypatch):
    from repmode_cl.inference.streaming import run as streaming_run

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    monkeypatch.setattr(streaming_run, "z_score_of", stop)
    with pytest.raises(KeyboardInterrupt):
        attempt(model, image, out, voxel=OTHER)
    monkeypatch.undo()
    prepared = out / "dna.ome.tif.unfinished" / "prepared"
    before = prepared.stat().st_mtime_ns
    with pytest.raises(RepmodeError):
        predict_file(model, ["dna", "golgi"], image, out, device="cpu", voxel_size=OTHER, memory="1kB")
    assert prepared.stat().st_mtime_ns == before
    monkeypatch.setattr(
        streaming_run.shutil, "disk_usage", lambda _: pytest.fail("the space is used already")
    )
    assert attempt(model, image, out, voxel=OTHER) is not None


def test_less_memory_than_at_the_beginning_is_refused(model, image, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert attempt(model, image, out, stop=40) is None
    monkeypatch.setattr(MemoryNeeds, "total", lambda self, blocks, batch: batch * 10**12)
    with pytest.raises(RepmodeError, match=r"3 at a time.*--restart"):
        predict_file(model, ["dna", "golgi"], image, out, device="cpu", voxel_size=VOXEL, memory="1.5TB")
    monkeypatch.undo()
    assert attempt(model, image, out) is not None


def test_an_interrupted_command_says_how_to_continue(model, image, tmp_path, monkeypatch):
    from repmode_cl.inference.streaming import run as streaming_run

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(streaming_run, "z_score_of", interrupt)
    words = [
        "predict",
        str(model.path),
        str(image),
        str(tmp_path / "out.npy"),
        "--structure",
        "dna",
        "--voxel-size",
        "0.5,0.3,0.3",
        "--restart",
    ]
    monkeypatch.setattr(sys, "argv", ["repmode-cl", *words])
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 130
    message = f"continue with: repmode-cl {' '.join(words[:-1])}\n"
    assert message in result.stderr
