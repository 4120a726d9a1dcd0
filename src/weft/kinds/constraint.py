"""Constraint: a named expression about nodes, so that many workloads can share it; and the expressions of workloads:
``constraint`` (hard) and ``prefer`` (soft).

A workload may name one (``@fast-disk``) of its project before it exists, and waits for it. A change counts for later placements;
placed workloads stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from weft.kinds.fields.cells import AGE, NAME, dig, text
from weft.kinds.parts.sharing import SHARE, SharedWith, check_shares, share_reference
from weft.kinds.record import Access, Admission, Column, Display, Kind, Object
from weft.language.clash import refuse_clash
from weft.language.complaint import point_at
from weft.language.form import read_form
from weft.language.lexer import MOST_CHARACTERS
from weft.language.parse import parse, read_expression
from weft.language.tree import Expression, Named, Preference, conjuncts, leaves, names_in, show
from weft.objects.errors import InvalidInput
from weft.objects.json_text import decode_json
from weft.objects.schema import field

WEIGHT, PRIORITY = 0.5, 0
MOST_PRIORITY = 100
MOST_PREFERENCES = 16
MOST_NAMES = 16
_FIELDS = ("expression", "weight", "priority")

Form = str | dict[str, Any]


class ConstraintSpec(msgspec.Struct, kw_only=True):
    expression: Annotated[
        Form, field("Condition on a node, like storage=nvme,memory>=32GB; text or JSON", shown="expression")
    ]
    soft: Annotated[bool, field("A preference rather than a condition")] = False
    weight: Annotated[float, field("Weight of a soft constraint, 0-1; the strategy weighs 1", ge=0, le=1)] = WEIGHT
    priority: Annotated[
        int,
        field(
            "Priority of a soft constraint: if capacity is scarce, those of low priority are ignored first",
            ge=0,
            le=MOST_PRIORITY,
        ),
    ] = PRIORITY
    description: Annotated[str, field("Description, for people", max_length=200)] = ""
    shared_with: SharedWith = []


class ConstraintStatus(msgspec.Struct, kw_only=True):
    meeting: int = 0  # ready nodes that meet its conditions on facts now
    nodes: int = 0  # ready nodes
    names: list[str] = []  # the first that meet it


def check_constraint(spec: ConstraintSpec) -> None:
    """The expression becomes text; it names no other constraint and is satisfiable. Raises InvalidInput."""
    where = "spec.expression"
    check_shares(spec.shared_with)
    spec.expression = read_text(spec.expression, where)
    read_plain(spec.expression, where)


def read_text(raw: Form, where: str) -> str:
    """An expression's text; one in JSON form as text. Raises InvalidInput."""
    raw = _unpack(raw, where)
    if isinstance(raw, str):
        read_expression(raw.strip(), where)
        return raw.strip()
    return show(read_form(raw, where))


