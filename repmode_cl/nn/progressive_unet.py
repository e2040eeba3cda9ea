"""Progressive networks (Rusu et al., arXiv 1606.04671, 2016): a column for each structure, which reads earlier columns.

A column is a plain U-Net. In each of its blocks but the first, whose input is the image, a 1 x 1 x 1 convolution of
the same block's input in every earlier column is added to the block's own convolution, before norm and ReLU.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repmode_cl.errors import StructureError
from repmode_cl.nn.architecture import Architecture
from repmode_cl.nn.convolution import convolve
from repmode_cl.nn.experts import kaiming, uninitialised_weights
from repmode_cl.nn.multi_head_unet import MultiHeadUNet
from repmode_cl.nn.plain_unet import PlainBlock, PlainResampling, PlainUNet
from repmode_cl.nn.structure_unet import structure_seed
from repmode_cl.nn.unet import UNet
from repmode_cl.structures import check_structure_name

__all__ = ["Column", "ColumnsUNet", "ProgressiveUNet"]


@dataclass
class _Lanes:
    """Inputs of each block, by name: of the earlier columns, and of the one that is computed."""

    earlier: Sequence[dict[str, Tensor]]
    mine: dict[str, Tensor] = field(default_factory=dict)


class _ColumnBlock(PlainBlock):
    """A block that also reads the same block's input in earlier columns."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.name = ""
        self.laterals = nn.ParameterList()

    def forward(self, x: Tensor, context: _Lanes | None = None) -> Tensor:
        assert context is not None, "a column is computed with the inputs of earlier ones"
        context.mine[self.name] = x
        out = convolve(x, self.weight)
        for weight, inputs in zip(self.laterals, context.earlier, strict=False):
            out = out + F.conv3d(inputs[self.name], weight)
        return out if self.norm is None else torch.relu(self.norm(out))


