"""Dependencies of an object on others. An object that it names (a reference) must exist, and can't be deleted as long as it
is named. What only one owner in the fabric can have (a claim), such as a published port, is an object that the owner's own commit
creates and deletes.

The store closes the race between "refer to it" and "delete it": a commit with a reference has as its precondition the revision
in which the other object was not being deleted; a deletion marks the object first, and searches for references after that. Reads
existing claims; probes this machine's ports.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from typing import Any

import msgspec

from weft.api.admission.content import read_content
from weft.api.admission.refusals import give_project
from weft.api.admission.view import View
from weft.api.context import ApiContext
from weft.api.state.published_ports import FORCE_HINT, find_reserved, is_port_free
from weft.contracts.store import Absent, AtRevision, Delete, Entry, Precondition, Put, Store, Write
from weft.kinds.parts.sharing import SHARED_WITH, is_shared, read_shares
from weft.kinds.project import FIRST
from weft.kinds.published_port import PublishedPortSpec
from weft.kinds.record import Claim, ClaimWithin, Kind, Reference
from weft.kinds.registry import BY_NAME, KINDS
from weft.kinds.user import USER, UserSpec
from weft.objects.envelope import Envelope, decode_envelope, decode_part, encode_envelope, merge_part
from weft.objects.errors import Forbidden, IllegalTransition, InUse, InvalidInput, NotFound
from weft.objects.identity import kind_prefix, named_key, object_key, split_named
from weft.objects.schema import suggest
from weft.trust.credentials import Actor

MOST_CLAIMS = 60  # of one owner, so that any object fits into one commit
_PROJECT = BY_NAME["project"]
_CREATE_PROJECT = "weft project create {} creates one"
_SUGGEST_AMONG = 200
_SHOWN = 5
_OTHERS = "others in project "
_PAGE = 500


async def plan_project(view: View, project: str | None) -> list[Precondition]:
    """The preconditions for a new object in ``project``. Raises NotFound."""
    if project is None:
        return []
    return await _plan_one(view, _PROJECT, None, project, "project")


async def plan_references(
    view: View, kind: Kind, envelope: Envelope, old: Any, new: Any, actor: Actor | None
) -> list[Precondition]:
    """The preconditions of the references that ``new`` has and ``old`` (None: no spec) has not. ``actor``: None for weft itself.

    Raises NotFound, and InUse for an object that another workload has exclusively."""
    preconditions: list[Precondition] = []
    marks = kind.read_marks(envelope)
    for reference in kind.references:
        asked = reference.read_names(new, marks)
        if not asked or (
            old is not None and _is_as_before(reference, old, new, reference.read_names(old, marks) == asked)
        ):
            continue
        names = reference.list_names(envelope.name, new, marks)
        before = () if old is None else set(reference.list_names(envelope.name, old, marks))
        for name in names:
            if name not in before:
                target = BY_NAME[reference.kind]
                if target.is_shareable and "/" in name:
                    preconditions += await _plan_shared(view, target, envelope, name, reference)
                elif reference.field == SHARED_WITH:
                    if name == envelope.project:
                        raise InvalidInput(
                            f"{SHARED_WITH}: {name} is the project of this {kind.name} itself",
                            field=SHARED_WITH,
                            hint="leave it out",
                        )
                    # Whether there is such a project, nobody learns by sharing who may not see it.
                    if actor is not None and actor.permits("project:get", name):
                        preconditions += await _plan_one(view, _PROJECT, None, name, SHARED_WITH, _CREATE_PROJECT)
                elif (
                    envelope.project is None and target.scope == "project"
                ):  # an object of the fabric says PROJECT/NAME
                    preconditions += await _plan_one(view, target, *split_named(None, name), reference.field)
                else:
                    project = await _find_project(view, target, envelope, reference, name)
                    if reference.awaited and await view.get(target, project, name) is None:
                        continue
                    preconditions += await _plan_one(view, target, project, name, reference.field, reference.else_)
                if reference.groups is not None:
                    await _refuse_outsider(view, envelope, reference, target, name)
                if reference.projects is not None:
                    await _refuse_other_project(view, envelope, reference, target, name)
                if reference.fits is not None or reference.bars is not None:
                    other = await view.get_key(named_key(target.name, _scope(target, envelope), name))
                    if other is not None and reference.fits is not None:
                        reference.fits(new, name, decode_part(other.spec, target.spec), envelope.project)
                    if other is not None and reference.bars is not None:
                        reference.bars(new, name, target.read_marks(other))
                if reference.alone:
                    await _refuse_owned(view, envelope, reference, target, name)
                if reference.holder is not None:
                    await _refuse_held(view, target, envelope, name, reference)
        if reference.agree is not None and (old is None or not reference.agrees_once):
            named = await _read_named(view, envelope, reference, names)
            reference.agree(new, {name: decode_part(one.spec, BY_NAME[one.kind].spec) for name, one in named.items()})
        if reference.suffices is not None and not _asks_as_before(reference, old, new):
            named = await _read_named(view, envelope, reference, names)
            reference.suffices(
                new, {name: decode_part(one.status, BY_NAME[one.kind].status) for name, one in named.items()}
            )
    return preconditions


def is_same_for_all(kind: Kind, spec: Any) -> bool:
    """Whether ``plan_references`` gives the same for all new objects with ``spec``: no reference depends on the object's name or
    uid, on its marks, or on other objects of its kind."""
    marks = None if kind.marks is None else kind.marks()
    return not any(
        (reference.below is not None or reference.holder is not None or reference.kind == kind.name)
        and reference.read_names(spec, marks)
        for reference in kind.references
    )


def _is_as_before(reference: Reference, old: Any, new: Any, names_same: bool) -> bool:
    """Whether ``new`` has the references of ``old``, with the same conditions: then there is nothing to check."""
    return (
        names_same and reference.agree is None and (reference.suffices is None or _asks_as_before(reference, old, new))
    )


def _asks_as_before(reference: Reference, old: Any, new: Any) -> bool:
    return old is not None and reference.asks is not None and bool(reference.asks(old) == reference.asks(new))


async def _find_project(view: View, target: Kind, envelope: Envelope, reference: Reference, name: str) -> str | None:
    """The project of the object ``name``: that of ``envelope``, or the shared one if it isn't there."""
    own = _scope(target, envelope)
    if reference.shared is None or own == reference.shared or await view.get(target, own, name) is not None:
        return own
    return reference.shared