def _unpack(raw: Form, where: str) -> Form:
    """The JSON form where it comes as text: in a flag, in a cell of a table. No expression begins with a brace."""
    if not isinstance(raw, str) or not raw.lstrip().startswith("{"):
        return raw
    try:
        return msgspec.convert(decode_json(raw.encode()), dict[str, Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as problem:
        why = "nested too deeply" if isinstance(problem, RecursionError) else problem
        raise InvalidInput(
            f"{where}: invalid JSON: {why}",
            field=where,
            hint='write like {"attribute": "storage", "op": "eq", "value": "nvme"}, or storage=nvme',
        ) from None


def read_preference(raw: Form, where: str) -> Preference:
    """``EXPRESSION;weight=0.5;priority=2``, or a set of these fields, as a Preference. Raises InvalidInput."""
    raw = _unpack(raw, where)
    if isinstance(raw, dict) and "expression" not in raw:
        return Preference(read_form(raw, where), WEIGHT, PRIORITY)
    options: dict[str, Any] = {}
    expression: Any = raw
    if isinstance(raw, dict):
        other = next((key for key in raw if key not in _FIELDS), None)
        if other is not None:
            raise InvalidInput(
                f"{where}.{other[:40]} is not a field", field=where, hint="fields: " + ", ".join(_FIELDS)
            )
        expression, options = raw["expression"], {key: raw[key] for key in _FIELDS[1:] if key in raw}
    while isinstance(expression, str) and (option := _split_option(expression)) is not None:
        expression, name, value = option
        if name not in _FIELDS[1:] or name in options:
            fact = "is given twice" if name in options else "is neither weight nor priority"
            raise InvalidInput(
                f"{where}: {name[:40]!r} {fact}", field=where, hint="write like zone=a;weight=0.5;priority=2"
            )
        options[name] = value
    return Preference(
        read_form(expression.strip() if isinstance(expression, str) else expression, where),
        _number(options.get("weight", WEIGHT), 1, f"{where}: weight"),
        int(_number(options.get("priority", PRIORITY), MOST_PRIORITY, f"{where}: priority", whole=True)),
    )


def _split_option(written: str) -> tuple[str, str, str] | None:
    """``EXPRESSION;NAME=VALUE`` as its three parts, None if it doesn't end so."""
    expression, semicolon, option = written.rpartition(";")
    name, equals, value = option.partition("=")
    if not semicolon or not equals or not name.strip().isalpha() or '"' in value or "'" in value:
        return None
    return expression, name.strip().lower(), value.strip()


def show_preference(preference: Preference) -> str:
    """A preference as text that reads back as the same."""
    weight = "" if preference.weight == WEIGHT else f";weight={preference.weight!r}"
    priority = "" if preference.priority == PRIORITY else f";priority={preference.priority}"
    return f"{show(preference.expression)}{weight}{priority}"


def check_expressions(constraint: Form | None, prefer: Sequence[Form]) -> tuple[str | None, list[str]]:
    """Both in the one spelling in which they are stored. Raises InvalidInput, also for expressions that can never hold."""
    if isinstance(constraint, str) and not constraint.strip():
        constraint = None
    if constraint is None and not prefer:
        return None, []
    if constraint is not None:
        constraint = read_text(constraint, "spec.constraint")
        refuse_clash([("", parse(constraint, "spec.constraint"))], "spec.constraint")
        _check_names(names_required(constraint), "spec.constraint")
    if len(prefer) > MOST_PREFERENCES:
        raise InvalidInput(f"spec.prefer: at most {MOST_PREFERENCES}", field="spec.prefer")
    kept = []
    for index, raw in enumerate(prefer):
        where = f"spec.prefer[{index}]"
        preference = read_preference(raw, where)
        refuse_clash([("", parse(show(preference.expression), where))], where)
        kept.append(show_preference(preference))
    if sum(map(len, kept)) > MOST_CHARACTERS:
        raise InvalidInput(f"spec.prefer: longer than {MOST_CHARACTERS} characters in all", field="spec.prefer")
    _check_names(names_preferred(kept), "spec.prefer")
    return constraint, kept


def _check_names(names: Sequence[str], where: str) -> None:
    if len(names) > MOST_NAMES:
        raise InvalidInput(f"{where}: more than {MOST_NAMES} constraints are named", field=where)


def read_plain(written: str, where: str) -> Expression:
    """An expression where no constraints can be named. Raises InvalidInput, also for one that can never hold."""
    written = read_text(written, where)
    parsed = parse(written, where)
    for leaf, (at, length) in zip(leaves(parsed.tree), parsed.spans, strict=True):
        if isinstance(leaf, Named):
            raise point_at(
                written,
                at,
                length,
                "a constraint can't name another constraint",
                where,
                "write out that constraint's expression",
            )
    refuse_clash([("", parsed)], where)
    return parsed.tree


def read_plain_preference(written: str, where: str) -> Preference:
    """A preference where no constraints can be named. Raises InvalidInput."""
    preference = read_preference(written, where)
    read_plain(show(preference.expression), where)
    return preference


def names_required(constraint: Form | None) -> list[str]:
    """The Constraint objects that a checked ``constraint`` names."""
    return names_in(read_expression(constraint)) if isinstance(constraint, str) and "@" in constraint else []


def names_preferred(prefer: Sequence[Form]) -> list[str]:
    """The Constraint objects that checked preferences name, each once."""
    found = [name for raw in prefer if "@" in raw for name in names_in(read_preference(raw, "prefer").expression)]
    return list(dict.fromkeys(found))


def refuse_clash_with_named(constraint: Form | None, named: Mapping[str, ConstraintSpec]) -> None:
    """Raise InvalidInput if ``constraint`` and the hard ones it names can't hold together."""
    if isinstance(constraint, str):
        wanted = {part.name for part in conjuncts(read_expression(constraint)) if isinstance(part, Named)}
        hard = [(name, str(spec.expression)) for name, spec in named.items() if name in wanted and not spec.soft]
        sources = [("", parse(constraint)), *((name, parse(expression)) for name, expression in hard)]
        refuse_clash(sources, "spec.constraint")


def _number(raw: Any, most: int, what: str, *, whole: bool = False) -> float:
    value: Any = None
    if isinstance(raw, str):
        try:
            value = (int if whole else float)(raw)
        except ValueError:
            value = None
    elif isinstance(raw, int | float) and not isinstance(raw, bool):
        value = None if whole and isinstance(raw, float) else raw
    if value is None or not 0 <= value <= most:
        shown = f"{raw[:40]!r} " if isinstance(raw, str) else ""
        kind = "a whole number" if whole else "a number"
        raise InvalidInput(
            f"{what} {shown}is not {kind} from 0 to {most}",
            field=what.partition(":")[0],
            hint="write like zone=a;weight=0.5;priority=2",
        )
    return float(value)


def _strength(obj: Object) -> str:
    if not dig(obj, "spec.soft"):
        return "hard"
    return f"soft, weight {dig(obj, 'spec.weight', WEIGHT):g}, priority {dig(obj, 'spec.priority', PRIORITY)}"


def _meeting(obj: Object) -> str:
    return f"{dig(obj, 'status.meeting', 0)}/{dig(obj, 'status.nodes', 0)}"


CONSTRAINT = Kind(
    name="constraint",
    plural="constraints",
    title="constraint",
    summary="A named condition or preference on nodes",
    spec=ConstraintSpec,
    status=ConstraintStatus,
    references=(share_reference(),),
    verbs=(SHARE,),
    in_backups="kept",
    access=Access(
        readers="project",
        status_writer="standing",
        shared_fields=(
            *("spec.expression", "spec.soft", "spec.weight", "spec.priority", "spec.description"),
            *("status.meeting", "status.nodes"),
        ),
    ),
    admission=Admission(check=check_constraint, kept_fields=("shared_with",)),
    display=Display(
        topic="Placement",
        columns=(
            NAME,
            Column("EXPRESSION", text("spec.expression"), flexible=True),
            Column("KIND", _strength),
            Column("NODES", _meeting, align="right"),
            Column("DESCRIPTION", text("spec.description", ""), wide=True),
            AGE,
        ),
    ),
)
