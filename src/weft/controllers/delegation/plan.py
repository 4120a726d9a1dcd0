"""Plan the requests to a linked cluster about a delegation, and the status that follows from the answer. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from weft.kinds.cluster import ClusterStatus
from weft.kinds.delegation import (
    GONE,
    NAME_TAKEN,
    REFUSED,
    RUNS_ALREADY,
    WORKLOADS,
    DelegationActions,
    DelegationSpec,
    DelegationStatus,
    mark_attempt,
    mark_workload,
)
from weft.kinds.fields.cells import dig
from weft.objects.errors import Forbidden, NotFound, Unavailable, WeftError, shorten
from weft.objects.lifecycle import Phase

MOST_TEXT = 300  # characters of the other cluster's words, in a message
MOST_WORD = 64  # and of an address, a node's name or a phase
LINKED, NOT_GRANTED = "Linked", "notGranted"
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
    """A delegation as it is here, and the project at the other cluster: the one in which it began, else that of the link;
    "": the link has none for its own. ``rival``: another delegation that has this name there."""

    key: str
    uid: str
    name: str
    deleting: bool
    labels: Mapping[str, str]
    spec: DelegationSpec
    actions: DelegationActions
    status: DelegationStatus
    project: str
    own_project: str = ""
    rival: str = ""

    @property
    def mark(self) -> str:
        return mark_workload(self.labels, self.spec.template)

    @property
    def attempt(self) -> str:
        return mark_attempt(self.labels, self.spec)

    @property
    def is_over(self) -> bool:
        """Whether it can go though the cluster can't be asked: nothing was ever sent there, or what is there stays."""
        return self.deleting and (self.actions.abandoned or not self.status.begun)


class Seen(msgspec.Struct, frozen=True):
    """A workload as the other cluster lists it; its words are cut, and may still be anything."""

    uid: str
    phase: str = ""
    node: str = ""
    address: str = ""
    reason: str = ""
    message: str = ""
    ready: bool = False
    deleting: bool = False


class Act(msgspec.Struct, frozen=True, eq=False):
    """An act at the cluster: ``manifest`` is put, or the object of this uid is deleted."""

    what: Literal["put", "delete"]
    kind: str
    name: str
    project: str
    own_project: str
    manifest: dict[str, Any] = {}
    uid: str = ""


def read_seen(obj: Mapping[str, Any]) -> Seen:
    """Read a listed object; a hostile one gives empty words."""
    return Seen(
        uid=_cut(obj.get("uid")),
        phase=_cut(dig(obj, "status.phase")),
        node=_cut(dig(obj, "status.node")),
        address=_cut(dig(obj, "status.address")),
        reason=_cut(dig(obj, "status.reason")),
        message=_cut(dig(obj, "status.message"), MOST_TEXT),
        ready=_is_ready(obj),
        deleting=obj.get("deleting_since") is not None,
    )


def _is_ready(obj: Mapping[str, Any]) -> bool:
    """Whether it is as specified, by its own kind."""
    kind = WORKLOADS.get(str(obj.get("kind")))
    goal = kind.lifetime.goals.get("create") if kind is not None else None
    try:
        if goal is not None:
            return goal.reached(obj)
        return dig(obj, "status.phase") in ("Running", "Scheduled", "Succeeded")  # a job
    except Exception:  # whatever a hostile cluster put into it
        return False


def _cut(value: Any, most: int = MOST_WORD) -> str:
    if not isinstance(value, str):
        return ""
    return "".join(letter if letter.isprintable() else " " for letter in shorten(value, most))


def plan_act(one: Delegated, seen: Seen | None) -> Act | None:
    """The act at the cluster, which lists ``seen``; None: nothing to do. A workload that was there once and isn't any more is not
    created again automatically: that cluster may have forgotten a workload that still runs.
    """
    spec, status = one.spec, one.status
    if one.actions.abandoned or not one.project or one.rival:
        return None
    if one.deleting:
        if seen is None or seen.deleting or not status.begun:  # what is there without our doing goes on
            return None
        return Act("delete", spec.workload, one.name, one.project, one.own_project, uid=seen.uid)
    if seen is None:
        if status.uid and one.actions.resends <= status.resent:
            return None
    elif seen.deleting or (status.sent == one.mark and status.uid == seen.uid):
        return None
    manifest = {
        "kind": spec.workload,
        "name": one.name,
        "project": one.project,
        "labels": dict(one.labels),
        "spec": spec.template,
    }
    return Act("put", spec.workload, one.name, one.project, one.own_project, manifest)


