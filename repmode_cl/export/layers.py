"""The layers of a fused network as plain weights, from which files of other formats are made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

from torch import Tensor, nn

from repmode_cl.errors import StructureError
from repmode_cl.nn import FoldedUNet, PlainUNet, RepModeUNet
from repmode_cl.nn.conditioned_unet import OneStructure
from repmode_cl.nn.norm_folding import FoldedBlock, FoldedResampling
from repmode_cl.nn.plain_unet import PlainBlock, PlainResampling

__all__ = ["ExportLayer", "ExportableNetwork", "check_exportable", "export_layers"]

#: A fused network, with its norms folded or not.
ExportableNetwork = FoldedUNet | PlainUNet


@dataclass(frozen=True)
class ExportLayer:
    """One convolution of a fused network.

    Attributes
    ----------
    name
        Its name in the network, such as ``encoder.0.1``, ``down.0``, ``head``.
    kind
        ``block``: stride 1, zero "same" padding; ``down``, ``up``: 2 x 2 x 2 with stride 2, ``up`` transposed.
    weight
        (C_out, C_in, K, K, K); of ``up`` (C_in, C_out, 2, 2, 2).
    bias
        (C_out,), or None.
    norm
        A batch norm that is not folded, or None.
    relu
        Whether ReLU follows.
    """

    name: str
    kind: Literal["block", "down", "up"]
    weight: Tensor
    bias: Tensor | None
    norm: nn.BatchNorm3d | None
    relu: bool


def check_exportable(network: object) -> ExportableNetwork:
    """Return `network` if it is one of fixed convolutions, as a fused network is.

    Raises
    ------
    StructureError
        If its weights depend on the patch or on the structure, or it has layers that are not exported; the message
        names the network and the reason.
    """
    # Not isinstance: networks of several columns are plain networks too, and compute more than their layers.
    if type(network) not in (FoldedUNet, PlainUNet):
        name, reason = _reason(network)
        raise StructureError(
            f"{name} cannot be exported: {reason}. What can be is the fused network of a structure of a model directory"
        )
    network = cast(ExportableNetwork, network)
    for name, block in network.named_blocks():
        if cast(FoldedBlock | PlainBlock, block).after is not None:
            raise StructureError(
                f"{type(network).__name__} cannot be exported: its block {name} has an adapter, which is not exported"
            )
    return network


def _reason(network: object) -> tuple[str, str]:
    """Return a network's name and why it has no fixed convolutions."""
    if isinstance(network, OneStructure):
        network = network.network
    name = type(network).__name__
    if isinstance(network, RepModeUNet):
        if network.fusible:
            return name, "it is not fused yet (`fuse`)"
        return name, (
            "its gates depend on the input (network.gate: input), so that its kernels are others for each patch"
        )
    if getattr(network, "depends_on_window", False):
        return (
            name,
            "its weights or norms are computed of each patch, so that there are no fixed kernels to write",
        )
    return name, "it computes more than a plain U-Net does, and nothing of it can be fused"


def export_layers(network: ExportableNetwork) -> Iterator[ExportLayer]:
    """Yield the layers of a network that `check_exportable` accepts: the blocks, then down and up layers."""
    for name, module in network.named_blocks():
        block = cast(FoldedBlock | PlainBlock, module)
        if isinstance(block, FoldedBlock):
            bias, norm = block.bias, None
        else:
            bias, norm = None, block.norm
        yield ExportLayer(name, "block", block.weight.detach(), bias, norm, relu=name != "head")
    for name, module in network.named_resampling():
        resampling = cast(FoldedResampling | PlainResampling, module)
        kind: Literal["down", "up"] = "up" if name.startswith("up.") else "down"
        if isinstance(resampling, FoldedResampling):
            yield ExportLayer(name, kind, resampling.weight, resampling.bias, None, relu=True)
        else:
            yield ExportLayer(name, kind, resampling.layer.weight.detach(), None, resampling.norm, relu=True)
