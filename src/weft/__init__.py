"""weft: one fabric that places, runs, moves, watches and protects workloads on a cluster."""

__version__ = "0.1.0"
