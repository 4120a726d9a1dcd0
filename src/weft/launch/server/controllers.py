"""The controllers' process: controllers and scheduler over the store that the API server serves on ``<state>/store.sock``.

One process per state folder, held by a lock that dies with it. Of several servers only the holder of the lease decides.
It keeps nothing: killed at any moment, the next one reads the store and goes on.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import uvloop

from weft.api.servers.addresses import ServerAddresses
from weft.client.server.files import ServerFiles
from weft.client.server.others import OtherServers, make_own_context
from weft.contracts.clock import Clock, SystemClock
from weft.contracts.history import History
from weft.contracts.journal import Journal
from weft.contracts.store import Store
from weft.contracts.trace.span import Tracer
from weft.controllers.alert.controller import Unevaluated
from weft.controllers.alert.standby import keep_rules
from weft.controllers.file.copies import FileCopies
from weft.controllers.metrics.spreader import Spreader
from weft.controllers.receiver.destination import Network
from weft.controllers.receiver.sender import Courier
from weft.controllers.registry import CONTROLLERS, Needs, Registered, list_runs
from weft.controllers.upgrade.own import OwnUpgrade
from weft.controllers.workload.controller import set_placed_status
from weft.drivers.package.installer import DebianInstaller
from weft.drivers.power.bmc import open_bmc
from weft.informer.cache import Cache
from weft.informer.leader_lease import LeaderLease, LeadershipLost
from weft.informer.view import make_view
from weft.kinds.fields.lease import ELSEWHERE_SECONDS
from weft.launch.image.oci_bundle import plan_bundles
from weft.launch.insight.worker import InsightWorker
from weft.launch.server.alerts import find_unfit
from weft.launch.server.logs import keep_log
from weft.launch.server.membership.identity import keep_identity
from weft.launch.server.traces import make_tracer
from weft.launch.store.engine import LEADER_LEASE
from weft.launch.store.listening import wait_for_store
from weft.objects.errors import Unavailable, WeftError
from weft.protocol.server.presence import name_holder
from weft.scheduler.loop import Scheduler
from weft.scheduler.workload.strategy import default_strategy
from weft.store.remote import RemoteStore
from weft.telemetry.journal import SqliteJournal
from weft.telemetry.logs.server import DEPARTED, DepartureJournal
from weft.telemetry.metrics.certificate_end import read_ends
from weft.telemetry.metrics.database import OFF, OWN, Asker, Database, find_database, make_off
from weft.telemetry.metrics.evaluator import Evaluator
from weft.telemetry.metrics.history import DatabaseHistory
from weft.telemetry.metrics.sample import Sample
from weft.telemetry.metrics.sender import Sender, split_samples
from weft.trust.ca import Authority
from weft.trust.seal import open_seal_keys

LOCK_PATIENCE_SECONDS = 10.0
CERTIFICATES = {"ca": "ca.crt", "server": "server.crt", "metrics": "metrics/server.crt"}  # of the server itself

_log = logging.getLogger(__name__)


class Options(Protocol):
    """``state`` is the server's state folder; ``microvm_dir`` what machines made of container images boot; ``plain_registry`` which
    registries speak http without TLS; ``allow_fetch`` which of the machine's own places images may come from; ``receivers_allow``
    in which networks of the machine, its links or private ones receivers may be; ``metrics`` and ``database`` where the history of
    metrics is kept; ``metrics_interval`` how often it gets samples, and ``alert_interval`` how often alert rules are evaluated, in
    seconds; ``resume_elsewhere_after`` for how many seconds a suspended VM waits for its own node; ``traces`` whether what is done
    is recorded."""

    state: Path
    server: str | None
    microvm_dir: Path
    plain_registry: list[str]
    allow_fetch: list[str]
    receivers_allow: list[Network]
    metrics: str
    database: Database | None
    metrics_interval: float
    alert_interval: float
    resume_elsewhere_after: float
    traces: str


async def decide(
    store: Store,
    journal: Journal,
    clock: Clock,
    needs: Needs,
    *,
    holder: str,
    strategy: str,
    seed: int = 0,
    elsewhere_seconds: float = ELSEWHERE_SECONDS,
    tracer: Tracer | None = None,
    controllers: Sequence[Registered] = CONTROLLERS,
    server: str = "",
) -> None:
    """Run scheduler and ``controllers`` for ever, one leadership after the other, and keep files and alert rules of ``server`` all
    the time. ``holder`` must be this one's alone."""
    cache = Cache(store, make_view(), clock)
    lease = LeaderLease(store, cache, journal, clock, LEADER_LEASE, holder, tracer)
    async with asyncio.TaskGroup() as group:
        group.create_task(cache.run())
        if needs.files is not None:
            group.create_task(FileCopies(needs.images, server, needs.files, store, cache, clock).run())
        if needs.files is not None and needs.installer is not None:
            group.create_task(OwnUpgrade(server, needs.files, needs.installer, cache, clock).run())
        if needs.evaluator is not None and not isinstance(needs.evaluator, Unevaluated):
            group.create_task(keep_rules(needs.evaluator, cache, clock))
        try:
            while True:
                await lease.begin()
                _log.info("the leader lease is held under fence %d", lease.fence)
                scheduler = Scheduler(
                    lease, strategy, seed=seed, update_status=set_placed_status, elsewhere_seconds=elsewhere_seconds
                )
                try:
                    await _run_alone(_serve(lease, [scheduler.run(), *list_runs(lease, needs, controllers)]))
                except* LeadershipLost as lost:
                    _log.warning("leader lease lost: %s", _first(lost))
        finally:
            await lease.end()


