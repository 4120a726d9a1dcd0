"""Upgrade: another release of weft on all servers and nodes, one machine after the other, under running guests.

People create one with the packages that they have uploaded; the controller ``upgrades`` gives each machine its turn. It stays, so
that it goes on whatever is killed, and stops at the first bad sign until people resume it. With ``renew``, nodes get a second turn
once all machines have the release: those whose guests run in an earlier QEMU, or whose machine needs a reboot, are emptied,
rebooted if they need it, and returned."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from weft.kinds.fields.cells import AGE, NAME, dig, note, text
from weft.kinds.parts.goal import find_ended, reaches
from weft.kinds.parts.node.reboot import RebootOrder, describe_need
from weft.kinds.parts.packages import NEEDED, PackageFile, UpgradeOrder, read_release
from weft.kinds.record import Access, Admission, Column, Display, Goal, Kind, Lifetime, Object, Operation, Verb
from weft.objects.envelope import Envelope, decode_part
from weft.objects.errors import DriverFailed, IllegalTransition, InvalidInput, WeftError
from weft.objects.schema import field, words

# Waiting: for another one that is under way; Replaced: another one took its place while it was stopped.
UpgradePhase = Literal["Waiting", "Running", "Stopped", "Done", "Replaced"]
OVER = ("Done", "Replaced")
MOST_LEFT = 100  # names that a status shows


class UpgradeSpec(msgspec.Struct, kw_only=True):
    to: Annotated[str, field("Release that all machines get", change="never", max_length=64)]
    packages: Annotated[
        list[PackageFile],
        field("Packages of that release, uploaded before", change="never", max_length=24),
    ] = []
    renew: Annotated[
        bool,
        field(
            "Afterwards, empty each node whose guests run an earlier QEMU or whose machine needs a reboot, reboot it if it "
            "needs that, and return it",
            change="never",
        ),
    ] = False


class UpgradeActions(msgspec.Struct, kw_only=True):
    stop: Annotated[bool, field("Give no further machine its turn")] = False
    attempt: Annotated[int, field("Which attempt it is; people who resume it begin another one", ge=1)] = 1


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """The machine that is upgraded now."""

    kind: Annotated[str, words("server", "node")]
    name: str
    uid: str
    since: float  # unix seconds
    seen_at: float | None = None  # since when it has been ready with the new release, or renewed
    work: Annotated[str, words("packages", "renewal")] = "packages"
    stuck_at: float | None = None  # since when what is left on a node can't leave
    rebooting_at: float | None = None  # since when its reboot is ordered

    @property
    def is_server(self) -> bool:
        return self.kind == "server"


class UpgradeStatus(msgspec.Struct, kw_only=True):
    phase: UpgradePhase = "Waiting"
    message: str = ""
    attempt: int = 0  # the last one that was begun
    turn: Turn | None = None
    order: UpgradeOrder | None = None  # to the node whose turn it is
    reboot: RebootOrder | None = None  # to the same
    renewed: int = 0  # nodes that were renewed
    kept: list[str] = []  # those that weren't, and why: node/n3: …
    upgraded: int = 0  # machines that have the release
    machines: int = 0  # all servers and nodes
    left: list[str] = []  # the others: server/s2, node/n1
    begun_at: float | None = None
    ended_at: float | None = None


class Machine(NamedTuple):
    """A server or a node. ``outcome``: None, or what its last word on the present attempt was: "" is good."""

    kind: Literal["server", "node"]
    name: str
    uid: str
    release: str
    ready: bool
    leads: bool = False
    outcome: str | None = None
    by_hand: str = ""  # why it can't be upgraded automatically
    lost_at: float | None = None  # since when it isn't heard; None while it is
    reboot: str = ""  # why its machine needs a reboot
    outdated: int = 0  # its guests that run in an earlier QEMU
    emptied: str = ""  # how far its drain for this upgrade is: Draining, Blocked, Drained; "": it hasn't begun
    emptying: str = ""  # the same in words
    closed: bool = False  # people have cordoned or drained it
    rebooted: str | None = None  # its last word on its reboot: None, or what it failed with; "" is good

    @property
    def what(self) -> str:
        return f"{self.kind} {self.name}"

    @property
    def path(self) -> str:
        return f"{self.kind}/{self.name}"

    @property
    def is_server(self) -> bool:
        return self.kind == "server"

    @property
    def need(self) -> str:
        """Why it should be renewed, for people; "" if it needn't."""
        return describe_need(self.reboot, self.outdated)


def order_machines(to: str, machines: Iterable[Machine]) -> list[Machine]:
    """Sort them into the order in which their turns come."""
    found = sorted(machines, key=lambda one: (one.kind != "server", one.leads, one.name))
    if not is_downgrade(to, found):
        return found
    return sorted(found, key=lambda one: one.kind == "server")


def is_downgrade(to: str, machines: Iterable[Machine]) -> bool:
    """Whether some server has a newer release."""
    return any(one.kind == "server" and read_release(one.release) > read_release(to) for one in machines)


