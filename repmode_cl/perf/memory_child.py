"""Memory of one variant, measured in its own process (``python -m``; JSON in and out)."""

from __future__ import annotations

import json
import sys
from typing import Any, cast

import torch

from repmode_cl.perf.memory import footprint_of
from repmode_cl.perf.settings import PerfSettings
from repmode_cl.perf.workloads import training_variants
from repmode_cl.training.precision import Precision, resolve_precision

__all__: list[str] = []


def main(text: str) -> None:
    """Measure what the JSON `text` orders and print the row as one line of JSON."""
    order: dict[str, Any] = json.loads(text)
    torch.set_num_threads(order["threads"])
    settings = PerfSettings.from_json(order["settings"])
    precision: Precision = resolve_precision(cast(str, order["precision"]), torch.device("cpu"))
    [variant] = [v for v in training_variants(settings) if v.name == order["variant"]]
    print(json.dumps(footprint_of(settings, variant, precision, fresh=True)))


if __name__ == "__main__":
    main(sys.argv[1])
