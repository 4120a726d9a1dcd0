"""Role: permissions under a name of one's own. Role bindings and tokens name it as they name a built-in role."""

from __future__ import annotations

from typing import Annotated

import msgspec

from weft.kinds.fields.cells import AGE, NAME, dig
from weft.kinds.permissions import ANY, list_kinds, list_verbs
from weft.kinds.record import Access, Admission, Column, Display, Kind, Object, Reference
from weft.objects.errors import InvalidInput
from weft.objects.roles import RIGHTS
from weft.objects.schema import field, suggest


class RoleSpec(msgspec.Struct, kw_only=True):
    rules: Annotated[
        dict[str, list[str]], field('Verbs that it allows, by kind, as in vm: [get, list, start]; "*" is all of them')
    ]


class RoleStatus(msgspec.Struct, kw_only=True):
    pass


def check_role(spec: RoleSpec) -> None:
    """Raises InvalidInput for a kind or verb that doesn't exist, and for a rule that allows nothing."""
    if not spec.rules:
        raise InvalidInput("spec.rules is empty", field="spec.rules", hint="give a rule, like vm: [get, list]")
    for kind, verbs in spec.rules.items():
        at, known = f"spec.rules.{kind[:60]}", list_verbs(kind)
        if not known:
            kinds = list_kinds()
            meant = suggest(kind, kinds)
            hint = f"did you mean {meant}?" if meant else f"kinds: {', '.join(kinds)}, or {ANY} for all"
            raise InvalidInput(f"{at}: there is no kind {kind[:60]!r}", field=at, hint=hint)
        if not verbs:
            raise InvalidInput(f"{at} has no verbs", field=at, hint="give verbs, or leave the kind out")
        for verb in verbs:
            if verb not in known and verb != ANY:
                meant = suggest(verb, known)
                hint = f"did you mean {meant}?" if meant else f"verbs: {', '.join(known)}, or {ANY} for all"
                raise InvalidInput(f"{at}: {verb[:60]!r} is not a verb of {kind}", field=at, hint=hint)
        spec.rules[kind] = sorted(set(verbs))


def refer_to_role(role: str) -> list[str]:
    """The own role that ``role`` names, if it isn't built in."""
    return [role] if role and role not in RIGHTS else []


ROLE_REFERENCE = Reference(
    "role", "spec.role", lambda spec: refer_to_role(spec.role), else_=f"built in are {', '.join(RIGHTS)}"
)


def _find_hint(name: str, _: str) -> str | None:
    meant = suggest(name, list(RIGHTS))
    return f"did you mean {meant}?" if meant else None


def _rules(obj: Object) -> str:
    return "; ".join(f"{kind}: {', '.join(verbs)}" for kind, verbs in (dig(obj, "spec.rules") or {}).items())


ROLE = Kind(
    name="role",
    plural="roles",
    title="role",
    summary="Permissions under a name of your own",
    scope="fabric",
    spec=RoleSpec,
    status=RoleStatus,
    access=Access(readers="shared"),
    admission=Admission(check=check_role, reserved_names=tuple(RIGHTS)),
    display=Display(
        topic="People and projects",
        columns=(NAME, Column("RULES", _rules, flexible=True), AGE),
        find_hint=_find_hint,
    ),
)
