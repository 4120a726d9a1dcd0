"""Wrong versions of the code, each the kind of mistake that looks right on a good day. The simulation must find each."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from typing import Any
from unittest import mock

import msgspec

from tests.simulation import virtual_loop
from weft.agent.allocation import plan
from weft.agent.allocation.plan import StepName
from weft.agent.allocation.steps.registry import STEPS
from weft.agent.allocation.supervisor import Allocations
from weft.agent.migration import executor as migration_executor
from weft.agent.migration.source import MigrationSource
from weft.api.admission import commit as api_commit
from weft.api.admission import references
from weft.api.object import write as api_write
from weft.controllers.workload import controller
from weft.drivers.linux import processes
from weft.drivers.runtime.fake.migration import FakeMigrations
from weft.informer.cache import Cache
from weft.informer.commit import delete
from weft.informer.leader_lease import LeaderLease, LeadershipLost
from weft.kinds.allocation import AllocationSpec
from weft.kinds.node import NODES_BY_UID, NodeStatus
from weft.kinds.quota import QuotaSpec
from weft.objects.errors import StoreUnavailable, WeftError
from weft.scheduler import intake
from weft.scheduler.allocation import preempt
from weft.scheduler.intake import Intake
from weft.scheduler.lease.slots import Slots
from weft.scheduler.table.snapshot import Snapshot
from weft.store.etcd import EtcdStore
from weft.store.etcd import commits as etcd_commits
from weft.store.etcd.marks import Mark

MOST_STEPS = 500_000  # of a run: twenty times those of one with 120 faults
Mutation = Callable[[], Any]  # a context manager


def ack_before_commit() -> Any:
    """The API servers answer first and write a little later."""
    real = api_commit.settle

    class Hasty:
        def __init__(self, store: Any) -> None:
            self._store = store
            self._under_way: list[Any] = []

        def __getattr__(self, name: str) -> Any:
            return getattr(self._store, name)

        async def commit(self, writes: Sequence[Any], preconditions: Sequence[Any] = (), **more: Any) -> int:
            async def later() -> None:
                await asyncio.sleep(0.3)
                with contextlib.suppress(WeftError):
                    await self._store.commit(writes, preconditions, **more)

            self._under_way.append(asyncio.ensure_future(later()))
            return 0

    async def settle(context: Any, *args: Any, **more: Any) -> Any:
        hasty = mock.Mock(wraps=context)
        hasty.store, hasty.clock = Hasty(context.store), context.clock
        return await real(hasty, *args, **more)

    return mock.patch.object(api_write, "settle", settle)


def forget_a_watch_event() -> Any:
    """The controllers' cache misses one batch in thirty."""
    real, draw = Cache._take, random.Random(2)

    def take(self: Cache, batch: Any) -> None:
        if draw.random() < 1 / 30:
            batch = msgspec.structs.replace(batch, changes=[])
        real(self, batch)

    return mock.patch.object(Cache, "_take", take)


def drop_the_finalizer_early() -> Any:
    """An allocation that is being deleted is removed before its node has let it go."""
    real = controller.plan_allocation

    def plan_allocation(view: Any, vm: Any, item: Any, now: float) -> Any:
        return delete(item) if item.deleting else real(view, vm, item, now)

    return mock.patch.object(controller, "plan_allocation", plan_allocation)


def take_a_silent_node_for_an_empty_one() -> Any:
    """What is placed on a node that isn't heard of is given up, and placed anew."""
    real = controller.plan_allocation

    def plan_allocation(view: Any, vm: Any, item: Any, now: float) -> Any:
        nodes = view.find(NODES_BY_UID, item.spec(AllocationSpec).node_uid)
        if nodes and nodes[0].status(NodeStatus).phase == "NotReady":
            return delete(item)
        return real(view, vm, item, now)

    return mock.patch.object(controller, "plan_allocation", plan_allocation)


def count_no_room_that_is_taken() -> Any:
    """The scheduler forgets what is allocated already."""
    return mock.patch.object(Intake, "count", lambda self, key, allocation: None)


def adopt_without_checking_the_start_time() -> Any:
    """A pid that is in use counts as the guest's process, whatever it is by now."""
    return mock.patch.object(processes, "is_alive", lambda process: processes.inspect_process(process.pid) is not None)


def take_what_is_not_listed_for_deleted() -> Any:
    """An agent ends what the server's list doesn't hold: after a restore that is somebody's guest."""

    def miss(self: Allocations, worker: Any) -> None:
        worker.update(msgspec.structs.replace(worker.state.envelope, deleting_since=1.0))

    return mock.patch.object(Allocations, "_miss", miss)


def place_before_nodes_have_spoken() -> Any:
    """After a restore the scheduler doesn't wait until the nodes have said what runs there."""
    return mock.patch.object(intake, "find_silent", lambda cache, among: [])


def ignore_incarnation() -> Any:
    """What a workload's former places were numbered is forgotten with them."""
    real = controller.fold_status

    def fold_status(desired: Any, places: Any, addresses: Any, former: Any) -> Any:
        status = real(desired, places, addresses, former)
        status.incarnation = max([0, *(place.spec.incarnation for place in places)])
        return status

    return mock.patch.object(controller, "fold_status", fold_status)


def run_while_the_guest_is_on_its_way() -> Any:
    """The machine that waits for a guest doesn't stand still until it is taken over."""
    real = FakeMigrations.expect

    async def expect(self: FakeMigrations, plan: Any, *given: Any) -> Any:
        sockets = await real(self, plan, *given)
        guest = self._read(plan.id)
        assert guest is not None
        guest.state = "running"
        self._write(guest)
        return sockets

    return mock.patch.object(FakeMigrations, "expect", expect)