async def _run_alone(serving: Coroutine[Any, Any, None]) -> None:
    """Run it as a task of its own: a group whose task has just failed swallows the cancellation of its parent."""
    task = asyncio.ensure_future(serving)
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise
    task.result()


async def _serve(lease: LeaderLease, runs: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Serve while the lease is held: ends with LeadershipLost (in an ExceptionGroup)."""
    async with asyncio.TaskGroup() as group:
        group.create_task(lease.keep())
        for run in runs:
            group.create_task(run)


async def serve_controllers(options: Options, stop: asyncio.Event) -> None:
    """Decide for the server whose state folder is ``options.state`` until ``stop`` is set. Raises Unavailable when
    another process does."""
    clock = SystemClock()
    identity = keep_identity(options.state, options.server)
    async with AsyncExitStack() as stack:
        lock = await _lock(options.state / "controllers.lock", clock)
        stack.callback(os.close, lock)
        journal = SqliteJournal(options.state / "journal.db", clock)
        stack.callback(journal.close)
        await wait_for_store(options.state / "store.sock", stop, clock)
        store = RemoteStore(options.state / "store.sock", clock)
        stack.push_async_callback(store.close)
        sender: Sender | None = None
        history: History | Unavailable = make_off()
        if options.metrics != OFF:
            find = partial(find_database, options.state, options.database)
            asker = Asker(clock, 3)  # verdicts on rollouts, figures of deployments, profiles
            stack.callback(asker.close)
            history = DatabaseHistory(asker, find)
            sender = Sender(find, clock)
            _run_beside(stack, sender.run())

        servers = ServerAddresses(store, clock)
        _run_beside(stack, servers.run())
        others = OtherServers(
            identity,
            lambda url, own: make_own_context(Authority(options.state, clock), url, own),
            servers.list_others,
            clock,
        )
        stack.callback(others.close)
        spreader = Spreader(others) if options.metrics == OWN else None
        if spreader is not None:
            _run_beside(stack, spreader.run())

        def put_samples(samples: Sequence[Sample]) -> None:
            batches = split_samples(samples)
            if sender is not None:
                sender.put(batches)
            if spreader is not None:
                spreader.put(batches)

        departed = keep_log(options.state, DEPARTED, clock, listens=False)
        needs = Needs(
            images=options.state / "images",
            files=ServerFiles(options.state / "images", others),
            make_bundle=plan_bundles(
                (options.state / "oci").absolute(), options.microvm_dir, options.plain_registry, options.allow_fetch
            ),
            unseal=open_seal_keys(options.state).unseal,
            open_bmc=open_bmc,
            allow_fetch=options.allow_fetch,
            put_samples=put_samples if sender is not None else None,
            read_ends=partial(read_ends, {name: options.state / file for name, file in CERTIFICATES.items()}),
            metrics_interval=options.metrics_interval,
            evaluator=find_unfit(options.metrics, options.database)
            or Evaluator(options.state, clock, options.alert_interval),
            journal=journal,
            send=Courier(options.receivers_allow, clock.now),
            history=history,
            analyst=InsightWorker(),
            installer=DebianInstaller("server"),
        )
        deciding = asyncio.ensure_future(
            decide(
                store,
                DepartureJournal(journal, departed, clock),
                clock,
                needs,
                holder=name_holder(identity.name, identity.uid),
                strategy=default_strategy(),
                elsewhere_seconds=options.resume_elsewhere_after,
                tracer=make_tracer(options, "controllers", clock),
                server=identity.name,
            )
        )
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait([deciding, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            deciding.cancel()
            await asyncio.wait([deciding])
        if not deciding.cancelled():
            deciding.result()


def _run_beside(stack: AsyncExitStack, work: Coroutine[Any, Any, None]) -> None:
    """Run it until ``stack`` is left."""
    stack.callback(asyncio.create_task(work).cancel)


def run_controllers(options: Options) -> int:
    """The process: decides until SIGTERM or SIGINT; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    keep_log(options.state, "controllers", SystemClock())

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve_controllers(options, stop)

    status = 0
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())
    except* WeftError as problems:
        print(f"weft controllers: {_first(problems)}", file=sys.stderr, flush=True)
        status = 1
    return status


def _first(problem: BaseException) -> BaseException:
    """The first thing that went wrong."""
    while isinstance(problem, BaseExceptionGroup):
        problem = problem.exceptions[0]
    return problem


async def _lock(path: Path, clock: Clock) -> int:
    """Hold ``path`` locked, so that no other process decides for this state folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    patience_ends_at = clock.elapsed() + LOCK_PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if clock.elapsed() > patience_ends_at:
                os.close(descriptor)
                raise Unavailable(
                    f"another process runs the controllers of {path.parent}", hint="stop it, or use another --state"
                ) from None
        await clock.sleep(0.1)
