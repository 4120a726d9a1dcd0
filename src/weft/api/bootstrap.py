"""The first start: a project, a network, alert rules, and an admin's token in a context file. Later starts restore a missing token.

What people deleted of it is not created again: only a store without project ``default`` counts as new.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from weft.api.admission import admit
from weft.api.admission.commit import retry, settle
from weft.api.admission.view import View
from weft.api.context import ApiContext
from weft.api.request.manifest import Manifest
from weft.client.context import Context, read_context, write_context
from weft.contracts.store import Delete
from weft.kinds.alert_rule import ALERT_RULE
from weft.kinds.fields.alert import defaults
from weft.kinds.network import NETWORK
from weft.kinds.project import PROJECT
from weft.kinds.token import TOKEN
from weft.objects.envelope import decode_envelope
from weft.objects.errors import WeftError
from weft.objects.identity import kind_prefix, object_key
from weft.trust.tokens import make_token, make_token_id, parse_token, verify_secret

DEFAULT_CIDR = "10.214.0.0/20"
_LABEL = "weft/bootstrap"


async def bootstrap(context: ApiContext, context_path: Path, server: str) -> None:
    """Create the first project, network and alert rules if the store is new, and an admin's context for ``server`` in
    ``context_path``."""
    await retry(context, lambda: _make_default(context))
    await _write_admin_context(context, context_path, server)


async def _make_default(context: ApiContext) -> None:
    view = View(context.store, context.clock)
    if await view.get(PROJECT, None, "default") is not None:
        return
    project = Manifest(
        kind=PROJECT, name="default", project=None, labels=None, spec={"description": "the first project"}
    )
    network = Manifest(kind=NETWORK, name="default", project="default", labels=None, spec={"cidr": DEFAULT_CIDR})
    manifests = [project, network]
    if await view.get(PROJECT, None, defaults.PROJECT) is None:  # people may have deleted the other one only
        manifests += _list_default_rules()
    drafts = [await admit.plan_create(context, view, manifest, None) for manifest in manifests]
    await context.store.commit(
        [write for draft in drafts for write in draft.writes],
        [precondition for draft in drafts for precondition in draft.preconditions],
    )


def _list_default_rules() -> list[Manifest]:
    """Their project, and they."""
    fabric = Manifest(
        kind=PROJECT, name=defaults.PROJECT, project=None, labels=None, spec={"description": defaults.DESCRIPTION}
    )
    rules = defaults.list_default_rules().items()
    return [
        fabric,
        *(
            Manifest(kind=ALERT_RULE, name=name, project=defaults.PROJECT, labels=None, spec=spec)
            for name, spec in rules
        ),
    ]


async def _write_admin_context(context: ApiContext, path: Path, server: str) -> None:
    ca = context.authority.ca
    try:
        old: Context | None = await asyncio.to_thread(read_context, path)
    except WeftError:
        old = None
    if old is not None and await _is_good(context, old.token, "admin"):
        wanted = Context(server=server, ca=ca, token=old.token, project=old.project)
        if wanted != old:
            await asyncio.to_thread(write_context, path, wanted)
        return
    text = await _make_token(context, "admin", "admin")
    project = old.project if old is not None else "default"
    await asyncio.to_thread(write_context, path, Context(server=server, ca=ca, token=text, project=project))


async def _make_token(context: ApiContext, subject: str, role: str) -> str:
    """A new token of the fabric's own; older ones of ``subject`` are deleted."""
    await _drop_old(context, subject)
    text, sha256 = make_token(name := make_token_id(subject))
    spec = {"use": "access", "role": role, "subject": subject, "sha256": sha256}
    manifest = Manifest(kind=TOKEN, name=name, project=None, labels={_LABEL: subject}, spec=spec)
    await settle(context, lambda view: admit.plan_create(context, view, manifest, None))
    return text


async def _is_good(context: ApiContext, text: str, role: str) -> bool:
    token = parse_token(text)
    if token is None:
        return False
    facts = await context.tokens.read(object_key("token", None, token.id))
    return facts is not None and facts.spec.role == role and verify_secret(token.secret, facts.spec.sha256)


async def _drop_old(context: ApiContext, subject: str) -> None:
    page = await context.store.list(kind_prefix("token"))
    for entry in page.entries:
        if decode_envelope(entry.value).labels.get(_LABEL) == subject:
            await context.store.commit([Delete(entry.key)])
