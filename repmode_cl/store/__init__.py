"""The model directory: a base, one file per added structure, a registry, and proofs that nothing changed."""

from repmode_cl.store.candidate import Candidate, make_candidate
from repmode_cl.store.history import Change
from repmode_cl.store.pack_exchange import ImportResult
from repmode_cl.store.pack_format import Pack, read_pack
from repmode_cl.store.proof import Proof, prove
from repmode_cl.store.registry import Entry
from repmode_cl.store.staging import PendingStructure, list_pending, list_staged, stage, training_lock
from repmode_cl.store.verify import verify_model
from repmode_cl.store.verify_report import StructureResult, VerifyReport
from repmode_cl.store.versions import GarbageReport

__all__ = [
    "Candidate",
    "Change",
    "GarbageReport",
    "Entry",
    "Pack",
    "PendingStructure",
    "Proof",
    "StructureResult",
    "ImportResult",
    "VerifyReport",
    "make_candidate",
    "list_pending",
    "prove",
    "read_pack",
    "stage",
    "list_staged",
    "training_lock",
    "verify_model",
]