async def _read_named(
    view: View, envelope: Envelope, reference: Reference, names: Sequence[str]
) -> dict[str, Envelope]:
    """The objects it refers to that exist, by name."""
    target = BY_NAME[reference.kind]
    scope = _scope(target, envelope)
    found = {name: await view.get_key(named_key(target.name, scope, name)) for name in names}
    return {name: other for name, other in found.items() if other is not None}


def _scope(target: Kind, envelope: Envelope) -> str | None:
    return envelope.project if target.scope == "project" else None


async def find_users(store: Store, kind: Kind, envelope: Envelope) -> list[str]:
    """A few of the objects that keep ``envelope`` from being deleted, like ``vm/web``."""
    users = (await read_content(store, envelope.name, _SHOWN)).users if kind.lifetime.holds_objects else []
    for other in KINDS:
        for reference in other.references:
            if reference.blocks and reference.kind == kind.name:
                users += await _find_referring(store, other, reference, envelope)
    return users


async def refuse_reserved(store: Store, kind: Kind, envelope: Envelope) -> None:
    """Raise InUse if the name of a new object belonged to a deleted one to which others still refer: they would mean this one."""
    for other, reference in _list_reserving(kind.name):
        users = await _find_referring(store, other, reference, envelope)
        if not users:
            continue
        why = "names a deleted one"
        first = f"take {envelope.name} out of {users[0]} first"
        if reference.field == SHARED_WITH:
            why = f"is shared with {envelope.name}, and a new {kind.name} would inherit that"
            named, _, where = users[0].partition(" ")
            first = f"end that: weft {named.replace('/', ' share ', 1)} --stop {envelope.name}" + (
                where and f" {where}"
            )
        raise InUse(
            f'{kind.title} "{envelope.name}" can\'t be created: {users[0]} {why}',
            field="name",
            hint=f"{first}; or choose another name",
            details={"by": users[:_SHOWN]},
        )


