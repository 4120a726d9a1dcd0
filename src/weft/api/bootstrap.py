"""The first start: a project, a network, alert rules, and an admin's token in a context file. Later starts restore a missing token.

What people deleted of it is not created again: only a store without project ``default`` counts as new. Which alert rules a fabric
was given stands in the store, so one of an older release gets the newer ones, each once.
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import msgspec

from weft.api.admission import admit
from weft.api.admission.commit import retry, settle
from weft.api.admission.view import View
from weft.api.context import ApiContext
from weft.api.request.manifest import Manifest
from weft.client.context import Context, hash_ca, read_context, refuse_other_server, write_context
from weft.contracts.store import Absent, AtRevision, Delete, Precondition, Put
from weft.kinds.alert_rule import ALERT_RULE
from weft.kinds.fields.alert import defaults
from weft.kinds.network import NETWORK
from weft.kinds.project import PROJECT, ProjectSpec
from weft.kinds.token import SERVER_LABEL, TOKEN
from weft.objects.envelope import decode_envelope, decode_part
from weft.objects.errors import InUse, WeftError
from weft.objects.identity import FABRIC, kind_prefix, object_key
from weft.protocol.server.presence import LEASE_PREFIX
from weft.trust.tokens import make_token, make_token_id, parse_token, verify_secret

DEFAULT_CIDR = "10.214.0.0/20"
_LABEL = "weft/bootstrap"  # of the fabric's own tokens: for whom; and SERVER_LABEL: which server made it
_FILE_LABEL = "weft/context"  # … and for which file, by a digest of its path: those in other files stay valid
_OWNER = f"/fabric/{FABRIC}/ca"  # the store's key of the digest
_GIVEN = f"/defaultrules/{FABRIC}/given"  # the store's key of the names of the default rules that there were, as JSON


async def bootstrap(
    context: ApiContext, context_path: Path, server: str, cidr: str = DEFAULT_CIDR, name: str = "s1"
) -> None:
    """Create the first project, network (with ``cidr``) and alert rules if the store is new, and an admin's context for ``server``
    in ``context_path``. ``name``: of this server among those of the fabric."""
    await mark_store(context)
    await retry(context, lambda: _make_default(context, cidr))
    await retry(context, lambda: _offer_rules(context))
    await _write_admin_context(context, context_path, server, name)


async def mark_store(context: ApiContext) -> None:
    """Write down whose store it is, by the digest of the fabric's CA certificate. Raises InUse while a server of another fabric
    serves it."""
    await retry(context, lambda: _mark_store(context))


async def _mark_store(context: ApiContext) -> None:
    mark, own = await context.store.get(_OWNER), hash_ca(context.authority.ca).encode()
    if mark is not None and mark.value == own:
        return
    if mark is not None and (serving := await context.store.leases(LEASE_PREFIX)):
        names = ", ".join(lease.name.removeprefix(LEASE_PREFIX) for lease in serving)
        raise InUse(
            f"the store holds the objects of another fabric, whose server {names} serves: its CA's certificate isn't this one's",
            hint="give this server another --store; to make it a server of that fabric, weft server join",
        )
    await context.store.commit(
        [Put(_OWNER, own)], [Absent(_OWNER) if mark is None else AtRevision(_OWNER, mark.revision)]
    )


async def _make_default(context: ApiContext, cidr: str) -> None:
    view = View(context.store, context.clock)
    if await view.get(PROJECT, None, "default") is not None:
        return
    project = Manifest(
        kind=PROJECT, name="default", project=None, labels=None, spec={"description": "the first project"}
    )
    network = Manifest(kind=NETWORK, name="default", project="default", labels=None, spec={"cidr": cidr})
    await _commit(context, view, [project, network])


async def _offer_rules(context: ApiContext) -> None:
    """Create those default rules that this fabric was never given, and their project with the first."""
    view, rules = View(context.store, context.clock), defaults.list_default_rules()
    mark, home = await context.store.get(_GIVEN), await view.get(PROJECT, None, defaults.PROJECT)
    given = set(msgspec.json.decode(mark.value, type=list[str])) if mark is not None else set()
    if mark is None and home is not None:  # made before there was a mark, or people's own project of that name
        is_ours = decode_part(home.spec, ProjectSpec).description == defaults.DESCRIPTION
        given = set(defaults.FIRST_RULES if is_ours else rules)
    if rules.keys() <= given and mark is not None:
        return
    manifests = list[Manifest]()
    if home is None and mark is None:
        spec = {"description": defaults.DESCRIPTION}
        manifests.append(Manifest(kind=PROJECT, name=defaults.PROJECT, project=None, labels=None, spec=spec))
    if home is not None or mark is None:  # without the project, people want none of them
        for name, rule in rules.items():
            if name not in given and await view.get(ALERT_RULE, defaults.PROJECT, name) is None:
                manifests.append(Manifest(kind=ALERT_RULE, name=name, project=defaults.PROJECT, labels=None, spec=rule))
    noted = Put(_GIVEN, msgspec.json.encode(sorted(given | rules.keys())))
    await _commit(
        context, view, manifests, noted, Absent(_GIVEN) if mark is None else AtRevision(_GIVEN, mark.revision)
    )


async def _commit(context: ApiContext, view: View, manifests: list[Manifest], *more: Put | Precondition) -> None:
    drafts = [await admit.plan_create(context, view, manifest, None) for manifest in manifests]
    await context.store.commit(
        [*(write for draft in drafts for write in draft.writes), *(one for one in more if isinstance(one, Put))],
        [
            *(precondition for draft in drafts for precondition in draft.preconditions),
            *(one for one in more if not isinstance(one, Put)),
        ],
    )


async def _write_admin_context(context: ApiContext, path: Path, server: str, name: str) -> None:
    ca = context.authority.ca
    refuse_other_server(
        path, Context(server=server, ca=ca), "start this server with --context FILE, or rename that file"
    )
    try:
        old: Context | None = await asyncio.to_thread(read_context, path)
    except WeftError:
        old = None
    if old is not None and await _is_good(context, old.token, "admin"):
        wanted = Context(server=server, ca=ca, token=old.token, project=old.project)
        if wanted != old:
            await asyncio.to_thread(write_context, path, wanted)
        return
    text = await _make_token(context, "admin", "admin", name, _name_file(path))
    project = old.project if old is not None else "default"
    await asyncio.to_thread(write_context, path, Context(server=server, ca=ca, token=text, project=project))


async def _make_token(context: ApiContext, subject: str, role: str, server: str, file: str) -> str:
    """A new token of the fabric's own; older ones of ``subject`` that this server made for the same ``file`` are deleted."""
    await _drop_old(context, subject, server, file)
    text, sha256 = make_token(name := make_token_id(subject))
    spec = {"use": "access", "role": role, "subject": subject}
    labels, marks = {_LABEL: subject, SERVER_LABEL: server, _FILE_LABEL: file}, {"sha256": sha256}
    manifest = Manifest(kind=TOKEN, name=name, project=None, labels=labels, spec=spec, marks=marks)
    await settle(context, lambda view: admit.plan_create(context, view, manifest, None))
    return text


def _name_file(path: Path) -> str:
    return hashlib.sha256(bytes(path.absolute())).hexdigest()[:12]


async def _is_good(context: ApiContext, text: str, role: str) -> bool:
    token = parse_token(text)
    if token is None:
        return False
    facts = await context.tokens.read(object_key("token", None, token.id))
    return facts is not None and facts.spec.role == role and verify_secret(token.secret, facts.marks.sha256)


async def _drop_old(context: ApiContext, subject: str, place: str, file: str) -> None:
    page = await context.store.list(kind_prefix("token"))
    for entry in page.entries:
        labels = decode_envelope(entry.value).labels
        if (labels.get(_LABEL), labels.get(SERVER_LABEL), labels.get(_FILE_LABEL, file)) == (subject, place, file):
            await context.store.commit([Delete(entry.key)])
