"""Creates tokens: the server draws the secret, keeps its hash (of an access key: nothing), and sends it once, in the answer to
the request."""

from __future__ import annotations

from typing import Any

from weft.api.admission import admit
from weft.api.admission.commit import record_change, settle
from weft.api.context import ApiContext
from weft.api.request.call import Call, object_answer
from weft.api.request.manifest import read_manifest
from weft.kinds.record import Kind
from weft.kinds.token import TOKEN
from weft.objects.errors import InvalidInput
from weft.serving.answer import Answer
from weft.trust.access_keys import derive_secret, make_key_id
from weft.trust.tokens import make_token, make_token_id

JOIN_LIFETIME_SECONDS = 86400.0
ACCESS_KEY = "access-key"


async def create(context: ApiContext, call: Call, raw: dict[str, Any], *, dry_run: bool) -> Answer:
    """``POST /v1/tokens``: the name is optional; a join token expires after a day unless its spec has another time."""
    spec = raw.get("spec")
    if not isinstance(spec, dict):
        spec = {}
    for own in ("sha256", "key_id"):
        if spec.get(own):
            raise InvalidInput(f"spec.{own} is set by the server", field=f"spec.{own}", hint="leave it out")
    use = spec.get("use", "token")
    name = raw.get("name") or make_token_id(use if use in ("join", "access", ACCESS_KEY) else "token")
    if use == ACCESS_KEY:
        key_id = make_key_id()
        text = derive_secret(context.settings.seal_key, key_id)
        full = {"role": "invoker", **spec, "key_id": key_id}
    else:
        text, sha256 = make_token(str(name))
        full = {**spec, "sha256": sha256}
    if use == "join" and full.get("expires_at") is None:
        full["expires_at"] = context.clock.now() + JOIN_LIFETIME_SECONDS
    manifest = read_manifest({**raw, "name": name, "spec": full}, kind=TOKEN)
    # No Idempotency-Key: nobody has the secret of a token that was made before.
    draft = await settle(context, lambda view: admit.plan_create(context, view, manifest, call.actor), dry_run=dry_run)
    if dry_run:
        return object_answer(draft.envelope)
    record_change(context, call.actor, draft)
    return object_answer(draft.envelope, 201, secret=text)


def refuse_without_secret(kind: Kind) -> None:
    """Raise InvalidInput for a token in a request whose answer can't carry its secret."""
    if kind is TOKEN:
        raise InvalidInput(
            "a token can't be made or changed this way: its secret would be lost",
            field="kind",
            hint="weft token create, or POST /v1/tokens",
        )
