"""Sweeps: all runs of a protocol, on the GPUs of this machine or as jobs of a cluster.

``plan`` says which calls of run.sh there are, ``survey`` how far they have come and what is left,
``runner`` makes them on this machine, ``cluster`` as jobs, ``board`` shows it; ``main`` joins them.
"""

from .main import Result, sweep

__all__ = ["Result", "sweep"]