@functools.cache
def _list_reserving(kind: str) -> tuple[tuple[Kind, Reference], ...]:
    """The references to objects of ``kind`` that keep the name of a deleted one."""
    return tuple(
        (other, reference)
        for other in KINDS
        for reference in other.references
        if reference.reserves and reference.kind == kind
    )


def is_referred_to(kind: Kind) -> bool:
    """Whether objects of any kind can refer to one of ``kind``."""
    return (
        kind.lifetime.holds_objects
        or kind.lifetime.runs_workloads
        or any(reference.blocks and reference.kind == kind.name for other in KINDS for reference in other.references)
    )


def in_use(kind: Kind, envelope: Envelope, users: list[str]) -> InUse:
    """The error for deleting an object that others need. What goes with its owner isn't named of the content of a project: nobody
    deletes it alone."""
    users = list(dict.fromkeys(users))
    if kind.lifetime.holds_objects:
        users = [user for user in users if not _goes_with_owner(user)] or users
    shown = ", ".join(users[:_SHOWN]) + (" and more" if len(users) > _SHOWN else "")
    own = next((user for user in users if not user.startswith(_OTHERS)), "")
    if own and " " not in own and BY_NAME[own.partition("/")[0]].scope == "project":
        own += give_project(envelope.name if kind.lifetime.holds_objects else envelope.project)
    hint = f"delete or change that first: weft describe {own}" if own else "ask them to delete or change that first"
    if kind.lifetime.holds_objects and own:
        hint += f"; or all of it: weft {kind.name} delete {envelope.name} --everything"
    if kind.lifetime.holds_objects and own and _goes_with_owner(own):
        hint = "what it belongs to was deleted, and it goes with that: try again in a moment"
    return InUse(
        f'{kind.title} "{envelope.name}" is in use by {shown}',
        hint=hint,
        details={"by": users[:_SHOWN]},
    )


def _goes_with_owner(user: str) -> bool:
    kind = BY_NAME.get(user.partition("/")[0])
    return kind is not None and kind.lifetime.goes_with_owner and kind.access.writer == "fabric"


async def _plan_shared(
    view: View, kind: Kind, envelope: Envelope, text: str, reference: Reference
) -> list[Precondition]:
    """The preconditions of PROJECT/NAME. Raises NotFound, the same whether there is no such object or no share of it."""
    field, (project, name) = reference.field, split_named(envelope.project, text)
    if project == envelope.project:
        raise InvalidInput(
            f"{field}: {project} is the project of this {envelope.kind} itself", field=field, hint=f"write {name}"
        )
    key = object_key(kind.name, project, name)
    found = await view.get_key(key)
    if found is None or not is_shared(read_shares(found.spec), envelope.project):
        share = (
            f"ask someone of project {project}: weft {kind.name} share {name} -p {project} --with {envelope.project}"
        )
        raise NotFound(
            f'{kind.title} "{text}" not found, or not shared with project {envelope.project}',
            field=field,
            hint="; ".join(
                filter(None, (_read_as_kind(kind, project or "", name), share, reference.else_.format(text)))
            ),
        )
    if found.deleting_since is not None:
        raise NotFound(f'{kind.title} "{text}" is being deleted', field=field, hint=f"weft {kind.name} list --shared")
    return [] if view.is_planned(key) else [AtRevision(key, found.revision)]


def _read_as_kind(kind: Kind, word: str, name: str) -> str:
    """Hint for KIND/NAME where only NAME or PROJECT/NAME is allowed."""
    if word == kind.name:
        return f"write {name} for that of this project"
    if (word, kind.name) == ("vm", "image"):
        return f"an image of a VM is made first: weft image create NAME --from vm/{name}"
    return ""


