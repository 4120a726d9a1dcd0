"""Which series are kept of a guest, and how counters become rates. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from weft.telemetry.rings.layout import NAN, Series


class Figure(msgspec.Struct, frozen=True):
    series: Series
    counts: bool  # the counter of that name grows, and the series is how fast


def _counted(name: str, unit: str) -> Figure:
    return Figure(Series(name, unit), True)


def _measured(name: str, unit: str) -> Figure:
    return Figure(Series(name, unit), False)


GUEST = (
    _counted("cpu", "cores"),
    _counted("steal", "cores"),
    _measured("memory.resident", "bytes"),
    _measured("memory.shared", "bytes"),
)
_BY_NAME = {figure.series.name: figure for figure in GUEST}


def make_values(
    series: Sequence[Series], before: Mapping[str, float], now: Mapping[str, float], seconds: float
) -> list[float]:
    """The value of each series, of counters ``seconds`` apart; NaN where one isn't known, or went back: it began anew."""
    values = []
    for one in series:
        figure, counted = _BY_NAME.get(one.name), now.get(one.name)
        if figure is None or counted is None:
            values.append(NAN)
        elif not figure.counts:
            values.append(counted)
        else:
            grown = counted - before.get(one.name, NAN)
            values.append(grown / seconds if grown >= 0 and seconds > 0 else NAN)
    return values
