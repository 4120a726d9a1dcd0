"""Server: a server of this fabric, with its API, gateway, controllers and scheduler. Each keeps a lease while it serves; the
servers controller makes its object at the first sight of it, and says which one leads."""

from __future__ import annotations

from typing import Annotated

import msgspec

from weft.kinds.fields.cells import AGE, NAME, joined, text
from weft.kinds.parts.packages import InstallOutcome
from weft.kinds.record import Access, Column, Display, Kind
from weft.objects.envelope import Envelope, decode_part
from weft.objects.schema import field, words


class ServerSpec(msgspec.Struct, kw_only=True):
    pass


class ServerMarks(msgspec.Struct, kw_only=True):
    member: Annotated[str, field("Address of its member of the store, if it keeps one", max_length=64)] = (
        ""  # HOST:PORT
    )


class StoreUse(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Sizes are rounded up."""

    size: int = 0  # bytes of its file
    used: int = 0  # bytes of that, which aren't free
    quota: int = 0  # bytes of its file, beyond which it takes no writes; 0: unknown
    problem: Annotated[str, msgspec.Meta(max_length=300)] = ""  # why it takes no writes, or soon none


class ServerStatus(msgspec.Struct, kw_only=True):
    phase: Annotated[str, words("Ready", "NotReady")] = "NotReady"
    message: str = ""
    address: str = ""  # URL of its API
    gateway: str = ""  # HOST:PORT for streams
    functions: str = ""  # HOST:PORT for callers of functions
    addresses: list[str] = []  # IPv4, of its machine
    api_ports: list[int] = []  # of its API and its streams
    function_ports: list[int] = []
    leads: list[str] = []  # leader leases that it holds
    store: StoreUse | None = None  # its member of the store, or the etcd that it asks
    release: str = ""
    installed: InstallOutcome | None = None  # what became of the last packages of an upgrade there
    by_hand: Annotated[str, msgspec.Meta(max_length=300)] = ""  # why people have to upgrade it; "": an upgrade does
    clock_ahead: int = 0  # seconds that its clock is ahead of the leading server's; 0 if they agree to some seconds
    started_at: float = 0.0  # unix seconds
    since: float = 0.0  # of the phase


def find_address(server: Envelope) -> str:
    """The URL of its API; "" while it doesn't serve."""
    status = decode_part(server.status, ServerStatus)
    return status.address if status.phase == "Ready" else ""


SERVER = Kind(
    name="server",
    plural="servers",
    title="server",
    summary="A server of this fabric",
    scope="fabric",
    spec=ServerSpec,
    marks=ServerMarks,
    status=ServerStatus,
    access=Access(
        readers="fabric",
        writer="fabric",
        removable=True,
        status_writer="servers",
        mark_writers={"member": ("api", "servers")},
        condition_writers={"Ready": "servers", "StoreHasSpace": "servers"},
    ),
    display=Display(
        columns=(
            NAME,
            Column("PHASE", text("status.phase"), keep=True),
            Column("ADDRESS", text("status.address")),
            Column("LEADS", joined("status.leads")),
            Column("RELEASE", text("status.release")),
            Column("GATEWAY", text("status.gateway"), wide=True),
            Column("MEMBER", text("marks.member"), wide=True),
            Column("FUNCTIONS", text("status.functions"), wide=True),
            AGE,
        ),
    ),
)
