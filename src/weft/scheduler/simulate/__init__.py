"""Placement on files: the live engine over nodes and workloads that are read from tables, with neither cluster nor root."""
