"""Avalanche strategies: ours, and what it is compared with (imported as `repmode_cl.strategies`)."""

from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.benchmark import run_benchmark
from repmode_cl.strategies.estimate import DryRun
from repmode_cl.strategies.experts_frozen import ExpertsFrozen
from repmode_cl.strategies.fine_tuning import FineTuning
from repmode_cl.strategies.multi_net import MultiNet, PlainNetworks

__all__ = [
    "DryRun",
    "ExpertsFrozen",
    "FineTuning",
    "MultiNet",
    "PlainNetworks",
    "StructureStrategy",
    "run_benchmark",
]
