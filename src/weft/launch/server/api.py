"""The API server's process: the store, its socket for the controllers, and the API.

All state is the state folder's, but for objects kept in an etcd that ``--store`` names.

Ends at SIGTERM or SIGINT: streams first, then requests in hand, then the store.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any, cast

import uvloop

import weft
from weft.api.app import build_app
from weft.api.bootstrap import DEFAULT_CIDR, bootstrap, mark_store
from weft.api.context import ApiContext, Settings
from weft.api.request.trace import RequestTraces
from weft.api.rotation.seal import SealRotation
from weft.api.server import make_api_server, parse_address
from weft.api.state.history import History
from weft.api.state.oidc_provider import Provider, ProviderSettings
from weft.api.state.request_rates import WriteRates
from weft.api.upgrade import upgrade_objects
from weft.client.small_file import read_small
from weft.contracts.clock import Clock, SystemClock
from weft.contracts.store import OtherStore
from weft.drivers.linux.addresses import read_own_addresses
from weft.drivers.package.installer import DebianInstaller
from weft.launch.process.address import ANY, find_shown, find_shown_place, split_address, url_at
from weft.launch.process.certificate import keep_certificate
from weft.launch.process.limits import raise_descriptor_limit
from weft.launch.process.log import GatheringHandler, gather_logs
from weft.launch.process.supervisor import REFUSED
from weft.launch.server.logs import keep_log, open_logs
from weft.launch.server.membership.identity import keep_identity
from weft.launch.server.membership.keys import read_keys
from weft.launch.server.membership.members import OwnMember, check_member
from weft.launch.server.membership.presence import NameTaken, keep_presence, wait_for_name
from weft.launch.server.membership.removal import Removed, note_removal
from weft.launch.server.membership.upkeep import keep_store
from weft.launch.server.traces import make_tracer, open_traces
from weft.launch.store.engine import MEMBERS, SQLITE, make_store, remember_store
from weft.launch.store.member import read_member
from weft.objects.errors import InvalidInput, WeftError
from weft.objects.identity import SERVER_NAME
from weft.protocol.server.presence import MOST_ADDRESSES, Presence
from weft.serving.server import listen, make_server_tls
from weft.store.remote import StoreServer
from weft.store.switch import StoreSwitch, pause
from weft.telemetry.audit.log import AuditLog
from weft.telemetry.audit.syslog import SyslogSender
from weft.telemetry.journal import SqliteJournal
from weft.telemetry.metrics.database import OFF, OWN, find_database
from weft.trust.ca import Authority
from weft.trust.seal import open_seal_keys
from weft.trust.tickets import read_ticket_key

ADDRESSES_EVERY_SECONDS = 5.0


def run_api(options: argparse.Namespace) -> int:
    """Serve until a signal ends it; the exit status. ``options`` are those of ``weft server``: state, store, listen,
    gateway, functions, metrics, metrics_keep, publish_on, audit_keep, audit_most, audit_syslog, user_token_life, most_objects,
    writes_per_second, store_quota, log_size, log_age, traces, traces_sample, context, network."""
    logs = gather_logs()
    logs.keep = keep_log(options.state, "api", SystemClock(), listens=False).put
    raise_descriptor_limit()
    try:
        uvloop.run(serve_api(options, SystemClock(), logs))
    except Removed:  # the supervisor says so, and ends the others
        note_removal(options.state)
        return 1
    except WeftError as error:
        print(f"weft server: {error.message}" + (f"\n{error.hint}" if error.hint else ""), file=sys.stderr, flush=True)
        return REFUSED if isinstance(error, (InvalidInput, NameTaken, OtherStore)) else 1
    finally:
        logs.flush()
    return 0


def make_provider(options: argparse.Namespace, clock: Clock) -> Provider | None:
    """The OIDC provider that the --oidc options name. Raises InvalidInput for a file that can't be read."""
    if not options.oidc_issuer:
        return None
    texts = []
    for option in ("oidc_secret_file", "oidc_ca"):
        path: Path | None = getattr(options, option)
        try:
            texts.append("" if path is None else read_small(path))
        except (OSError, UnicodeDecodeError) as problem:
            flag = f"--{option.replace('_', '-')}"
            raise InvalidInput(f"{flag}: {path} can't be read: {problem}", field=flag) from None
    return Provider(
        ProviderSettings(
            issuer=options.oidc_issuer,
            client=options.oidc_client,
            secret=texts[0].strip(),
            groups_claim=options.oidc_groups_claim,
            name_claim=options.oidc_name_claim,
            scope=options.oidc_scope,
            ca=texts[1],
        ),
        clock,
    )


