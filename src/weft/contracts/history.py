"""Answers of the history of metrics to code that computes with it: arrays, evenly spaced, gaps as NaN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MOST_SAMPLES = 5_000_000  # of one answer
MOST_OF_PROJECT = 1_000  # series of an answer to a project's own query
MOST_MOMENTS = 11_000  # of a span: more are refused by Prometheus and its kin


class Span(msgspec.Struct, frozen=True):
    """A span from ``start`` on (unix seconds), ``count`` moments that are ``step`` seconds apart."""

    start: float
    step: float
    count: int

    @property
    def end(self) -> float:
        """The last moment."""
        return self.start + (self.count - 1) * self.step

    def index(self, at: float) -> int | None:
        """The moment to which this one is nearest; None outside of the span."""
        found = round((at - self.start) / self.step)
        return found if 0 <= found < self.count else None

    @staticmethod
    def until(end: float, seconds: float, step: float) -> Span:
        """The last ``seconds`` before ``end``, at multiples of ``step``."""
        last = end // step
        count = max(1, int(seconds // step))
        return Span((last - count + 1) * step, step, count)


class Labels(msgspec.Struct, frozen=True):
    """The labels of a series, without its name; sorted pairs."""

    pairs: tuple[tuple[str, str], ...]

    @staticmethod
    def of(named: Mapping[str, str]) -> Labels:
        return Labels(tuple(sorted((name, value) for name, value in named.items() if name != "__name__")))

    def get(self, name: str) -> str:
        """ "" where it isn't."""
        return next((value for known, value in self.pairs if known == name), "")


class History(Protocol):
    """One answer for all that have one name: many small questions cost more than one large."""

    async def read(self, query: str, span: Span, project: str = "") -> Mapping[Labels, Floats]:
        """The values of a PromQL query at each moment of ``span``, by the labels of its series; shape (count,) each, NaN where
        there was none. With a project, the query is a checked one of people, and sees the project's series of weft and no others;
        its first MOST_OF_PROJECT series are the answer. Raises Unavailable (also where no history is kept), TimedOut, TooLarge,
        InvalidInput."""
        ...
