"""What a training loop needs and Avalanche lacks: budget, precision, schedule, selection, checkpoints."""

from repmode_cl.training.budget import Budget, budget_of
from repmode_cl.training.checkpoint import (
    capture,
    has_checkpoint,
    load_checkpoint,
    reinstate,
    save_checkpoint,
)
from repmode_cl.training.loss import masked_mse
from repmode_cl.training.precision import Precision, resolve_precision
from repmode_cl.training.schedule import make_schedule
from repmode_cl.training.selection import Selection

__all__ = [
    "Budget",
    "Precision",
    "Selection",
    "budget_of",
    "capture",
    "has_checkpoint",
    "load_checkpoint",
    "make_schedule",
    "masked_mse",
    "reinstate",
    "resolve_precision",
    "save_checkpoint",
]
