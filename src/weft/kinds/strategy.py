"""The placement strategies people may name. Pure; the scheduler's policies stand behind the names."""

from __future__ import annotations

from weft.objects.errors import InvalidStrategy
from weft.objects.schema import suggest

STRATEGIES = ("least_loaded", "best_fit", "round_robin", "random")
DEFAULT_STRATEGY = "least_loaded"


def read_strategy(text: str, field: str = "spec.strategy") -> str:
    """The strategy that ``text`` names (- and _ are the same). Raises InvalidStrategy."""
    name = text.strip().lower().replace("-", "_")
    if name in STRATEGIES:
        return name
    meant = suggest(name, list(STRATEGIES))
    raise InvalidStrategy(
        f"{field}: {text[:60]!r} is not a placement strategy",
        field=field,
        hint=f"did you mean {meant}?" if meant else "strategies: " + ", ".join(STRATEGIES),
        details={"strategies": list(STRATEGIES)},
    )
