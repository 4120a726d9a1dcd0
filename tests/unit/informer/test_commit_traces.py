"""Which commits of controllers and scheduler belong to the trace of a person's write: those until it is done."""

from __future__ import annotations

import msgspec
import pytest

from weft.contracts.clock import SystemClock
from weft.contracts.trace.context import Context, end_mark, make_mark
from weft.contracts.trace.span import Span, Tracer
from weft.informer.commit import Commit
from weft.informer.trace.commits import CommitTraces
from weft.informer.view import Item, View
from weft.kinds.backup_repository import BACKUP_REPOSITORY, BackupRepositorySpec, BackupRepositoryStatus
from weft.kinds.network import NETWORK, NetworkSpec, NetworkStatus
from weft.kinds.quota import QUOTA, QuotaSpec
from weft.kinds.vm import VM, VmSpec
from weft.objects.envelope import Condition, Envelope, merge_part

NOW = 1_790_000_000.0
WRITE = Context("a" * 32, "b" * 16)
OPEN = BackupRepositoryStatus(phase="Ready", observed_generation=1)


class Leader:
    """The controllers of one process, which follow what they commit."""

    def __init__(self) -> None:
        self.taken: list[Span] = []
        self._view = View(["vm", "quota", "network", "backuprepository", "function"])
        self._traces = CommitTraces(Tracer("controllers", SystemClock(), self.taken.append), self._view)

    def commit(self, envelope: Envelope, at: float) -> list[str]:
        """What was recorded of it."""
        before = len(self.taken)
        self._view.put_item(envelope.key, Item(envelope))
        self._traces.note([Commit(envelope.key, [])], NOW + at, 0.1)
        return [one.name for one in self.taken[before:]]


def write(envelope: Envelope) -> Envelope:
    envelope.trace = make_mark(WRITE, NOW)
    return envelope


def make_repository(status: BackupRepositoryStatus) -> Envelope:
    spec = BackupRepositorySpec(url="dir:///srv/safe")
    return write(BACKUP_REPOSITORY.make("safe", spec, NOW, uid="r", status=status))


def make_vm(status: str, reason: str) -> Envelope:
    vm = write(VM.make("web", VmSpec(image="tiny"), NOW, uid="v", project="default"))
    vm.conditions = [Condition("Ready", status, reason, "", NOW, 1)]  # type: ignore[arg-type]
    return vm


def test_a_repository_s_checks_after_the_first_good_one_are_not_its_creation() -> None:
    leader = Leader()
    assert leader.commit(make_repository(BackupRepositoryStatus()), 0.1) == ["commit"]
    assert leader.commit(make_repository(OPEN), 1.0) == ["commit"]
    for checked in (30.0, 60.0):
        assert leader.commit(make_repository(msgspec.structs.replace(OPEN, checked_at=NOW + checked)), checked) == []


def test_what_is_counted_in_a_quota_later_is_not_the_write_of_the_quota() -> None:
    leader, quota = Leader(), write(QUOTA.make("project", QuotaSpec(cpu=1), NOW, uid="q", project="default"))
    assert [len(leader.commit(quota, at)) for at in (0.1, 60.0, 600.0)] == [1, 0, 0]


def test_what_a_process_that_was_restarted_does_to_an_object_that_was_ready_is_not_its_creation() -> None:
    network = write(NETWORK.make("blue", NetworkSpec(cidr="10.1.0.0/24"), NOW, uid="n", project="default"))
    assert Leader().commit(network, 2000.0) == ["commit"], "it is not ready yet"
    network.status = merge_part(network.status, NetworkStatus(phase="Ready"))
    network.status = merge_part(network.status, {"observed_generation": 1})
    assert Leader().commit(network, 1.0) == ["commit"]
    restarted = Leader()
    assert [restarted.commit(network, at) for at in (2022.0, 2023.0)] == [[], []], "a VM came into it"


def test_an_object_of_another_version_that_says_nothing_readable_stops_nobody() -> None:
    leader, odd = Leader(), Envelope(kind="function", name="odd", uid="f", project="default")
    odd.status = msgspec.Raw(b'{"phase": "Failed", "reason": "x", "observed_generation": 1, "trace": 5}')
    assert leader.commit(write(odd), 0.1) == ["commit"] and leader.commit(odd, 1.0) == []


@pytest.mark.parametrize("restarted", [False, True])
def test_what_happens_to_a_vm_that_once_ran_is_not_its_creation_whoever_leads(restarted: bool) -> None:
    leader = Leader()
    assert leader.commit(make_vm("False", "Pending"), 0.1) == ["commit"]
    runs = make_vm("True", "Runs")
    end_mark(runs)
    assert leader.commit(runs, 2.0) == ["commit", "ready: Runs"]
    leader = Leader() if restarted else leader
    lost = make_vm("Unknown", "Unknown")
    lost.trace = runs.trace
    lost.status = merge_part(lost.status, {"phase": "Unknown"})
    assert leader.commit(lost, 600.0) == []
