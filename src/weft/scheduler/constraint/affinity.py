"""Affinity, anti-affinity, spread and data: what a spec requires, and the filters for it. Pure.

A group's members are the workloads of a project that name the group, in affinity or in anti-affinity. A workload with required
anti-affinity shares a node with no member, whichever came first; one with required affinity goes where a member is that may be
joined, anywhere while there is none. So a member is counted twice: in its group, and with those that may be joined or may not.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import msgspec
import numpy as np

from weft.contracts.policy import Filter, Flags, Lack, Reads, Request, SoftTerm, Spread, Table, Texts, Whole
from weft.kinds.fields.affinity import HOST, read_group, read_spread

_JOINED, _ALONE = ":joined", ":alone"


class Affinity(msgspec.Struct, frozen=True):
    """The fields of a Request that follow from a spec alone: see there."""

    groups: tuple[str, ...] = ()
    near: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()
    spread: tuple[Spread, ...] = ()
    leans: tuple[SoftTerm, ...] = ()


NO_AFFINITY = Affinity()


def read_affinity(project: str, to: Sequence[str], from_: Sequence[str], over: Sequence[str]) -> Affinity:
    """The affinity of a workload of ``project``: groups to join, groups to avoid, labels to spread over. Raises InvalidInput."""
    if not (to or from_):
        return NO_AFFINITY
    groups: list[str] = []
    near: list[str] = []
    apart: list[str] = []
    spread: list[Spread] = []
    leans: list[SoftTerm] = []
    for text in to:
        one = read_group(text, "spec.affinity_groups")
        group = f"{project}/{one.name}"
        groups += [group, group + _JOINED]
        apart.append(group + _ALONE)
        if one.required:
            near.append(group + _JOINED)
        else:
            leans.append(SoftTerm("near", group + _JOINED))
    for text in from_:
        one = read_group(text, "spec.anti_affinity_groups")
        group = f"{project}/{one.name}"
        groups += [group, group + (_ALONE if one.required else _JOINED)]
        apart.append(group if one.required else group + _ALONE)
        if not one.required:
            leans.append(SoftTerm("apart", group))
        for more in over:
            spec = read_spread(more, "spec.spread")
            if spec.required:
                spread.append(Spread(spec.key, spec.skew, group))
            else:
                leans.append(SoftTerm("spread", group, spec.key))
    return Affinity(tuple(sorted(groups)), tuple(near), tuple(apart), tuple(spread), tuple(leans))


def own_groups(request: Request) -> tuple[str, ...]:
    """The groups that it will be a member of, each once."""
    return tuple(group for group in request.groups if ":" not in group)


def depends_on(request: Request, groups: set[str]) -> bool:
    """Whether a change in these groups' members may make nodes fit that haven't changed themselves. A node that members of an
    anti-affinity group have left has changed itself."""
    return any(group in groups for group in request.near) or any(spread.group in groups for spread in request.spread)


class Near:
    """Nodes with members, if there are any."""

    name = "affinity"
    reads: Reads = "fabric"

    def asks(self, request: Request) -> Hashable:
        return request.near or None

    def fits(self, table: Table, request: Request) -> Flags:
        fits = np.ones(len(table.names), dtype=np.bool_)
        for group in request.near:
            members = table.members(group) > 0
            if members.any():
                fits &= members
        return fits

    def explain(self, table: Table, request: Request, index: int) -> tuple[str, list[Lack]]:
        for group in request.near:
            members = table.members(group)
            if members.any() and not members[index]:
                other = int(np.flatnonzero(members)[0])
                who = _name(table, group, other)
                return f"no member of affinity group {group_word(group)} is here: {who} is on {table.names[other]}", []
        return "", []


class Apart:
    """Nodes without members."""

    name = "anti-affinity"
    reads: Reads = "row"

    def asks(self, request: Request) -> Hashable:
        return request.apart or None

    def fits(self, table: Table, request: Request) -> Flags:
        fits = np.ones(len(table.names), dtype=np.bool_)
        for group in request.apart:
            fits &= table.members(group) == 0
        return fits

    def explain(self, table: Table, request: Request, index: int) -> tuple[str, list[Lack]]:
        for group in request.apart:
            if table.members(group)[index]:
                who = _name(table, group, index)
                if group.endswith(_ALONE):
                    return f"{who}, which must be apart from group {group_word(group)}, is there", []
                return f"{who} of anti-affinity group {group_word(group)} is there", []
        return "", []


class Spreading:
    """Nodes where one more member keeps the skew between the values of a label.

    A value counts if a node that has it fits the request but for its capacity: a zone that is cordoned or offline as a whole, or
    that a constraint rules out, doesn't block the others. Members count on all nodes."""

    name = "spread"
    reads: Reads = "fabric"

    def __init__(self, facts: Sequence[Filter]) -> None:
        self._facts = facts

    def asks(self, request: Request) -> Hashable:
        return request.spread or None

    def fits(self, table: Table, request: Request) -> Flags:
        fits = np.ones(len(table.names), dtype=np.bool_)
        open_ = self._find_open(table, request)
        for spread in request.spread:
            texts = find_texts(table, spread.key)
            if texts is None:
                return np.zeros(len(table.names), dtype=np.bool_)
            counts, least = _count(table, spread, texts, open_)
            may = np.append(counts + 1 - least <= spread.skew, False)  # the last is for nodes without the label
            fits &= may[texts.codes]
        return fits

    def explain(self, table: Table, request: Request, index: int) -> tuple[str, list[Lack]]:
        open_ = self._find_open(table, request)
        for spread in request.spread:
            texts = find_texts(table, spread.key)
            if texts is None or texts.codes[index] < 0:
                return f"has no {spread.key} to spread group {group_word(spread.group)} over", []
            counts, least = _count(table, spread, texts, open_)
            here = int(counts[texts.codes[index]])
            if here + 1 - least > spread.skew:
                codes = texts.codes[open_ & (texts.codes >= 0)]
                fewest = min(texts.words[code] for code in codes if counts[code] == least)
                return (
                    f"{spread.key} {texts.words[texts.codes[index]]} has {here} of group {group_word(spread.group)}, "
                    f"{fewest} has {least}: one more would exceed the skew of {spread.skew}"
                ), []
        return "", []

    def _find_open(self, table: Table, request: Request) -> Flags:
        """The nodes that fit but for their capacity."""
        fits = np.ones(len(table.names), dtype=np.bool_)
        for filter_ in self._facts:
            if filter_.asks(request) is not None:
                fits &= filter_.fits(table, request)
        return fits


