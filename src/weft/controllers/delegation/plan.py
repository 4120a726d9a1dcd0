"""What a linked cluster is asked about a delegation, and what becomes of its status with the answer. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from weft.kinds.cluster import ClusterStatus
from weft.kinds.delegation import GONE, WORKLOADS, DelegationSpec, DelegationStatus
from weft.kinds.fields.cells import dig
from weft.objects.errors import Forbidden, NotFound, Unavailable, WeftError
from weft.objects.lifecycle import Phase

MOST_TEXT = 300  # characters of the other cluster's words, in a message
MOST_WORD = 64  # and of an address, a node's name or a phase
LINKED = "Linked"
# What a phase there means here; any other is on its way.
_PHASES = {
    Phase.RUNNING: "Running",
    Phase.MIGRATE: "Running",
    Phase.SUSPENDED: "Stopped",
    Phase.STOPPED: "Stopped",
    Phase.DONE: "Done",
    Phase.FAILED: "Failed",
    Phase.REJECTED: "Failed",
    "Succeeded": "Done",  # of a job
    "TimedOut": "Failed",
    "Cancelled": "Done",
}


class Delegated(msgspec.Struct, frozen=True):
    """A delegation as it is here, and the project at the other cluster; "": the link has none for it."""

    key: str
    uid: str
    name: str
    generation: int
    deleting: bool
    labels: Mapping[str, str]
    spec: DelegationSpec
    status: DelegationStatus
    project: str

    @property
    def is_over(self) -> bool:
        """Whether it can go though the cluster can't be asked: nothing was ever sent there, or what is there stays."""
        return self.deleting and (self.spec.abandoned or not self.status.begun)


class Seen(msgspec.Struct, frozen=True):
    """A workload as the other cluster lists it; its words are cut, and may still be anything."""

    uid: str
    phase: str = ""
    node: str = ""
    address: str = ""
    message: str = ""
    deleting: bool = False


class Act(msgspec.Struct, frozen=True, eq=False):
    """What is done there: ``manifest`` is put, or the object of this uid is deleted."""

    what: Literal["put", "delete"]
    kind: str
    name: str
    project: str
    manifest: dict[str, Any] = {}
    uid: str = ""


def read_seen(obj: Mapping[str, Any]) -> Seen:
    """What a listed object has; a hostile one gives empty words."""
    return Seen(
        uid=_cut(obj.get("uid")),
        phase=_cut(dig(obj, "status.phase")),
        node=_cut(dig(obj, "status.node")),
        address=_cut(dig(obj, "status.address")),
        message=_cut(dig(obj, "status.message"), MOST_TEXT),
        deleting=obj.get("deleting_since") is not None,
    )


def _cut(value: Any, most: int = MOST_WORD) -> str:
    if not isinstance(value, str):
        return ""
    return "".join(letter if letter.isprintable() else " " for letter in value[:most])


def plan_act(one: Delegated, seen: Seen | None) -> Act | None:
    """What to do at the cluster, which lists ``seen``; None: nothing. What was there once and isn't any more is not created
    again by itself: that cluster may have forgotten a workload that still runs."""
    spec, status = one.spec, one.status
    if spec.abandoned or not one.project:
        return None
    if one.deleting:
        if seen is None or seen.deleting:
            return None
        return Act("delete", spec.workload, one.name, one.project, uid=seen.uid)
    if seen is None:
        if status.uid and spec.resends <= status.resent:
            return None
    elif seen.deleting or (status.accepted >= one.generation and status.uid == seen.uid):
        return None
    manifest = {
        "kind": spec.workload,
        "name": one.name,
        "project": one.project,
        "labels": dict(one.labels),
        "spec": spec.template,
    }
    return Act("put", spec.workload, one.name, one.project, manifest)


class Turn(msgspec.Struct, frozen=True):
    """What a turn does about a delegation, once its cluster has listed what it runs."""

    one: Delegated
    seen: Seen | None = None
    act: Act | None = None
    begins: bool = False  # before anything is sent, it is noted that it may have been
    problem: WeftError | None = None  # of the list

    @property
    def key(self) -> str:
        return self.one.key

    def end(self, answer: Seen | WeftError | None) -> tuple[DelegationStatus, bool]:
        """The status after the answer to ``act``, and whether the delegation is over."""
        one = self.one
        if self.begins:
            return _with(one.status, begun=True), False
        is_absent = self.problem is None and self.seen is None and self.act is None and bool(one.project)
        over = one.is_over or (one.deleting and is_absent)
        return plan_status(one, self.seen, self.act, answer if answer is not None else self.problem), over