async def _refuse_outsider(view: View, envelope: Envelope, reference: Reference, target: Kind, name: str) -> None:
    """Raise Forbidden unless the creator of ``envelope`` is in one of the groups that the object ``name`` is for, if there are any.

    A token of no user is in no group, and groups of an OIDC provider aren't weft's."""
    other = await view.get_key(named_key(target.name, _scope(target, envelope), name))
    groups = reference.groups(decode_part(other.spec, target.spec)) if other is not None and reference.groups else ()
    if not groups:
        return
    user = await view.get(USER, None, envelope.creator) if ":" not in envelope.creator else None
    if user is None or set(groups).isdisjoint(decode_part(user.spec, UserSpec).groups):
        raise Forbidden(
            f"{reference.field}: {target.name}/{name} is for users of {', '.join(sorted(groups))}, and "
            f"{envelope.creator or 'weft itself'} is in none of these groups",
            hint=f"ask for another {target.name}, or to be added to a group: weft {target.name} list",
        )


async def _refuse_other_project(view: View, envelope: Envelope, reference: Reference, target: Kind, name: str) -> None:
    """Raise Forbidden if the object ``name`` is for other projects than that of ``envelope``. It doesn't say for which ones."""
    other = await view.get_key(named_key(target.name, _scope(target, envelope), name))
    if other is None or reference.projects is None:
        return
    if envelope.project not in reference.projects(decode_part(other.spec, target.spec)):
        words, _, hint = reference.refused.format(name=name, project=envelope.project).partition("; ")
        raise Forbidden(f"{reference.field}: {words}", reason="otherProject", field=reference.field, hint=hint)


async def _refuse_owned(view: View, envelope: Envelope, reference: Reference, target: Kind, name: str) -> None:
    """Raise IllegalTransition if another object owns the object ``name``."""
    other = await view.get_key(named_key(target.name, _scope(target, envelope), name))
    owner = other.owner if other is not None else None
    if owner is not None:
        whose = f"{owner.kind}/{owner.name}"
        raise IllegalTransition(
            f"{reference.field}: {target.name}/{name} belongs to {whose}, which {reference.alone}",
            field=reference.field,
            reason="isOwned",
            hint=f"give a {target.title} of its own; one that {whose} has adopted is one again once that is deleted",
        )


async def _plan_one(
    view: View, kind: Kind, project: str | None, name: str, field: str, else_: str = ""
) -> list[Precondition]:
    scope = project if kind.scope == "project" else None
    key = object_key(kind.name, scope, name)
    found = await view.get_key(key)
    if found is None:
        meant = suggest(name, await _names(view.store, kind, scope))
        where = f" in project {scope}" if scope else ""
        hint = f"did you mean {meant}?" if meant else f"weft {kind.name} list{give_project(scope)}"
        hint = kind.display.find_hint(name, give_project(scope)) or (f"{hint}; {else_.format(name)}" if else_ else hint)
        hint = await _find_shared(view, kind, scope, name) or hint
        raise NotFound(f'{kind.title} "{name}" not found{where}', field=field, hint=hint)
    if found.deleting_since is not None:
        raise NotFound(f'{kind.title} "{name}" is being deleted', field=field, hint=f"weft {kind.name} list")
    if view.is_planned(key):
        return []
    return [AtRevision(key, found.revision)]


async def _find_shared(view: View, kind: Kind, project: str | None, name: str) -> str:
    """Words for an object of this name that the first project shares; "" if there is none."""
    other = await view.get(kind, FIRST, name) if kind.access.shared_fields and "/" not in name else None
    if other is None or not is_shared(read_shares(other.spec), project):
        return ""
    return f"project {FIRST} shares one: give {FIRST}/{name}"


