"""A workload's constraint and preferences, with the Constraint objects that it names resolved; and warnings about them.

Reads the spec and Constraints from a view; pure."""

from __future__ import annotations

import functools

import msgspec

from weft.contracts.policy import Request
from weft.informer.shares import find_named
from weft.informer.view import Item, View
from weft.kinds.constraint import ConstraintSpec, read_preference
from weft.kinds.parts.placement_spec import PlacementSpec
from weft.language.clash import find_clash, refuse_clash
from weft.language.parse import Parsed, parse, read_expression
from weft.language.tree import (
    Exists,
    Expression,
    Named,
    Not,
    Preference,
    attributes_of,
    conjuncts,
    every,
    replace_named,
    show,
    show_short,
)
from weft.objects.errors import InvalidInput, NotFound
from weft.objects.identity import named_key
from weft.objects.schema import suggest
from weft.scheduler.constraint.match import find_meeting
from weft.scheduler.table.snapshot import Snapshot

FEW_OF = 3  # nodes: with fewer there is no warning that only one is left
FEW_SHARE = 0.05
_ALWAYS = tuple(
    "name uid type zone rack arch storage location hypervisor gpu gpu.free gpu.model gpu.memory cpu cpu.free memory "
    "memory.free disk disk.free cost".split()
)
_ASKED = 1000  # nodes whose attributes are suggested for an unknown one


class Expressions(msgspec.Struct, frozen=True):
    constraint: Expression | None
    preferences: tuple[Preference, ...]


def read_expressions(
    view: View, project: str | None, spec: PlacementSpec, workload: Item | None = None
) -> Expressions | tuple[str, str]:
    """The expressions, with all names resolved; or why they can't be resolved yet, as reason and sentence. A ``workload`` may name
    constraints of other projects that are shared; what isn't one was admitted with them."""
    try:
        return _read(view, project, spec, workload)
    except (InvalidInput, NotFound) as problem:
        return "constraintNotReady", problem.message


def _read(view: View, project: str | None, spec: PlacementSpec, workload: Item | None) -> Expressions:
    def find(name: str) -> ConstraintSpec:
        key = named_key("constraint", project, name)
        item = view.get(key) if workload is None else find_named(view, workload, "constraint", name)
        if item is None and "/" in name:
            raise NotFound(f'constraint "{name}" does not exist, or is not shared with project {project}')
        if item is None or item.deleting:
            known = (other.envelope for other in view.of_kind("constraint").values())
            meant = suggest(name, [other.name for other in known if other.project == project])
            hint = f"; did you mean @{meant}?" if meant else ""
            raise NotFound(f'constraint "{name}" does not exist{hint}')
        return item.spec(ConstraintSpec)

    def resolve(name: str) -> Expression:
        return read_expression(str(find(name).expression), f"constraint {name}")

    preferences = [read_preference(raw, "spec.prefer") for raw in spec.prefer]
    hard: list[Expression] = []
    sources: list[tuple[str, Parsed]] = []
    if spec.constraint is not None:
        parsed = parse(str(spec.constraint), "spec.constraint")
        sources.append(("", parsed))
        for part in conjuncts(parsed.tree):
            named = find(part.name) if isinstance(part, Named) else None
            if named is not None and named.soft:
                preferences.append(Preference(part, named.weight, named.priority))
                continue
            hard.append(part)
            if named is not None and isinstance(part, Named):
                sources.append((part.name, parse(str(named.expression), f"constraint {part.name}")))
    if len(sources) > 1:
        refuse_clash(sources, "spec.constraint")
    return Expressions(
        replace_named(every(hard), resolve) if hard else None,
        tuple(Preference(replace_named(p.expression, resolve), p.weight, p.priority) for p in preferences),
    )


def find_warnings(request: Request, snapshot: Snapshot) -> list[str]:
    """Warnings: attributes that no node has, preferences that the constraint rules out, a constraint that leaves few nodes."""
    if not len(snapshot) or (request.constraint is None and not request.preferences):
        return []
    trees = [p.expression for p in request.preferences]
    if request.constraint is not None:
        trees.insert(0, request.constraint)
    attributes = dict.fromkeys(attribute for tree in trees for attribute in attributes_of(tree))
    unwanted = {part.of for tree in trees for part in conjuncts(tree) if isinstance(part, Not)}
    warnings = []
    for attribute in attributes:
        if (
            Exists(attribute) not in unwanted
            and snapshot.text(attribute) is None
            and snapshot.number(attribute) is None
        ):
            known = {key for facts in snapshot.facts[:_ASKED] for key in (*facts.texts, *facts.numbers, *facts.extras)}
            meant = suggest(attribute, [*_ALWAYS, *sorted(known)]) if attribute not in _ALWAYS else None
            warnings.append(f"no node has {attribute[:60]}" + (f"; did you mean {meant}?" if meant else ""))
    if request.constraint is not None:
        warnings.extend(
            f"preference {show_short(preference.expression)} can never hold together with the constraint"
            for preference in request.preferences
            if _excludes(request.constraint, preference.expression)
        )
        open_ = snapshot.online & ~snapshot.cordoned
        left = int((find_meeting(request.constraint, snapshot) & open_).sum())
        all_ = int(open_.sum())
        if left > 0 and ((left == 1 and all_ >= FEW_OF) or left < all_ * FEW_SHARE):
            warnings.append(f"only {left} of {all_} nodes meet{'s' * (left == 1)} {show_short(request.constraint)}")
    return warnings


@functools.lru_cache(maxsize=1024)
def _excludes(constraint: Expression, preference: Expression) -> bool:
    """Whether no node can meet both, as far as that is certain."""
    try:
        return find_clash([("", parse(show(constraint))), ("", parse(show(preference)))]) is not None
    except InvalidInput:
        return False  # with all names replaced, longer than may be written
