"""The shape of a network and of its additions, as plain values that a model directory holds as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from repmode_cl.errors import ConfigError

__all__ = ["AdditionSpec", "Architecture", "expert_labels", "kernel_size_of", "smallest_size"]

PAPER_EXPERTS = ("conv5", "conv3", "conv1", "avg3", "avg5")


def expert_labels(experts: Sequence[str]) -> tuple[str, ...]:
    """Return a name for each of a block's shared experts: ``conv1``, and ``conv1_2``, ``conv1_3`` for its repeats."""
    seen: Counter[str] = Counter()
    labels = []
    for spec in experts:
        seen[spec] += 1
        labels.append(spec if seen[spec] == 1 else f"{spec}_{seen[spec]}")
    return tuple(labels)


def kernel_size_of(spec: str) -> int:
    """Return the edge K, in voxels, of the kernel of an expert (`make_expert`'s names)."""
    return 3 if spec.startswith("lowrank") else int(spec[-1])


def smallest_size(depth: int) -> int:
    """Return the fewest voxels an axis may have.

    An axis is padded by reflection to a multiple of 2^depth, half on each side, and a reflection cannot be
    longer than the axis less one.
    """
    return -(-((1 << depth) + 2) // 3)


@dataclass(frozen=True)
class Architecture:
    """Shape of a RepMode U-Net (paper, section 3.2 and appendix A).

    Parameters
    ----------
    width
        Channels of the first level; they double with each level.
    depth
        Number of times the resolution is halved.
    experts
        Shared experts of each MoDE block, in the order of the gate's rows. One may be repeated.
    scope
        Blocks that are MoDE blocks: ``both``, those of the ``encoder`` (with the bottleneck), or those of the
        ``decoder`` (with the last block). The others are plain convolutions of the fused kernel's size, the same for
        all structures.
    gating
        What makes the weights of experts from their logits: ``softmax``, or ``sigmoid`` (they do not sum to 1).
    embedding
        What the gate's layers read of a structure: ``onehot``, or ``gauss``, a fixed vector of normal numbers.
    gate
        Origin of the logits of the base's structures. ``linear``: one linear layer (of a one-hot, a free row for
        each structure). ``two_layer``: two, with ReLU between. ``input``: a linear layer of the mean of the block's
        input, and nothing of the structure.

    Notes
    -----
    The last four are ablations of the paper's Table 2. An addition has a free row in any case.
    """

    width: int = 32
    depth: int = 4
    experts: tuple[str, ...] = PAPER_EXPERTS
    scope: Literal["both", "encoder", "decoder"] = "both"
    gating: Literal["softmax", "sigmoid"] = "softmax"
    embedding: Literal["onehot", "gauss"] = "onehot"
    gate: Literal["linear", "two_layer", "input"] = "linear"

    def __post_init__(self) -> None:
        if self.width < 1 or self.depth < 1:
            raise ValueError(f"width and depth are at least 1, not {self.width} and {self.depth}")
        if not self.experts:
            raise ValueError("experts: at least one is needed")
        for key, allowed in _ARCHITECTURE_CHOICES.items():
            if getattr(self, key) not in allowed:
                raise ValueError(f"{key} is {' or '.join(allowed)}, not {getattr(self, key)!r}")
        if self.gate == "input" and self.embedding != "onehot":
            raise ValueError(
                "embedding is gauss, and gate is input, which reads no structure: leave one of them out"
            )

    @property
    def extended(self) -> bool:
        """True if it has a choice that the first versions of ``model.json`` cannot state."""
        return len(self.to_json()) > 3 or len(set(self.experts)) < len(self.experts)

    def with_free_rows(self) -> Architecture:
        """Return it without layers that read a structure's code, as a network of one added structure has it."""
        gate = "linear" if self.gate == "two_layer" else self.gate
        return replace(self, embedding="onehot", gate=gate)

    @property
    def plain_kernel(self) -> int:
        """Edge of the kernels of the blocks outside `scope`: that of the fused kernels of the others."""
        return max(kernel_size_of(spec) for spec in self.experts)

    @property
    def choice_texts(self) -> list[str]:
        """Choices that are not the default, in words, besides width, depth and experts: ``MoDE in the encoder``."""
        texts = [] if self.scope == "both" else [f"MoDE blocks only in the {self.scope}"]
        texts += [] if self.gating == "softmax" else ["sigmoid gates"]
        texts += [] if self.embedding == "onehot" else ["Gaussian codes of structures"]
        texts += {"linear": [], "two_layer": ["gates of two layers"], "input": ["gates of the input"]}[
            self.gate
        ]
        return texts

    def blocks(self) -> Iterator[tuple[str, int, int, tuple[str, ...]]]:
        """Yield name, channels in and out, and shared experts of each block, from input to output, without a network.

        Nothing is computed ahead, so that sizes which no network has can be looked at.
        """
        plain = (f"conv{self.plain_kernel}",)
        encoder = self.experts if self.scope in ("both", "encoder") else plain
        decoder = self.experts if self.scope in ("both", "decoder") else plain
        before = 1
        for level in range(self.depth + 1):
            part, channels = f"encoder.{level}" if level < self.depth else "bottleneck", self.channels(level)
            yield f"{part}.0", before, channels, encoder
            yield f"{part}.1", channels, channels, encoder
            before = channels
        for level in reversed(range(self.depth)):
            channels = self.channels(level)
            yield f"decoder.{level}.0", 2 * channels, channels, decoder
            yield f"decoder.{level}.1", channels, channels, decoder
        yield "head", self.width, 1, decoder

    def channels(self, level: int) -> int:
        """Return the channels of `level`: `width` at 0, the bottleneck's at `depth`."""
        return self.width << level

    @property
    def smallest_size(self) -> int:
        """Fewest voxels that a volume may have along an axis."""
        return smallest_size(self.depth)

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able values; `from_json` reads them back.

        Choices that later versions added are left out where they have their defaults: digests of before stay.
        """
        choices = {key: getattr(self, key) for key in _ARCHITECTURE_CHOICES}
        return {"width": self.width, "depth": self.depth, "experts": list(self.experts)} | {
            key: value for key, value in choices.items() if value != _ARCHITECTURE_CHOICES[key][0]
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Architecture:
        """Read the values that `to_json` returns."""
        return cls(
            int(values["width"]),
            int(values["depth"]),
            tuple(values["experts"]),
            **{key: values.get(key, allowed[0]) for key, allowed in _ARCHITECTURE_CHOICES.items()},
        )


#: Choices of an architecture that the first versions of ``model.json`` cannot state, with the default first.
_ARCHITECTURE_CHOICES: dict[str, tuple[Any, ...]] = {
    "scope": ("both", "encoder", "decoder"),
    "gating": ("softmax", "sigmoid"),
    "embedding": ("onehot", "gauss"),
    "gate": ("linear", "two_layer", "input"),
}


@dataclass(frozen=True)
class AdditionSpec:
    """Choices by which a structure is added to a frozen network (paper, section 4.4 and Fig. 8).

    Parameters
    ----------
    expert
        Fresh expert of each MoDE block: ``conv3`` (the paper's), ``conv1``, ``conv5``, ``lowrank:R``, or ``none``.
        ``lowrank:R0,R1,...`` gives a rank to each level, from full resolution to the bottleneck; 0 is no expert.
    sees
        ``own``: the gate row mixes the base's experts and the fresh one. ``all``: those of all earlier additions too.
    norm
        ``own``: its own copy of every batch norm of the network. ``base``: the base's, frozen.
    resampling
        ``own``: it has its own copies of the down and up layers. ``base``: it uses the base's, frozen.
    needs
        Additions whose experts it sees, in the order of the gate's rows; filled in when the structure is added.
    gate
        ``softmax``: the fresh expert is one more entry of the softmax (the paper's). ``outside``: its kernel is added
        to the softmax mix of the others. It starts at zero, so that the addition begins as a mode of the base.
    scale
        With ``outside``, whether a learned factor for each output channel multiplies the fresh expert's kernel.
    blocks
        MoDE blocks that get a fresh expert: ``all``, those of the ``encoder`` (with the bottleneck) or those of the
        ``decoder`` (with the last block). All get a gate row and norms.
    """

    expert: str = "conv3"
    sees: Literal["own", "all"] = "own"
    norm: Literal["own", "base"] = "own"
    resampling: Literal["own", "base"] = "own"
    needs: tuple[str, ...] = ()
    gate: Literal["softmax", "outside"] = "softmax"
    scale: bool = False
    blocks: Literal["all", "encoder", "decoder"] = "all"

    def __post_init__(self) -> None:
        for key, allowed in {
            "sees": ("own", "all"),
            "norm": ("own", "base"),
            "resampling": ("own", "base"),
            "gate": ("softmax", "outside"),
            "blocks": ("all", "encoder", "decoder"),
        }.items():
            if getattr(self, key) not in allowed:
                raise ValueError(f"{key} is {' or '.join(allowed)}, not {getattr(self, key)!r}")
        if self.scale is not True and self.scale is not False:
            raise ValueError(f"scale is true or false, not {self.scale!r}")
        if self.scale and (self.gate != "outside" or self.expert == "none"):
            raise ConfigError(
                f"scale multiplies an expert outside the softmax, and this addition has gate {self.gate} and expert "
                f"{self.expert}: choose gate outside and an expert, or no scale"
            )
        if self.sees == "own" and self.needs:
            raise ValueError(
                f"an addition that sees only its own expert needs no other addition, not {list(self.needs)}"
            )

    @property
    def text(self) -> str:
        """The choices where they differ from the default, in words: ``lowrank:4, sees all``."""
        parts = [self.expert]
        if self.sees == "all":
            parts.append(f"sees {', '.join(self.needs) or 'all'}")
        parts += [f"base's {part}" for part in ("norm", "resampling") if getattr(self, part) == "base"]
        parts += self.extension_texts
        return ", ".join(parts)

    @property
    def extended(self) -> bool:
        """True if it has a choice that the first versions of stored structures cannot state."""
        return any(key in self.to_json() for key in _EXTENSIONS) or "," in self.expert

    def expert_in(self, block: str, depth: int) -> str:
        """Return the fresh expert of a MoDE block, or ``none``.

        Parameters
        ----------
        block
            Its name in the network: ``encoder.<level>.<i>``, ``bottleneck.<i>``, ``decoder.<level>.<i>`` or ``head``.
        depth
            Of the network.

        Raises
        ------
        ValueError
            If the ranks are not as many as the network has levels.
        """
        part, *place = block.split(".")
        self.check_depth(depth)
        if self.blocks != "all" and (part in ("encoder", "bottleneck")) != (self.blocks == "encoder"):
            return "none"
        if "," not in self.expert:
            return self.expert
        level = {"head": 0, "bottleneck": depth}.get(part, int(place[0]) if place else 0)
        rank = self._ranks[level]
        return "none" if rank == "0" else f"lowrank:{rank}"

    def check_depth(self, depth: int) -> None:
        """Refuse ranks by level (ValueError) that are not as many as a network of `depth` has levels."""
        if "," in self.expert and len(self._ranks) != depth + 1:
            raise ValueError(
                f"expert {self.expert!r} has {len(self._ranks)} ranks, and this network has {depth + 1} levels (the "
                "bottleneck is the last): give one rank for each level, or lowrank:R for all"
            )

    @property
    def extension_texts(self) -> list[str]:
        """Choices that later versions added and that are not the default, in words: ``outside the softmax``."""
        texts = ["outside the softmax"] if self.gate == "outside" else []
        texts += ["learned scale"] if self.scale else []
        return texts + ([f"experts in the {self.blocks}"] if self.blocks != "all" else [])

    @property
    def _ranks(self) -> list[str]:
        return self.expert.removeprefix("lowrank:").split(",")

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able values; `from_json` reads them back.

        Choices that later versions added are left out where they have their defaults: digests of before stay.
        """
        values: dict[str, Any] = {
            "expert": self.expert,
            "sees": self.sees,
            "norm": self.norm,
            "resampling": self.resampling,
            "needs": list(self.needs),
        }
        extensions = {key: getattr(self, key) for key in _EXTENSIONS}
        return values | {key: value for key, value in extensions.items() if value != _EXTENSIONS[key]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> AdditionSpec:
        """Read the values that `to_json` returns."""
        return cls(
            expert=str(values["expert"]),
            sees=cast(Literal["own", "all"], values["sees"]),
            norm=cast(Literal["own", "base"], values["norm"]),
            resampling=cast(Literal["own", "base"], values["resampling"]),
            needs=tuple(values["needs"]),
            **{key: values.get(key, default) for key, default in _EXTENSIONS.items()},
        )


#: Choices of an addition that stored structures of the first versions cannot state, with their defaults.
_EXTENSIONS: dict[str, Any] = {"gate": "softmax", "scale": False, "blocks": "all"}
