"""Loading patches: the same batches whoever cuts them, by processes that know nothing of Avalanche."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from repmode_cl.data.patches.dataset import PatchDataset
from repmode_cl.data.sample import Sample
from repmode_cl.errors import ConfigError, ImageError, RepmodeError
from repmode_cl.training.patch_loader import PatchBatch, patch_loader

NAMES = ("dna", "nucleolus", "cell_membrane")

#: A dataset that writes down what the process that reads it has imported.
SPY = """
import os, sys, time
from pathlib import Path
from repmode_cl.data.patches.dataset import PatchDataset

if "--multiprocessing-fork" in sys.orig_argv and "SPY_STARTS_SLOWLY" in os.environ:
    Path(os.environ["SPY_FOLDER"], "starting").touch()
    time.sleep(3)

class Spy(PatchDataset):
    def read(self, index, signal, target):
        names = "\\n".join(sorted(sys.modules))
        Path(os.environ["SPY_FOLDER"], f"{os.getpid()}.txt").write_text(names)
        super().read(index, signal, target)
"""


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    made = []
    for number, (name, image) in enumerate((name, image) for name in NAMES for image in "ab"):
        signal = tmp_path / f"{name}-{image}.npy"
        np.save(signal, np.arange(6 * 12 * 10, dtype=np.float32).reshape(6, 12, 10) + 1000 * number)
        made.append(
            Sample(
                structure=name,
                split="train",
                row=number,
                image_id=image,
                signal=signal,
                target=signal,
                mask=None,
                shape=(6, 12, 10),
                group=image,
            )
        )
    return made


def patches(samples: list[Sample], length: int = 26, kind: type[PatchDataset] = PatchDataset) -> PatchDataset:
    return kind(samples, patch=(4, 8, 8), seed=0, length=length)


def same(a: PatchBatch, b: PatchBatch) -> bool:
    return (
        torch.equal(a.signal, b.signal) and torch.equal(a.target, b.target) and a.structures == b.structures
    )


def test_batches_are_the_dataset_s_items_in_its_order(samples: list[Sample]) -> None:
    data = patches(samples)
    batches = list(patch_loader(data, batch_size=8))
    assert [len(batch.structures) for batch in batches] == [8, 8, 8, 2]
    assert len(patch_loader(data, batch_size=8)) == 4
    for number, batch in enumerate(batches):
        assert batch.signal.shape[1:] == batch.target.shape[1:] == (1, 4, 8, 8)
        for place, structure in enumerate(batch.structures):
            x, y = data[8 * number + place]
            assert torch.equal(batch.signal[place], x)
            assert torch.equal(batch.target[place], y)
            assert structure == data.structure_of(8 * number + place)


def test_a_resumed_training_goes_on_where_it_stopped(samples: list[Sample]) -> None:
    data = patches(samples)
    whole = list(patch_loader(data, batch_size=8))
    assert all(map(same, whole[1:], patch_loader(data, batch_size=8, start=8)))
    assert list(patch_loader(data, batch_size=8, start=26)) == []


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_share_every_joint_batch(samples: list[Sample], world: int) -> None:
    data = patches(samples, length=32 + world)
    shares = [list(patch_loader(data, batch_size=8, rank=rank, world=world)) for rank in range(world)]
    for joint, *parts in zip(patch_loader(data, batch_size=8), *shares, strict=True):
        assert max(len(p.structures) for p in parts) - min(len(p.structures) for p in parts) <= 1
        assert torch.equal(torch.cat([part.signal for part in parts]), joint.signal)
        assert torch.equal(torch.cat([part.target for part in parts]), joint.target)
        assert sum((part.structures for part in parts), ()) == joint.structures


def test_what_no_process_could_compute_is_refused(samples: list[Sample]) -> None:
    data = patches(samples)
    for options in ({"rank": 2, "world": 2}, {"rank": -1, "world": 2}, {"start": 27}, {"workers": -1}):
        with pytest.raises(ValueError, match=r"rank|start|workers"):
            patch_loader(data, batch_size=8, **options)
    with pytest.raises(ValueError, match="fewer items than there are processes"):
        patch_loader(data, batch_size=2, world=4)
    with pytest.raises(
        ConfigError, match=r"last batch has 2 items, fewer than the 4 processes .*last_batch=cont"
    ):
        patch_loader(data, batch_size=8, world=4)


def test_loading_draws_no_random_number(samples: list[Sample]) -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    list(patch_loader(patches(samples), batch_size=8))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_error_comes_with_its_message(samples: list[Sample]) -> None:
    samples[3].target.unlink()
    with pytest.raises(ImageError, match=r"nucleolus-b\.npy: the prepared volume cannot be read") as caught:
        list(patch_loader(patches(samples), batch_size=8))
    assert "Traceback" not in str(caught.value)


# -- workers ----------------------------------------------------------------------------------------------------


@pytest.fixture
def spied(samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PatchDataset:
    """Return a dataset that leaves a file for each process that reads it."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "loading_spy.py").write_text(SPY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SPY_FOLDER", str(tmp_path / "modules"))
    from loading_spy import Spy

    return patches(samples, kind=Spy)


