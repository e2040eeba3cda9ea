"""A trained base that strategies share: those that start with identical networks and patches train it once."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from repmode_cl.data.sample import digest_of
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.plugins.peak_memory import PeakMemory
from repmode_cl.strategies.state import TrainingProgress
from repmode_cl.training import has_checkpoint, load_checkpoint, save_checkpoint

__all__ = ["SharedBase", "base_folder"]


def base_folder(key: str, stream: str, seed: int) -> Path:
    """Return the folder of a shared base, relative to the run's folder.

    Parameters
    ----------
    key
        `StructureStrategy.base_key`.
    stream
        Name of the first stream that starts with these structures.
    seed
        Seed of weights and patches.
    """
    name = re.sub(r"[^a-z0-9_-]+", "-", key.lower())
    if name != key:
        name += f"-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    return Path("base", name, stream, f"seed-{seed}") if stream else Path("base", name, f"seed-{seed}")


class SharedBase:
    """One trained base, stored in the format of a checkpoint.

    Parameters
    ----------
    folder
        Its folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def trained(self) -> bool:
        """True once it is trained and stored."""
        return has_checkpoint(self.folder)

    def save(self, strategy: StructureStrategy, memory: int | None) -> None:
        """Store the network of a strategy that has learned its first experience, for other strategies.

        Parameters
        ----------
        strategy
            Has just trained; its progress is that of the base.
        memory
            Peak bytes of that training; None if they were not measured.
        """
        state: dict[str, Any] = {
            "progress": asdict(strategy.progress),
            "memory": memory,
            "seen": [[*key, count] for key, count in strategy.trained_patches.get(0, Counter()).items()],
            "of": _content_digest(strategy),
        }
        save_checkpoint(self.folder, tensors=strategy.network.state_dict(), state=state)

    def load(self, strategy: StructureStrategy, memory: PeakMemory) -> bool:
        """Load the base into a strategy, which adopts it in place of training its first experience.

        Parameters
        ----------
        strategy
            Its network and progress become those of the base.
        memory
            Its peak becomes that of training the base.

        Returns
        -------
        bool
            False if there is none that fits; nothing is changed then.
        """
        if not self.trained:
            return False
        tensors, state = load_checkpoint(self.folder)
        if state["of"] != _content_digest(strategy):
            return False
        strategy.network.load_state_dict(tensors)
        strategy.trained_patches[0] = Counter(
            {(structure, image): count for structure, image, count in state["seen"]}
        )
        memory.peak = state["memory"]
        strategy.adopt_experience(strategy.stream.train[0], TrainingProgress(**state["progress"]))
        return True


def _content_digest(strategy: StructureStrategy) -> str:
    """Return a digest of what decides every bit of the base besides the run's configuration and seed."""
    stream = strategy.stream
    images = [part for sample in stream.images[0] for part in (sample.structure, *sample.content, sample.row)]
    return digest_of(*stream.experiences[0], len(stream.patches[0]), *images).hex()