class DelegationTurn(msgspec.Struct, frozen=True):
    """One turn's work on a delegation, once its cluster has listed what it runs."""

    one: Delegated
    seen: Seen | None = None
    act: Act | None = None
    begins: bool = False  # before anything is sent, it is noted that it may have been
    is_strange: bool = False  # what is there was made before this delegation began
    problem: WeftError | None = None  # of the list

    @property
    def key(self) -> str:
        return self.one.key

    def end(self, answer: Seen | WeftError | None, *, sure: bool = True) -> tuple[DelegationStatus, bool]:
        """The status after the answer to ``act``, and whether the delegation is over. ``sure``: nothing that was sent before can
        still arrive."""
        one = self.one
        if self.begins:
            return _with(one.status, begun=True, project=one.project), False
        is_absent = self.problem is None and self.seen is None and self.act is None and bool(one.project)
        over = one.is_over or (one.deleting and is_absent and sure and not one.rival)
        if self.problem is not None and one.project and not one.actions.abandoned:
            return plan_unlisted(one, self.problem), over
        if self.is_strange:
            return _plan_strange(one), over
        return plan_status(one, self.seen, self.act, answer), over


def plan_turn(one: Delegated, listed: Mapping[str, Seen] | WeftError | None) -> DelegationTurn:
    """``listed``: what the cluster runs of this kind and project for this one, by name, or why that isn't known."""
    if listed is None or isinstance(listed, WeftError):
        return DelegationTurn(one, problem=listed or Unavailable("the cluster wasn't asked"))
    seen = listed.get(one.name)
    act = plan_act(one, seen)
    if act is not None and act.what == "put" and not one.status.begun:
        if seen is not None and not one.spec.adopt:
            return DelegationTurn(one, seen, is_strange=True)
        return DelegationTurn(one, seen, begins=True)
    return DelegationTurn(one, seen, act)


def plan_status(
    one: Delegated, seen: Seen | None, act: Act | None, answer: Seen | WeftError | None
) -> DelegationStatus:
    """The status once the cluster has shown ``seen``, and has answered ``act`` with ``answer``."""
    status, cluster = one.status, one.spec.cluster
    if not one.project:
        message = (
            f"the link with {cluster} has no project for this one: weft cluster set {cluster} --projects HERE=THERE"
        )
        return _with(status, phase="Pending" if not status.uid else "Unknown", reason="noProject", message=message)
    if one.actions.abandoned:
        return _with(status, phase="Unknown", reason="abandoned", message=f"what runs at {cluster} is left alone")
    if one.rival:
        message = f"{one.rival} has a {WORKLOADS[one.spec.workload].title} of that name at {cluster}"
        return _with(status, phase="Failed", refused=one.attempt, reason=NAME_TAKEN, message=message)
    if isinstance(answer, Seen) and act is not None and act.what == "put":
        # Whether it is as it was sent now, the next list tells.
        taken = {"sent": one.mark, "refused": "", "resent": one.actions.resends, "uid": answer.uid, "absent": False}
        return _with(_show(_with(status, **taken), answer, one.deleting), ready=False)
    if isinstance(answer, Seen):
        return _show(status, answer, one.deleting)
    if isinstance(answer, Unavailable):
        return status  # the next turn tells
    if isinstance(answer, WeftError):
        return _plan_refused(one, seen, act, answer)
    if seen is not None:
        uid = status.uid or (seen.uid if status.begun else "")  # until then it is what another one left there
        return _show(_with(status, uid=uid, absent=False), seen, one.deleting)
    if one.deleting or not status.uid:
        return status
    ended = _PHASES.get(status.phase_there, "")
    message = f"{cluster} no longer has it; weft delegation resend {one.name} creates it there again"
    if ended in ("Done", "Failed"):
        return _with(status, phase=ended, absent=True, ready=False, reason="gone", message=message)
    return _with(status, phase=GONE, absent=True, ready=False, reason="gone", message=message, node="", address="")