class Column(UNet):
    """One column.

    Parameters
    ----------
    width, depth, kernel
        As of `PlainUNet`.
    earlier
        Number of columns before it, all of which it reads.
    seed
        Seed of its weights.
    """

    def __init__(self, width: int, depth: int, kernel: int, earlier: int, *, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        super().__init__(
            width,
            depth,
            lambda c_in, c_out, act: _ColumnBlock(c_in, c_out, kernel, activation=act, generator=generator),
            lambda c_in, c_out, up: PlainResampling(c_in, c_out, up=up, generator=generator),
        )
        self.kernel, self.earlier = kernel, earlier
        for number, (name, module) in enumerate(self.named_blocks()):
            block = cast(_ColumnBlock, module)
            block.name = name
            c_out, c_in = block.weight.shape[:2]
            for _ in range(earlier if number else 0):
                block.laterals.append(kaiming((c_out, c_in, 1, 1, 1), c_in, generator))

    def forward(self, x: Tensor, context: _Lanes) -> Tensor:
        """(N, 1, Z, Y, X) -> (N, 1, Z, Y, X), recording the inputs of its blocks in `context`."""
        return self.run(x, context)


def _compute(columns: Sequence[Column], x: Tensor) -> Tensor:
    """Return what the last of `columns` predicts; each reads all before it, as many as it was made for."""
    inputs: list[dict[str, Tensor]] = []
    *earlier, last = columns
    with torch.no_grad():
        for column in earlier:
            lanes = _Lanes(inputs[: column.earlier])
            column(x, lanes)
            inputs.append(lanes.mine)
    result: Tensor = last(x, _Lanes(inputs[: last.earlier]))
    return result


class ColumnsUNet(PlainUNet):
    """The network that predicts with one column: its last, which reads the others. Nothing of it can be merged."""

    foldable: ClassVar[bool] = False

    def __init__(self, columns: Sequence[Column]) -> None:
        last = columns[-1]
        with uninitialised_weights():
            super().__init__(last.width, last.depth, last.kernel)
        # Only `columns` computes: the layers of the plain network are not used.
        for name in ("encoder", "down", "bottleneck", "up", "decoder", "head"):
            delattr(self, name)
        self.columns = nn.ModuleList(copy.deepcopy(column) for column in columns)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, Z, Y, X) -> (N, 1, Z, Y, X)."""
        return _compute([cast(Column, column) for column in self.columns], x)


class ProgressiveUNet(MultiHeadUNet):
    """A jointly trained base with a last layer for each structure, and a column for each structure after it.

    The base is the first column of all others, whichever of its structures it predicts: its last layers share their
    input.

    Parameters
    ----------
    architecture, kernel, structures, seed
        As of `MultiHeadUNet`; `structures` are those of the base.
    """

    def __init__(
        self, architecture: Architecture, kernel: int, structures: Sequence[str], *, seed: int = 0
    ) -> None:
        #: Structure of each column; one that came again after others has several, of which the last predicts.
        self.column_names: list[str] = []
        super().__init__(architecture, kernel, structures, head="last", seed=seed)
        self.columns = nn.ModuleList()
        #: The base as a column: a view that is made again when it may have changed.
        self._base_column: list[Column] = []

    @property
    def structures(self) -> tuple[str, ...]:
        """Structures of the base, then those that have a column."""
        return (*super().structures, *dict.fromkeys(self.column_names))

    def add_structure(self, name: str, *, seed: int) -> None:
        """Add a fresh column for `name`, which reads the base and all earlier columns."""
        check_structure_name(name)
        if name in self.structures:
            raise StructureError(f"{name!r} is here already: this network knows {', '.join(self.structures)}")
        column = Column(
            self.width,
            self.depth,
            self.kernel,
            1 + len(self.columns),
            seed=structure_seed(seed, name),
        )
        self._append(name, column)

    def continue_structure(self, name: str) -> None:
        """Make `name` trainable again: where later columns read its column, a copy of it takes its place."""
        place = self._place_of(name)
        if place + 1 < len(self.columns):
            self._append(name, copy.deepcopy(cast(Column, self.columns[place])))

    def restore_columns(self, names: Sequence[str], earlier: Sequence[int]) -> None:
        """Make columns for `names` that read so many earlier ones, in place of all that are there, to load a state."""
        self.columns, self.column_names = nn.ModuleList(), []
        for name, count in zip(names, earlier, strict=True):
            with uninitialised_weights():
                self._append(name, Column(self.width, self.depth, self.kernel, count))

    def _append(self, name: str, column: Column) -> None:
        self.columns.append(column.to(next(self.parameters()).device))
        self.column_names.append(name)
        if self._trainable is not None:
            self.restrict_training(self._trainable)
        self.train(self.training)

    def _place_of(self, name: str) -> int:
        """Return the place of the column that predicts `name`: the last of its columns."""
        return len(self.column_names) - 1 - self.column_names[::-1].index(name)

    def train_only(self, structures: Sequence[str]) -> frozenset[str]:
        """Make the column of one structure trainable, or the base before there are any, and return those names."""
        for name in structures:
            self._check(name)
        if not self.columns:
            return super().train_only(structures)
        if len(structures) != 1 or structures[0] not in self.column_names:
            raise StructureError(
                f"{', '.join(structures) or 'nothing'} cannot be trained: columns are trained one at a time, and the "
                f"base no more, because {', '.join(dict.fromkeys(self.column_names))} read it"
            )
        place = self._place_of(structures[0])
        if place + 1 < len(self.columns):
            raise StructureError(
                f"{structures[0]} cannot be trained: later columns read its column; call continue_structure first"
            )
        part = f"columns.{place}."
        return self.restrict_training(
            frozenset(name for name, _ in self.named_parameters() if name.startswith(part))
        )

    def forward(self, x: Tensor, structures: str | Sequence[str]) -> Tensor:
        """Predict one structure for each sample, as `StructureUNet.forward`."""
        names = [structures] * len(x) if isinstance(structures, str) else list(structures)
        if not any(name in self.column_names for name in names):
            return super().forward(x, names)
        if len(set(names)) == 1:
            return _compute(list(self._stack(names[0])), x)
        if self.training:
            raise StructureError(
                f"{', '.join(dict.fromkeys(names))} cannot be mixed in a training batch: each has a column"
            )
        return torch.cat([self.forward(x[i : i + 1], [name]) for i, name in enumerate(names)])

    def fuse(self, structure: str) -> PlainUNet:
        """Return what predicts `structure`, a copy in evaluation mode: a plain network, or the columns it reads."""
        if structure not in self.column_names:
            return super().fuse(structure)
        return ColumnsUNet(list(self._stack(structure))).eval().requires_grad_(False)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load a state; the view of the base is made again."""
        self._base_column = []
        return super().load_state_dict(*args, **kwargs)

    def restrict_training(self, names: frozenset[str]) -> frozenset[str]:
        """Let exactly the parameters `names` take gradients; the view of the base is made again."""
        self._base_column = []
        return super().restrict_training(names)

    def _stack(self, structure: str) -> Iterator[Column]:
        """Yield the columns that predict `structure`: the base, all that its column reads, and that one."""
        if not self._base_column:
            self._base_column = [self._base_as_column()]
        yield self._base_column[0]
        place = self._place_of(structure)
        mine = cast(Column, self.columns[place])
        for column in self.columns[: mine.earlier - 1]:
            yield cast(Column, column)
        yield mine

    def _base_as_column(self) -> Column:
        """Return a copy of the base, with the last layer of any of its structures: only its inputs are read."""
        plain = super().fuse(super().structures[0])
        with uninitialised_weights():
            column = Column(self.width, self.depth, self.kernel, 0)
        column.load_state_dict(plain.state_dict())
        return column.to(next(self.parameters()).device).eval().requires_grad_(False)