def name_attempt(uid: str, attempt: int) -> str:
    """How machines tell attempts apart."""
    return f"{uid}/{attempt}"


def check_upgrade(spec: UpgradeSpec) -> None:
    """Raises InvalidInput."""
    if not read_release(spec.to):
        raise InvalidInput(
            f"spec.to: {spec.to!r} is not a release",
            field="spec.to",
            hint="write the version of the packages, like 0.2.0",
        )
    seen = set[tuple[str, str]]()
    for number, one in enumerate(spec.packages):
        if not re.fullmatch(r"[0-9a-f]{64}", one.sha256):
            raise InvalidInput(
                f"spec.packages[{number}].sha256 must be 64 hex digits",
                field=f"spec.packages[{number}].sha256",
                hint="weft fabric upgrade --to FOLDER uploads the packages and names them",
            )
        if (one.name, one.architecture) in seen:
            raise InvalidInput(
                f"spec.packages: {one.name} for {one.architecture} is there twice",
                field="spec.packages",
                hint="keep the one of the release that you want",
            )
        seen.add((one.name, one.architecture))
    if spec.renew and not spec.packages:
        return  # all machines have the release
    names = {one.name for one in spec.packages}
    for role, needed in NEEDED.items():
        if missing := sorted(set(needed) - names):
            raise InvalidInput(
                f"spec.packages: {missing[0]} is missing, which every {'node' if role == 'agent' else 'server'} needs",
                field="spec.packages",
                hint="give the packages of one release together: weft-client, weft-agent and weft-server",
            )


def _guard_deletion(upgrade: Envelope, _: float) -> None:
    """Raises IllegalTransition: a node that it has emptied would stay empty."""
    if decode_part(upgrade.status, UpgradeStatus).phase == "Running":
        raise IllegalTransition(
            f"upgrade/{upgrade.name} is under way", hint=f"weft upgrade stop {upgrade.name}, and delete it then"
        )


def _refuse_over(obj: Object, word: str) -> None:
    phase = dig(obj, "status.phase", "Waiting")
    if phase in OVER:
        raise IllegalTransition(
            f"upgrade/{obj['name']} is over ({phase}): it can't be {word}", hint="weft fabric upgrade --to FOLDER"
        )


def _stop(obj: Object, _: Any) -> dict[str, Any]:
    _refuse_over(obj, "stopped")
    return {"stop": True}


def _resume(obj: Object, _: Any) -> dict[str, Any]:
    _refuse_over(obj, "resumed")
    if dig(obj, "status.phase") != "Stopped" and not dig(obj, "actions.stop"):
        return {}
    return {"stop": False, "attempt": int(dig(obj, "status.attempt", 0)) + 1}


def _count(obj: Object) -> str:
    return f"{dig(obj, 'status.upgraded', 0)}/{dig(obj, 'status.machines', 0)}"


def _find_failure(obj: Object, what: str, goal: Goal) -> WeftError | None:
    if dig(obj, "status.phase") == "Stopped" and goal.words == "Done" and not _begins_again(obj):
        return DriverFailed(
            f"{what} has stopped: {dig(obj, 'status.message', '')}",
            reason="upgradeStopped",
            hint=f"weft upgrade resume {obj['name']}, once that is mended",
        )
    return find_ended(("Replaced",))(obj, what, goal)


def _begins_again(obj: Object) -> bool:
    """Whether people have resumed it, and its status doesn't say so yet."""
    return not dig(obj, "actions.stop") and int(dig(obj, "actions.attempt", 1)) > int(dig(obj, "status.attempt", 0))


def _summarise(obj: Object) -> str:
    """``Done: 6 of 6 machines have weft 0.2.0``"""
    return f"{dig(obj, 'status.phase', '')}: {dig(obj, 'status.message', '')}".rstrip(": ")


_DONE = reaches("Done", ends_refused=False, answer=_summarise)

UPGRADE = Kind(
    name="upgrade",
    plural="upgrades",
    title="upgrade",
    summary="Another release of weft on all servers and nodes, under running guests",
    scope="fabric",
    spec=UpgradeSpec,
    actions=UpgradeActions,
    status=UpgradeStatus,
    verbs=(
        Verb("stop", "Give no further machine its turn", act=_stop, needs="fabric"),
        Verb("resume", "Go on with the machines that are left", act=_resume, needs="fabric"),
    ),
    access=Access(readers="fabric", status_writer="upgrades"),
    admission=Admission(check=check_upgrade, delete_guard=_guard_deletion),
    display=Display(
        topic="Work and answers",
        columns=(
            NAME,
            Column("PHASE", text("status.phase", "Waiting"), keep=True),
            Column("TO", text("spec.to")),
            Column("UPGRADED", _count, align="right"),
            AGE,
            Column("NOTE", note, flexible=True),
        ),
    ),
    lifetime=Lifetime(
        goals={"create": _DONE, "resume": _DONE, "stop": reaches("Stopped", "Done", ends_refused=False)},
        find_failure=_find_failure,
        operation=Operation(act="upgrade", cancel="stop", ended=("Stopped", *OVER)),
    ),
)