def _plan_strange(one: Delegated) -> DelegationStatus:
    """Leave an object that another delegation of this name made there as it is, until people say whose it is."""
    kind, cluster = WORKLOADS[one.spec.workload].title, one.spec.cluster
    message = (
        f"{cluster} still has a {kind} of that name, which this cluster created before; set adopt to take it over as it is "
        "specified here, or delete it there"
    )
    return _with(one.status, phase="Failed", refused=one.attempt, ready=False, reason=RUNS_ALREADY, message=message)


def _plan_refused(one: Delegated, seen: Seen | None, act: Act | None, answer: WeftError) -> DelegationStatus:
    """It is tried again each turn; what runs there goes on as it was."""
    cluster, kind = one.spec.cluster, WORKLOADS[one.spec.workload].title
    if _is_ungranted(answer):
        reason, message = NOT_GRANTED, _explain_ungranted(one)
    elif isinstance(answer, NotFound) and not (answer.field or "").startswith("spec."):
        reason = NAME_TAKEN
        message = f"{cluster} has no project {one.project}, or a {kind} of that name which isn't this cluster's"
    else:
        reason, message = REFUSED, f"{cluster} refuses it: {_cut(answer.message, MOST_TEXT)}"
    if seen is not None:
        phase = _show(one.status, seen, one.deleting).phase
    else:
        phase = "Unknown" if one.status.uid else "Pending" if reason == NOT_GRANTED else "Failed"
    refused = one.attempt if act is not None else one.status.refused
    return _with(one.status, phase=phase, refused=refused, ready=False, reason=reason, message=message)


def _is_ungranted(problem: WeftError) -> bool:
    """A quota or a limit there is Forbidden, too."""
    return isinstance(problem, Forbidden) and "permission" in problem.details


def _explain_ungranted(one: Delegated) -> str:
    kind, cluster = WORKLOADS[one.spec.workload].title, one.spec.cluster
    return f"{cluster} doesn't let this cluster run {kind}s in its project {one.project}: an administrator there grants run"


def plan_unlisted(one: Delegated, problem: WeftError) -> DelegationStatus:
    """The status while the cluster answers, but doesn't list what it runs."""
    reason, message = "cantBeAsked", f"{one.spec.cluster} doesn't list what it runs: {_cut(problem.message, MOST_TEXT)}"
    if _is_ungranted(problem):
        reason, message = NOT_GRANTED, _explain_ungranted(one)
    phase = "Unknown" if one.status.uid else "Pending"
    return _with(one.status, phase=phase, ready=False, reason=reason, message=message)


def plan_unreachable(one: Delegated, cluster: ClusterStatus | None) -> DelegationStatus:
    """The status while the cluster can't be asked."""
    name = one.spec.cluster
    phase = cluster.phase if cluster is not None else "missing"
    message = f"cluster {name} is {phase}: " + (
        "what it runs goes on there" if one.status.uid else "it gets this once it answers"
    )
    return _with(
        one.status,
        phase="Unknown" if one.status.uid else "Pending",
        ready=False,
        reason="clusterUnreachable",
        message=message,
    )


def _show(status: DelegationStatus, seen: Seen, deleting: bool) -> DelegationStatus:
    phase = "Deleting" if deleting or seen.deleting else _PHASES.get(seen.phase, "Starting")
    return _with(
        status,
        phase=phase,
        phase_there=seen.phase,
        node=seen.node,
        address=seen.address,
        ready=seen.ready and not deleting,
        reason=seen.reason,
        message=seen.message,
    )


def _with(status: DelegationStatus, **changes: Any) -> DelegationStatus:
    return msgspec.structs.replace(status, **changes)
