"""Packs that lie: written as someone would who knows the format and takes every digest again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from repmode_cl.utils.atomic_files import canonical_json
from repmode_cl.utils.tensor_digests import json_digest, tensor_digest


@dataclass
class Forgery:
    """The parts of a pack, to be changed and written out again.

    Attributes
    ----------
    tensors
        The structure's, and ``proof.<name>.<key>``.
    entry, record
        The JSON objects of the metadata.
    version
        Format version.
    more
        Further metadata.
    honest
        Take digests and parameters again when it is written, so that nothing contradicts itself.
    """

    tensors: dict[str, Tensor]
    entry: dict[str, Any]
    record: dict[str, Any]
    version: str = "2"
    more: dict[str, str] = field(default_factory=dict)
    honest: bool = True

    @classmethod
    def of(cls, pack: Path) -> Forgery:
        with safe_open(pack, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return cls(
            tensors, json.loads(metadata["entry"]), json.loads(metadata["record"]), metadata["version"]
        )

    def rename(self, name: str) -> None:
        """Give it another name, everywhere."""
        before = f"proof.{self.entry['name']}."
        self.tensors = {
            key.replace(before, f"proof.{name}.", 1): tensor for key, tensor in self.tensors.items()
        }
        self.entry["name"] = self.record["facts"]["structure"] = name

    def needs(self, names: list[str], digests: list[str]) -> None:
        """Let it need other structures, everywhere."""
        pairs = list(zip(names, digests, strict=True))
        self.entry["needs"] = [{"name": name, "digest": digest} for name, digest in pairs]
        self.record["facts"]["needs"] = [list(pair) for pair in pairs]
        self.spec(sees="all", needs=names)

    def spec(self, **values: Any) -> None:
        """Change how it was added, everywhere."""
        self.entry["spec"] |= values
        self.record["facts"]["spec"] = self.entry["spec"]

    def write(self, path: Path) -> Path:
        if self.honest:
            own = f"proof.{self.entry['name']}."
            state = {k: v for k, v in self.tensors.items() if not k.startswith("proof.")}
            references = {k.removeprefix(own): v for k, v in self.tensors.items() if k.startswith("proof.")}
            digest = tensor_digest(state, self.record["facts"])
            self.entry["digest"] = self.record["digest"] = digest
            self.entry["proof"]["reference_digest"] = tensor_digest(references)
            self.entry["parameters"] = sum(v.numel() for v in state.values() if v.is_floating_point())
        texts = {
            "version": self.version,
            "record": canonical_json(self.record),
            "entry": canonical_json(self.entry),
        }
        metadata = {"format": "repmode-cl record", **texts, "checksum": json_digest(texts), **self.more}
        safetensors.torch.save_file(self.tensors, path, metadata)
        return path


Change = Callable[[Forgery], object]


def first(forgery: Forgery, part: str) -> str:
    """Return the name of the first tensor that has `part` in it."""
    return next(name for name in sorted(forgery.tensors) if part in name)


def with_header(text: bytes, data: bytes = b"") -> bytes:
    """Return a safetensors file with this header."""
    return len(text).to_bytes(8, "little") + text + data


class Malice:
    """Pickle that acts when it is loaded: here, it touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def malicious_files(folder: Path) -> dict[str, Path]:
    """Return files that run a program where they are unpickled, by their making; each touches ``<folder>/run``."""
    import pickle

    evil = Malice(folder / "run")
    (folder / "plain").write_bytes(pickle.dumps(evil))
    torch.save({"weight": torch.zeros(2), "evil": evil}, folder / "zip")
    torch.save({"evil": evil}, folder / "old", _use_new_zipfile_serialization=False)
    return {name: folder / name for name in ("plain", "zip", "old")}