class AtHand:
    """Nodes with all data that the request requires."""

    name = "data"
    reads: Reads = "facts"

    def asks(self, request: Request) -> Hashable:
        return tuple(datum.name for datum in request.data if datum.required) or None

    def fits(self, table: Table, request: Request) -> Flags:
        fits = np.ones(len(table.names), dtype=np.bool_)
        for datum in request.data:
            if datum.required:
                fits &= table.holds(datum.name)
        return fits

    def explain(self, table: Table, request: Request, index: int) -> tuple[str, list[Lack]]:
        lacking = [d.name.removeprefix("pool:") for d in request.data if d.required and not table.holds(d.name)[index]]
        return f"does not have {' and '.join(lacking)}", []


def find_texts(table: Table, key: str) -> Texts | None:
    """The label that a spread goes over, as a column."""
    return table.text("name" if key == HOST else key)


def count_members(table: Table, group: str, texts: Texts) -> Whole:
    """How many members are on nodes with each word of ``texts``."""
    return _sum(table.members(group), texts)


def _count(table: Table, spread: Spread, texts: Texts, open_: Flags) -> tuple[Whole, int]:
    """The members by code of the label, and the fewest of any code that counts."""
    counts = count_members(table, spread.group, texts)
    counted = counts[_sum(open_, texts) > 0]
    return counts, int(counted.min()) if counted.size else 0


def _sum(values: Whole | Flags, texts: Texts) -> Whole:
    """The sums of a column by code of ``texts``."""
    return np.bincount(texts.codes + 1, values, len(texts.words) + 1)[1:].astype(np.int64)


def _name(table: Table, group: str, index: int) -> str:
    """A member on node ``index``."""
    return min(table.groups.find(group)[table.uids[index]]) or "a member"


def group_word(group: str) -> str:
    """A group as people named it."""
    return group.partition("/")[2].partition(":")[0]
