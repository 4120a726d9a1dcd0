"""Find the sort of workload that a series is of: a few measures of it, weighed by trees that were learnt on drawn weeks."""

from weft.insight.classes.classify import CLASSES, UNKNOWN, Signature, classify

__all__ = ["CLASSES", "UNKNOWN", "Signature", "classify"]
