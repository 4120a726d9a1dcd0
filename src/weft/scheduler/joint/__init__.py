"""Decisions on several workloads at once: all of a gang or none, and everything on fewer nodes."""
