"""Routes of rotations: what people ask of them, and servers of each other for them."""

from __future__ import annotations

import msgspec

from weft.api.auth.authorise import require_person, require_server
from weft.api.context import ApiContext
from weft.api.request.call import Call, json_answer
from weft.api.rotation.seal import SealRotation
from weft.api.route import Route, Topic
from weft.objects.errors import InvalidInput
from weft.objects.schema import read_strict
from weft.protocol.server.rotation import (
    KEYS_PATH,
    PARTS,
    PATH,
    RotationAnswer,
    RotationInput,
    RotationsAnswer,
    SealKeysAnswer,
)
from weft.serving.answer import Answer


async def begin(context: ApiContext, call: Call) -> Answer:
    """``POST /v1/rotations``."""
    require_person(call.actor, "rotate keys of the fabric")
    call.actor.require("rotation:create", None, "rotate keys of the fabric")
    call.query()
    given = read_strict(await call.read_object(), RotationInput, "")
    if given.part not in PARTS:
        raise InvalidInput(f"{given.part!r} doesn't rotate", field="part", hint=f"what rotates: {', '.join(PARTS)}")
    rotation = SealRotation(context)
    await rotation.begin(call.actor.name)
    return json_answer(msgspec.to_builtins(await rotation.describe()))


async def list_(context: ApiContext, call: Call) -> Answer:
    """``GET /v1/rotations``."""
    require_person(call.actor, "see rotations")
    call.actor.require("rotation:list", None, "see rotations of the fabric's keys")
    call.query()
    return json_answer(msgspec.to_builtins(RotationsAnswer([await SealRotation(context).describe()])))


async def read_keys(context: ApiContext, call: Call) -> Answer:
    """``GET /v1/servers:seal-keys``: those of this server, for another one that lacks the fabric's."""
    require_server(call.actor, "read the sealing keys")
    call.query()
    keys = [key.hex() for key in context.settings.seal_keys.keys]
    return json_answer(msgspec.to_builtins(SealKeysAnswer(keys)))


ROUTES = (
    Route(
        "POST",
        PATH,
        begin,
        "Rotate a key of the fabric",
        permission="rotation:create",
        where="all",
        topic=Topic("always", "rotate", "server"),
        takes=RotationInput,
        answers=RotationAnswer,
    ),
    Route(
        "GET",
        PATH,
        list_,
        "How rotations of the fabric's keys go",
        permission="rotation:list",
        where="all",
        answers=RotationsAnswer,
        names=(RotationAnswer,),
    ),
    Route(
        "GET",
        KEYS_PATH,
        read_keys,
        "The sealing keys of this server, for another one",
        where="servers",
        topic=Topic("always", "read-keys", "server"),
        answers=SealKeysAnswer,
    ),
)
