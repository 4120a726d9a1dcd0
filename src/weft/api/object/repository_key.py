"""The key of a backup repository, for administrators to keep where the fabric can't lose it."""

from __future__ import annotations

import msgspec

from weft.api.auth.authorise import require_person
from weft.api.context import ApiContext
from weft.api.request.call import Call, json_answer
from weft.api.route import Route
from weft.kinds.backup_repository import BACKUP_REPOSITORY, KEY, BackupRepositorySpec
from weft.kinds.secret import place_of
from weft.objects.envelope import decode_envelope, decode_part
from weft.objects.errors import NotFound
from weft.objects.identity import object_key
from weft.serving.answer import Answer


class RepositoryKeyAnswer(msgspec.Struct, frozen=True):
    """Key of a repository: who has it reads all that is in the repository."""

    key: str  # hexadecimal digits

    def __repr__(self) -> str:
        return "RepositoryKeyAnswer(…)"


async def read_key(context: ApiContext, call: Call, name: str) -> Answer:
    """``POST /v1/backuprepositories/{name}:key``."""
    require_person(call.actor, "read the key of a backup repository")
    call.actor.require("backuprepository:key", None, "read the key of a backup repository")
    call.query()
    kind = BACKUP_REPOSITORY.name
    entry = await context.store.get(object_key(kind, None, name))
    if entry is None:
        raise NotFound(f'backup repository "{name[:80]}" not found', hint="weft backuprepository list")
    sealed = decode_part(decode_envelope(entry.value).spec, BackupRepositorySpec).sealed[KEY]
    key = context.settings.seal_keys.unseal(sealed, place_of(None, name, KEY, kind)).decode()
    return json_answer(msgspec.to_builtins(RepositoryKeyAnswer(key)))


ROUTES = (
    Route(
        "POST",
        "/v1/backuprepositories/{name}:key",
        read_key,
        "The key of a backup repository, which reads all that is in it",
        permission="backuprepository:key",
        where="all",
        answers=RepositoryKeyAnswer,
    ),
)
