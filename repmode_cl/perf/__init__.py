"""Speed and memory, measured on the machine at hand: ours against the plain network and what others would write.

The limit is the plain network with 5 x 5 x 5 kernels: that is what GatRep promises to cost (paper, section 3.4).
"""

from repmode_cl.perf.run import run_perf
from repmode_cl.perf.settings import PerfSettings

__all__ = ["PerfSettings", "run_perf"]
