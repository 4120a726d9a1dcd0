"""The files that make a server one of its fabric: what ``weft server join`` brings to a new one."""

from __future__ import annotations

from pathlib import Path

from weft.contracts.durable_file import write_durably
from weft.launch.server.membership.identity import FILE
from weft.launch.store.engine import ETCD, MEMBERS, SQLITE, remember_store
from weft.launch.store.member import join_member
from weft.objects.errors import InvalidInput, Unavailable
from weft.protocol.server.join import MemberPlace, ServerKeys

# In the state folder; those of the CA of services, of the store's members and of etcd's client are missing where there are none.
FILES = (
    "ca.key",
    "ca.crt",
    "seal.key",
    "ticket.key",
    "services/ca.key",
    "services/ca.crt",
    "etcd/ca.key",
    "etcd/ca.crt",
    "etcd/client.crt",
    "etcd/client.key",
)
# In the folder of a server that has joined, and never ran.
KEPT = {FILE, "store.url", *(name.partition("/")[0] for name in FILES)}


def read_keys(state: Path, store: str) -> ServerKeys:
    """The keys of the server in ``state``. Raises Unavailable when no other server can reach its store."""
    if store in (SQLITE, ETCD) or store.startswith("etcd:///"):
        raise Unavailable(
            f"this server keeps its objects on its own machine, in {store}: no other server can reach them",
            reason="storeNotShared",
            hint="at this server: weft server move-store members --member ADDRESS",
        )
    return ServerKeys(store, {name: (state / name).read_bytes() for name in FILES if (state / name).exists()})


def write_keys(state: Path, keys: ServerKeys, name: str, member: MemberPlace | None) -> None:
    """Write them into the state folder of the new server ``name``. Raises InvalidInput for a file that isn't one of FILES."""
    if not set(keys.files) <= set(FILES):
        raise InvalidInput("the answer has files that no server has: its release is another", field="files")
    for file, content in keys.files.items():
        (state / file).parent.mkdir(mode=0o700, exist_ok=True)
        write_durably(state / file, content, 0o644 if file.endswith(".crt") else 0o600)
    if keys.store == MEMBERS and member is not None:
        join_member(state, name, member, keys.members)
    remember_store(state, keys.store)
