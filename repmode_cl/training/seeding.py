"""Seeds of the random number generators of an experience, so that it does not depend on what came before."""

from __future__ import annotations

import random

import numpy as np
import torch

from repmode_cl.data.sample import digest_of

__all__ = ["seed_generators"]


def seed_generators(*parts: int | str) -> None:
    """Seed the generators of python, numpy and torch from `parts`, such as a seed and the number of an experience."""
    digest = digest_of("benchmark", *parts)
    random.seed(digest)
    np.random.seed(np.frombuffer(digest, "<u4"))
    torch.manual_seed(int.from_bytes(digest[:7], "little"))
