"""Parts of a training loop that Avalanche lacks: budget, precision, schedule, selection, checkpoints."""

from repmode_cl.training.best_state import BestState
from repmode_cl.training.budget import Budget, budget_of, budget_of_steps, patch_count
from repmode_cl.training.checkpoint import (
    capture,
    has_checkpoint,
    load_checkpoint,
    reinstate,
    save_checkpoint,
)
from repmode_cl.training.distributed import Ranks, process_group, refuse_distributed, sum_gradients
from repmode_cl.training.loss import count_voxels, masked_mse, voxel_loss
from repmode_cl.training.optim import make_adam, make_schedule
from repmode_cl.training.precision import (
    Precision,
    inherit_precision,
    recall_precision,
    resolve_precision,
)
from repmode_cl.training.seeding import seed_generators
from repmode_cl.training.sync_batch_norm import sync_batch_norms

__all__ = [
    "Budget",
    "Precision",
    "Ranks",
    "BestState",
    "budget_of",
    "budget_of_steps",
    "patch_count",
    "capture",
    "has_checkpoint",
    "inherit_precision",
    "process_group",
    "sync_batch_norms",
    "load_checkpoint",
    "make_adam",
    "make_schedule",
    "masked_mse",
    "recall_precision",
    "refuse_distributed",
    "reinstate",
    "resolve_precision",
    "save_checkpoint",
    "sum_gradients",
    "count_voxels",
    "seed_generators",
    "voxel_loss",
]
