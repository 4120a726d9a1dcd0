"""Promises with numbers: one folder each, with ``measure() -> Measurement``. ``python -m benchmarks [name …]`` runs them and
writes docs/measured.md."""
