"""What a training loop needs and Avalanche lacks: budget, precision, schedule, selection, checkpoints."""

from repmode_cl.training.budget import Budget, budget_of, budget_of_steps
from repmode_cl.training.checkpoint import (
    capture,
    has_checkpoint,
    load_checkpoint,
    reinstate,
    save_checkpoint,
)
from repmode_cl.training.distributed import Ranks, joined, refuse_several, sum_gradients
from repmode_cl.training.joint_norm import joint_norms
from repmode_cl.training.loss import masked_mse, voxels_that_count
from repmode_cl.training.optimizer import make_adam
from repmode_cl.training.precision import (
    Precision,
    inherit_precision,
    recall_precision,
    resolve_precision,
)
from repmode_cl.training.schedule import make_schedule
from repmode_cl.training.selection import Selection

__all__ = [
    "Budget",
    "Precision",
    "Ranks",
    "Selection",
    "budget_of",
    "budget_of_steps",
    "capture",
    "has_checkpoint",
    "inherit_precision",
    "joined",
    "joint_norms",
    "load_checkpoint",
    "make_adam",
    "make_schedule",
    "masked_mse",
    "recall_precision",
    "refuse_several",
    "reinstate",
    "resolve_precision",
    "save_checkpoint",
    "sum_gradients",
    "voxels_that_count",
]