@pytest.mark.slow
def test_workers_give_the_same_batches_and_stay_until_closed(spied: PatchDataset, tmp_path: Path) -> None:
    import repmode_cl.scenarios  # noqa: F401 - what the parent has imported must not reach the workers

    assert "avalanche" in sys.modules
    alone = list(patch_loader(spied, batch_size=8))
    for file in (tmp_path / "modules").iterdir():
        file.unlink()
    loader = patch_loader(spied, batch_size=8, workers=2)
    first = list(loader)
    processes = {int(file.stem) for file in (tmp_path / "modules").iterdir()}
    assert len(processes) == 2
    assert os.getpid() not in processes
    assert len(first) == len(alone) == len(loader)
    assert all(map(same, first, alone))
    assert same(next(iter(loader)), alone[0])  # stopped early, and begun again:
    assert all(map(same, loader, alone))
    assert {int(file.stem) for file in (tmp_path / "modules").iterdir()} == processes
    for file in (tmp_path / "modules").iterdir():
        imported = file.read_text().split()
        assert "torch" in imported
        heavy = {"avalanche", "torchvision", "matplotlib", "tifffile", "pydantic", "scipy", "pytest"}
        assert not heavy & {name.partition(".")[0] for name in imported}
        # Seconds and a hundred megabytes, for what a loader does not need.
        assert not {"torch._dynamo", "repmode_cl.training", "repmode_cl.nn"} & set(imported)
    loader.close()
    deadline = time.monotonic() + 20
    while processes & {child.pid for child in multiprocessing.active_children()}:
        assert time.monotonic() < deadline, "workers are still there"
        time.sleep(0.05)


def test_a_worker_s_error_comes_with_its_message_and_ends_all(samples: list[Sample]) -> None:
    samples[3].target.unlink()
    with pytest.raises(ImageError, match=r"nucleolus-b\.npy: the prepared volume cannot be read") as caught:
        list(patch_loader(patches(samples), batch_size=8, workers=1))
    assert "Traceback" not in str(caught.value)


@pytest.mark.slow
def test_a_killed_worker_raises_an_error(spied: PatchDataset, tmp_path: Path) -> None:
    batches = iter(patch_loader(spied, batch_size=1, workers=1))
    next(batches)
    [file] = (tmp_path / "modules").iterdir()
    os.kill(int(file.stem), signal.SIGTERM)
    with pytest.raises(RepmodeError, match=r"ended by the system.*training\.loader_workers"):
        list(batches)


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
print("script runs", flush=True)
import pickle, time
from pathlib import Path
import only_the_script_s
from repmode_cl.training.patch_loader import patch_loader
data = pickle.loads(Path(sys.argv[2]).read_bytes())
print("starting", flush=True)
for number, batch in enumerate(patch_loader(data, batch_size=2, workers=1)):
    print("batch", number, flush=True)
    if number == 3:
        time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows sends no Ctrl-C to a process group")
@pytest.mark.parametrize("when", [pytest.param("starting", marks=pytest.mark.slow), "loading"])
def test_a_script_without_a_main_guard_works_and_ctrl_c_ends_it_cleanly(
    spied: PatchDataset, tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if when == "starting":
        monkeypatch.setenv("SPY_STARTS_SLOWLY", "")
    started = tmp_path / "modules" / "starting"
    (tmp_path / "only_the_script_s.py").write_text("")
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "data.pickle").write_bytes(pickle.dumps(spied))
    process = subprocess.Popen(
        [
            sys.executable,
            *("-W", "error"),
            *(str(tmp_path / name) for name in ("script.py", "", "data.pickle")),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    expected = ["script runs\n", "starting\n"]
    if when == "loading":
        expected += [f"batch {number}\n" for number in range(4)]
    assert [process.stdout.readline() for _ in expected] == expected
    deadline = time.monotonic() + 60
    while when == "starting" and not started.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    rest, errors = process.communicate(timeout=120)
    assert rest == ""  # the script was not run again by its workers
    assert errors.count("Traceback") == 1
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert "spawn_main" not in errors
    for file in (tmp_path / "modules").glob("*.txt"):
        assert "only_the_script_s" not in file.read_text().split()
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.stem), 0)
