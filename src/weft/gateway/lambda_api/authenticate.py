"""Authenticates callers of functions: by a signature with an access key, or by a bearer token. Reads tokens out of a view that
follows the store, so a deleted token is refused at once."""

from __future__ import annotations

from weft.contracts.clock import Clock
from weft.gateway.lambda_api.http import LambdaRequest
from weft.informer.accounts import read_token
from weft.informer.view import View
from weft.kinds.token import TOKENS_BY_KEY
from weft.objects.errors import NotAuthenticated
from weft.objects.identity import object_key
from weft.trust.credentials import (
    Actor,
    SignedRequest,
    StoredToken,
    check_bearer,
    check_signature,
    invalid_token,
    missing_credentials,
    read_bearer,
)
from weft.trust.directory import Directory
from weft.trust.seal import SealKeys
from weft.trust.sigv4 import is_signed


class Authenticator:
    """``view`` has the tokens, found by TOKENS_BY_KEY too; ``directory`` knows the users."""

    def __init__(self, view: View, directory: Directory, keys: SealKeys, clock: Clock) -> None:
        self._view, self._directory, self._clock = view, directory, clock
        self._keys = keys

    def identify(self, request: LambdaRequest) -> Actor:
        """The caller. Raises NotAuthenticated."""
        authorization, now = request.header("authorization"), self._clock.now()
        if is_signed(authorization):
            signed = SignedRequest(request.method, request.path, request.query, request.headers, request.body)
            return check_signature(authorization, signed, self._find_key, self._directory, self._keys, now)
        if authorization:
            token = read_bearer(authorization)
            item = self._view.get(object_key("token", None, token.id))
            if item is None or item.deleting:
                raise invalid_token()
            caller = check_bearer(token, read_token(item), self._directory, now)
            if caller.kind != "person":
                raise invalid_token()
            return caller
        if "X-Amz-Signature=" in request.query:
            raise NotAuthenticated(
                "signatures in the query are not accepted",
                reason="incompleteSignature",
                hint="sign with the Authorization header",
            )
        raise missing_credentials(
            "sign it with an access key (weft token create NAME --access-key), or send Authorization: Bearer weft_…"
        )

    def _find_key(self, key_id: str) -> StoredToken | None:
        found = [item for item in self._view.find(TOKENS_BY_KEY, key_id) if not item.deleting]
        return read_token(found[0]) if len(found) == 1 else None
