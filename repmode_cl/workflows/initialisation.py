"""What an addition starts from: chance, a structure that is named, or the known one that fits the new images best.

Measured before training, on a fixed sample of the training patches: how well each known structure's mode predicts
the new targets, and what the untrained addition makes of them once it has begun from the chosen one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from repmode_cl.data.patches.dataset import PatchDataset
from repmode_cl.errors import ModelError
from repmode_cl.model import Model
from repmode_cl.nn import RepModeUNet, fold_norms
from repmode_cl.nn.warm_start import begin_from
from repmode_cl.utils.progress import track
from repmode_cl.workflows.addition_plan import INIT_CHOICES, AdditionPlan

__all__ = ["Initialisation", "initialise"]

#: Patches of the sample: one of each training image, within these limits.
_FEWEST, _MOST = 8, 32


@dataclass(frozen=True)
class Initialisation:
    """What an addition began from, and what was measured then.

    Attributes
    ----------
    structure
        The known structure that it began from; None for chance.
    figures
        ``mse`` and ``r2`` of each known structure's mode that was measured, on the sample of training patches.
    step_0
        The same of the addition before its first step; empty where it began from chance.
    taken
        What was taken over, in words.
    patches
        Size of the sample.
    """

    structure: str | None = None
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    step_0: dict[str, float] = field(default_factory=dict)
    taken: tuple[str, ...] = ()
    patches: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able values; `from_json` reads them back."""
        return {
            "structure": self.structure,
            "figures": self.figures,
            "step_0": self.step_0,
            "taken": list(self.taken),
            "patches": self.patches,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Initialisation:
        """Read what `to_json` gave."""
        return cls(**{**values, "taken": tuple(values["taken"])})


def initialise(
    addition: AdditionPlan, network: RepModeUNet, patches: PatchDataset, device: torch.device
) -> Initialisation:
    """Let the fresh structure of `network` begin as was asked for, and say from what.

    Parameters
    ----------
    addition
        What was asked for.
    network
        Of `AdditionPlan.network`, on the CPU: what its fresh structure owns is set.
    patches
        Of the training.
    device
        Where the modes are computed.

    Raises
    ------
    ModelError
        If no known structure predicts finite numbers for these images.
    """
    if addition.init_from == "none":
        return Initialisation()
    model, name = addition.model, addition.structure
    sample = _sample(patches)
    # A comparison asks as if a structure that the model has were not there.
    others = tuple(other for other in model.structures if addition.replace or other != name)
    asked = others if addition.init_from in INIT_CHOICES else (addition.init_from,)
    figures = {
        known: _fit(plain, sample, device)
        for known, plain in track(_modes(model, asked), "known structures", len(asked))
    }
    finite = {known: found["mse"] for known, found in figures.items() if found}
    if not finite:
        raise ModelError(
            f"no known structure of {model.path} predicts finite numbers for the images of {name!r}: begin from "
            "chance (init_from none)"
        )
    chosen = min(finite, key=finite.__getitem__)
    taken = begin_from(network, name, chosen, source=model.network([chosen]))
    step_0 = _fit(fold_norms(network.eval().fuse(name)), sample, device)
    return Initialisation(chosen, figures, step_0, taken, len(sample))


def _modes(model: Model, structures: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the plain network of each structure; the base is loaded once for all that are of it."""
    base: RepModeUNet | None = None
    for known in structures:
        if known in model.base_structures:
            base = base or model.network([])
            yield known, fold_norms(base.fuse(known))
        else:
            yield known, fold_norms(model.network([known]).fuse(known))


def _sample(patches: PatchDataset) -> PatchDataset:
    """Return a few of the patches: the first ones, which depend on the seed alone."""
    count = min(_MOST, max(_FEWEST, len(patches.samples)))
    return PatchDataset(
        patches.samples,
        patch=patches.patch,
        seed=patches.seed,
        length=count,
        flips=patches.flips,
        foreground=patches.foreground,
    )


def _fit(plain: nn.Module, patches: PatchDataset, device: torch.device) -> dict[str, float]:
    """Return ``mse`` and ``r2`` over all voxels of `patches` that count; nothing where they are not finite."""
    plain = plain.to(device)
    squares = count = first = second = 0.0
    with torch.inference_mode():
        for place in range(len(patches)):
            signal, target = (tensor.to(device) for tensor in patches[place])
            weight = target[1] if len(target) > 1 else torch.ones_like(target[0])
            error = _sum(weight, (plain(signal[None])[0, 0] - target[0]) ** 2)
            squares, count = squares + error, count + float(weight.sum(dtype=torch.float64))
            first, second = first + _sum(weight, target[0]), second + _sum(weight, target[0] ** 2)
    if not math.isfinite(squares) or not count:
        return {}
    variance = second / count - (first / count) ** 2
    mse = squares / count
    return {"mse": mse, "r2": 1 - mse / variance} if variance > 0 else {"mse": mse}


def _sum(weight: Tensor, values: Tensor) -> float:
    return float((weight * values).sum(dtype=torch.float64))
