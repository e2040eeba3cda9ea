"""Avalanche strategies: ours, and what it is compared with (imported as `repmode_cl.strategies`)."""

import repmode_cl.scenarios  # noqa: F401 - first: it imports Avalanche quietly
from repmode_cl.strategies.add import AddResult, add_structure
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.benchmark import run_benchmark
from repmode_cl.strategies.estimate import DryRun
from repmode_cl.strategies.experts_frozen import ExpertsFrozen
from repmode_cl.strategies.fine_tuning import FineTuning
from repmode_cl.strategies.multi_net import MultiNet, PlainNetworks
from repmode_cl.strategies.train import train_base

__all__ = [
    "AddResult",
    "DryRun",
    "ExpertsFrozen",
    "FineTuning",
    "MultiNet",
    "PlainNetworks",
    "StructureStrategy",
    "add_structure",
    "run_benchmark",
    "train_base",
]
