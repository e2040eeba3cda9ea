"""Simulated colonies of cells ("phantom"): images to learn from where no real ones are at hand.

The real collection is hundreds of gigabytes. This simulator makes the same kind of pair, transmitted light
and the fluorescence of twelve structures, from geometry and optics, and writes ordinary files.
"""

from __future__ import annotations

from repmode_cl.data.phantom.field import LIGHT_CHANNEL, simulate_field
from repmode_cl.data.phantom.simulate import simulate

__all__ = ["simulate", "simulate_field", "LIGHT_CHANNEL"]
