"""Check of an exported ONNX file against the model that it names: digests, graph, weights, and what it predicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from repmode_cl.errors import ModelError, RepmodeError
from repmode_cl.export.layers import check_exportable
from repmode_cl.export.libraries import export_library
from repmode_cl.export.metadata import read_facts
from repmode_cl.export.onnx_graph import METADATA, make_onnx
from repmode_cl.export.parity import largest_difference, tolerance_of
from repmode_cl.export.runtimes import onnx_network, runtime_text
from repmode_cl.store.probe import probe_volume
from repmode_cl.store.snapshot import ModelSnapshot

__all__ = ["OnnxComparison", "verify_onnx"]

#: Largest difference of a weight, relative to the tensor's largest, where another machine fused the kernels.
_WEIGHT_TOLERANCE = 1e-5


@dataclass(frozen=True)
class OnnxComparison:
    """An exported file and the structure that it holds.

    Attributes
    ----------
    path
        The file.
    structure
        Name of the structure.
    problem
        What differs from the model, in words; empty if nothing does.
    detail
        What was compared, in words.
    """

    path: Path
    structure: str
    problem: str
    detail: str

    @property
    def ok(self) -> bool:
        """True if the file holds what the model predicts with."""
        return not self.problem


def verify_onnx(model: ModelSnapshot, path: str | Path) -> OnnxComparison:
    """Compare an ONNX file of `repmode-cl export` with the model, whose structure its metadata name by digests.

    The graph must be the one that is exported, node by node: a file is not run before. Weights are compared bit for
    bit, and where another environment fused them within 1e-5. Then onnxruntime predicts the probe.

    Parameters
    ----------
    model
        The model; it is not verified here.
    path
        The file.

    Raises
    ------
    RepmodeError
        If a library is missing, or the file is none that was exported.
    ModelError
        If the model does not have the structure.
    """
    path = Path(path)
    onnx = export_library("onnx", "reading an ONNX file")
    proto = _read(onnx, path)
    facts = read_facts(
        next((one.value for one in proto.metadata_props if one.key == METADATA), "{}"), str(path)
    )
    name = facts["structure"]
    if name not in model.structures:
        raise ModelError(f"{path} holds {name!r}, and {model.path} has {', '.join(model.structures)}")
    entry = model.entries[name]
    for what, here, there in (
        ("base", model.base_digest, facts["base_digest"]),
        ("structure", entry.digest, facts["structure_digest"]),
    ):
        if here != there:
            return OnnxComparison(
                path, name, f"another {what}: {there[:8]} in the file, {here[:8]} in the model", ""
            )
    expected = make_onnx(check_exportable(model.fused(name)), name)
    if problem := _graph_difference(onnx, proto, expected):
        return OnnxComparison(path, name, problem, "")
    weights, worst = _weights(onnx, proto), 0.0
    for key, values in _weights(onnx, expected).items():
        if not np.array_equal(weights[key].view(np.uint32), values.view(np.uint32)):
            worst = max(worst, largest_difference(weights[key], values))
    if not worst <= _WEIGHT_TOLERANCE:
        return OnnxComparison(path, name, f"its weights differ by {worst:.1e} from the model's", "")
    same = "the same weights, bit for bit" if worst == 0 else f"weights to {worst:.1e}"
    difference, allowed = _probe_difference(model, name, proto.SerializeToString()), tolerance_of(entry)
    if not difference <= allowed:
        return OnnxComparison(
            path,
            name,
            f"it predicts the probe {difference:.1e} from the model, allowed are {allowed:.1e}",
            "",
        )
    return OnnxComparison(
        path, name, "", f"{same}; prediction by {runtime_text('onnx')} to {difference:.1e} of {allowed:.1e}"
    )


def _read(onnx: Any, path: Path) -> Any:
    if not path.is_file():
        raise RepmodeError(f"{path}: there is no such file")
    try:
        proto = onnx.load_model_from_string(path.read_bytes())
        onnx.checker.check_model(proto)
    except OSError:
        raise
    except Exception as error:  # protobuf's and onnx's errors have no common class
        raise RepmodeError(f"{path}: is no ONNX file, or damaged ({error}): export it again") from error
    return proto


def _graph_difference(onnx: Any, proto: Any, expected: Any) -> str:
    """Return how a file's graph differs from the one that is exported, weights apart; empty if it does not."""

    def without_weights(model: Any) -> Any:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        del copy.metadata_props[:]
        for tensor in copy.graph.initializer:
            tensor.ClearField("raw_data")
        return copy

    for tensor in proto.graph.initializer:
        if tensor.HasField("data_location") and tensor.data_location != onnx.TensorProto.DEFAULT:
            return f"its tensor {tensor.name!r} lies in another file"
    if without_weights(proto) != without_weights(expected):
        return (
            "its graph is not the one that this version exports (another version of repmode-cl, or changed)"
        )
    return ""


def _weights(onnx: Any, proto: Any) -> Mapping[str, NDArray[np.float32]]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def _probe_difference(model: ModelSnapshot, name: str, content: bytes) -> float:
    """Return the largest difference of the probe's prediction, relative to the largest value of the model's."""
    x = probe_volume(model.architecture)[None, None]
    with torch.no_grad():
        here: NDArray[np.float32] = model.fused(name)(x).numpy()
        there: NDArray[np.float32] = onnx_network(content, model.architecture.depth)(x).numpy()
    return largest_difference(there, here)
