"""The paper's Tables 1, 2 and 3, and which of their systems the strategies of a run are.

The figures stand in ``paper_figures.csv``: table, system, structure (``all``: overall; ``improvement``: the row
Delta_Imp of Table 1, in per cent), and the three metrics as printed.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

from repmode_cl.results.run_info import RunInfo

__all__ = ["PAPER_METRICS", "PaperTable", "SystemsOfRun", "paper_tables", "systems_of_run"]

#: Metrics of the paper, in its order.
PAPER_METRICS = ("mse", "mae", "r2")

#: Strategies of the paper's rivals in Table 1 that are conditioned on the structure.
_CONDITIONED = {
    "condnet": "CondNet",
    "tsns": "TSNs",
    "pipo_fan": "PIPO-FAN",
    "dodnet": "DoDNet",
    "tgnet": "TGNet",
}

#: Head of a Multi-Head network -> the paper's name.
_HEADS = {"decoder": "Multi-Head (Dec.)", "last": "Multi-Head (Las.)"}

#: Table 2: what differs in `network` -> the paper's name.
_VARIANTS: tuple[tuple[Mapping[str, Any], str], ...] = (
    ({}, "RepMode"),
    ({"scope": "decoder"}, "only in Dec."),
    ({"scope": "encoder"}, "only in Enc."),
    ({"experts": ["conv5", "conv3", "avg3", "avg5"]}, "w/o 1x1x1 expert pair"),
    ({"experts": ["conv5", "conv1", "avg5"]}, "w/o 3x3x3 expert pair"),
    ({"experts": ["conv3", "conv1", "avg3"]}, "w/o 5x5x5 expert pair"),
    ({"experts": ["avg3", "avg5", "conv1"]}, "w/o Conv expert"),
    ({"experts": ["conv5", "conv3", "conv1"]}, "w/o Avgp-Conv expert"),
    ({"experts": ["conv5", "conv3", "conv1", "conv1", "conv1"]}, "w/o Avgp"),
    ({"experts": ["conv5", "conv3", "conv1", "avg3", "avg3"]}, "all use Avgp 3x3x3"),
    ({"experts": ["conv5", "conv3", "conv1", "avg5", "avg5"]}, "all use Avgp 5x5x5"),
    ({"embedding": "gauss"}, "use Gauss. task embedding"),
    ({"gate": "two_layer"}, "use two-layer FCN"),
    ({"gating": "sigmoid"}, "use Sigmoid activation"),
    ({"gate": "input"}, "Input-dep. gating"),
)

#: The two structures that Table 3 adds.
_ADDED_IN_TABLE_3 = frozenset({"nucleolus", "cell_membrane"})


@dataclass(frozen=True)
class PaperTable:
    """One of the paper's tables.

    Attributes
    ----------
    number
        1, 2 or 3.
    figures
        (system, structure or ``all``) -> metric -> value.
    improvement
        System -> metric -> Delta_Imp in per cent, as printed; empty where the table has none.
    """

    number: int
    figures: Mapping[tuple[str, str], Mapping[str, float]]
    improvement: Mapping[str, Mapping[str, float]]

    @property
    def reference(self) -> str:
        """System that improvements refer to: Multi-Net, in Table 2 the original."""
        return "RepMode" if self.number == 2 else "Multi-Net"

    @property
    def systems(self) -> tuple[str, ...]:
        """Systems in the order of the table."""
        return tuple(dict.fromkeys(system for system, _ in self.figures))

    @property
    def when(self) -> Literal["final", "learned"]:
        """Time of its figures in a stream: in the end, or in Table 3 just after a structure was learned."""
        return "learned" if self.number == 3 else "final"


@dataclass(frozen=True)
class SystemsOfRun:
    """The strategies of a run that one of the paper's tables has.

    Attributes
    ----------
    table
        The table.
    systems
        Title of a strategy -> system, in the order of the run.
    """

    table: PaperTable
    systems: Mapping[str, str]


@cache
def paper_tables() -> Mapping[int, PaperTable]:
    """Return the paper's tables by their numbers."""
    text = resources.files(__package__).joinpath("paper_figures.csv").read_text(encoding="utf-8")
    figures: dict[int, dict[tuple[str, str], dict[str, float]]] = {}
    improvement: dict[int, dict[str, dict[str, float]]] = {}
    for row in csv.DictReader(text.splitlines()):
        number, values = int(row["table"]), {metric: float(row[metric]) for metric in PAPER_METRICS}
        if row["structure"] == "improvement":
            improvement.setdefault(number, {})[row["system"]] = values
        else:
            figures.setdefault(number, {})[row["system"], row["structure"]] = values
    return {number: PaperTable(number, of, improvement.get(number, {})) for number, of in figures.items()}


def systems_of_run(info: RunInfo, streams: Collection[str]) -> SystemsOfRun | None:
    """Return the table of the paper that a run repeats, and which system each strategy is; None where it is none.

    Table 1 has Multi-Net and rivals that are conditioned on the structure (frozen forms, where structures are added),
    Table 2 variants of joint training, Table 3 adds nucleolus and cell membrane. Strategies with other steps than the
    common ones are another experiment and are left out.

    Parameters
    ----------
    info
        Of a run; files of its first form do not say what its strategies are, so that they repeat none.
    streams
        Those that are compared.
    """
    options = {title: of for title, of in info.options.items() if of and info.budget_of(title) == "common"}
    kinds = {info.strategies[title] for title in options}
    added = {name for stream in streams for name in info.added_of(stream)}
    systems: dict[str, str] = {}
    if kinds == {"joint"} and len(options) > 1:
        number = 2
        systems = {title: name for title, of in options.items() if (name := _variant(of)) is not None}
    elif "multi_net" not in kinds:
        return None
    elif added == _ADDED_IN_TABLE_3:
        number = 3
        named = {"multi_net": "Multi-Net", "experts_frozen": "RepMode"}
        for title, of in options.items():
            kind = info.strategies[title]
            if kind in named:
                systems[title] = named[kind]
            elif kind == "multi_head" and of.get("head") == "decoder":
                systems[title] = _HEADS["decoder"]
    elif kinds & set(_CONDITIONED):
        number = 1
        for title, of in options.items():
            name = _rival(info.strategies[title], of, incremental=bool(added))
            if name is not None:
                systems[title] = name
    table = paper_tables()[number] if systems else None
    # Without the reference, or with it only, there is nothing to compare.
    if table is None or table.reference not in systems.values() or len(set(systems.values())) < 2:
        return None
    return SystemsOfRun(table, systems)


def _rival(kind: str, options: Mapping[str, Any], *, incremental: bool) -> str | None:
    """Return the system of Table 1 that a strategy is in joint training, or after a base."""
    if kind == "multi_net":
        return "Multi-Net"
    if kind in ("multi_head", "frozen_trunk"):
        return _HEADS.get(str(options.get("head")))
    if kind in _CONDITIONED:
        return _CONDITIONED[kind] if (options.get("mode") != "joint") == incremental else None
    if kind == ("experts_frozen" if incremental else "joint") and not options.get("network"):
        return "RepMode"
    return None


def _variant(options: Mapping[str, Any]) -> str | None:
    """Return the row of Table 2 that joint training with these options is."""
    given = {key: value for key, value in (options.get("network") or {}).items() if value is not None}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
    return next((name for change, name in _VARIANTS if change == plain), None)
