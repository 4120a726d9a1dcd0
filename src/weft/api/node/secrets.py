"""Secrets on their way out: opened only for a node that runs a workload or function that names them."""

from __future__ import annotations

import msgspec

from weft.api.auth.served_devices import read_devices_project
from weft.api.context import ApiContext
from weft.api.node.join import require_own
from weft.api.node.project_objects import list_uploads, read_project
from weft.api.request.call import Call, json_answer
from weft.api.route import Route
from weft.kinds.allocation import AllocatedVolume, AllocationSpec, list_secrets, registry_secret_of
from weft.kinds.backup_repository import ACCESS_KEY, BACKUP_REPOSITORY, SECRET_KEY, BackupRepositorySpec
from weft.kinds.backup_repository import KEY as REPOSITORY_KEY
from weft.kinds.cluster import CLUSTER, ClusterSpec, ClusterStatus
from weft.kinds.cluster import TOKEN as LINK_TOKEN
from weft.kinds.device import DEVICE, DeviceSpec
from weft.kinds.function import FUNCTION, FunctionSpec
from weft.kinds.orders import BACKUP
from weft.kinds.secret import PASSWORD, SECRET, TOKEN, USERNAME, SecretSpec, place_of
from weft.kinds.volume import KEY as VOLUME_KEY
from weft.kinds.volume import VOLUME, VolumeSpec
from weft.objects.envelope import decode_envelope, decode_part
from weft.objects.errors import InvalidInput, NotFound, Unavailable
from weft.objects.identity import object_key
from weft.protocol.report import OpenedLink, OpenedRepository, OpenedSecrets, SecretsInput
from weft.serving.answer import Answer
from weft.trust.tickets import check_repository_ticket, check_secret_ticket, sign_blob_ticket

_OF_REGISTRIES = frozenset((USERNAME, PASSWORD, TOKEN))


async def secrets(context: ApiContext, call: Call, name: str) -> Answer:
    """``POST /v1/nodes/{name}:secrets``, by the node itself: the secrets that one of its own allocations names, or, with a ticket,
    the credentials of a function's registry."""
    await require_own(context, call, name)
    call.query()
    try:
        asked = msgspec.json.decode(await call.read_body(), type=SecretsInput)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidInput("give allocation (a name), ticket, repository, cluster, function or device") from None
    if asked.repository:
        return json_answer(msgspec.to_builtins(await _open_repository(context, call, asked)))
    if asked.cluster:
        return json_answer(msgspec.to_builtins(await _open_link(context, call, asked.cluster)))
    if asked.function:
        return json_answer(msgspec.to_builtins(await _open_local(context, name, asked.function)))
    if asked.device:
        return json_answer(msgspec.to_builtins(await _open_device(context, name, asked.device)))
    if asked.ticket:
        return json_answer(msgspec.to_builtins(await _open_registry(context, call, asked.ticket)))
    found = await context.store.get(object_key("allocation", None, asked.allocation))
    if found is None or not asked.allocation.startswith(f"{call.actor.id}."):
        raise NotFound(f"node {name} has no allocation {asked.allocation[:80]}")
    spec = decode_part(decode_envelope(found.value).spec, AllocationSpec)
    answer = OpenedSecrets()
    for secret, keys in list_secrets(spec).items():
        kept = await _read(context, spec.workload.project, secret)
        if secret == registry_secret_of(spec):
            answer.registries[secret] = kept.registry
            keys |= _OF_REGISTRIES & kept.sealed.keys()
        answer.secrets[secret] = _pick(context, spec.workload.project, secret, kept, keys)
        if kept.offline:
            answer.offline.append(secret)
    for volume in spec.volumes:
        if volume.encrypted:
            answer.volumes[volume.uid] = await _open_volume(context, spec.workload.project, volume)
    return json_answer(msgspec.to_builtins(answer))


async def _open_registry(context: ApiContext, call: Call, ticket: str) -> OpenedSecrets:
    """The ticket's secret, only if it is for a registry."""
    project, name = check_secret_ticket(context.settings.ticket_key, ticket, call.actor.id, context.clock.now())
    kept = await _read(context, project, name)
    keys = _OF_REGISTRIES & kept.sealed.keys() if kept.registry else frozenset[str]()
    return OpenedSecrets({name: _pick(context, project, name, kept, keys)}, {name: kept.registry})


async def _open_local(context: ApiContext, node: str, named: str) -> OpenedSecrets:
    """The token with which callers at the node invoke a function that names the node."""
    project, _, function = named.partition("/")
    entry = await context.store.get(object_key(FUNCTION.name, project, function)) if project and function else None
    spec = decode_part(decode_envelope(entry.value).spec, FunctionSpec) if entry is not None else None
    if spec is None or node not in spec.local_nodes or not spec.local_secret:
        raise NotFound(f"node {node} serves no function {named[:130]} at its own address", reason="functionNotHere")
    kept = await _read(context, project, spec.local_secret)
    opened = _pick(context, project, spec.local_secret, kept, frozenset((TOKEN,)))
    return OpenedSecrets({spec.local_secret: opened}, offline=[spec.local_secret] if kept.offline else [])


async def _open_device(context: ApiContext, node: str, named: str) -> OpenedSecrets:
    """All keys of the secret that an approved device behind the node's gateway names."""
    project, _, device = named.partition("/")
    entry = await context.store.get(object_key(DEVICE.name, project, device)) if project and device else None
    spec = decode_part(decode_envelope(entry.value).spec, DeviceSpec) if entry is not None else None
    taken = project == await read_devices_project(context, node)
    if spec is None or spec.node != node or not spec.approved or not spec.credentials or not taken:
        raise NotFound(f"node {node} has no approved device {named[:130]} with credentials")
    kept = await _read(context, project, spec.credentials)
    opened = _pick(context, project, spec.credentials, kept, frozenset(kept.sealed))
    return OpenedSecrets({spec.credentials: opened}, offline=[spec.credentials] if kept.offline else [])