def run_on_until_the_target_answers() -> Any:
    """A source whose guest was handed over lets it run meanwhile, so that it stands still for less."""
    real = MigrationSource._hand_over

    async def hand_over(self: MigrationSource, began: float) -> None:
        await self._driver.cancel(self._local.id, self.migration.key, never_ran=True)
        await real(self, began)

    return mock.patch.object(MigrationSource, "_hand_over", hand_over)


def leave_the_data_behind() -> Any:
    """What was copied to the target stays at the source as well."""

    async def remove_volumes(*given: Any) -> None:
        return None

    left = msgspec.structs.replace(STEPS[StepName.REMOVE_VOLUMES], perform=remove_volumes)
    return mock.patch.dict(STEPS, {StepName.REMOVE_VOLUMES: left})


def believe_an_older_store() -> Any:
    """A place that the store knows as a VM's own has its guest, also when its node has sent it away since."""
    patches = contextlib.ExitStack()
    for module in (plan, migration_executor):
        patches.enter_context(mock.patch.object(module, "is_back", lambda spec, migration: True))
    return patches


def take_a_slot_for_empty() -> Any:
    """What workloads have taken of a slot isn't counted: the next one gets it too."""

    def take_none(*given: Any) -> None:
        return None

    return mock.patch.object(Slots, "take", take_none)


def let_all_of_a_budget_go() -> Any:
    """Preemption asks no disruption budget."""
    return mock.patch.object(preempt, "_find_allowances", lambda *given: ())


def leave_slots_uncounted() -> Any:
    """The capacity of a reservation's slots is given to others as well."""
    real = Snapshot.put_leased

    def put_leased(self: Snapshot, key: str, lease: Any, disk: int, load: Any) -> None:
        if disk == 0:  # a slot takes none
            lease = msgspec.structs.replace(lease, amounts=(0, 0))
        real(self, key, lease, disk, load)

    return mock.patch.object(Snapshot, "put_leased", put_leased)


def forget_that_it_is_not_shared() -> Any:
    """A reservation that was shared once is shared for ever."""
    return mock.patch.object(references, "is_shared", lambda *given: True)


def count_for_the_project_alone() -> Any:
    """A user's own limits are read, and not heeded."""
    return mock.patch.object(QuotaSpec, "accounts_of", lambda self, user: [("", self)])


def commit_without_the_fence() -> Any:
    """Controllers decide whether or not they still lead."""

    async def write(self: LeaderLease, writes: Sequence[Any], preconditions: Sequence[Any]) -> int:
        try:
            return await self.store.commit(writes, preconditions)
        except StoreUnavailable as problem:
            raise LeadershipLost(f"a commit's outcome is unknown: {problem}") from problem

    return mock.patch.object(LeaderLease, "_write", write)


def send_again_without_a_mark() -> Any:
    """A commit that etcd doesn't answer is sent again, also if it was done."""
    return mock.patch.multiple(Mark, compare=lambda self: [], find_done=lambda self, found: None)


def count_what_this_server_has_seen() -> Any:
    """Each API server relies on the quota that it read, and on its own sums."""
    real = etcd_commits.plan_compare

    def plan_compare(preconditions: Sequence[Any], places: Sequence[bytes]) -> list[Any]:
        kept = [not getattr(each, "key", "").startswith("/quota/") for each in preconditions]
        return real(list(compress(preconditions, kept)), list(compress(places, kept)))

    return mock.patch.object(etcd_commits, "plan_compare", plan_compare)


def read_what_this_server_has_seen() -> Any:
    """An API server answers reads with what it read a moment ago."""
    real = EtcdStore.get

    async def get(self: EtcdStore, key: str) -> Any:
        seen = self.__dict__.setdefault("seen", {})
        now = self._clock.elapsed()
        if key not in seen or now - seen[key][0] > 1.0:
            seen[key] = (now, await real(self, key))
        return seen[key][1]

    return mock.patch.object(EtcdStore, "get", get)


MUTATIONS: dict[str, Mutation] = {
    mutation.__name__: mutation
    for mutation in (
        ack_before_commit,
        forget_a_watch_event,
        drop_the_finalizer_early,
        take_a_silent_node_for_an_empty_one,
        count_no_room_that_is_taken,
        adopt_without_checking_the_start_time,
        take_what_is_not_listed_for_deleted,
        place_before_nodes_have_spoken,
        ignore_incarnation,
    )
}
WRONG_MOVES: dict[str, Mutation] = {
    mutation.__name__: mutation
    for mutation in (
        run_while_the_guest_is_on_its_way,
        run_on_until_the_target_answers,
        leave_the_data_behind,
        believe_an_older_store,
    )
}

WRONG_SHARES: dict[str, Mutation] = {
    mutation.__name__: mutation
    for mutation in (
        take_a_slot_for_empty,
        let_all_of_a_budget_go,
        leave_slots_uncounted,
        forget_that_it_is_not_shared,
        count_for_the_project_alone,
    )
}


WRONG_SERVERS: dict[str, Mutation] = {
    mutation.__name__: mutation
    for mutation in (
        commit_without_the_fence,
        send_again_without_a_mark,
        count_what_this_server_has_seen,
        read_what_this_server_has_seen,
    )
}


def find_violation(run: Callable[[int], Any], seeds: Iterable[int]) -> Any:
    """The first run that broke a promise, None if all kept them. One that doesn't settle is given up sooner than elsewhere."""
    for seed in seeds:
        with mock.patch.object(virtual_loop, "MOST_STEPS", MOST_STEPS):
            trace = run(seed)
        if trace.violations:
            broken = trace.violations[0].startswith("a part died")
            assert not broken, f"a fabric that breaks down by itself finds nothing out: {trace.violations}"
            return trace
    return None
