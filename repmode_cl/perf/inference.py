"""Time of prediction: a batch of windows, and a whole volume by the sliding window, next to MONAI's if installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repmode_cl.inference.sliding_window import sliding_window
from repmode_cl.nn import PlainUNet
from repmode_cl.nn.norm_folding import fold_norms
from repmode_cl.perf.settings import PerfSettings
from repmode_cl.perf.timing_rounds import Lazily, alternate, rows_of
from repmode_cl.perf.workloads import REFERENCE, Networks, Variant, forward_of, names_in, training_variants
from repmode_cl.training.precision import Precision
from repmode_cl.utils.progress import task

__all__ = ["measure_inference", "measure_volume"]

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
    device = networks.device
    generator = torch.Generator().manual_seed(settings.seed)
    windows = torch.randn((settings.batch, 1, *settings.patch), generator=generator).to(device)
    labels: dict[str, str] = {}
    work: dict[str, Callable[[], object]] = {}

    def offer(name: str, label: str, make: Callable[[], Callable[[Tensor], Tensor]]) -> None:
        labels[name] = label
        work[name] = Lazily(lambda: partial(_predict, make(), windows, precision))

    for variant in training_variants(settings):
        if variant.kind == "addition":  # once fused it is what any structure is
            continue
        label = variant.label.replace("ours,", "ours, fused at each call,")
        offer(variant.name, label, partial(_evaluating, networks, variant, settings.batch))
        if variant.name == REFERENCE:
            folded_label = f"{label}, norms folded"
            offer("plain-k5-folded", folded_label, lambda: fold_norms(_plain(networks)))
        if variant.name == "plain-k3":  # next to what they are compared with
            offer("ours-fused", "ours, fused once", lambda: _fused(networks))
            offer("ours-folded", "ours, fused once, norms folded", lambda: fold_norms(_fused(networks)))
    total = (settings.repeats + 1) * len(work)
    with task(f"Prediction, {precision.format}", total) as bar:
        timings = alternate(
            work, rounds=settings.repeats, seed=settings.seed, device=device, seconds=seconds, bar=bar
        )
    return [row.to_json() for row in rows_of(timings, labels, REFERENCE)]


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
    folded = fold_norms(_fused(networks))
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


def _plain(networks: Networks) -> PlainUNet:
    found = networks.of(Variant(REFERENCE, "", "plain", option="5")).eval()
    if not isinstance(found, PlainUNet):
        raise TypeError(f"the reference is no PlainUNet but {type(found).__name__}")
    return found


def _fused(networks: Networks) -> PlainUNet:
    one = Variant("ours", "", "ours")
    networks.joint().eval()
    return networks.joint().fuse(names_in(one, 1)[0])


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
