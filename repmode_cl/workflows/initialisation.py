"""Initial weights of an addition: random, or copied from a known structure, named or the one that fits best.

Measured before training, on a fixed sample of the training patches: how well each known structure's mode predicts
the new targets, and how well the untrained addition does once it is initialised from the chosen one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from repmode_cl.data.patches.dataset import PatchDataset
from repmode_cl.errors import ModelError
from repmode_cl.model import Model
from repmode_cl.nn import RepModeUNet, fold_norms
from repmode_cl.nn.warm_start import warm_start
from repmode_cl.training.known_modes import fit_of, sample_of
from repmode_cl.utils.progress import track
from repmode_cl.workflows.addition_plan import INIT_CHOICES, AdditionPlan

__all__ = ["Initialisation", "initialise"]


@dataclass(frozen=True)
class Initialisation:
    """Structure that an addition was initialised from, and the figures measured then.

    Attributes
    ----------
    structure
        The known structure whose weights were copied; None for chance.
    figures
        ``mse`` and ``r2`` of each known structure's mode that was measured, on the sample of training patches.
    step_0
        The same of the addition before its first step; empty where it started from chance.
    copied
        Layers that were copied, in words.
    patches
        Size of the sample.
    """

    structure: str | None = None
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    step_0: dict[str, float] = field(default_factory=dict)
    copied: tuple[str, ...] = ()
    patches: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able values; `from_json` reads them back."""
        return {
            "structure": self.structure,
            "figures": self.figures,
            "step_0": self.step_0,
            "taken": list(self.copied),
            "patches": self.patches,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Initialisation:
        """Read the values of `to_json`."""
        return cls(
            structure=values["structure"],
            figures=values["figures"],
            step_0=values["step_0"],
            copied=tuple(values["taken"]),
            patches=values["patches"],
        )


def initialise(
    plan: AdditionPlan, network: RepModeUNet, patches: PatchDataset, device: torch.device
) -> Initialisation:
    """Initialise the fresh structure of `network` as `plan` says.

    Parameters
    ----------
    plan
        Names what to initialise from.
    network
        From `AdditionPlan.network`, on the CPU: the weights of its fresh structure are set.
    patches
        Of the training.
    device
        Where the modes are computed.

    Raises
    ------
    ModelError
        If no known structure predicts finite numbers for these images.
    """
    if plan.init_from == "none":
        return Initialisation()
    model, name = plan.model, plan.structure
    sample = sample_of(patches)
    # A comparison treats a structure that the model has already as if it were not there.
    others = tuple(other for other in model.structures if plan.replace or other != name)
    candidates = others if plan.init_from in INIT_CHOICES else (plan.init_from,)
    figures = {
        known: fit_of(plain, sample, device)
        for known, plain in track(_modes(model, candidates), "known structures", len(candidates))
    }
    errors = {known: measured["mse"] for known, measured in figures.items() if measured}
    if not errors:
        raise ModelError(
            f"no known structure of {model.path} predicts finite numbers for the images of {name!r}: start from "
            "chance (init_from none)"
        )
    best = min(errors, key=errors.__getitem__)
    copied = warm_start(network, name, best, source=model.network([best]))
    step_0 = fit_of(fold_norms(network.eval().fuse(name)), sample, device)
    return Initialisation(best, figures, step_0, copied, len(sample))


def _modes(model: Model, structures: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """Yield each structure's name and plain network; the base is loaded once for all of its structures."""
    base: RepModeUNet | None = None
    for known in structures:
        if known in model.base_structures:
            base = base or model.network([])
            yield known, fold_norms(base.fuse(known))
        else:
            yield known, fold_norms(model.network([known]).fuse(known))