def plan_turn(one: Delegated, listed: Mapping[str, Seen] | WeftError | None) -> Turn:
    """``listed``: what the cluster runs of this kind and project for this one, by name, or why that isn't known."""
    if listed is None or isinstance(listed, WeftError):
        return Turn(one, problem=listed or Unavailable("the cluster wasn't asked"))
    seen = listed.get(one.name)
    act = plan_act(one, seen)
    if act is not None and act.what == "put" and not one.status.begun:
        return Turn(one, seen, begins=True)
    return Turn(one, seen, act)


def plan_status(
    one: Delegated, seen: Seen | None, act: Act | None, answer: Seen | WeftError | None
) -> DelegationStatus:
    """The status once the cluster has shown ``seen``, and has answered ``act`` with ``answer``."""
    status, cluster = one.status, one.spec.cluster
    if not one.project:
        message = f"the link with {cluster} has no project for this one: weft cluster set {cluster} --projects …"
        return _with(status, phase="Pending" if not status.uid else "Unknown", reason="noProject", message=message)
    if one.spec.abandoned:
        return _with(status, phase="Unknown", reason="abandoned", message=f"what runs at {cluster} is left alone")
    if isinstance(answer, Seen):
        taken = {"accepted": one.generation, "tried": 0, "resent": one.spec.resends, "uid": answer.uid}
        return _show(_with(status, **taken), answer, one.deleting)
    if isinstance(answer, Unavailable):
        return status  # the next turn tells
    if isinstance(answer, WeftError):
        return _plan_refused(one, seen, act, answer)
    if seen is None:
        if one.deleting or not status.uid:
            return status
        if status.phase in ("Done", "Failed"):
            return status  # it ended, and is no longer kept there
        message = f"{cluster} no longer has it; weft delegation resend {one.name} creates it there again"
        return _with(status, phase=GONE, reason="gone", message=message, node="", address="", phase_there="")
    return _show(_with(status, uid=status.uid or seen.uid), seen, one.deleting)


def _plan_refused(one: Delegated, seen: Seen | None, act: Act | None, answer: WeftError) -> DelegationStatus:
    """It is tried again each turn; what runs there goes on as it was."""
    cluster, kind = one.spec.cluster, WORKLOADS[one.spec.workload].title
    if isinstance(answer, Forbidden):
        reason = "notGranted"
        message = f"{cluster} doesn't let this cluster run {kind}s in its project {one.project}: an administrator there grants run"
    elif isinstance(answer, NotFound) and not (answer.field or "").startswith("spec."):
        reason = "nameTaken"
        message = f"{cluster} has no project {one.project}, or a {kind} of that name which isn't this cluster's"
    else:
        reason, message = "refused", f"{cluster} refuses it: {_cut(answer.message, MOST_TEXT)}"
    if seen is not None:
        phase = _show(one.status, seen, one.deleting).phase
    else:
        phase = "Unknown" if one.status.uid else "Pending" if reason == "notGranted" else "Failed"
    tried = one.generation if act is not None else one.status.tried
    return _with(one.status, phase=phase, tried=tried, reason=reason, message=message)


def plan_unreachable(one: Delegated, cluster: ClusterStatus | None) -> DelegationStatus:
    """The status while the cluster can't be asked."""
    name = one.spec.cluster
    phase = cluster.phase if cluster is not None else "missing"
    message = f"cluster {name} is {phase}: " + (
        "what it runs goes on there" if one.status.uid else "it gets this once it answers"
    )
    return _with(
        one.status, phase="Unknown" if one.status.uid else "Pending", reason="clusterUnreachable", message=message
    )


def _show(status: DelegationStatus, seen: Seen, deleting: bool) -> DelegationStatus:
    phase = "Deleting" if deleting or seen.deleting else _PHASES.get(seen.phase, "Starting")
    return _with(
        status,
        phase=phase,
        phase_there=seen.phase,
        node=seen.node,
        address=seen.address,
        reason="",
        message=seen.message,
    )


def _with(status: DelegationStatus, **changes: Any) -> DelegationStatus:
    return msgspec.structs.replace(status, **changes)
