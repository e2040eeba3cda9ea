"""A fused network as an ONNX graph, made of its layers one by one.

The graph is written here, not traced by torch: it then depends on no version of torch's exporter, its nodes and
weights are named as in the network, its sizes are dynamic, and the same network gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from repmode_cl.errors import RepmodeError
from repmode_cl.export.layers import ExportableNetwork, ExportLayer, export_layers
from repmode_cl.export.libraries import export_library

__all__ = ["INPUT", "IR_VERSION", "METADATA", "OPSET", "OUTPUT", "make_onnx", "save_onnx"]

#: Version of ONNX's operators; every runtime since 2022 has it.
OPSET = 17
#: Version of ONNX's file format that came with this opset.
IR_VERSION = 8
#: Names of the graph's tensors, float32 (batch, 1, z, y, x).
INPUT, OUTPUT = "transmitted_light", "prediction"
#: Key of the metadata that this package writes.
METADATA = "repmode_cl"
#: Most bytes of weights: protobuf files end at 2 GiB.
_MOST_BYTES = (1 << 31) - (1 << 20)


def make_onnx(network: ExportableNetwork, name: str) -> Any:
    """Return an ``onnx.ModelProto`` of a fused network.

    Parameters
    ----------
    network
        On the CPU, float32.
    name
        Of the graph: the structure.

    Raises
    ------
    RepmodeError
        If onnx is not installed, or the weights are larger than a file can be.
    """
    onnx = export_library("onnx", "export to ONNX")
    layers = {layer.name: layer for layer in export_layers(network)}
    size = sum(layer.weight.numel() * layer.weight.element_size() for layer in layers.values())
    if size > _MOST_BYTES:
        raise RepmodeError(
            f"the weights of {name} have {size:,} bytes, and an ONNX file holds at most 2 GiB: export it as .pt2"
        )
    graph = _GraphBuilder(onnx, layers)
    graph.build(network.depth)
    helper, shape = onnx.helper, ["batch", 1, "z", "y", "x"]
    number = onnx.TensorProto.FLOAT
    proto = helper.make_graph(
        graph.nodes,
        name,
        [helper.make_tensor_value_info(INPUT, number, shape)],
        [helper.make_tensor_value_info(OUTPUT, number, shape)],
        graph.weights,
    )
    model = helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="repmode-cl",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def save_onnx(model: Any, path: Path, facts: str) -> None:
    """Write an ``onnx.ModelProto`` with the facts of an export in its metadata."""
    onnx = export_library("onnx", "export to ONNX")
    onnx.helper.set_model_props(model, {METADATA: facts})
    onnx.save_model(model, str(path))


class _GraphBuilder:
    """Nodes and weights of a graph, in the order in which they are computed."""

    def __init__(self, onnx: Any, layers: Mapping[str, ExportLayer]) -> None:
        self._onnx, self._layers = onnx, layers
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def build(self, depth: int) -> None:
        """Add all layers of a U-Net, as `repmode_cl.nn.unet.UNet` computes them."""
        value, skips = INPUT, []
        for level in range(depth):
            value = self._layer(f"encoder.{level}.1", self._layer(f"encoder.{level}.0", value))
            skips.append(value)
            value = self._layer(f"down.{level}", value)
        value = self._layer("bottleneck.1", self._layer("bottleneck.0", value))
        for level in reversed(range(depth)):
            value = self._layer(f"up.{level}", value)
            value = self._node("Concat", [skips.pop(), value], f"join.{level}", axis=1)
            value = self._layer(f"decoder.{level}.1", self._layer(f"decoder.{level}.0", value))
        self._layer("head", value, OUTPUT)

    def _layer(self, name: str, value: str, output: str | None = None) -> str:
        layer = self._layers[name]
        inputs = [value, self._weight(f"{name}.weight", layer.weight)]
        if layer.bias is not None:
            inputs.append(self._weight(f"{name}.bias", layer.bias))
        kernel = list(layer.weight.shape[2:])
        # ONNX lists the padding before each axis, then that after it.
        pads = [size // 2 if layer.kind == "block" else 0 for size in kernel] * 2
        strides = [1 if layer.kind == "block" else 2] * 3
        kind = "ConvTranspose" if layer.kind == "up" else "Conv"
        convolved = f"{name}.convolution" if layer.relu else output or name
        value = self._node(kind, inputs, convolved, kernel_shape=kernel, pads=pads, strides=strides)
        if layer.norm is not None:
            statistics = {
                "weight": layer.norm.weight,
                "bias": layer.norm.bias,
                "running_mean": layer.norm.running_mean,
                "running_var": layer.norm.running_var,
            }
            inputs = [
                self._weight(f"{name}.norm.{key}", tensor)
                for key, tensor in statistics.items()
                if tensor is not None
            ]
            value = self._node("BatchNormalization", [value, *inputs], f"{name}.norm", epsilon=layer.norm.eps)
        return self._node("Relu", [value], name) if layer.relu else value

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(self._onnx.helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def _weight(self, name: str, tensor: Tensor) -> str:
        values = tensor.detach().contiguous().numpy()
        self.weights.append(self._onnx.numpy_helper.from_array(values, name))
        return name
