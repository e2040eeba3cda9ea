"""Exported files as networks: each is run by its own runtime, under the padding that the model's networks do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repmode_cl.errors import RepmodeError
from repmode_cl.export.libraries import export_library
from repmode_cl.export.onnx_graph import INPUT, OUTPUT
from repmode_cl.export.torch_program import load_program
from repmode_cl.inference.window_batches import Network
from repmode_cl.nn.unet import pad_to_multiple

__all__ = ["onnx_network", "runtime_text", "torch_network"]

#: Maps float32 (N, 1, z, y, x) in multiples of 2^depth to the same.
_Run = Callable[[Tensor], Tensor]


def onnx_network(source: Path | bytes, depth: int) -> Network:
    """Return an ONNX file as a network, run by onnxruntime on the CPU.

    Parameters
    ----------
    source
        The file, or its bytes.
    depth
        Of the network in it.

    Raises
    ------
    RepmodeError
        If onnxruntime is not installed.
    """
    runtime = export_library("onnxruntime", "running an ONNX file")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(
        source if isinstance(source, bytes) else str(source),
        sess_options=options,
        providers=["CPUExecutionProvider"],
    )

    def run(x: Tensor) -> Tensor:
        values: list[NDArray[np.float32]] = session.run([OUTPUT], {INPUT: x.contiguous().numpy()})
        return torch.from_numpy(values[0])

    return _padded(run, depth)


def torch_network(path: Path, depth: int) -> Network:
    """Return a ``.pt2`` file as a network, run by torch without this package's networks; RepmodeError for a size."""
    module, _ = load_program(path)

    def run(x: Tensor) -> Tensor:
        try:
            result: Tensor = module(x)
        except (
            AssertionError,
            RuntimeError,
        ) as error:  # what a program raises for a size that it does not take
            raise RepmodeError(
                f"torch {torch.__version__} made a program that does not take {tuple(x.shape)} ({error}): use a newer "
                "torch, or export it as .onnx"
            ) from error
        return result

    return _padded(run, depth)


def _padded(run: _Run, depth: int) -> Network:
    def network(x: Tensor) -> Tensor:
        padded, crop = pad_to_multiple(x, depth)
        result = run(padded)
        return result if crop is None else result[crop]

    return network


def runtime_text(format_: str) -> str:
    """Return name and version of the runtime that a format is checked with: ``onnxruntime 1.20.0``."""
    if format_ == "torch":
        return f"torch {torch.__version__}"
    runtime: Any = export_library("onnxruntime", "running an ONNX file")
    return f"onnxruntime {runtime.__version__}"
