"""Packs all workloads on as few nodes as possible: a search, and a solver."""
