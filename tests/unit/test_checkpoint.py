"""A checkpoint gives back exactly what was put in, at whatever instant a process dies."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from repmode_cl.errors import ModelError
from repmode_cl.training import checkpoint as checkpoint_module
from repmode_cl.training.checkpoint import (
    capture,
    flatten,
    has_checkpoint,
    load_checkpoint,
    reinstate,
    restore,
    save_checkpoint,
)

OPTIMISERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2, weight_decay=1e-3),
    "adamw_amsgrad": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, amsgrad=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9, nesterov=True),
}
SCHEDULES = {
    "one_cycle": lambda optimiser: torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=12),
    "cosine": lambda optimiser: torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=12),
    "constant": lambda optimiser: torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1.0),
}


class Training:
    """A toy whose steps draw from all three random number generators."""

    def __init__(self, optimiser: str, schedule: str) -> None:
        self.network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.optimizer = OPTIMISERS[optimiser](self.network.parameters())
        self.scheduler = SCHEDULES[schedule](self.optimizer)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            x = torch.randn(5, 3) * random.random() + float(np.random.rand())
            self.optimizer.zero_grad()
            self.network(x).square().mean().backward()
            self.optimizer.step()
            self.scheduler.step()

    def save(self, folder: Path) -> None:
        tensors, state = capture(optimizer=self.optimizer, scheduler=self.scheduler, scaler=None)
        tensors |= {f"network.{name}": value for name, value in self.network.state_dict().items()}
        save_checkpoint(folder, tensors=tensors, state={"training": state})

    def load(self, folder: Path) -> None:
        tensors, state = load_checkpoint(folder)
        prefix = "network."
        self.network.load_state_dict(
            {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        )
        reinstate(tensors, state["training"], optimizer=self.optimizer, scheduler=self.scheduler, scaler=None)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_going_on_gives_the_same_bits(tmp_path: Path, optimiser: str, schedule: str) -> None:
    torch.manual_seed(0)
    whole = Training(optimiser, schedule)
    whole.run(5)
    whole.save(tmp_path)
    whole.run(5)

    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    resumed = Training(optimiser, schedule)
    resumed.run(2)
    resumed.load(tmp_path)
    resumed.run(5)

    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name
    assert whole.scheduler.get_last_lr() == resumed.scheduler.get_last_lr()


def test_any_nested_value_comes_back(tmp_path: Path) -> None:
    value = {
        "a": [1, 2.5, None, True, "text"],
        3: (math.inf, {"tensor": torch.arange(6.0).reshape(2, 3).T}, ()),
        "bf16": torch.randn(3).bfloat16(),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "array": np.arange(4, dtype=np.uint32).reshape(2, 2),
        "empty": {},
    }
    tensors, state = flatten(value, "v")
    save_checkpoint(tmp_path, tensors=tensors, state=state)
    loaded = load_checkpoint(tmp_path)
    back = restore(loaded.state, loaded.tensors)
    assert list(back) == list(value)
    assert back["a"] == value["a"]
    assert back[3][0] == math.inf
    assert torch.equal(back[3][1]["tensor"], value[3][1]["tensor"])
    assert back[3][2] == ()
    assert torch.equal(back["bf16"], value["bf16"])
    assert back["bf16"].dtype == torch.bfloat16
    assert back["scalar"].shape == ()
    np.testing.assert_array_equal(back["array"], value["array"])
    assert back["array"].dtype == np.uint32
    assert math.isnan(restore(*reversed(flatten(math.nan, "v"))))


def test_tensors_that_share_memory_are_stored_apart(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    save_checkpoint(tmp_path, tensors={"a": whole, "b": whole, "c": whole[2:4]}, state=None)
    loaded = load_checkpoint(tmp_path).tensors
    assert torch.equal(loaded["b"], whole)
    assert torch.equal(loaded["c"], whole[2:4])


def test_what_could_only_be_pickled_is_refused() -> None:
    with pytest.raises(TypeError, match=r"v\.f.*function"):
        flatten({"f": lambda: None}, "v")
    with pytest.raises(TypeError, match="key"):
        flatten({(1, 2): 3}, "v")


@pytest.mark.parametrize(
    "array",
    [np.array(["dna", "golgi"]), np.array([{"a": 1}], object), np.array([b"a"]), np.zeros(2, "i4,f4")],
)
def test_arrays_that_are_not_of_numbers_are_refused(array: np.ndarray) -> None:
    with pytest.raises(TypeError, match=r"v\.names: an array of .* cannot be stored"):
        flatten({"names": array}, "v")


@pytest.mark.parametrize("value", [torch.ones(2), np.ones(2)])
def test_a_tensor_among_the_values_is_refused_when_saving(tmp_path: Path, value: object) -> None:
    with pytest.raises(TypeError, match=r"state\.own\.anchor: a tensor or array among the values"):
        save_checkpoint(tmp_path / "new", tensors={}, state={"own": {"anchor": value}})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "value",
    [
        {"a.b": torch.tensor(1), "a": {"b": torch.tensor(2)}},
        {1: torch.tensor(1), "1": np.array(2)},
        {"a": {"b": torch.tensor(1), "b~": torch.tensor(2)}, "a.b": torch.tensor(3)},
    ],
)
def test_places_with_one_name_are_kept_apart(tmp_path: Path, value: dict[object, object]) -> None:
    tensors, state = flatten(value, "v")
    save_checkpoint(tmp_path, tensors=tensors, state=state)
    loaded = load_checkpoint(tmp_path)
    back = restore(loaded.state, loaded.tensors)
    assert list(back) == list(value)
    assert str(back) == str(value)


def _number(folder: Path) -> int:
    return int(load_checkpoint(folder).tensors["step"])


def _save(folder: Path, step: int) -> None:
    save_checkpoint(folder, tensors={"step": torch.tensor(step)}, state={"step": step})


def test_two_are_kept_and_left_overs_go(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    (tmp_path / "00000001.writing-abcd.safetensors").write_bytes(b"half")
    for step in (2, 3, 4):
        _save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "00000003.json",
        "00000003.safetensors",
        "00000004.json",
        "00000004.safetensors",
        "latest.json",
    ]
    assert _number(tmp_path) == 4


@pytest.mark.parametrize("dies_at", [1, 2, 3])
def test_a_process_killed_while_writing_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    _save(tmp_path, 1)
    _save(tmp_path, 2)
    import repmode_cl.utils.atomic_files as files

    replaced = 0
    replace = files.os.replace

    def die(source: Path, target: Path) -> None:
        nonlocal replaced
        replaced += 1
        if replaced == dies_at:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            _save(tmp_path, 3)
    assert _number(tmp_path) == 2
    _save(tmp_path, 4)
    assert _number(tmp_path) == 4


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, suffix: str) -> None:
    _save(tmp_path, 1)
    _save(tmp_path, 2)
    path = tmp_path / f"00000002.{suffix}"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert _number(tmp_path) == 1
    (tmp_path / "00000001.json").unlink()
    with pytest.raises(ModelError, match=r"00000002.*damaged.*00000001\.json is missing"):
        load_checkpoint(tmp_path)


def test_the_checkpoint_that_was_loaded_is_kept_in_place_of_a_damaged_one(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    _save(tmp_path, 2)
    (tmp_path / "00000002.safetensors").write_bytes(b"damaged")
    assert _number(tmp_path) == 1
    _save(tmp_path, 3)
    stored = {path.stem for path in tmp_path.iterdir()}
    assert stored == {"00000001", "00000003", "latest"}
    (tmp_path / "00000003.safetensors").write_bytes(b"damaged")
    assert _number(tmp_path) == 1
    _save(tmp_path, 4)
    _save(tmp_path, 5)
    assert {path.stem for path in tmp_path.iterdir()} == {"00000004", "00000005", "latest"}


def test_no_checkpoint_and_unknown_versions_are_said(tmp_path: Path) -> None:
    assert not has_checkpoint(tmp_path)
    with pytest.raises(ModelError, match="holds no checkpoint"):
        load_checkpoint(tmp_path)
    _save(tmp_path, 1)
    pointer = tmp_path / checkpoint_module.POINTER
    pointer.write_text(pointer.read_text().replace('"version": 1', '"version": 9'))
    with pytest.raises(ModelError, match="version 9"):
        load_checkpoint(tmp_path)
    pointer.write_text("{")
    with pytest.raises(ModelError, match=r"latest\.json cannot be read"):
        load_checkpoint(tmp_path)
