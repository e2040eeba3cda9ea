"""Avalanche strategies: ours, and those that it is compared with (imported as `repmode_cl.strategies`)."""

import warnings
from typing import Any

import repmode_cl.scenarios  # noqa: F401 - first: it imports Avalanche quietly
from repmode_cl.strategies.adapter import Adapter
from repmode_cl.strategies.agem import AGEM
from repmode_cl.strategies.base import StructureStrategy
from repmode_cl.strategies.conditioned import ConditionedStrategy
from repmode_cl.strategies.condnet import CondNetStrategy
from repmode_cl.strategies.cumulative import Cumulative
from repmode_cl.strategies.der_pp import DERPlusPlus
from repmode_cl.strategies.dodnet import DoDNetStrategy
from repmode_cl.strategies.ewc import EWC
from repmode_cl.strategies.experts_frozen import ExpertsFrozen
from repmode_cl.strategies.fine_tuning import FineTuning, FrozenEncoder
from repmode_cl.strategies.frozen_base import FrozenBase
from repmode_cl.strategies.frozen_trunk import FrozenTrunk
from repmode_cl.strategies.joint import Joint
from repmode_cl.strategies.lora import LoRA
from repmode_cl.strategies.lwf import LwF
from repmode_cl.strategies.mas import MAS
from repmode_cl.strategies.multi_head import MultiHead
from repmode_cl.strategies.multi_net import MultiNet, PlainNetworks
from repmode_cl.strategies.norm_only import NormOnly
from repmode_cl.strategies.packnet import PackNet
from repmode_cl.strategies.piggyback import Piggyback
from repmode_cl.strategies.pipo_fan import PIPOFANStrategy
from repmode_cl.strategies.progressive import Progressive
from repmode_cl.strategies.replay import Replay
from repmode_cl.strategies.ssf import SSF
from repmode_cl.strategies.synaptic_intelligence import SynapticIntelligence
from repmode_cl.strategies.tgnet import TGNetStrategy
from repmode_cl.strategies.tsns import TSNsStrategy
from repmode_cl.strategies.warm_copy import WarmCopy

__all__ = [
    "StructureStrategy",
    "ExpertsFrozen",
    "FineTuning",
    "FrozenEncoder",
    "MultiNet",
    "PlainNetworks",
    "MultiHead",
    "Replay",
    "AGEM",
    "EWC",
    "SynapticIntelligence",
    "MAS",
    "LwF",
    "Cumulative",
    "Joint",
    "DERPlusPlus",
    "WarmCopy",
    "FrozenTrunk",
    "FrozenBase",
    "NormOnly",
    "LoRA",
    "SSF",
    "Adapter",
    "Piggyback",
    "PackNet",
    "Progressive",
    "ConditionedStrategy",
    "DoDNetStrategy",
    "TGNetStrategy",
    "CondNetStrategy",
    "TSNsStrategy",
    "PIPOFANStrategy",
]

#: Names that classes had before, which are deprecated.
_RENAMED = {
    "AveragedGem": AGEM,
    "ElasticWeights": EWC,
    "LearningWithoutForgetting": LwF,
    "MemoryAwareSynapses": MAS,
}


def __getattr__(name: str) -> Any:
    """Return a class by the name that it had before, with a warning."""
    if name in _RENAMED:
        kind = _RENAMED[name]
        message = f"repmode_cl.strategies.{name} is deprecated: use {kind.__name__}"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return kind
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
