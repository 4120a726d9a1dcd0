"""The placement strategies people may name, alone or combined. Pure; the scheduler's policies stand behind the names.

``best-fit``; ``best-fit,data-locality``; with weights ``best-fit:0.7,data-locality:0.3``; with an argument
``topology-spread=rack/2``; a user's own policy ``file:/etc/weft/mine.py`` or ``entry:NAME``; and, alone, ``@NAME``: the
strategies of the PlacementPolicy NAME. + is as good as a comma, - as _, and case counts for nothing."""

from __future__ import annotations

import math
import re

import msgspec

from weft.objects.errors import InvalidInput, InvalidStrategy
from weft.objects.identity import check_name
from weft.objects.schema import suggest

STRATEGIES: dict[str, str] = {
    "least_loaded": "the node with the most free capacity",
    "best_fit": "the node with the least free capacity",
    "round_robin": "the next node by name",
    "random": "any node",
    "resource_balance": "where cpu, memory and disk end up evenly used",
    "data_locality": "where the data that the workload reads lies",
    "network_proximity": "near the workload's caller, group and volumes",
    "cost": "the cheapest node",
    "topology_spread": "the zone, rack or node with the fewest members of the group",
    "hardware_match": "where the hardware is what the workload needs and no more",
    "fragmentation": "where the workloads expected next lose the least capacity: packs best",
    "fgd": "where the expected fragmentation of GPUs grows least, as published in 2023",
}
DEFAULT_STRATEGY = "least_loaded"
SERVERLESS_STRATEGY = "least_loaded:0.3,data_locality:0.3,network_proximity:0.2,hardware_match:0.2"
OWN = ("file", "entry")
MOST_TERMS = 8
_MOST_WEIGHT = 1000.0
_MOST_SKEW = 1000
_PART = re.compile(r"(?P<name>[^:=]*)(?:=(?P<argument>[^:]*))?(?::(?P<weight>.*))?", re.DOTALL)
_OWN_PART = re.compile(r"(?P<scheme>file|entry):(?P<place>[^:]*)(?::(?P<weight>.*))?", re.DOTALL)
_PATH = re.compile(r"/[A-Za-z0-9._/-]+\.py")
_ENTRY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_ARGUMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._/-]{0,62}?)(?:/(\d{1,4}))?")


class Term(msgspec.Struct, frozen=True):
    """One part of a strategy: the policy's ``name`` (of a user's own ``file:PATH`` or ``entry:NAME``), its argument, and its
    weight."""

    name: str
    weight: float = 1.0
    argument: str = ""

    @property
    def own(self) -> bool:
        """Whether it is a user's own policy."""
        return self.name.partition(":")[0] in OWN


def read_strategy(text: str, field: str = "spec.strategy") -> str:
    """``text`` in its one spelling. Raises InvalidStrategy."""
    if text.strip().startswith("@"):
        return "@" + _read_policy(text.strip()[1:], field)
    return write_strategy(parse_strategy(text, field))


def read_plain_strategy(text: str, field: str) -> str:
    """``text`` in its one spelling where no placement policy is allowed: in one, and in files. Raises InvalidStrategy."""
    strategy = read_strategy(text, field)
    if strategy.startswith("@"):
        raise _refuse(
            f"{field}: {strategy[:64]} is a placement policy, which can't be used here",
            field,
            "name the strategies it is made of, with weights",
        )
    return strategy


def policies_named(strategy: str | None) -> list[str]:
    """The placement policy that a strategy is, if it is one."""
    return [strategy[1:]] if strategy is not None and strategy.startswith("@") else []


def parse_strategy(text: str, field: str = "spec.strategy") -> tuple[Term, ...]:
    """The terms of ``text``, in their order; not for @NAME. Raises InvalidStrategy."""
    terms = tuple(_read_term(part.strip(), field) for part in re.split(r"[,+]", text))
    if len(terms) > MOST_TERMS:
        raise _refuse(f"{field}: {len(terms)} strategies are too many", field, f"at most {MOST_TERMS} together")
    names = [term.name for term in terms]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise _refuse(f"{field}: {twice} is named twice", field, "name it once, with a weight")
    return terms


