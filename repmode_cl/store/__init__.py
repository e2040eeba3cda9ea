"""The model directory: a base, one file per added structure, a registry, and proofs that nothing changed."""

from repmode_cl.store.candidates import Candidate, make_candidate
from repmode_cl.store.changes import Collected
from repmode_cl.store.environment import environment_fingerprint
from repmode_cl.store.exchange import Taken
from repmode_cl.store.history import Change
from repmode_cl.store.model import Model
from repmode_cl.store.packs import Pack, read_pack
from repmode_cl.store.proof import Proof, prove
from repmode_cl.store.registry import Entry
from repmode_cl.store.staging import Pending, pending, stage, staged, training_lock
from repmode_cl.store.verify import StructureResult, VerifyReport, verify_model

__all__ = [
    "Candidate",
    "Change",
    "Collected",
    "Entry",
    "Model",
    "Pack",
    "Pending",
    "Proof",
    "StructureResult",
    "Taken",
    "VerifyReport",
    "environment_fingerprint",
    "make_candidate",
    "pending",
    "prove",
    "read_pack",
    "stage",
    "staged",
    "training_lock",
    "verify_model",
]
