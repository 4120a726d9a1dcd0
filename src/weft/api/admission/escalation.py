"""No privilege escalation: a role binding, a token or a role gives at most the permissions of who writes it, and a change
of a user at most those that the user then has. The commit relies on the role that was read: a wider one of the moment is seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from weft.api.admission.view import View
from weft.api.context import ApiContext
from weft.contracts.store import AtRevision, Precondition, Present
from weft.kinds.cluster import GRANTS_TAKE
from weft.kinds.permissions import PERMISSIONS, find_built_in, find_permissions
from weft.kinds.record import Kind
from weft.kinds.role import ROLE, RoleSpec
from weft.kinds.rolebinding import RoleBindingSpec
from weft.kinds.token import SERVER_USE, TOKEN, TokenSpec
from weft.kinds.user import USER, UserSpec
from weft.objects.envelope import decode_part
from weft.objects.errors import Forbidden
from weft.objects.roles import ALL, Grant
from weft.trust.credentials import Actor, invalid_token

GRANTING_SPECS = (RoleSpec, RoleBindingSpec, TokenSpec, UserSpec)
JOINS = "node:create"  # what a join token gives, once
LINKS = "cluster:create"  # what a link token gives, once


async def plan_gift(
    context: ApiContext, view: View, kind: Kind, name: str, actor: Actor | None, old: Any, new: Any
) -> list[Precondition]:
    """The preconditions under which ``new`` (a spec of the object ``name``; ``old``: None, if it is new) gives no more than
    ``actor`` has; None: weft itself writes it. Raises Forbidden if it gives more."""
    if actor is None:
        return []
    return [*await _rely_on(view, actor), *await _plan_gift(context, view, kind, name, actor, old, new)]


async def _rely_on(view: View, actor: Actor) -> list[Precondition]:
    """The preconditions that the actor's token is there and its user unchanged: what is given outlasts both, and another API server
    may just have ended them. Raises NotAuthenticated."""
    token = await view.get(TOKEN, None, actor.id)
    if token is None:
        raise invalid_token()
    relied: list[Precondition] = [Present(token.key)]
    if actor.user is None:
        return relied
    user = await view.get(USER, None, actor.user.name)
    if user is None or user.uid != actor.user.uid or decode_part(user.spec, UserSpec).disabled:
        raise invalid_token()
    return [*relied, AtRevision(user.key, user.revision)]


async def _plan_gift(
    context: ApiContext, view: View, kind: Kind, name: str, actor: Actor, old: Any, new: Any
) -> list[Precondition]:
    match new:
        case RoleSpec():
            before = frozenset() if old is None else find_permissions(old.rules)
            refuse_excess(actor, [Grant(name, None, find_permissions(new.rules) - before)], kind)
        case RoleBindingSpec():
            if old is None or _gives_more(old, new):
                return await _plan_role(view, actor, new.role, new.project, kind)
        case TokenSpec() if old is None and new.use == "join":
            refuse_excess(actor, [Grant("", None, frozenset({JOINS}))], kind)
        case TokenSpec() if old is None and new.use == SERVER_USE:  # the keys of the fabric let a server do everything
            return await _plan_role(view, actor, ALL, None, kind)
        case TokenSpec() if old is None and new.use == "link":
            # Without grants, projects widen those that the link has already.
            is_more = new.link is not None and (new.link.grants or (new.link.grants is None and new.link.projects))
            given = frozenset({LINKS, GRANTS_TAKE} if is_more else {LINKS})
            refuse_excess(actor, [Grant("", None, given)], kind)
        case TokenSpec() if old is None and new.role:
            return await _plan_role(view, actor, new.role, new.project, kind)
        case UserSpec():
            directory, is_another = await context.accounts.read(), old is None or old.identity != new.identity
            groups = new.groups if is_another else [group for group in new.groups if group not in old.groups]
            refuse_excess(actor, directory.list_grants(name if is_another else None, groups), kind)
    return []


def refuse_excess(actor: Actor, grants: Iterable[Grant], kind: Kind) -> None:
    """Raise Forbidden if ``grants`` have a permission that ``actor`` hasn't. What counts in all projects only, a grant in one
    project doesn't give."""
    for grant in grants:
        for permission in sorted(grant.permissions):
            if grant.project is not None and not PERMISSIONS[permission].in_project:
                continue
            if not actor.permits(permission, grant.project):
                where = f"in project {grant.project}" if grant.project else "in all projects"
                has_role = any(own.project in (None, grant.project) for own in actor.grants)
                lacking = permission if has_role or grant.project is None else "role"
                raise Forbidden(
                    f"{actor.name} has no {lacking} {where}: {actor.name} can't give it by {kind.a_title}",
                    hint="give a lesser role, or -p with a project where you have it; weft whoami shows your roles",
                    details={"permission": permission},
                )


def _gives_more(old: RoleBindingSpec, new: RoleBindingSpec) -> bool:
    return (
        (old.role, old.project) != (new.role, new.project)
        or not set(new.users) <= set(old.users)
        or not set(new.groups) <= set(old.groups)
        or not set(new.claims) <= set(old.claims)
    )


async def _plan_role(view: View, actor: Actor, role: str, project: str | None, kind: Kind) -> list[Precondition]:
    """The preconditions under which ``role`` is as it was checked. One that doesn't exist is refused for that."""
    found, own = find_built_in(role, project is None), None
    if found is None and (own := await view.get(ROLE, None, role)) is not None:
        found = find_permissions(decode_part(own.spec, RoleSpec).rules)
    refuse_excess(actor, [Grant(role, project, found or frozenset())], kind)
    return [] if own is None or view.is_planned(own.key) else [AtRevision(own.key, own.revision)]
