"""Files of tensors are the safetensors format, to the last byte checked, and errors name the file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from repmode_cl.errors import ModelError
from repmode_cl.utils import atomic_files as files
from repmode_cl.utils.safetensors_io import open_tensors, read_metadata, read_tensors, write_tensors
from repmode_cl.utils.tensor_digests import raw_bytes, raw_chunks, same_bits, stream_digest, tensor_digest

METADATA = {"format": "test", "text": 'é "quoted" \\ \n'}


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(4, 3, 5, 5, 5, generator=random).contiguous(
            memory_format=torch.channels_last_3d
        ),
        "half": torch.randn(7, generator=random).to(torch.bfloat16),
        "double": torch.randn(2, 6, generator=random, dtype=torch.float64).T,
        "state": torch.arange(5, dtype=torch.uint8),
        "mask": torch.tensor([True, False, True]),
        "count": torch.tensor(7),
        "none": torch.empty(0, 3),
        "odd": torch.tensor([float("nan"), -0.0, float("inf")]),
    }


def test_written_tensors_are_read_here_and_by_the_safetensors_library(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    write_tensors(ours, tensors, METADATA)
    plain = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    safetensors.torch.save_file(plain, theirs, metadata=METADATA)
    with safe_open(ours, framework="pt") as file:
        assert file.metadata() == METADATA
        assert all(same_bits(file.get_tensor(name), tensors[name]) for name in file.keys())  # noqa: SIM118
    for path in (ours, theirs):
        found, metadata = read_tensors(path)
        assert metadata == read_metadata(path) == METADATA
        assert set(found) == set(tensors)
        assert all(same_bits(found[name], tensors[name]) for name in tensors), path
    first = ours.read_bytes()
    write_tensors(ours, dict(reversed(tensors.items())), dict(reversed(METADATA.items())))
    assert ours.read_bytes() == first


def test_a_digest_in_chunks_is_the_same(
    monkeypatch: pytest.MonkeyPatch, tensors: dict[str, torch.Tensor]
) -> None:
    whole, bytes_ = tensor_digest(tensors, "facts"), bytes(raw_bytes(tensors["weight"]))
    monkeypatch.setattr("repmode_cl.utils.tensor_digests._CHUNK_BYTES", 2000)
    assert len(list(raw_chunks(tensors["weight"]))) == 4
    assert b"".join(raw_chunks(tensors["weight"])) == bytes_
    described = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    assert stream_digest(described, tensors.__getitem__, "facts") == whole
    with pytest.raises(ValueError, match="described as"):
        stream_digest(described | {"state": (torch.uint8, (6,))}, tensors.__getitem__)


def test_a_file_of_another_length_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "tensors.safetensors"
    write_tensors(path, tensors, METADATA)
    data = path.read_bytes()
    for short in (0, 7, 9, 40, len(data) - 1):
        path.write_bytes(data[:short])
        with pytest.raises(ModelError, match=r"tensors\.safetensors"):
            read_tensors(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(ModelError, match="its header describes"):
        read_tensors(path)
    path.unlink()
    with pytest.raises(ModelError, match="is missing"):
        read_tensors(path)


def test_a_file_cut_short_while_open_is_an_error_and_no_crash(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    path = tmp_path / "tensors.safetensors"
    write_tensors(path, tensors, METADATA)
    with open_tensors(path) as file:
        os.truncate(path, 600)
        with pytest.raises(ModelError, match="cut short"):
            file.read("odd")


def test_a_full_disk_is_an_error_that_names_the_file_and_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensors: dict[str, torch.Tensor]
) -> None:
    path = tmp_path / "tensors.safetensors"
    write_tensors(path, tensors, METADATA)
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=r"tensors\.safetensors") as error:
        write_tensors(path, {"count": torch.tensor(8)}, METADATA)
    assert error.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
