"""Keys of a strategy in a configuration: its name and its options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    field_validator,
    model_validator,
)

from repmode_cl.config.addition_settings import (
    ADDITION_SETTINGS,
    AdditionSetting,
    expert_of_setting,
    is_expert_of_setting,
)
from repmode_cl.config.field_types import GrownModel, Positive, check_fresh_expert
from repmode_cl.config.network_schema import NetworkOverride
from repmode_cl.errors import did_you_mean

__all__ = ["RATE_GROUPS", "STRATEGY_NAMES", "LearningRate", "StrategyConfig", "keys_of"]

#: Groups of an addition's parameters, each of which may have its own learning rate.
RATE_GROUPS = ("expert", "gate", "norm", "resampling")


def _check_groups(rates: dict[str, float]) -> dict[str, float]:
    """Return `rates` if it names groups of an addition's parameters, and at least one."""
    for group in rates:
        if group not in RATE_GROUPS:
            raise ValueError(
                f"unknown group {group!r}{did_you_mean(group, RATE_GROUPS)}: the groups are {', '.join(RATE_GROUPS)}"
            )
    if not rates:
        raise ValueError(f"no group is named: give a number, or a rate for some of {', '.join(RATE_GROUPS)}")
    return rates


#: Group of an addition's parameters -> learning rate.
RateByGroup = Annotated[dict[str, Annotated[float, Field(gt=0)]], AfterValidator(_check_groups)]

#: One rate, or one for each group. Told apart by what is there, so that errors are those of what was meant.
LearningRate = Annotated[
    Annotated[float, Field(gt=0), Tag("number")] | Annotated[RateByGroup, Tag("groups")],
    Discriminator(lambda value: "groups" if isinstance(value, Mapping) else "number"),
]

#: Strategies that come with the package; any other is ``path/to/file.py:ClassName``.
STRATEGY_NAMES = (
    "experts_frozen",
    "fine_tuning",
    "frozen_encoder",
    "multi_net",
    "multi_head",
    "replay",
    "a_gem",
    "ewc",
    "synaptic_intelligence",
    "mas",
    "lwf",
    "cumulative",
    "joint",
    "der_pp",
    "warm_copy",
    "frozen_trunk",
    "norm_only",
    "lora",
    "ssf",
    "adapter",
    "piggyback",
    "packnet",
    "progressive",
    "dodnet",
    "tgnet",
    "condnet",
    "tsns",
    "pipo_fan",
)

#: The paper's rivals that are told their structure by a code or a vector.
_CONDITIONED = ("dodnet", "tgnet", "condnet", "tsns", "pipo_fan")

#: Strategies with a buffer of earlier patches.
_REHEARSAL = ("replay", "a_gem", "der_pp")

#: Strategies on a plain network that is frozen after its base.
_FROZEN_BASE = ("norm_only", "lora", "ssf", "adapter", "piggyback")

_CUSTOM_CLASS = re.compile(r".*\.py:[A-Za-z_]\w*")

_AVALANCHE_CLASS = re.compile(r"avalanche:(.*\.py:)?[A-Za-z_]\w*")

#: Option -> the strategies that have it; those of a user's own and of Avalanche go by these names.
_CUSTOM = "a strategy of your own (path/to/file.py:ClassName)"
_AVALANCHE = "a strategy of Avalanche (avalanche:ClassName)"
_OWNERS = {
    "setting": ("experts_frozen",),
    "expert": ("experts_frozen",),
    "sees": ("experts_frozen",),
    "norm": ("experts_frozen", "lora", "adapter", "piggyback", "packnet"),
    "resampling": ("experts_frozen",),
    "gate": ("experts_frozen",),
    "scale": ("experts_frozen",),
    "blocks": ("experts_frozen",),
    "decay_to_base": ("experts_frozen",),
    "gate_steps": ("experts_frozen",),
    "init_from": ("experts_frozen", "warm_copy", "norm_only", "lora", "ssf", "adapter"),
    "kernel": (
        "multi_net",
        "multi_head",
        "warm_copy",
        "frozen_trunk",
        "packnet",
        "progressive",
        *_FROZEN_BASE,
        *_CONDITIONED,
        _AVALANCHE,
    ),
    "networks": ("multi_net",),
    "head": ("multi_head", "warm_copy", "frozen_trunk"),
    "of": ("warm_copy",),
    "rank": ("lora",),
    "bottleneck": ("adapter",),
    "prune": ("packnet",),
    "mode": _CONDITIONED,
    "slots": ("condnet", "tsns"),
    "last_layer": ("condnet",),
    "condition": ("tsns",),
    "deep_supervision": ("pipo_fan",),
    "buffer": _REHEARSAL,
    "buffer_bytes": _REHEARSAL,
    "buffer_bytes_each": _REHEARSAL,
    "region": _REHEARSAL,
    "replay_batch": (*_REHEARSAL, "cumulative"),
    "alpha": ("der_pp",),
    "beta": ("der_pp",),
    "strength": ("ewc", "synaptic_intelligence", "mas", "lwf"),
    "distilled": ("lwf",),
    "fisher": ("ewc",),
    "probes": ("ewc",),
    "decay": ("ewc",),
    "damping": ("synaptic_intelligence",),
    "warm_up": ("lwf",),
    "options": (_CUSTOM, _AVALANCHE),
}

