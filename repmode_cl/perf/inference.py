"""Time of prediction: a batch of windows, and a whole volume by the sliding window, next to MONAI's if installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repmode_cl.inference.sliding_window import sliding_window
from repmode_cl.nn import PlainUNet, RepModeUNet
from repmode_cl.nn.norm_folding import fold_norms
from repmode_cl.perf.settings import PerfSettings
from repmode_cl.perf.timing_rounds import Lazily, alternate, rows_of
from repmode_cl.perf.workloads import (
    REFERENCE,
    Networks,
    Variant,
    forward_of,
    kernel3_variants,
    names_in,
    training_variants,
)
from repmode_cl.training.precision import Precision
from repmode_cl.utils.progress import task

__all__ = ["measure_inference", "measure_volume", "predict_kernel3"]

_OURS = "sliding-window"


def measure_inference(
    settings: PerfSettings, networks: Networks, precision: Precision, seconds: float | None = None
) -> list[dict[str, Any]]:
    """Time the prediction of one batch of windows by each variant, in evaluation mode and without gradients.

    Parameters
    ----------
    settings, networks, precision, seconds
        As of `measure_training`.

    Returns
    -------
    list of dict
        A `TimingRow` for each variant, as JSON.
    """
    timed = _Predictions(settings, networks, precision)
    for variant in training_variants(settings):
        if variant.kind == "addition":  # once fused it is what any structure is
            continue
        label = variant.label.replace("ours,", "ours, fused at each call,")
        timed.offer(variant.name, label, partial(_evaluating, networks, variant, settings.batch))
        if variant.name == REFERENCE:
            timed.offer(
                f"{variant.name}-folded",
                f"{label}, norms folded",
                partial(_folded, networks, variant),
            )
        if variant.name == "plain-k3":  # next to what they are compared with
            one = Variant("ours", "", "ours")
            timed.offer("ours-fused", "ours, fused once", partial(_fused, networks, one))
            timed.offer(
                "ours-folded",
                "ours, fused once, norms folded",
                partial(_folded, networks, one),
            )
    return timed.rows(f"Prediction, {precision.format}", seconds)


def predict_kernel3(
    settings: PerfSettings, networks: Networks, precision: Precision, seconds: float | None = None
) -> list[dict[str, Any]]:
    """Time the prediction of one batch of windows by networks of kernel 3, as `measure_inference` does by others."""
    timed = _Predictions(settings, networks, precision)
    plain, *others = kernel3_variants(settings)
    ours, added = (next(one for one in others if one.kind == kind) for kind in ("ours", "addition"))
    timed.offer(plain.name, plain.label, partial(_evaluating, networks, plain, settings.batch))
    timed.offer("ours-fused", "ours, fused once", partial(_fused, networks, ours))
    timed.offer("addition-fused", "an added structure, fused once", partial(_fused, networks, added))
    timed.offer(
        f"{plain.name}-folded",
        f"{plain.label}, norms folded",
        partial(_folded, networks, plain),
    )
    for name, label, variant in (
        ("ours", "ours, fused once, norms folded", ours),
        ("addition", "an added structure, fused once, norms folded", added),
    ):
        timed.offer(f"{name}-folded", label, partial(_folded, networks, variant))
    for variant in (ours, added):
        label = variant.label.replace("ours,", "ours, fused at each call,")
        timed.offer(variant.name, label, partial(_evaluating, networks, variant, settings.batch))
    return timed.rows(f"Prediction, kernel 3, {precision.format}", seconds)


class _Predictions:
    """Predictions of one batch of windows by several networks, to be timed; the first is the reference."""

    def __init__(self, settings: PerfSettings, networks: Networks, precision: Precision) -> None:
        self.settings, self.precision, self.device = settings, precision, networks.device
        generator = torch.Generator().manual_seed(settings.seed)
        shape = (settings.batch, 1, *settings.patch)
        self.windows = torch.randn(shape, generator=generator).to(self.device)
        self.labels: dict[str, str] = {}
        self.work: dict[str, Callable[[], object]] = {}

    def offer(self, name: str, label: str, make: Callable[[], Callable[[Tensor], Tensor]]) -> None:
        """Add the network that `make` returns."""
        self.labels[name] = label
        self.work[name] = Lazily(lambda: partial(_predict, make(), self.windows, self.precision))

    def rows(self, title: str, seconds: float | None) -> list[dict[str, Any]]:
        """Time all of them, and return a `TimingRow` for each, as JSON."""
        settings = self.settings
        with task(title, (settings.repeats + 1) * len(self.work)) as bar:
            timings = alternate(
                self.work,
                rounds=settings.repeats,
                seed=settings.seed,
                device=self.device,
                seconds=seconds,
                bar=bar,
            )
        return [row.to_json() for row in rows_of(timings, self.labels, next(iter(self.work)))]


def measure_volume(
    settings: PerfSettings, networks: Networks, seconds: float | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Time a whole volume, twice the window in every axis, with a Gaussian and an overlap of one half.

    Returns
    -------
    found : dict
        ``volume`` (voxels), ``windows`` and ``rows``: ours is the reference, and MONAI's sliding window with the same
        network is measured with it.
    notes : list of str
        What was left out, and why.
    """
    device = networks.device
    folded = fold_norms(_fused(networks, Variant("ours", "", "ours")))
    shape = tuple(2 * size for size in settings.patch)
    volume = np.random.default_rng(settings.seed).standard_normal(shape, np.float32)
    batch = settings.batch
    work: dict[str, Callable[[], object]] = {
        _OURS: lambda: sliding_window(
            folded, volume, window=settings.patch, overlap=0.5, batch_size=batch, device=device
        )
    }
    labels = {_OURS: "whole volume, ours", "monai": "whole volume, MONAI's sliding window"}
    notes = []
    try:
        work["monai"] = _monai(folded, volume, settings.patch, batch, device)
    except ImportError as error:
        notes.append(f"MONAI's sliding window is left out: {error}. To have it: pip install monai")
    rounds = min(settings.repeats, 5)
    with task("Prediction of a volume", (rounds + 1) * len(work)) as bar:
        timings = alternate(work, rounds=rounds, seed=settings.seed, device=device, seconds=seconds, bar=bar)
    rows = [row.to_json() for row in rows_of(timings, labels, _OURS)]
    return {"volume": list(shape), "window": list(settings.patch), "rows": rows}, notes


