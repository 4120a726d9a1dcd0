"""The objects of a project as they go into a backup: those that people make, with secrets sealed by the repository's key."""

from __future__ import annotations

import msgspec

from weft.api.context import ApiContext
from weft.contracts.store import Entry
from weft.kinds.fields.cells import dig
from weft.kinds.parts.snapshot.backed_up import USE, BackedUpObject, BackedUpProject
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME, KINDS
from weft.kinds.secret import SecretSpec, place_of
from weft.objects.envelope import Envelope, decode_envelope, decode_part
from weft.objects.errors import Unavailable
from weft.objects.identity import kind_prefix
from weft.trust.seal import derive_key, seal

_TRIES = 20
_ENDED = ("Succeeded", "Failed", "Cancelled")


def list_kinds() -> list[Kind]:
    """The kinds whose objects are backed up with their project."""
    return [kind for kind in KINDS if kind.in_backups]


async def read_project(context: ApiContext, project: str, repository_key: str) -> BackedUpProject:
    """All at one instant: read twice, until nothing has changed from the first to the second. Raises Unavailable."""
    before = await _read(context, project)
    for _ in range(_TRIES):
        now = await _read(context, project)
        if [_mark(one) for one in before] == [_mark(one) for one in now]:
            break
        before = now
    else:
        raise Unavailable(f"the objects of project {project} change all the time")
    key = derive_key(bytes.fromhex(repository_key), USE)
    objects = [_back_up(context, one, key) for one in now if not _is_left_out(one)]
    return BackedUpProject(project=project, taken_at=context.clock.now(), objects=objects)


def list_uploads(found: BackedUpProject) -> list[str]:
    """The digests of the code and the models that its objects name. Pure."""
    digests = set[str]()
    for one in found.objects:
        kind = BY_NAME[one.kind]
        if kind.admission.uploads is not None:
            digests.update(kind.admission.uploads(msgspec.convert(one.spec, kind.spec)))
    return sorted(digests)


async def _read(context: ApiContext, project: str) -> list[Envelope]:
    found: list[Entry] = []
    for kind in list_kinds():
        found += (await context.store.list(kind_prefix(kind.name, project))).entries
    return [decode_envelope(entry.value, entry.revision) for entry in found]


def _mark(one: Envelope) -> tuple[object, ...]:
    """Identity of an object: a change of it makes another object than before; its status doesn't."""
    return one.key, one.uid, bytes(one.spec), one.labels, one.deleting_since is None


def _is_left_out(one: Envelope) -> bool:
    """True for what goes, what another object makes again, and what has ended."""
    phase = msgspec.json.decode(one.status).get("phase", "")
    has_ended = BY_NAME[one.kind].in_backups == "unended" and phase in _ENDED
    return one.deleting_since is not None or one.owner is not None or has_ended


def _back_up(context: ApiContext, one: Envelope, key: bytes) -> BackedUpObject:
    kind, status = BY_NAME[one.kind], {"status": msgspec.json.decode(one.status)}
    hidden = {*kind.admission.kept_fields, "values", "sealed"} - {"run"}
    spec = {name: value for name, value in msgspec.json.decode(one.spec).items() if name not in hidden}
    snapshots = kind.snapshots
    has_data = bool(
        dig(status, "status.node_uid") if snapshots == "volume" else dig(status, "status.incarnation", 0) > 0
    )
    sealed: dict[str, str] = {}
    if kind.admission.seals and not snapshots:
        for word, value in decode_part(one.spec, SecretSpec).sealed.items():
            plain = context.settings.seal_keys.unseal(value, place_of(one.project, one.name, word))
            sealed[word] = seal(key, plain, place_of(one.project, one.name, word))
    return BackedUpObject(
        kind=one.kind,
        name=one.name,
        labels=dict(one.labels),
        spec=spec,
        sealed=sealed,
        has_data=has_data and snapshots in ("machine", "volume"),
    )
