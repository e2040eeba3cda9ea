"""The model directory: a base, one file per added structure, a registry, and proofs that nothing changed."""

from repmode_cl.store.environment import environment_fingerprint
from repmode_cl.store.model import Model
from repmode_cl.store.proof import Proof, prove
from repmode_cl.store.registry import Entry
from repmode_cl.store.verify import StructureResult, VerifyReport, verify_model

__all__ = [
    "Entry",
    "Model",
    "Proof",
    "StructureResult",
    "VerifyReport",
    "environment_fingerprint",
    "prove",
    "verify_model",
]