def _evaluating(networks: Networks, variant: Variant, batch: int) -> Callable[[Tensor], Tensor]:
    return forward_of(networks.of(variant).eval(), variant, batch)


def _fused(networks: Networks, variant: Variant) -> PlainUNet:
    """Return the plain network of a variant: itself, or its structure's fused one."""
    network = networks.of(variant).eval()
    if isinstance(network, PlainUNet):
        return network
    if not isinstance(network, RepModeUNet):
        raise TypeError(f"{variant.name} is a {type(network).__name__}, which has no plain network")
    return network.fuse(names_in(variant, 1)[0])


def _folded(networks: Networks, variant: Variant) -> nn.Module:
    return fold_norms(_fused(networks, variant))


def _predict(forward: Callable[[Tensor], Tensor], windows: Tensor, precision: Precision) -> Tensor:
    with torch.no_grad(), precision.autocast():
        return forward(windows)


def _monai(
    network: nn.Module, volume: np.ndarray[Any, Any], window: Sequence[int], batch: int, device: torch.device
) -> Callable[[], object]:
    from monai.inferers import sliding_window_inference

    def run() -> object:
        with torch.no_grad():
            # From memory to memory, as ours: only windows go to the device.
            return sliding_window_inference(
                torch.from_numpy(volume)[None, None],
                roi_size=tuple(window),
                sw_batch_size=batch,
                predictor=network,
                overlap=0.5,
                mode="gaussian",
                sigma_scale=0.125,
                sw_device=device,
                device=torch.device("cpu"),
            )

    return run
