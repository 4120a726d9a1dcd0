"""Decisions on several workloads at once: all of a group or none, and everything on fewer nodes."""
