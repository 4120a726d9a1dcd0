"""Token: what someone shows to be let in. Only its hash is stored; the secret is told once, when it is made."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from weft.kinds.cells import AGE, NAME, text
from weft.kinds.record import Column, Kind
from weft.objects.schema import field


class TokenSpec(msgspec.Struct, kw_only=True):
    """A ``join`` token enrols one node, once; an ``access`` token speaks for ``subject``. ``node`` binds a join token."""

    use: Annotated[Literal["join", "access"], field("What it is for", change="never")]
    subject: Annotated[str, field("Whose it is", change="never", max_length=63)] = ""
    role: Annotated[Literal["admin", "viewer"], field("What its bearer may do", change="never")] = "viewer"
    node: Annotated[str | None, field("The only node name it may enrol", change="never", name=True)] = None
    expires_at: Annotated[float | None, field("Unix seconds after which it is worth nothing", change="never")] = None
    sha256: Annotated[str, field("Hash of the secret; set by the server", change="never", max_length=64)] = ""


class TokenStatus(msgspec.Struct, kw_only=True):
    """``node_uid`` is the node that a join token enrolled."""

    used_at: float | None = None
    node_uid: str | None = None


TOKEN = Kind(
    name="token",
    plural="tokens",
    title="token",
    summary="Lets a node or a person in",
    scope="fabric",
    spec=TokenSpec,
    status=TokenStatus,
    status_writer="api",
    kept=("sha256",),
    columns=(
        NAME,
        Column("USE", text("spec.use")),
        Column("SUBJECT", text("spec.subject")),
        Column("ROLE", text("spec.role")),
        Column("NODE", text("spec.node")),
        AGE,
    ),
)