#: Options that later versions added.
_LATER_OPTIONS = (
    "gate",
    "scale",
    "blocks",
    "of",
    "rank",
    "bottleneck",
    "buffer_bytes_each",
    "region",
    "alpha",
    "beta",
    "prune",
    "decay_to_base",
    "network",
    "setting",
    "gate_steps",
    "init_from",
    "fisher",
    "probes",
    "decay",
    "damping",
    "warm_up",
    "mode",
    "slots",
    "last_layer",
    "condition",
    "deep_supervision",
)

#: Options of which each says how much a buffer holds.
_BUFFER_SIZES = ("buffer", "buffer_bytes", "buffer_bytes_each")

#: Strategies that learn no base before the rest.
_WITHOUT_BASE = ("multi_net", "joint")

#: Folders and files of a run that hold no strategy, as `folder_key` has them.
_RESERVED_NAMES = frozenset(
    {
        *("base", "cache", "simulated"),
        *(
            "config.yaml",
            "environment.json",
            "left_out.csv",
            "notes.txt",
            "report.html",
            "results.csv",
            "run.json",
            "work.json",
        ),
    }
)


class StrategyConfig(GrownModel):
    """One strategy of a benchmark."""

    later_keys: ClassVar[tuple[str, ...]] = _LATER_OPTIONS

    name: str
    """One of those that come with the package, your own as path/to/file.py:ClassName, or avalanche:ClassName."""
    label: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._+()-]{0,63}$")] | None = None
    """How tables name it; null makes one from the name and what differs from the default."""
    learning_rate: LearningRate | None = None
    """Of all after the base (multi_net: of each network; joint, mode: joint: of all); null: training.learning_rate.
    experts_frozen: or one for each group of {expert, gate, norm, resampling}, that of training for those left out."""
    base_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Of a joint base; null takes training.learning_rate. Strategies of one network and rate share their base."""
    steps: Positive | None = None
    """Optimiser steps of each experience after the base, whose own never depend on it; null takes training.steps."""
    setting: AdditionSetting | None = None
    """experts_frozen: small or best give expert, resampling and learning_rate where these are not given; null: none."""
    expert: str = "conv3"
    """experts_frozen: the fresh expert of each block; none trains only gate rows, norms and resampling layers."""
    sees: Literal["own", "all"] = "own"
    """experts_frozen: base and own expert, or those of all earlier additions too."""
    norm: Literal["own", "base"] = "own"
    """experts_frozen, lora, adapter, piggyback, packnet: own copies of every batch norm, or the base's, frozen."""
    resampling: Literal["own", "base"] = "own"
    """experts_frozen: own copies of the down and up layers, or the base's, frozen."""
    gate: Literal["softmax", "outside"] = "softmax"
    """experts_frozen: the fresh expert within the softmax, or added to it, from zero: it begins as a base's mode."""
    scale: bool = False
    """experts_frozen with gate outside: a learned factor for each output channel of the fresh expert."""
    blocks: Literal["all", "encoder", "decoder"] = "all"
    """experts_frozen: blocks with a fresh expert; the bottleneck is the encoder's, the last block the decoder's."""
    decay_to_base: Annotated[float, Field(ge=0)] = 0.0
    """experts_frozen with gate outside: decay of all that an addition trains towards the base, as AdamW decays to 0."""
    gate_steps: Annotated[float, Field(ge=0, le=1)] = 1.0
    """experts_frozen: share of an addition's steps in which its gates learn; then they are fixed, and steps cheaper."""
    init_from: Literal["none", "best"] = "none"
    """experts_frozen, warm_copy, norm_only, lora, ssf, adapter: what each structure after the base starts
    from, chance or the known structure whose network fits its training patches best."""
    kernel: Literal[3, 5] = 3
    """multi_net, multi_head, warm_copy of it, all on a frozen plain network, avalanche: kernel size of it."""
    networks: Literal["all", "added"] = "all"
    """multi_net: one for each structure, or only for those after the base (which then has no figures)."""
    head: Literal["decoder", "last"] = "decoder"
    """multi_head, warm_copy of it, frozen_trunk: each structure's own part, the whole decoder or the last layer."""
    of: Literal["repmode", "multi_head"] = "repmode"
    """warm_copy: the base that is copied, RepMode's (its kernel is that of network.experts) or Multi-Head's."""
    rank: Positive = 4
    """lora: rank of the update of each convolution."""
    bottleneck: Positive = 4
    """adapter: channels of each bottleneck."""
    prune: Annotated[float, Field(gt=0, lt=1)] | None = None
    """packnet: share of the free weights of each layer that pruning frees; null takes 0.75."""
    mode: Literal["joint", "frozen", "fine_tuning"] = "frozen"
    """dodnet, tgnet, condnet, tsns, pipo_fan: all structures at once; only what each owns after the base; or all."""
    slots: Positive | None = None
    """condnet, tsns: the most structures that the network can have; null takes 12."""
    last_layer: Literal["own", "shared"] = "own"
    """condnet: a last layer for each structure, or one for all, as in its publication."""
    condition: Literal["scales", "code"] = "scales"
    """tsns with mode frozen: a structure trains scales and shifts of all conditioned layers, or only its code."""
    deep_supervision: bool = False
    """pipo_fan: the mean error of the maps of all levels is added to that of the fused map."""
    buffer: Annotated[int, Field(ge=0)] | None = None
    """replay, a_gem, der_pp: patches kept of earlier experiences, as many of each; null: 64, or by buffer_bytes."""
    buffer_bytes: Annotated[int, Field(ge=0)] | None = None
    """replay, a_gem, der_pp: most bytes of the patches that are kept, in place of their number."""
    buffer_bytes_each: Annotated[int, Field(ge=0)] | None = None
    """replay, a_gem, der_pp: most bytes of them for each structure so far, in place of both."""
    region: tuple[Positive, Positive, Positive] | None = None
    """replay, a_gem, der_pp: voxels (z, y, x) kept of an image, of which fresh patches are cut; null keeps patches."""
    alpha: Annotated[float, Field(ge=0)] | None = None
    """der_pp: weight of the error to earlier predictions; null takes 0.5."""
    beta: Annotated[float, Field(ge=0)] | None = None
    """der_pp: weight of the error to the targets of earlier patches; null takes 0.5."""
    replay_batch: Positive | None = None
    """replay, a_gem, der_pp, cumulative: earlier patches of a step (of each draw); null takes training.batch_size."""
    strength: Annotated[float, Field(ge=0)] | None = None
    """ewc, synaptic_intelligence, mas, lwf: weight of the penalty or of the distillation; null takes each one's own."""
    distilled: Positive | None = None
    """lwf: earlier structures that are distilled in a step, chosen at random; null takes all."""
    network: NetworkOverride | None = None
    """Keys of `network` that are others for this strategy, such as {scope: encoder}; a label says what it is."""
    warm_up: Annotated[float, Field(ge=0, lt=1)] | None = None
    """lwf: share of the steps in which only what is new for the structure is trained; null takes 0."""
    fisher: Literal["empirical", "gauss_newton"] = "empirical"
    """ewc: squared gradients of the loss, or of the output (by random signs): the Fisher information of regression."""
    probes: Positive | None = None
    """ewc with fisher gauss_newton: random sign vectors for each patch; null takes 1."""
    decay: Annotated[float, Field(ge=0, le=1)] | None = None
    """ewc: factor of the importances of before at each experience; null takes 1, which sums them."""
    damping: Annotated[float, Field(gt=0)] | None = None
    """synaptic_intelligence: what is added to the square of the way (the publication's xi); null takes 0.001."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """A strategy of your own: keyword arguments of its constructor, and options of the strategy it derives from; one of
    Avalanche: its own arguments, and model."""

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        if name.startswith("avalanche:"):
            known = _AVALANCHE_CLASS.fullmatch(name) is not None
        else:
            known = name in STRATEGY_NAMES or _CUSTOM_CLASS.fullmatch(name) is not None
        if not known:
            raise ValueError(
                f"found {name!r}{did_you_mean(name, STRATEGY_NAMES)}: choose {', '.join(STRATEGY_NAMES)}, your own as "
                "path/to/file.py:ClassName, or one of Avalanche as avalanche:ClassName"
            )
        return name

    @field_validator("expert")
    @classmethod
    def _expert(cls, expert: str) -> str:
        return check_fresh_expert(expert)

    @model_validator(mode="after")
    def _fill_in_setting(self) -> StrategyConfig:
        """Fill in what a setting says and is not given, so that a run records it."""
        if self.setting is not None:
            for key, value in self.of_setting().items():
                if key not in self.model_fields_set:
                    object.__setattr__(self, key, value)  # frozen, but not yet given away
        return self

    def of_setting(self) -> dict[str, Any]:
        """Return what the setting says, also of keys that are given in its place."""
        values = dict(ADDITION_SETTINGS[self.setting]) if self.setting else {}
        if self.expert == "none":  # then gates are all that learns, but for norms and resampling layers
            values.pop("gate_steps", None)
        return values

    def always_written(self) -> frozenset[str]:
        """Return the keys that were given in place of what the setting says."""
        return frozenset(self.model_fields_set) & frozenset(self.of_setting())

    def fit_setting(self, *, width: int, depth: int) -> None:
        """Give the setting's expert the levels and channels of a network, where none was given in its place."""
        if self.setting is not None and "expert" not in self.model_fields_set:
            expert = expert_of_setting(self.setting, width=width, depth=depth)
            object.__setattr__(self, "expert", expert)  # as above

    @model_validator(mode="after")
    def _options_belong(self) -> StrategyConfig:
        kind = _CUSTOM if self.is_custom else _AVALANCHE if self.is_avalanche else self.name
        for key, owners in _OWNERS.items():
            if key in self.model_fields_set and kind not in owners:
                under = (
                    f"; what a class inherits stands in its options: {{{key}: ...}}" if self.is_custom else ""
                )
                raise ValueError(f"{key} is an option of {', '.join(owners)}, not of {self.name}{under}")
        if self.name == "warm_copy" and self.of == "repmode":
            for key in ("kernel", "head"):
                if key in self.model_fields_set:
                    raise ValueError(
                        f"{key} is an option of warm_copy with of: multi_head, not with of: repmode"
                    )
        if self.scale and (self.gate != "outside" or self.expert == "none"):
            raise ValueError("scale: true needs gate: outside, and an expert")
        if self.decay_to_base and self.gate != "outside":
            raise ValueError(
                f"decay_to_base: {self.decay_to_base:g} needs gate: outside: an expert within the softmax is no part "
                "of the base's modes, so there is no base to decay to"
            )
        if isinstance(self.learning_rate, Mapping):
            self._check_rate_groups(kind, self.learning_rate)
        if self.condition != "scales" and self.mode != "frozen":
            raise ValueError(
                f"condition: {self.condition} is of mode frozen; with mode: {self.mode} codes are fixed and what is "
                "shared is trained: leave it out"
            )
        if self.probes is not None and self.fisher != "gauss_newton":
            raise ValueError("probes needs fisher: gauss_newton; the empirical one has no random numbers")
        sizes = [key for key in _BUFFER_SIZES if getattr(self, key) is not None]
        if len(sizes) > 1:
            raise ValueError(f"give either {' or '.join(sizes)}, not both")
        if self.network is not None and self.label is None:
            raise ValueError("network: a strategy with its own network needs a label that says what it is")
        if self.network is not None and self.has_plain_network:
            for key, value in self.network:
                if value is not None and key not in ("width", "depth"):
                    raise ValueError(
                        f"network.{key}: {self.name} has a plain network, in which there is no such thing: give width "
                        "and depth, or leave it out"
                    )
        if self.base_learning_rate is not None and (self.name in _WITHOUT_BASE or self.mode == "joint"):
            name = f"{self.name} with mode: joint" if self.mode == "joint" else self.name
            raise ValueError(f"base_learning_rate: {name} has no joint base; learning_rate is its own")
        if self.folder_key in _RESERVED_NAMES:
            raise ValueError(
                f"label: {self.title!r} is, but for case, the name of a folder or file that every run has: choose "
                "another label"
            )
        return self

    def _check_rate_groups(self, kind: str, rates: Mapping[str, float]) -> None:
        """Refuse rates by group for a strategy that has none, and of groups of which it trains nothing."""
        if kind != "experts_frozen":
            raise ValueError(
                f"learning_rate: rates by group are an option of experts_frozen, not of {self.name}: give a number"
            )
        for group in rates:
            if group not in self.rate_groups:
                raise ValueError(
                    f"learning_rate: {group}: this addition trains no {group} itself (it has {group}: "
                    f"{getattr(self, group)}): leave {group} out"
                )

    @property
    def rate_groups(self) -> tuple[str, ...]:
        """Groups of parameters that an addition trains; those of `learning_rate` are among them."""
        absent = {"expert": "none", "norm": "base", "resampling": "base"}
        return tuple(
            group for group in RATE_GROUPS if group == "gate" or getattr(self, group) != absent[group]
        )

    @property
    def is_custom(self) -> bool:
        """True for a user's own strategy, from a file."""
        return self.is_external and not self.is_avalanche

    @property
    def is_avalanche(self) -> bool:
        """True for one of Avalanche's strategies, or a user's own in Avalanche's terms."""
        return self.name.startswith("avalanche:")

    @property
    def is_external(self) -> bool:
        """True for a strategy that does not come with the package."""
        return self.name not in STRATEGY_NAMES

    @property
    def has_plain_network(self) -> bool:
        """True for a strategy whose network is none of RepMode's: it has a kernel in place of experts."""
        return "kernel" in keys_of(self.name) and not (self.name == "warm_copy" and self.of == "repmode")

    @property
    def folder_key(self) -> str:
        """`title` as file systems compare names that ignore case, and points and spaces at the end."""
        return self.title.casefold().rstrip(". ")

    @property
    def title(self) -> str:
        """Name in tables and folders: `label`, or the name with the options that were given."""
        if self.label is not None:
            return self.label
        parts = [("avalanche_" if self.is_avalanche else "") + self.name.rpartition(":")[2]]
        if self.name == "warm_copy" and self.of != "repmode":
            parts.append(self.of)
        if self.has_plain_network and "head" in keys_of(self.name):
            parts.append(self.head)
        if self.has_plain_network:
            parts.append(f"k{self.kernel}")
        named = self.of_setting()
        if self.setting:
            parts.append(self.setting)
        for key in _TITLE_OPTIONS:
            if key == "expert" and self.setting and is_expert_of_setting(self.expert, self.setting):
                continue
            if getattr(self, key) != named.get(key, type(self).model_fields[key].default):
                parts.append(str(getattr(self, key)).replace(":", "").replace(",", "-"))
        if self.scale:
            parts.append("scale")
        if self.deep_supervision:
            parts.append("deep")
        if self.name == "lora":
            parts.append(f"rank{self.rank}")
        if self.name == "adapter":
            parts.append(f"bottleneck{self.bottleneck}")
        if self.decay_to_base:
            parts.append(f"decay{self.decay_to_base:g}")
        if self.gate_steps != named.get("gate_steps", 1):
            parts.append(f"gates{self.gate_steps:g}")
        if self.init_from != named.get("init_from", "none"):
            parts.append("from_best" if self.init_from == "best" else "from_chance")
        for key, word in _TITLE_WORDS.items():
            value = getattr(self, key)
            if value is not None:
                parts.append(word + (str(value) if isinstance(value, int) else f"{value:g}"))
        if self.region is not None:
            parts.append("region" + "x".join(map(str, self.region)))
        if self.steps is not None:
            parts.append(f"{self.steps}steps")
        return "_".join(parts)


#: Options that a title names by their value, where it is not the default.
_TITLE_OPTIONS = (
    "expert",
    "sees",
    "norm",
    "resampling",
    "networks",
    "gate",
    "blocks",
    "fisher",
    "mode",
    "last_layer",
    "condition",
)

#: Options that a title names by a word and their number.
_TITLE_WORDS = {
    "buffer": "buffer",
    "buffer_bytes": "bytes",
    "buffer_bytes_each": "each",
    "replay_batch": "batch",
    "alpha": "alpha",
    "beta": "beta",
    "prune": "prune",
    "slots": "slots",
    "strength": "strength",
    "distilled": "distilled",
    "warm_up": "warmup",
    "probes": "probes",
    "decay": "decay",
    "damping": "damping",
}


def keys_of(name: str) -> tuple[str, ...]:
    """Return the options that the strategy `name` has besides those of all."""
    return tuple(key for key, owners in _OWNERS.items() if name in owners)