async def _refuse_held(view: View, kind: Kind, by: Envelope, name: str, reference: Reference) -> None:
    """Raise InUse if another workload than ``by`` has it. The scheduler waits for one that is being deleted."""
    found = await view.get(kind, by.project, name)
    holder = (
        None if found is None or reference.holder is None else reference.holder(decode_part(found.status, kind.status))
    )
    if holder is None or holder.uid == by.uid:
        return
    current = await view.get(BY_NAME[holder.kind], holder.project, holder.name)
    if current is not None and current.uid == holder.uid and current.deleting_since is None:
        what = f"{holder.kind}/{holder.name}"
        detaches = "detach" in BY_NAME[holder.kind].display.commands
        let_go = f"weft {kind.name} detach {name} {holder.name}" if detaches else f"weft edit {what}"
        raise InUse(
            f'{kind.title} "{name}" is attached to {what}',
            field=reference.field,
            hint=f"{let_go}, and stop {what}",
            details={"by": [what]},
        )


async def refuse_second(view: View, kind: Kind, by: Envelope, old: Any, new: Any) -> None:
    """Raise InvalidInput if another object of the project has what ``new`` has anew, and only one may have. ``old``: None, if it is
    a new object."""
    if kind.admission.one_of is None:
        return
    read, field = kind.admission.one_of
    word, after = read(new), None
    if not word or (old is not None and read(old) == word):
        return
    while True:
        page = await view.store.list(kind_prefix(kind.name, by.project), limit=_PAGE, after=after)
        for envelope in await asyncio.to_thread(_read_entries, page.entries):
            if envelope.uid != by.uid and read(decode_part(envelope.spec, kind.spec)) == word:
                raise InvalidInput(
                    f"{field}: {kind.name}/{envelope.name} has it for {word} already, and only one may",
                    field=field,
                    hint=f"first: weft {kind.name} set {envelope.name} --no-{field.rpartition('.')[2]}",
                )
        if page.next is None:
            return
        after = page.next


def _read_entries(entries: Sequence[Entry]) -> list[Envelope]:
    return [decode_envelope(entry.value) for entry in entries]


async def _names(store: Store, kind: Kind, project: str | None) -> list[str]:
    page = await store.list(object_key(kind.name, project, ""), limit=_SUGGEST_AMONG)
    return [entry.key.rpartition("/")[2] for entry in page.entries]


async def _find_referring(store: Store, kind: Kind, reference: Reference, target: Envelope) -> list[str]:
    elsewhere = BY_NAME[target.kind].is_shareable or (reference.shared and reference.shared == target.project)
    project = target.project if kind.scope == "project" and not elsewhere else None
    found: list[str] = []
    after: str | None = None
    while len(found) <= _SHOWN:
        page = await store.list(kind_prefix(kind.name, project), limit=_PAGE, after=after)
        for envelope in await asyncio.to_thread(_referring, kind, reference, target, page.entries):
            if envelope.project in (project, target.project):
                found.append(f"{kind.name}/{envelope.name}")
            elif reference.shared != target.project and target.project is not None:
                if (others := f"{_OTHERS}{envelope.project}") not in found:  # its objects' names are its own
                    found.append(others)
            elif (
                await store.get(object_key(target.kind, envelope.project, target.name)) is None
            ):  # it has none of its own
                found.append(f"{kind.name}/{envelope.name} -p {envelope.project}")
        if page.next is None:
            break
        after = page.next
    return found


def _referring(kind: Kind, reference: Reference, target: Envelope, entries: Sequence[Entry]) -> list[Envelope]:
    found = []
    for entry in entries:
        envelope = decode_envelope(entry.value)
        names = reference.list_names(envelope.name, decode_part(envelope.spec, kind.spec), kind.read_marks(envelope))
        own = target.project in (None, envelope.project, reference.shared)
        name = target.name if own else f"{target.project}/{target.name}"
        if name in names and envelope.uid != target.uid:
            found.append(envelope)
    return found