def write_strategy(terms: tuple[Term, ...]) -> str:
    """The one spelling; weights only where they differ."""
    weighted = len({term.weight for term in terms}) > 1
    return ",".join(
        term.name + (f"={term.argument}" if term.argument else "") + (f":{term.weight:.12g}" if weighted else "")
        for term in terms
    )


def read_spread_argument(argument: str) -> tuple[str, int]:
    """The key and the skew that ``topology_spread=KEY/SKEW`` names; "" and 1 by default."""
    key, _, skew = argument.rpartition("/") if argument.rpartition("/")[2].isdigit() else (argument, "", "1")
    return key, int(skew)


def _read_term(part: str, field: str) -> Term:
    own = _OWN_PART.fullmatch(part)
    if own is not None:
        return Term(_read_own(own["scheme"], own["place"], field), _read_weight(part, own["weight"], field))
    match = _PART.fullmatch(part)
    assert match is not None  # each of its parts may be empty
    name = _read_name(match["name"], field)
    weight = _read_weight(part, match["weight"], field)
    argument = match["argument"]
    if argument is None:
        return Term(name, weight)
    if name != "topology_spread":
        raise _refuse(f"{field}: {name} takes no argument: {part[:60]!r}", field, f"write {name.replace('_', '-')}")
    parsed = _ARGUMENT.fullmatch(argument)
    if parsed is None or not 1 <= int(parsed[2] or 1) <= _MOST_SKEW:
        raise _refuse(
            f"{field}: {argument[:60]!r} is not a topology to spread over",
            field,
            "write topology-spread=KEY or topology-spread=KEY/SKEW, like topology-spread=rack/2",
        )
    return Term(name, weight, parsed[1] if int(parsed[2] or 1) == 1 else f"{parsed[1]}/{int(parsed[2])}")


def _read_name(text: str, field: str) -> str:
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", text.strip()).lower().replace("-", "_")
    if name in STRATEGIES:
        return name
    if text.strip().startswith("@"):
        raise _refuse(f"{field}: a placement policy stands alone", field, f"write {text.strip()[:64]} and nothing else")
    meant = suggest(name, list(STRATEGIES))
    raise _refuse(
        f"{field}: {text[:60]!r} is not a placement strategy",
        field,
        f"did you mean {meant}?" if meant else "strategies: " + ", ".join(STRATEGIES) + "; a placement policy is @NAME",
    )


def _read_weight(part: str, text: str | None, field: str) -> float:
    if text is None:
        return 1.0
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0.0 < weight <= _MOST_WEIGHT:
        raise _refuse(
            f"{field}: {text[:40]!r} in {part[:60]!r} is not a weight",
            field,
            f"give a number above 0, at most {_MOST_WEIGHT:g}, like best-fit:0.7,data-locality:0.3",
        )
    return float(f"{weight:.12g}")


def _read_own(scheme: str, place: str, field: str) -> str:
    if scheme == "file" and (_PATH.fullmatch(place) is None or ".." in place.split("/")):
        raise _refuse(
            f"{field}: {place[:120]!r} is not a valid path of a policy's file",
            field,
            "give its full path on the server's machine, ending in .py, in letters, digits and . _ - /",
        )
    if scheme == "entry" and _ENTRY.fullmatch(place) is None:
        raise _refuse(
            f"{field}: {place[:80]!r} is not a valid entry point", field, "give its name in the group weft.policies"
        )
    return f"{scheme}:{place}"


def _read_policy(name: str, field: str) -> str:
    try:
        return check_name(name, field)
    except InvalidInput as problem:
        alone = "write @NAME and nothing else: a placement policy stands alone"
        raise _refuse(
            f"{field}: '@{name[:60]}' is not a valid name of a placement policy",
            field,
            alone if name else problem.hint or alone,
        ) from None


def _refuse(message: str, field: str, hint: str) -> InvalidStrategy:
    return InvalidStrategy(message, field=field, hint=hint, details={"strategies": list(STRATEGIES)})