async def _open_repository(context: ApiContext, call: Call, asked: SecretsInput) -> OpenedRepository:
    """The key and the credentials of a backup repository, only while the node has an order about it, or with a ticket. With a
    backup of a project that the node is to copy: its objects, too."""
    name, orders = asked.repository, context.orders.find_all(BACKUP, call.actor.id)
    if asked.ticket:
        check_repository_ticket(context.settings.ticket_key, asked.ticket, name, call.actor.id, context.clock.now())
    elif all(order.repository != name for order in orders):
        raise NotFound(f"node {call.actor.name} has nothing to do with backup repository {name[:80]}")
    entry = await context.store.get(object_key(BACKUP_REPOSITORY.name, None, name))
    if entry is None:
        raise NotFound(f"backup repository {name[:80]} not found")
    spec = decode_part(decode_envelope(entry.value).spec, BackupRepositorySpec)
    keys, kind = context.settings.seal_keys, BACKUP_REPOSITORY.name
    opened = {
        word: keys.unseal(value, place_of(None, name, word, kind)).decode() for word, value in spec.sealed.items()
    }
    if spec.credentials:
        project, _, secret = spec.credentials.partition("/")
        kept = await _read(context, project, secret)
        given = _pick(context, project, secret, kept, frozenset((ACCESS_KEY, SECRET_KEY)))
        opened |= {word: value.rstrip("\r\n") for word, value in given.items()}  # of files, whose last line has an end
    if not asked.backup:
        return OpenedRepository(opened, spec.ca)
    copied = [one for one in orders if (one.repository, one.act, one.uid) == (name, "copy", asked.backup)]
    if not copied or copied[0].disks:
        raise NotFound(f"node {call.actor.name} has no project to back up to {name[:80]}")
    found = await read_project(context, copied[0].name.partition("/")[0], opened[REPOSITORY_KEY])
    tickets = {
        sha256: sign_blob_ticket(context.settings.ticket_key, sha256, call.actor.id, context.clock.now())
        for sha256 in list_uploads(found)
    }
    return OpenedRepository(opened, spec.ca, msgspec.to_builtins(found), tickets)


async def _open_link(context: ApiContext, call: Call, name: str) -> OpenedLink:
    """How a linked cluster is reached, only while the node has an order to send a point there, or to ask there."""
    orders = context.orders.find(call.actor.id)
    if name not in {order.cluster for order in (*orders.send, *orders.ask)}:
        raise NotFound(f"node {call.actor.name} has nothing to do with cluster {name[:80]}")
    entry = await context.store.get(object_key(CLUSTER.name, None, name))
    found = decode_envelope(entry.value) if entry is not None else None
    spec = decode_part(found.spec, ClusterSpec) if found is not None else None
    sealed = spec.sealed.get(LINK_TOKEN) if spec is not None else None
    if found is None or spec is None or sealed is None:
        raise NotFound(f"cluster {name[:80]} not found, or it has no token", hint="weft cluster link")
    token = context.settings.seal_keys.unseal(sealed, place_of(None, name, LINK_TOKEN, CLUSTER.name)).decode()
    others = decode_part(found.status, ClusterStatus).servers
    return OpenedLink(spec.url, spec.ca, token, context.clock.now(), others)


async def _open_volume(context: ApiContext, project: str | None, volume: AllocatedVolume) -> str:
    """The key of an encrypted volume."""
    entry = await context.store.get(object_key(VOLUME.name, project, volume.name))
    envelope = decode_envelope(entry.value) if entry is not None else None
    if envelope is None or envelope.uid != volume.uid:
        raise NotFound(f"volume {volume.name} not found")
    sealed = decode_part(envelope.spec, VolumeSpec).sealed.get(VOLUME_KEY)
    try:
        if sealed is None:
            raise Unavailable("it has none")
        return context.settings.seal_keys.unseal(
            sealed, place_of(project, volume.name, VOLUME_KEY, VOLUME.name)
        ).decode()
    except Unavailable as problem:
        raise NotFound(
            f"the key of volume {volume.name} is lost: {problem.message}",
            reason="keyLost",
            hint="start the server with the seal key that it had when the volume was created; without it, nobody can read "
            "the volume's data",
        ) from None


async def _read(context: ApiContext, project: str | None, name: str) -> SecretSpec:
    entry = await context.store.get(object_key(SECRET.name, project, name))
    if entry is None:
        raise NotFound(f'secret "{name}" not found', reason="secretNotFound", hint=f"weft secret create {name}")
    return decode_part(decode_envelope(entry.value).spec, SecretSpec)


def _pick(
    context: ApiContext, project: str | None, name: str, kept: SecretSpec, keys: frozenset[str]
) -> dict[str, str]:
    missing = sorted(keys - kept.sealed.keys())
    if missing:
        raise NotFound(
            f'secret "{name}" has no key {missing[0]}',
            reason="secretNotFound",
            hint=f"it has: {', '.join(sorted(kept.sealed)) or 'none'}",
        )
    return {
        key: context.settings.seal_keys.unseal(kept.sealed[key], place_of(project, name, key)).decode()
        for key in sorted(keys)
    }


ROUTES = (
    Route(
        "POST",
        "/v1/nodes/{name}:secrets",
        secrets,
        "The secrets that a node's allocation names, by the node itself",
        where="nodes",
        takes=SecretsInput,
        answers=OpenedSecrets,
    ),
)
