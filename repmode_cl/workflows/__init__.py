"""Train a base, add a structure, compare ways to learn one."""

from repmode_cl.workflows.add_structure import AddResult, add_structure
from repmode_cl.workflows.addition_dry_run import AddDryRun, dry_run_add
from repmode_cl.workflows.compare_structure import compare_structure
from repmode_cl.workflows.initialisation import Initialisation
from repmode_cl.workflows.train_base import train_base

__all__ = [
    "AddResult",
    "add_structure",
    "AddDryRun",
    "dry_run_add",
    "compare_structure",
    "Initialisation",
    "train_base",
]