async def serve_api(options: argparse.Namespace, clock: Clock, logs: GatheringHandler) -> None:
    """Serve in the running loop, until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    state: Path = options.state
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    (state / "images").mkdir(exist_ok=True)
    identity = keep_identity(state, options.server)
    addresses = [parse_address(text) for text in options.listen]
    sockets = [listen(*address) for address in addresses]
    authority = Authority(state, clock)
    names = [host for host, _ in addresses if host not in ANY]
    chain, key = authority.renew_server(names)
    tls = make_server_tls(chain, key, authority.ca_path)
    first: Any = make_store(options.store, state, clock)
    await (first.open() if options.store == SQLITE else first.open(may_be_full=True))
    if options.store == MEMBERS:
        await check_member(first, state, clock)
    store = StoreSwitch(
        options.store, first, lambda url: make_store(url, state, clock), partial(remember_store, state), clock
    )
    store_server = StoreServer(store, state / "store.sock")
    journal = SqliteJournal(state / "journal.db", clock)
    settings = Settings(
        blobs=state / "images",
        ticket_key=read_ticket_key(state / "ticket.key"),
        gateways=tuple(options.gateway),
        server_name=SERVER_NAME,
        publish_address=options.publish_on,
        seal_keys=open_seal_keys(state),
        functions=tuple(options.functions or ()),
        listen=tuple(options.listen),
        user_token_seconds=options.user_token_life,
        most_objects=options.most_objects,
    )
    syslog = SyslogSender(options.audit_syslog, clock) if options.audit_syslog else None
    audit = AuditLog(
        state / "audit",
        clock,
        keep_seconds=options.audit_keep,
        keep_bytes=options.audit_most,
        on_line=syslog.send if syslog is not None else None,
    )
    await asyncio.to_thread(audit.open)
    history = None
    if options.metrics != OFF:
        keep_seconds = options.metrics_keep if options.metrics == OWN else 0.0
        history = History(partial(find_database, state, options.database), clock, keep_seconds)
    context = ApiContext(
        store,
        journal,
        clock,
        authority,
        settings,
        audit,
        read_keys=lambda: read_keys(state, store.url),
        members=first.members if options.store == MEMBERS else None,
        provider=make_provider(options, clock),
        history=history,
        writes=WriteRates(options.writes_per_second),
        own=identity,
    )
    traces = open_traces(options, clock)
    if traces is not None and (tracer := make_tracer(options, "api", clock)) is not None:
        context.traces, context.spans = RequestTraces(tracer, options.traces_sample), traces.store
    own_logs = open_logs(options, clock)
    context.server_log = own_logs.log
    server = make_api_server(build_app(context, logs.write_line), sockets, tls, clock)
    try:
        url = url_at(*sockets[0].getsockname()[:2])
        await mark_store(context)  # another fabric may have a server of this name
        await wait_for_name(store, identity, clock)
        await upgrade_objects(store)
        await bootstrap(
            context, options.context or state / "context.json", url, options.network or DEFAULT_CIDR, identity.name
        )
        await store_server.start()
        rotation = SealRotation(context)
        await rotation.refresh()
        context.start()
        server.start()
        keeping = asyncio.create_task(keep_place(context, clock))
        own_member, installer = OwnMember(), DebianInstaller("server")
        started_at, listeners = clock.now(), [socket.getsockname()[:2] for socket in sockets]

        def find_presence() -> Presence:
            own, present = read_own_addresses(), cast("Any", store.store)
            api_ports, function_ports = list_ports(settings)
            return Presence(
                uid=identity.uid,
                address=find_shown(listeners, own),
                gateway=find_shown_place(settings.gateways, own),
                functions=find_shown_place(settings.functions, own),
                addresses=own[:MOST_ADDRESSES],
                api_ports=api_ports[:MOST_ADDRESSES],
                function_ports=function_ports[:MOST_ADDRESSES],
                member=read_member(state).place.client if store.url == MEMBERS else "",
                store=None if store.url == SQLITE else present.space.use,
                free=None if store.url == SQLITE else present.space.free_bytes,
                release=weft.__version__,
                installed=installer.read_outcome(),
                by_hand=installer.find_obstacle(),
                seal_keys=settings.seal_keys.ids,
                started_at=started_at,
                trouble=own_member.trouble if store.url == MEMBERS else "",
                sent_at=clock.now(),
            )

        serving = [
            asyncio.create_task(
                keep_presence(store, identity, find_presence, clock, lambda seconds: pause(store, seconds, clock))
            ),
            asyncio.create_task(keep_store(store, context, state, own_member, options.store_quota, clock)),
        ]
        renewing = asyncio.create_task(keep_certificate(tls, chain, key, clock, lambda: authority.renew_server(names)))
        flushing = asyncio.create_task(logs.keep_flushing(clock))
        rotating = asyncio.create_task(rotation.run())
        logging = asyncio.create_task(own_logs.keep())
        tracing = asyncio.create_task(traces.keep()) if traces is not None else None
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([stopping, *serving], return_when=asyncio.FIRST_COMPLETED)
        ended = [task for task in serving if task.done()]
        if any(isinstance(task.exception(), Removed) for task in ended):
            note_removal(state)
            await stopping  # the supervisor ends the others first, so that they give their leases back
        for task in serving:
            task.cancel()
        await asyncio.wait(serving)
        stopping.cancel()
        keeping.cancel()
        renewing.cancel()
        rotating.cancel()
        flushing.cancel()
        logging.cancel()
        if tracing is not None:
            tracing.cancel()
        for task in ended:
            task.result()
    finally:
        await context.stop()
        await server.close()
        if history is not None:
            history.asker.close()
        await store_server.close()
        await asyncio.to_thread(audit.close)
        if syslog is not None:
            await asyncio.to_thread(syslog.close)
        if traces is not None:
            await asyncio.to_thread(traces.close)
        await asyncio.to_thread(own_logs.close)
        await asyncio.to_thread(journal.close)
        await store.close()


async def keep_place(context: ApiContext, clock: Clock) -> None:
    """Keep the API server told of this machine's addresses, for ever: they may change while it runs."""
    while True:
        context.ranges.put_server(read_own_addresses(), *list_ports(context.settings))
        await clock.sleep(ADDRESSES_EVERY_SECONDS)


def list_ports(settings: Settings) -> tuple[list[int], list[int]]:
    """The TCP ports of the API with its streams, and those for callers of functions."""
    api = {split_address(place)[1] for place in (*settings.listen, *settings.gateways)}
    return sorted(api), sorted({split_address(place)[1] for place in settings.functions})
