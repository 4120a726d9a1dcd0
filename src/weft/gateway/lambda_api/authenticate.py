"""Who calls: by a signature with an access key (``trust/sigv4.py``), or by a bearer token. Reads tokens out of a view that
follows the store, so a token that is deleted ends at once."""

from __future__ import annotations

import hashlib

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.function import REGION
from weft.gateway.lambda_api.http import Request
from weft.informer.view import Item, View
from weft.kinds.token import TOKENS_BY_KEY, TokenSpec
from weft.objects.errors import Forbidden, NotAuthenticated
from weft.objects.identity import object_key
from weft.trust.access_keys import derive_secret
from weft.trust.sigv4 import check_scope, is_signed, read_authorization, verify
from weft.trust.tokens import parse_token, verify_secret

SERVICE = "lambda"


class Caller(msgspec.Struct, frozen=True):
    """``project``: the only one it may call in; None: any. ``name`` is for people and logs, ``id`` the token's name."""

    id: str
    name: str
    role: str
    project: str | None

    def require(self, project: str, what: str, *, invokes: bool = False) -> None:
        """Raise Forbidden unless it may ``what`` in ``project``: invoke, or only look."""
        if self.project is not None and self.project != project:
            raise Forbidden(f"{self.name} is limited to project {self.project}: it can't {what} in {project[:80]}")
        if invokes and self.role == "viewer":
            raise Forbidden(f"{self.name} may only read: it can't {what}", hint="weft token create NAME --access-key")

    def require_admin(self, project: str, what: str) -> None:
        self.require(project, what)
        if self.role != "admin":
            raise Forbidden(f"{self.name} has role {self.role}: it can't {what}", hint="use an admin's token")


class Callers:
    """``view`` has the tokens, found by TOKENS_BY_KEY too."""

    def __init__(self, view: View, seal_key: bytes, clock: Clock) -> None:
        self._view, self._clock = view, clock
        self._seal_key = seal_key

    def identify(self, request: Request) -> Caller:
        """Who asks. Raises NotAuthenticated, saying no more than a stranger may know."""
        authorization = request.header("authorization")
        if is_signed(authorization):
            return self._by_signature(request, authorization)
        if authorization:
            return self._by_token(authorization)
        if "X-Amz-Signature=" in request.query:
            raise NotAuthenticated(
                "signatures in the query are not accepted",
                reason="incompleteSignature",
                hint="sign with the Authorization header",
            )
        raise NotAuthenticated(
            "missing credentials",
            hint="sign it with an access key (weft token create NAME --access-key), or send Authorization: Bearer weft_…",
        )

    def _by_signature(self, request: Request, authorization: str) -> Caller:
        signed = read_authorization(authorization)
        check_scope(signed, REGION, SERVICE, request.header("x-amz-date"), self._clock.now())
        found = [item for item in self._view.find(TOKENS_BY_KEY, signed.key_id) if not item.deleting]
        if len(found) != 1:
            raise NotAuthenticated(
                "the access key is not valid: no key has that id",
                reason="unknownAccessKey",
                hint="weft token list shows the access keys",
            )
        spec = found[0].spec(TokenSpec)
        secret = derive_secret(self._seal_key, spec.key_id)
        verify(
            signed,
            secret,
            method=request.method,
            path=request.path,
            query=request.query,
            headers=request.headers,
            body_sha256=hashlib.sha256(request.body).hexdigest(),
        )
        return self._admit(found[0], spec)

    def _by_token(self, authorization: str) -> Caller:
        scheme, _, text = authorization.partition(" ")
        token = parse_token(text.strip()) if scheme.lower() == "bearer" else None
        item = self._view.get(object_key("token", None, token.id)) if token is not None else None
        if token is None or item is None or item.deleting:
            raise NotAuthenticated(
                "the token is not valid", hint="send Authorization: Bearer weft_…, from weft token create"
            )
        spec = item.spec(TokenSpec)
        if not verify_secret(token.secret, spec.sha256) or spec.use != "access":
            raise NotAuthenticated(
                "the token is not valid", hint="send Authorization: Bearer weft_…, from weft token create"
            )
        return self._admit(item, spec)

    def _admit(self, item: Item, spec: TokenSpec) -> Caller:
        name = item.envelope.name
        if spec.expires_at is not None and spec.expires_at <= self._clock.now():
            raise NotAuthenticated(f"token {name} has expired", hint="weft token create makes another")
        return Caller(name, spec.subject or name, spec.role, spec.project)
