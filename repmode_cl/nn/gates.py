"""Gates of a MoDE block that are not free rows: layers that compute the logits of its base's structures (Table 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repmode_cl.nn.experts import kaiming
from repmode_cl.nn.gatrep import Gating

__all__ = ["HIDDEN_UNITS", "GateChoice", "GateKind", "InputGate", "TaskCodes", "TaskGate"]

#: Units between the two layers of a two-layer gate (paper, Table 2).
HIDDEN_UNITS = 6

#: ``rows``: a free row for each structure. ``shared_bias``: a linear layer of a one-hot, which becomes
#: rows when the base is trained. ``linear``, ``two_layer``: layers of a structure's code. ``input``: a layer of
#: the block's input. ``none``: a plain convolution.
GateKind = Literal["rows", "shared_bias", "linear", "two_layer", "input", "none"]


class TaskCodes(nn.Module):
    """A fixed vector of S numbers for each of S structures, which layers of gates read.

    Parameters
    ----------
    names
        The structures.
    generator
        Draws the entries from N(0, 1), once; None makes one-hot vectors, which need no storage.
    """

    vectors: Tensor | None

    def __init__(self, names: Sequence[str], generator: torch.Generator | None) -> None:
        super().__init__()
        self.names = tuple(names)
        size = len(self.names)
        vectors = None if generator is None else torch.randn((size, size), generator=generator)
        self.register_buffer("vectors", vectors)

    def apply_linear(self, name: str, weight: Tensor, bias: Tensor) -> Tensor:
        """Return ``weight @ code + bias`` for the code of `name`; `weight` is (units, S)."""
        place = self.names.index(name)
        if self.vectors is None:
            return weight[:, place] + bias
        return weight @ self.vectors[place].to(weight.dtype) + bias


@dataclass(frozen=True)
class GateChoice:
    """Choice of a block's gate.

    Attributes
    ----------
    kind
        Origin of the logits of the base's structures.
    gating
        What makes weights of logits, in additions too.
    codes
        The network's codes of structures, where layers read them.
    """

    kind: GateKind = "rows"
    gating: Gating = "softmax"
    codes: TaskCodes | None = None


class TaskGate(nn.Module):
    """One or two linear layers from a structure's code to logits (T, C_out).

    Parameters
    ----------
    codes
        Codes of the structures; a module of the network, which the gate only refers to.
    hidden
        Units of the layer between, with ReLU; None for one layer.
    experts, c_out
        T and C_out.
    generator
        Source of the initial weights, drawn as torch draws those of a linear layer.
    """

    def __init__(
        self, codes: TaskCodes, hidden: int | None, experts: int, c_out: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self._codes = (codes,)  # in a tuple, so that it is no submodule of each gate
        self.shape = (experts, c_out)
        inputs = len(codes.names)
        self.hidden_weight: nn.Parameter | None = None
        self.hidden_bias: nn.Parameter | None = None
        if hidden is not None:
            self.hidden_weight = kaiming((hidden, inputs), inputs, generator)
            self.hidden_bias = kaiming((hidden,), inputs, generator)
            inputs = hidden
        self.weight = kaiming((experts * c_out, inputs), inputs, generator)
        self.bias = kaiming((experts * c_out,), inputs, generator)

    @property
    def names(self) -> tuple[str, ...]:
        """Structures that it has logits for."""
        return self._codes[0].names

    def row(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Return the logits of `name`, (T, C_out), computed in `dtype`, and in the parameters' precision by default."""
        [codes] = self._codes
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        with torch.autocast(weight.device.type, enabled=False):
            if self.hidden_weight is None or self.hidden_bias is None:
                logits = codes.apply_linear(name, weight, bias)
            else:
                first, first_bias = self.hidden_weight.to(dtype), self.hidden_bias.to(dtype)
                hidden = torch.relu(codes.apply_linear(name, first, first_bias))
                logits = weight @ hidden + bias
        return logits.reshape(self.shape).to(self.weight.dtype)


class InputGate(nn.Module):
    """A linear layer from the mean over z, y and x of a block's input to logits (T, C_out), one set for each sample.

    Parameters
    ----------
    c_in
        Channels of the block's input.
    experts, c_out
        T and C_out.
    generator
        Source of the initial weights.
    """

    def __init__(self, c_in: int, experts: int, c_out: int, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = (experts, c_out)
        self.weight = kaiming((math.prod(self.shape), c_in), c_in, generator)
        self.bias = kaiming((math.prod(self.shape),), c_in, generator)

    def rows(self, x: Tensor) -> Tensor:
        """Return the logits for (N, C_in, Z, Y, X), (N, T, C_out), in the parameters' precision."""
        with torch.autocast(x.device.type, enabled=False):
            mean = x.to(self.weight.dtype).mean((2, 3, 4))
            return F.linear(mean, self.weight, self.bias).reshape(len(x), *self.shape)
