"""Token: a credential for the API. Only its hash is stored; the secret is shown once, when the token is created."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from weft.kinds.fields.cells import AGE, NAME, dig, text
from weft.kinds.record import Access, Admission, Column, Display, Index, Kind, Lifetime, Object, uid_of_owner
from weft.kinds.role import ROLE_REFERENCE
from weft.objects.errors import InvalidInput
from weft.objects.identity import MAX_NAME, check_name
from weft.objects.roles import EVERYWHERE
from weft.objects.schema import field


class TokenSpec(msgspec.Struct, kw_only=True):
    use: Annotated[
        Literal["join", "access", "access-key"],
        field(
            "join: enrols one node, once; access: for a person or program; access-key: signs calls of a project's functions",
            change="never",
        ),
    ]
    subject: Annotated[
        str, field("Description: the person or program that the token is for", change="never", max_length=63)
    ] = ""
    role: Annotated[
        str,
        field(
            "What the bearer may do (a built-in role or an own one), in spec.project if it has one and else in all projects; of a"
            " user's token: at most, and empty for all that the user may do",
            change="never",
            max_length=MAX_NAME,
        ),
    ] = "viewer"
    project: Annotated[
        str | None, field("The only project in which the token has its role", change="never", name=True)
    ] = None
    node: Annotated[str | None, field("The only node name that the token may enrol", change="never", name=True)] = None
    expires_at: Annotated[float | None, field("Time when the token expires", change="never", quantity="moment")] = None
    claims: Annotated[
        list[str], field("Groups that the OIDC provider named at the login; set by the server", change="never")
    ] = []
    sha256: Annotated[str, field("Hash of the secret; set by the server", change="never", max_length=64)] = ""
    key_id: Annotated[str, field("The access key's id; set by the server", change="never", max_length=64)] = ""


class TokenStatus(msgspec.Struct, kw_only=True):
    used_at: float | None = None
    node_uid: str | None = None  # uid of the node that a join token enrolled


def check_token(spec: TokenSpec) -> None:
    """Raises InvalidInput for contradictory fields."""
    if spec.role:
        check_name(spec.role, "spec.role")
    if spec.use == "join" and spec.role == "invoker":
        raise InvalidInput("a join token has no role", field="spec.role", hint="leave it out")
    if spec.use == "access-key" and not spec.project:
        raise InvalidInput("an access key needs a project", field="spec.project", hint="give spec.project")
    if spec.project and spec.role in EVERYWHERE:
        raise InvalidInput(
            f"the role {spec.role} holds in all projects",
            field="spec.project",
            hint="leave it out, or give another role, like admin",
        )
    if spec.project and spec.use == "join":
        raise InvalidInput("a join token has no project", field="spec.project", hint="leave it out")


def _role(obj: Object) -> str:
    """A join token has none, and a user's may have all that the user has."""
    spec = obj.get("spec") or {}
    return "" if spec.get("use") == "join" else str(spec.get("role") or "–")


TOKENS_BY_KEY = Index("tokens by access key")
TOKENS_BY_USER = Index("tokens by the user whose they are")

TOKEN = Kind(
    name="token",
    plural="tokens",
    title="token",
    summary="Credentials for a node or user",
    scope="fabric",
    spec=TokenSpec,
    status=TokenStatus,
    indexes={
        TOKENS_BY_KEY: lambda item: (key_id,) if (key_id := item.spec(TokenSpec).key_id) else (),
        TOKENS_BY_USER: uid_of_owner,
    },
    references=(ROLE_REFERENCE,),
    access=Access(readers="administered", status_writer="api"),
    admission=Admission(
        check=check_token,
        server_fields=("sha256", "key_id", "claims"),
        most_of_owner=100,
    ),
    display=Display(
        topic="People and projects",
        columns=(
            NAME,
            Column("USE", text("spec.use")),
            Column("SUBJECT", text("spec.subject")),
            Column("ROLE", _role),
            Column("NODE", text("spec.node")),
            Column("PROJECT", text("spec.project")),
            Column("KEY", text("spec.key_id")),
            Column("LAST USE", lambda obj: str(dig(obj, "status.used_at") or "")),
            AGE,
        ),
    ),
    lifetime=Lifetime(goes_with_owner=True),
)
