"""The member that a server keeps of the store of its fabric, in ``STATE/etcd``: one etcd on each server's machine, over TLS of a CA
of their own, which also says who may speak to it.

``member.json`` there says where it is, and where the members with a vote are; the server renews that while it runs.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.durable_file import name_replaced, write_durably
from weft.contracts.store_members import StoreMember
from weft.launch.process.listener import bind_listener, name_failure, name_own_addresses
from weft.launch.store.etcd import BROKEN, find_etcd
from weft.objects.errors import InUse, InvalidInput, Unavailable
from weft.protocol.server.join import MemberPlace
from weft.trust.ca import Authority

FOLDER, FILE, DATA = "etcd", "member.json", "data"


class Member(msgspec.Struct, frozen=True):
    """``place`` is where it listens; ``others``: by the servers' names, where the other members with a vote do. ``is_first``: it
    begins the store, where another one joins it. ``has_begun``: its data was written once, so there must be some."""

    name: str
    place: MemberPlace
    others: dict[str, MemberPlace] = {}
    has_vote: bool = False
    is_first: bool = False
    has_begun: bool = False
    token: str = ""  # no two stores have the same

    @property
    def endpoints(self) -> list[str]:
        """The addresses for clients: those of members with a vote, since a learner answers nothing."""
        return [place.client for place in ((self.place,) if self.has_vote else ()) + tuple(self.others.values())]

    def learn(self, found: Sequence[StoreMember]) -> Member:
        """This member as the list of all members, which has it, says."""
        at = self.place.peer
        others = {
            one.name: MemberPlace.of_peer(one.address) for one in found if one.address != at and not one.is_learner
        }
        own = next(one for one in found if one.address == at)
        return msgspec.structs.replace(
            self,
            others=dict(sorted(others.items())),
            has_vote=not own.is_learner,
            has_begun=self.has_begun or bool(own.name),
        )


def read_member(state: Path) -> Member:
    """Raises Unavailable where there is none."""
    path = state / FOLDER / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Member)
    except FileNotFoundError:
        raise Unavailable(
            f"the server in {state} has no member of a store",
            hint="weft server init begins a fabric whose servers have one each; weft server join joins it",
        ) from None
    except msgspec.MsgspecError as problem:
        raise Unavailable(f"{path} can't be read: {problem}", hint="restore it, or join again") from None


def write_member(state: Path, member: Member) -> None:
    folder = state / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_durably(folder / FILE, msgspec.json.format(msgspec.json.encode(member)))


def check_place(place: MemberPlace) -> None:
    """Raises InvalidInput unless ``place`` is of this machine, and InUse when another process has one of its two ports."""
    for port in (place.port, place.port + 1):
        try:
            bind_listener(place.host, port).close()
        except OSError as problem:
            if problem.errno == errno.EADDRINUSE:
                raise InUse(
                    f"--member {place.client} needs the ports {place.port} and {place.port + 1}, and another process has {port}",
                    field="member",
                    hint=f"ss -ltnp shows which one: end it, or give another port: --member {place.show_with('PORT')}",
                ) from None
            raise InvalidInput(
                f"--member {place.client} can't be listened at: {name_failure(problem)}",
                field="member",
                hint=f"give an address of this machine: {name_own_addresses()}",
            ) from None


def begin_member(state: Path, name: str, place: MemberPlace) -> None:
    """Write down the first member of a new store. What an earlier one of this server has kept lies beside it from now on. Raises
    InUse while an etcd has that: it would go on beside it, too."""
    data = state / FOLDER / DATA
    if is_used(data):
        raise InUse(f"an etcd still runs in {data}", hint="wait until it has ended, and try again")
    if data.exists():
        data.rename(name_replaced(data))
    write_member(state, Member(name, place, has_vote=True, is_first=True, token=secrets.token_hex(8)))


def is_used(data: Path) -> bool:
    """Whether an etcd has its folder ``data`` open."""
    try:
        descriptor = os.open(data / "member" / "snap" / "db", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def join_member(state: Path, name: str, place: MemberPlace, others: Mapping[str, MemberPlace]) -> None:
    """Write down a member that the store takes in."""
    write_member(state, Member(name, place, dict(others)))


def plan_member(state: Path, clock: Clock, quota_bytes: int) -> list[str]:
    """The command that runs it in the foreground, with a certificate that is good for a month at least. Raises Unavailable when it
    can't be run here."""
    program, member, folder = find_etcd(), read_member(state), (state / FOLDER).absolute()
    data, place = folder / DATA, member.place
    if member.has_begun and not (data / "member").exists():
        raise Unavailable(
            f"{data}, the data of this server's member of the store, is gone",
            hint=f"at another server: weft server delete {member.name}; then remove {state.absolute()}, and join again"
            if member.others
            else f"no other server has the objects: put it back, or: weft server restore FILE --state {state.absolute()}",
        )
    for path in data.glob(BROKEN):
        path.unlink()
    certificate, key = renew_certificate(state, member, clock)
    peers = {**{name: other.peer for name, other in member.others.items()}, member.name: place.peer}
    client, peer, ca = f"https://{place.client}", f"https://{place.peer}", folder / "ca.crt"
    return [
        *(program, "--name", member.name, "--data-dir", str(data)),
        *("--listen-client-urls", client, "--advertise-client-urls", client),
        *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
        *("--initial-cluster", ",".join(f"{name}=https://{at}" for name, at in sorted(peers.items()))),
        *("--initial-cluster-state", "new" if member.is_first else "existing", "--initial-cluster-token", member.token),
        *(f"--cert-file={certificate}", f"--key-file={key}", f"--trusted-ca-file={ca}", "--client-cert-auth"),
        *(f"--peer-cert-file={certificate}", f"--peer-key-file={key}", f"--peer-trusted-ca-file={ca}"),
        "--peer-client-cert-auth",
        # Any address may be a member's that has a certificate of this CA: a machine has several.
        "--experimental-peer-skip-client-san-verification",
        *("--pre-vote", "--grpc-keepalive-min-time", "1s"),
        *("--quota-backend-bytes", str(quota_bytes), "--snapshot-count", "10000"),
    ]


def renew_certificate(state: Path, member: Member, clock: Clock) -> tuple[Path, Path]:
    """The paths of its certificate and key; etcd reads them at each connection."""
    return Authority((state / FOLDER).absolute(), clock).renew_member(member.place.host)
