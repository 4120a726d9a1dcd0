"""Placement simulated from files: the live engine over nodes and workloads from tables, without a cluster or root."""
