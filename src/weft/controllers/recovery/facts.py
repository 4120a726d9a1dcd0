"""Inputs of a run's plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from weft.kinds.fields.recovery.run import RunMember
from weft.kinds.recovery_plan import RecoveryPlanActions, RecoveryPlanSpec, RecoveryPlanStatus


class Candidate(msgspec.Struct, frozen=True):
    """A replica that would be recovered now: the member that it would be, or why it can't be one."""

    member: RunMember
    problem: str = ""
    is_promoted: bool = False
    is_handed_over: bool = False  # its source was stopped before its point, so nothing is lost


class VmFacts(msgspec.Struct, frozen=True):
    """The VM of a member."""

    phase: str
    message: str = ""


class ServiceReadiness(msgspec.Struct, frozen=True):
    """A service's word on the one VM that it leads to."""

    ready: bool
    message: str = ""


class RecoveryFacts(msgspec.Struct, frozen=True):
    name: str
    deleting: bool
    spec: RecoveryPlanSpec
    actions: RecoveryPlanActions
    status: RecoveryPlanStatus
    candidates: Sequence[Candidate] = ()  # in order, of the spec as it is
    vms: Mapping[str, VmFacts] = {}  # of the run, by name, those that exist
    ready: Mapping[str, ServiceReadiness] = {}  # by name of the service
    leftovers: bool = False  # something of the run exists that goes at its end; of a deleted plan: of any run
    stale: bool = False  # something of an earlier run exists
    answering: Sequence[str] = ()  # of clusters that the VMs may still run at, as "cluster/east answers"
    excess: str = ""  # what all of them together would exceed of the project's quota
    networks: int = 0  # that a rehearsal would make
    busy: str = ""  # the rehearsal of the project that is in progress, as "the rehearsal of recoveryplan/other"
    isolated: bool = True  # the networks of the rehearsal lead nowhere
    fresh_name: str = ""  # for a new run
