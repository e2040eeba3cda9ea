"""A fused network as a program of torch.export, which runs without this package.

Not TorchScript: PyTorch has deprecated it, and a script's shapes are free, so that a wrong size fails somewhere inside.
An exported program states its shapes (multiples of 2^depth) and checks them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repmode_cl.errors import RepmodeError
from repmode_cl.export.layers import ExportableNetwork, ExportLayer, export_layers
from repmode_cl.nn.unet import UNet

__all__ = ["METADATA_FILE", "load_program", "make_program", "save_program"]

#: Name of the metadata within the file.
METADATA_FILE = "repmode_cl.json"
#: Most voxels along an axis and most samples of a batch, as steps of 2^depth: torch wants a bound.
_MOST = 1 << 20


class _Layer(nn.Module):
    """One layer with its norm and ReLU, without anything that depends on a shape."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: ExportLayer) -> None:
        super().__init__()
        self.kind, self.relu = layer.kind, layer.relu
        self.padding = [size // 2 for size in layer.weight.shape[2:]]
        self.register_buffer("weight", layer.weight.detach().contiguous())
        self.register_buffer("bias", layer.bias)
        self.norm = layer.norm

    def forward(self, x: Tensor, context: Any = None) -> Tensor:
        """(N, C_in, Z, Y, X) -> (N, C_out, ...)."""
        if self.kind == "block":
            x = F.conv3d(x, self.weight, self.bias, padding=self.padding)
        else:
            x = (F.conv_transpose3d if self.kind == "up" else F.conv3d)(x, self.weight, self.bias, stride=2)
        if self.norm is not None:
            x = self.norm(x)
        return torch.relu(x) if self.relu else x


class _ExportUNet(UNet):
    """The network without padding: its input's sizes are multiples of 2^depth."""

    def __init__(self, network: ExportableNetwork) -> None:
        super().__init__(network.width, network.depth, lambda *_: nn.Identity(), lambda *_: nn.Identity())
        for layer in export_layers(network):
            parent, _, last = layer.name.rpartition(".")
            setattr(self.get_submodule(parent), last, _Layer(layer))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, Z, Y, X) -> (N, 1, Z, Y, X)."""
        return self._forward_plain(x, None)


def make_program(network: ExportableNetwork, name: str) -> torch.export.ExportedProgram:
    """Return a fused network as a program.

    Parameters
    ----------
    network
        On the CPU, float32.
    name
        The structure; a program has no place for a name.
    """
    module = _ExportUNet(network).eval()
    step = 1 << network.depth
    size = {"min": 1, "max": _MOST}
    shapes = {
        "x": {
            0: torch.export.Dim("batch", **size),
            **{
                axis: step * torch.export.Dim(f"n_{name}", **size)
                for axis, name in ((2, "z"), (3, "y"), (4, "x"))
            },
        }
    }
    # Sizes of 1 would be taken for constants.
    example = torch.zeros((2, 1, 2 * step, 3 * step, 4 * step))
    with torch.no_grad(), _sizes_of_one():
        return torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False)


def _sizes_of_one() -> AbstractContextManager[None]:
    """Let a program take features of one plane, as at the bottleneck of a thin stack.

    By default torch.export makes a program for sizes from 2 on. Versions without this setting keep that; the comparison
    with the model, whose probe is so thin in deep networks, then refuses the file.
    """
    from torch.fx.experimental import _config

    if not hasattr(_config, "backed_size_oblivious"):
        return nullcontext()
    patched: AbstractContextManager[None] = _config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    return patched


def save_program(program: torch.export.ExportedProgram, path: Path, facts: str) -> None:
    """Write a program as a ``.pt2`` file, with the facts of an export as one of its files."""
    torch.export.save(program, path, extra_files={METADATA_FILE: facts})


def load_program(path: Path) -> tuple[nn.Module, str]:
    """Return the module of a ``.pt2`` file that this process wrote, and its metadata.

    Raises
    ------
    RepmodeError
        If it has no metadata of this package.
    """
    texts: dict[str, Any] = {METADATA_FILE: ""}
    program = torch.export.load(path, extra_files=texts)
    text = texts[METADATA_FILE]
    if not text:
        raise RepmodeError(f"{path}: a program that repmode-cl did not write")
    return cast(nn.Module, program.module()), text.decode() if isinstance(text, bytes) else str(text)
