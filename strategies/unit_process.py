"""``python -m repmode_cl.strategies.unit_process``: one unit of a benchmark, or a base, in a process of its own.

The order, a line of JSON on standard input, names the run's folder and what is to be done.
"""

from __future__ import annotations

from pathlib import Path

from repmode_cl.alone import take_order

__all__: list[str] = []


def main() -> None:
    """Do what the order says."""
    order = take_order()
    # Only now, so that this process ends with its giver while it loads libraries too.
    from repmode_cl.strategies.performing import perform
    from repmode_cl.strategies.units import Base, Unit
    from repmode_cl.strategies.work import Work

    kind = {"unit": Unit, "base": Base}[order["kind"]]
    perform(Work.load(Path(order["run"])), kind(*order["item"]))


if __name__ == "__main__":
    main()
