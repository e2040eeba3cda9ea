"""Avalanche strategies: ours, and what it is compared with (imported as `repmode_cl.strategies`)."""

import repmode_cl.scenarios  # noqa: F401 - first: it imports Avalanche quietly
from repmode_cl.strategies.a_gem import AveragedGem
from repmode_cl.strategies.add import AddResult, add_structure
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.beginning import Beginning
from repmode_cl.strategies.benchmark import UnitsFailedError, run_benchmark
from repmode_cl.strategies.compare import compare_structure
from repmode_cl.strategies.distillation import LearningWithoutForgetting
from repmode_cl.strategies.dry_run_add import AddDryRun, dry_run_add
from repmode_cl.strategies.estimate import DryRun
from repmode_cl.strategies.experts_frozen import ExpertsFrozen
from repmode_cl.strategies.fine_tuning import FineTuning, FrozenEncoder
from repmode_cl.strategies.joint import Joint
from repmode_cl.strategies.multi_head import MultiHead
from repmode_cl.strategies.multi_net import MultiNet, PlainNetworks
from repmode_cl.strategies.penalties import ElasticWeights, MemoryAwareSynapses
from repmode_cl.strategies.replay import Cumulative, Replay
from repmode_cl.strategies.synaptic_intelligence import SynapticIntelligence
from repmode_cl.strategies.train import train_base

__all__ = [
    "AddDryRun",
    "AddResult",
    "AveragedGem",
    "Beginning",
    "Cumulative",
    "DryRun",
    "ElasticWeights",
    "ExpertsFrozen",
    "FineTuning",
    "FrozenEncoder",
    "Joint",
    "LearningWithoutForgetting",
    "MemoryAwareSynapses",
    "MultiHead",
    "MultiNet",
    "PlainNetworks",
    "Replay",
    "StructureStrategy",
    "SynapticIntelligence",
    "UnitsFailedError",
    "add_structure",
    "compare_structure",
    "dry_run_add",
    "run_benchmark",
    "train_base",
]
