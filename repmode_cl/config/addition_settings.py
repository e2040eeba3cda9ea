"""Named settings of an addition: what a structure gets, and the rate at which it learns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

__all__ = [
    "ADDITION_SETTINGS",
    "DEFAULT_SETTING",
    "AdditionSetting",
    "expert_of_setting",
    "is_expert_of_setting",
    "kind_of_setting",
    "start_of_setting",
]

AdditionSetting = Literal["small", "best"]

#: Options of `experts_frozen` by the name of a setting, chosen by the studies in docs/results; the others have their
#: defaults. ``small``: an eighth of the bytes of a plain network with kernel 3. ``best``: as many as one. Ranks by
#: level are those of networks of width 8 or more and depth 3; others take what `expert_of_setting` makes of them.
ADDITION_SETTINGS: Mapping[AdditionSetting, Mapping[str, Any]] = {
    "small": {
        "expert": "lowrank:8,8,3,1",
        "resampling": "base",
        "learning_rate": 2.0e-2,
        "init_from": "best",
        "gate_steps": 0.1,
    },
    "best": {"expert": "conv3", "learning_rate": 2.0e-2, "init_from": "best", "gate_steps": 0.1},
}

#: Width of the networks in which ranks by level were chosen. In wider ones they are the same.
_CHOSEN_AT_WIDTH = 8

#: What ``add`` takes where nothing is said.
DEFAULT_SETTING: AdditionSetting = "small"


def expert_of_setting(setting: AdditionSetting, *, width: int, depth: int) -> str:
    """Return the fresh expert of a setting in a network of `width` and `depth`.

    Of ranks by level, a deeper network repeats the last one, and one that is less deep leaves out the last ones. With
    fewer channels than those networks had that the ranks were chosen in, ranks are smaller in the same proportion.
    """
    expert: str = ADDITION_SETTINGS[setting]["expert"]
    if "," not in expert:
        return expert
    ranks = [int(rank) for rank in expert.removeprefix("lowrank:").split(",")]
    share = min(1.0, width / _CHOSEN_AT_WIDTH)
    fitting = (math.ceil(ranks[min(level, len(ranks) - 1)] * share) for level in range(depth + 1))
    return "lowrank:" + ",".join(map(str, fitting))


def is_expert_of_setting(expert: str, setting: AdditionSetting) -> bool:
    """Return whether `expert` is the setting's, in a network of any size."""
    if "," not in expert:
        return bool(expert == ADDITION_SETTINGS[setting]["expert"])
    depth = expert.count(",")
    widths = range(1, _CHOSEN_AT_WIDTH + 1)
    return any(expert == expert_of_setting(setting, width=width, depth=depth) for width in widths)


def kind_of_setting(setting: AdditionSetting) -> dict[str, Any]:
    """Return the choices of `AdditionSpec` that a setting makes: all of its options but those of the training."""
    return {
        key: value
        for key, value in ADDITION_SETTINGS[setting].items()
        if key not in ("learning_rate", "init_from", "gate_steps")
    }


def start_of_setting(setting: AdditionSetting | None) -> str:
    """Return what an addition of a setting starts from, ``none`` or ``best``; without a setting ``none``."""
    start: str = "none" if setting is None else ADDITION_SETTINGS[setting]["init_from"]
    return start