async def plan_claims(
    context: ApiContext, view: View, kind: Kind, owner: Envelope, old: Any, new: Any
) -> tuple[list[Write], list[Precondition]]:
    """The writes that turn the claims of ``old`` (None: a new owner) into those of ``new``, and their preconditions. Raises
    InUse if another owner has one of them, or a program outside weft holds the port."""
    asked, before = _claims(kind, owner, new), [] if old is None else _claims(kind, owner, old)
    if not asked and not before:
        return [], []
    held = {_key(claim) for claim in _to_release(before)}
    wanted = {_key(claim): claim for claim in [await _resolve(view, owner, c) for c in asked]}
    writes: list[Write] = []
    preconditions: list[Precondition] = []
    for key, claim in wanted.items():
        current = await view.get_key(key)
        if current is None:
            await _refuse_foreign(context, claim)
            envelope = BY_NAME[claim.kind].make(claim.name, claim.spec, context.clock.now(), owner=owner)
            view.plan(key, envelope)
            writes.append(Put(key, encode_envelope(envelope)))
            preconditions.append(Absent(key))
        elif current.owner is None or current.owner.uid != owner.uid:
            own = current.owner is not None and current.owner.project == owner.project  # others' names are their own
            by = f" by {current.owner.kind}/{current.owner.name}" if current.owner is not None and own else ""
            raise InUse(f"{claim.taken}{by}", reason=claim.reason, field=claim.field, hint=claim.hint)
        elif not claim.keeps:
            spec = merge_part(current.spec, claim.spec)
            if bytes(spec) != bytes(current.spec):
                changed = msgspec.structs.replace(current, spec=spec, generation=current.generation + 1)
                writes.append(Put(key, encode_envelope(changed)))
                preconditions.append(AtRevision(key, current.revision))
    writes.extend(Delete(key) for key in sorted(held - wanted.keys()))
    return writes, preconditions


def plan_release(kind: Kind, owner: Envelope, spec: Any) -> list[Write]:
    """The deletes of all claims of an owner that is deleted."""
    return [Delete(_key(claim)) for claim in _to_release(_claims(kind, owner, spec))]


def _claims(kind: Kind, owner: Envelope, spec: Any) -> Sequence[Claim | ClaimWithin]:
    return [] if kind.admission.claims is None else kind.admission.claims(owner, spec)


def _to_release(claims: Sequence[Claim | ClaimWithin]) -> list[Claim]:
    return [claim for claim in claims if isinstance(claim, Claim) and not claim.keeps]


async def _resolve(view: View, owner: Envelope, claim: Claim | ClaimWithin) -> Claim:
    if isinstance(claim, Claim):
        return claim
    within = await view.get_key(named_key(claim.kind, owner.project, claim.name))
    if within is None:
        raise NotFound(f'{claim.kind} "{claim.name}" not found', hint=f"weft {claim.kind} list")
    return claim.make(within)


def _key(claim: Claim) -> str:
    return object_key(claim.kind, None, claim.name)


async def _refuse_foreign(context: ApiContext, claim: Claim) -> None:
    if claim.forced or not isinstance(claim.spec, PublishedPortSpec):
        return
    settings, port, protocol = context.settings, claim.spec.port, claim.spec.protocol
    force = [FORCE_HINT] if claim.forcible else []
    if reserved := find_reserved(port, protocol, (*settings.listen, *settings.gateways, *settings.functions)):
        raise InUse(
            f"port {port}/{protocol} is reserved for {reserved}",
            reason="portReserved",
            field=claim.field,
            hint="; ".join(["choose another port", *force]),
        )
    nodes = await context.node_ports.find_holders(port, protocol)
    address = settings.publish_address
    if nodes:
        where = f"on {nodes}"
    elif address is None or await is_port_free(address, port, protocol, context.clock):
        return
    else:
        where = f"on the server's machine ({address})"
    raise InUse(
        f"port {port}/{protocol} is held by another program {where}",
        reason=claim.reason,
        field=claim.field,
        hint="; ".join(["choose another port", f"ss -lpn 'sport = :{port}' shows there which program has it", *force]),
    )
