"""What a workload asks of its node by expressions, the Constraint objects it names looked up; and what is to be said of it.

Reads the wish and Constraints from a view; pure."""

from __future__ import annotations

import msgspec

from weft.client.view import View
from weft.contracts.policy import Request
from weft.kinds.constraint import ConstraintSpec, read_preference
from weft.kinds.workload_wish import WorkloadWish
from weft.language.clash import find_clash
from weft.language.parse import parse, read_expression
from weft.language.tree import (
    Expression,
    Named,
    Preference,
    attributes_of,
    conjuncts,
    every,
    names_in,
    replace_named,
    show,
)
from weft.objects.identity import object_key
from weft.objects.schema import suggest
from weft.scheduler.constraint import find_meeting
from weft.scheduler.snapshot import Snapshot

FEW_OF = 3  # of fewer nodes it says nothing that only one is left
FEW_SHARE = 0.05
_ALWAYS = (
    *(
        "name",
        "uid",
        "type",
        "zone",
        "rack",
        "arch",
        "storage",
        "location",
        "hypervisor",
        "gpu.model",
        "gpu.memory",
        "gpu",
    ),
    *("gpu.free", "cpu", "memory", "disk", "cpu.free", "memory.free", "disk.free", "cost"),
)


class Expressions(msgspec.Struct, frozen=True):
    constraint: Expression | None
    preferences: tuple[Preference, ...]


def read_expressions(view: View, project: str | None, wish: WorkloadWish) -> Expressions | tuple[str, str]:
    """What is asked for, with no names left; or why that can't be said yet, as reason and sentence."""
    preferences = [read_preference(raw, "spec.prefer") for raw in wish.prefer]
    hard = [] if wish.constraint is None else list(conjuncts(read_expression(str(wish.constraint))))
    names = dict.fromkeys(name for tree in (*hard, *(p.expression for p in preferences)) for name in names_in(tree))
    found: dict[str, ConstraintSpec] = {}
    for name in names:
        item = view.get(object_key("constraint", project, name))
        if item is None or item.deleting:
            return "constraintNotReady", f'constraint "{name}" does not exist'
        found[name] = item.spec(ConstraintSpec)

    def look_up(name: str) -> Expression:
        return read_expression(str(found[name].expression))

    soft = [part.name for part in hard if isinstance(part, Named) and found[part.name].soft]
    rest = [part for part in hard if not (isinstance(part, Named) and part.name in soft)]
    for name in soft:
        preferences.append(Preference(Named(name), found[name].weight, found[name].priority))
    constraint = replace_named(every(rest), look_up) if rest else None
    if constraint is not None and names:
        clash = find_clash([("", parse(show(constraint)))])
        if clash is not None:
            return "constraintNotReady", f"no node can meet both {clash[0].text} and {clash[1].text} of what it names"
    return Expressions(
        constraint,
        tuple(Preference(replace_named(p.expression, look_up), p.weight, p.priority) for p in preferences),
    )


def find_warnings(request: Request, snapshot: Snapshot) -> list[str]:
    """What a person should know although it stops nothing: attributes that no node has, and a constraint that leaves few
    nodes."""
    if not len(snapshot) or (request.constraint is None and not request.preferences):
        return []
    trees = [p.expression for p in request.preferences]
    if request.constraint is not None:
        trees.insert(0, request.constraint)
    attributes = dict.fromkeys(attribute for tree in trees for attribute in attributes_of(tree))
    warnings = []
    for attribute in attributes:
        if snapshot.text(attribute) is None and snapshot.number(attribute) is None:
            known = {key for facts in snapshot.facts for key in (*facts.texts, *facts.numbers, *facts.extras)}
            meant = suggest(attribute, [*_ALWAYS, *sorted(known)]) if attribute not in _ALWAYS else None
            warnings.append(f"no node has {attribute[:60]}" + (f"; did you mean {meant}?" if meant else ""))
    if request.constraint is not None:
        open_ = snapshot.online & ~snapshot.cordoned
        left = int((find_meeting(request.constraint, snapshot) & open_).sum())
        all_ = int(open_.sum())
        if 0 < left and ((left == 1 and all_ >= FEW_OF) or left < all_ * FEW_SHARE):
            warnings.append(f"only {left} of {all_} nodes meet{'s' * (left == 1)} {show(request.constraint)}")
    return warnings
