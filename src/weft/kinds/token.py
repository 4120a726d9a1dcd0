"""Token: a credential for the API. Only its hash is stored; the secret is shown once, when the token is created."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from weft.kinds.fields.cells import AGE, NAME, dig, text
from weft.kinds.fields.cluster.link import LinkTerms, check_terms
from weft.kinds.record import Access, Admission, Column, Display, Index, Kind, Lifetime, Object, uid_of_owner
from weft.kinds.role import ROLE_REFERENCE
from weft.objects.envelope import take_from_spec
from weft.objects.errors import InvalidInput
from weft.objects.identity import MAX_NAME, check_name
from weft.objects.roles import EVERYWHERE
from weft.objects.schema import field

VIEWER = "viewer"  # the role of a token without a word about it
SERVER_USE = "server"
SERVER_LABEL = "weft/server"  # of the administrators' tokens that servers make for their context files: which one
ONCE = ("join", "link", SERVER_USE)  # uses of tokens that are used once


class TokenSpec(msgspec.Struct, kw_only=True):
    use: Annotated[
        Literal["join", "server", "link", "access", "access-key", "cluster"],
        field(
            "join: enrols one node, once; server: lets one server join, once; link: links one cluster, once; access: for a person"
            " or program; access-key: signs calls of a project's functions; cluster: for a linked cluster, made by the link",
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
    ] = VIEWER
    project: Annotated[
        str | None, field("The only project in which the token has its role", change="never", name=True)
    ] = None
    node: Annotated[str | None, field("The only node name that the token may enrol", change="never", name=True)] = None
    expires_at: Annotated[float | None, field("Time when the token expires", change="never", quantity="moment")] = None
    link: Annotated[
        LinkTerms | None, field("Of a link token: what the cluster that uses it becomes here", change="never")
    ] = None


class TokenMarks(msgspec.Struct, kw_only=True, frozen=True):
    claims: Annotated[list[str], field("Groups that the OIDC provider named at the login")] = []
    sha256: Annotated[str, field("Hash of the secret", max_length=64)] = ""
    key_id: Annotated[str, field("The access key's id", max_length=64)] = ""
    sealed: Annotated[str, field('The access key\'s secret, sealed; "": it follows from the id', max_length=200)] = ""


class TokenStatus(msgspec.Struct, kw_only=True):
    used_at: float | None = None
    node_uid: str | None = None  # uid of the node that a join token enrolled
    cluster_uid: str | None = None  # uid of the cluster that used a link token
    server_uid: str | None = None  # uid of the server that joined


def check_token(spec: TokenSpec) -> None:
    """Raises InvalidInput for contradictory fields."""
    if spec.role:
        check_name(spec.role, "spec.role")
    if (spec.use == "link") != (spec.link is not None):
        raise InvalidInput(
            "spec.link is for link tokens, and they need it", field="spec.link", hint="weft cluster link-token"
        )
    if spec.link is not None:
        check_terms(spec.link.grants or (), spec.link.projects or {}, "spec.link")
    if spec.use == "access-key" and not spec.project:
        raise InvalidInput("an access key needs a project", field="spec.project", hint="give spec.project")
    if spec.project and spec.role in EVERYWHERE:
        raise InvalidInput(
            f"the role {spec.role} holds in all projects",
            field="spec.project",
            hint="leave it out, or give another role, like admin",
        )
    if spec.project and spec.use in ONCE:
        raise InvalidInput(f"a {spec.use} token has no project", field="spec.project", hint="leave it out")


def _refuse_new(spec: TokenSpec) -> None:
    if spec.use == "cluster":
        raise InvalidInput(
            "spec.use: only a link makes tokens for clusters", field="spec.use", hint="weft cluster link-token"
        )
    if spec.use in ONCE and spec.role != VIEWER:  # which is there when nobody has given one
        raise InvalidInput(
            f"spec.role has no effect on a {spec.use} token, which gives no role",
            field="spec.role",
            hint="leave it out",
        )
    if spec.node is not None and spec.use != "join":
        raise InvalidInput(
            f"spec.node is for join tokens, and its use is {spec.use}", field="spec.node", hint="leave it out"
        )


def _role(obj: Object) -> str:
    """A token for one use has none, and a user's may have all that the user has."""
    spec = obj.get("spec") or {}
    return "" if spec.get("use") in (*ONCE, "cluster") else str(spec.get("role") or "–")


TOKENS_BY_KEY = Index("tokens by access key")
TOKENS_BY_USER = Index("tokens by the user whose they are")

TOKEN = Kind(
    name="token",
    plural="tokens",
    title="token",
    summary="Credentials for a node or user",
    scope="fabric",
    spec=TokenSpec,
    marks=TokenMarks,
    status=TokenStatus,
    schema=2,
    upgrades=(take_from_spec(marks=TokenMarks),),
    indexes={
        TOKENS_BY_KEY: lambda item: (key_id,) if (key_id := item.marks(TokenMarks).key_id) else (),
        TOKENS_BY_USER: uid_of_owner,
    },
    references=(ROLE_REFERENCE,),
    access=Access(
        readers="administered",
        status_writer="api",
        mark_writers=dict.fromkeys(TokenMarks.__struct_fields__, ("api",)),
    ),
    admission=Admission(
        check=check_token,
        check_new=_refuse_new,
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
            Column("KEY", text("marks.key_id")),
            Column("LAST USE", lambda obj: str(dig(obj, "status.used_at") or "")),
            AGE,
        ),
    ),
    lifetime=Lifetime(goes_with_owner=True),
)
