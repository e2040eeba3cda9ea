"""Avalanche strategies: ours, and what it is compared with (imported as `repmode_cl.strategies`)."""

import repmode_cl.scenarios  # noqa: F401 - first: it imports Avalanche quietly
from repmode_cl.strategies.agem import AGEM
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.cumulative import Cumulative
from repmode_cl.strategies.ewc import EWC
from repmode_cl.strategies.experts_frozen import ExpertsFrozen
from repmode_cl.strategies.fine_tuning import FineTuning, FrozenEncoder
from repmode_cl.strategies.joint import Joint
from repmode_cl.strategies.lwf import LwF
from repmode_cl.strategies.mas import MAS
from repmode_cl.strategies.multi_head import MultiHead
from repmode_cl.strategies.multi_net import MultiNet, PlainNetworks
from repmode_cl.strategies.replay import Replay
from repmode_cl.strategies.synaptic_intelligence import SynapticIntelligence

__all__ = [
    "AGEM",
    "Cumulative",
    "EWC",
    "ExpertsFrozen",
    "FineTuning",
    "FrozenEncoder",
    "Joint",
    "LwF",
    "MAS",
    "MultiHead",
    "MultiNet",
    "PlainNetworks",
    "Replay",
    "StructureStrategy",
    "SynapticIntelligence",
]
