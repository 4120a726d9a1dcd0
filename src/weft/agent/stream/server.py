"""Serves exec, console, logs, ports, screens, flows and packets of this node's guests, each on a connection of its own.

Reads the ticket's claims from the gateway; acts through the runtime's optional protocols. Woken by the control connection, once
per stream.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar, cast

import msgspec

from weft.agent.backup.files import BackupFiles
from weft.agent.flow.flows import Flows
from weft.agent.logs.collector import LogCollector
from weft.agent.replication.receiver import Receiver
from weft.agent.samples.sampler import Sampler
from weft.agent.state.allocation import LocalAllocation
from weft.agent.stream.capture import Captures
from weft.agent.stream.connection import Stream
from weft.agent.stream.console import Consoles, serve_console
from weft.agent.stream.exec_session import ResumableExec, serve_kept
from weft.agent.stream.forward import serve_port, serve_screen
from weft.agent.stream.guest_location import GuestLocator, find_departure, place_of_target
from weft.agent.stream.invocations import serve_invocations
from weft.agent.stream.logs import follow_lines, follow_log
from weft.agent.stream.wait import run_until_first_ends, within
from weft.agent.workload.console_log import PrintedLog
from weft.agent.workload.kinds import kind_of
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.clock import Clock
from weft.contracts.driver.container import HasLog
from weft.contracts.driver.network import NetworkDriver
from weft.contracts.driver.runtime import (
    DETACHED,
    SESSION_LOST,
    CanExec,
    CanResize,
    ExecRequest,
    ExecSession,
    HasConsole,
    KeptSession,
    SessionMark,
    SessionStanding,
)
from weft.kinds.parts.stream_verbs import (
    CaptureInput,
    ExecInput,
    FilesInput,
    FlowsInput,
    ForwardInput,
    LogsInput,
    ReceiveInput,
    SamplesInput,
    refuse_early,
)
from weft.objects.errors import IllegalTransition, InvalidInput, NotFound, Unavailable, WeftError
from weft.protocol.claims import Claims
from weft.protocol.frames import FrameType, encode_error, encode_exit, encode_json
from weft.protocol.invocations import VERB

if TYPE_CHECKING:  # an agent without functions loads none of this
    from weft.agent.function.invocations import Functions

log = logging.getLogger("weft.agent")
READY_SECONDS = 30.0
RESUME_SECONDS = 5.0  # then the gateway asks the node that the server names
AGAIN_SECONDS = 0.1
LINGER_SECONDS = 5.0
_ALIVE = ("starting", "running", "paused")

T = TypeVar("T", bound=msgspec.Struct)


class _Elsewhere(Exception):
    """The guest of a session is at another place, or must be looked up again."""

    def __init__(self, place: dict[str, str] | None) -> None:
        super().__init__()
        self.place = place or {}


class Streams:
    def __init__(
        self,
        runtimes: Runtimes,
        network: NetworkDriver,
        find_guest: Callable[[str], LocalAllocation | None],
        node_uid: str,
        clock: Clock,
        functions: Functions | None = None,
        flows: Flows | None = None,
        samples: Sampler | None = None,
        logs: LogCollector | None = None,
        backup_files: BackupFiles | None = None,
        receiver: Receiver | None = None,
    ) -> None:
        self._functions, self._flows, self._samples, self._collected = functions, flows, samples, logs
        self._backup_files, self._receiver = backup_files, receiver
        self._runtimes, self._network = runtimes, network
        self._find_guest, self._node_uid, self._clock = find_guest, node_uid, clock
        self._consoles, self._captures = Consoles(), Captures(network, clock)

    async def serve(self, stream: Stream, claims: Claims) -> None:
        """Serve one stream to its end; an error is sent to the client as a frame."""
        try:
            try:
                await self._serve(stream, claims)
            except WeftError as problem:
                await self._send_quietly(stream, encode_error(problem))
            except (OSError, EOFError) as problem:
                log.debug("stream for %s: %s", claims.subject, problem)
            except Exception as problem:  # a defect is reported to the client, and doesn't touch other streams
                log.exception("stream %s of %s", claims.verb, claims.guest_id)
                await self._send_quietly(stream, encode_error(WeftError(f"the node failed: {problem}")))
            await self._part(stream)
        finally:
            await stream.close()

    async def _part(self, stream: Stream) -> None:
        """Let the client close first."""
        try:
            await within(self._clock, stream.drain(), LINGER_SECONDS, "the client's goodbye")
        except WeftError as problem:
            log.debug("%s", problem.message)

    async def _serve(self, stream: Stream, claims: Claims) -> None:
        if claims.verb == VERB and claims.node_uid == self._node_uid and self._functions is not None:
            await serve_invocations(stream, self._functions)
            return
        if claims.verb == "metrics" and claims.node_uid == self._node_uid and not claims.allocation:
            await self._show_metrics(stream, claims, self._node_uid, lambda: True)
            return
        if claims.verb == "logs" and claims.node_uid == self._node_uid and not claims.allocation:
            await self._show_left_log(stream, claims)
            return
        if claims.verb in ("files", "contents") and claims.node_uid == self._node_uid and claims.repository is not None:
            await self._show_files(stream, claims)
            return
        if claims.verb == "receive" and claims.node_uid == self._node_uid:
            await self._receive(stream, claims)
            return
        local = self._find_guest(claims.allocation)
        if claims.node_uid != self._node_uid or local is None or local.id != claims.guest_id:
            raise NotFound("that workload is no longer on this node", hint="try again: it may have migrated")
        verbs: dict[str, Callable[[Stream, Claims, LocalAllocation], Awaitable[None]]] = {
            "exec": self._exec,
            "console": self._console,
            "logs": self._logs,
            "metrics": self._metrics,
            "forward": self._forward,
            "screen": self._screen,
            "capture": self._capture,
            **({"flows": self._show_flows} if self._flows is not None else {}),
        }
        verb = verbs.get(claims.verb)
        if verb is None:
            raise InvalidInput(f"this node has no verb {claims.verb[:40]!r}")
        refuse_early(claims.verb, local.spec.lease, local.short_name, self._clock.now())
        await verb(stream, claims, local)

    async def _exec(self, stream: Stream, claims: Claims, local: LocalAllocation) -> None:
        given = _read_input(claims, ExecInput)
        if not given.argv:
            raise InvalidInput("exec needs a command", field="argv", hint="weft vm exec NAME -- COMMAND …")
        request = ExecRequest(given.argv, given.env, given.cwd, given.tty, given.rows, given.columns)
        try:
            session = await self._open(local, request, claims.session)
            if isinstance(session, KeptSession) and session.standing.run:
                await self._keep(stream, cast(ResumableExec, session), local)
                return
        except _Elsewhere as elsewhere:
            await stream.send(encode_json(FrameType.DETACHED, elsewhere.place))
            return
        if claims.session is not None:
            await stream.send(encode_json(FrameType.SESSION, msgspec.to_builtins(SessionStanding())))
        try:
            # The end of the input doesn't end the session; a client that has gone does: then _pump_in raises.
            await run_until_first_ends(_pump_out(stream, session), _pump_in(stream, session))
        finally:
            await session.close()

    async def _keep(self, stream: Stream, session: ResumableExec, local: LocalAllocation) -> None:
        try:
            await serve_kept(stream, session, self._clock)
        except Unavailable as problem:
            if problem.token != DETACHED:
                raise
            facts, current = await self._runtimes.inspect(local), self._find_guest(local.uid)
            place = place_of_target(current or local, facts)
            if departure := find_departure(current or local):
                raise departure from None
            if place is None and (current is None or current.deleting or facts.state not in _ALIVE):
                raise Unavailable(
                    "the command was cut off: its guest or its agent ended", reason="guestEnded"
                ) from None
            raise _Elsewhere(place) from None

    async def _open(self, local: LocalAllocation, request: ExecRequest, mark: SessionMark | None) -> ExecSession:
        """Start the command, or resume it, waiting for the guest's agent: less for a guest that may be elsewhere. Raises
        Unavailable after that, _Elsewhere."""
        runtime = self._runtimes.of(local)
        if not isinstance(runtime, CanExec):
            raise Unavailable(f"runtime {runtime.name} can't run commands in its workloads", reason="unsupported")
        resumes = mark is not None and bool(mark.run)
        patience = RESUME_SECONDS if resumes else READY_SECONDS
        deadline = self._clock.elapsed() + patience
        while True:
            facts = await self._runtimes.inspect(local)
            current = self._find_guest(local.uid)
            if mark is not None and current is not None and (place := place_of_target(current, facts)) is not None:
                raise _Elsewhere(place)
            if departure := find_departure(current or local):
                raise departure
            if current is None or current.deleting or (current.spec.desired != "run" and facts.state != "running"):
                raise IllegalTransition(f"{local.short_name} is not running", hint="start it first")
            if resumes and facts.state not in _ALIVE and current.spec.role == "active":
                raise Unavailable("the command was cut off: its guest has ended", reason="guestEnded")
            if facts.state == "running" and facts.ready is None and kind_of(local.spec).needs_guest_agent:
                raise Unavailable(
                    f"{local.short_name}: no agent in it has answered, so no command can run in it",
                    reason="noGuestAgent",
                    hint="install qemu-guest-agent in it, or use weft vm console",
                )
            if facts.state == "running" and facts.ready is not False:
                try:
                    return await runtime.exec(local.id, request, mark)
                except Unavailable as problem:
                    if problem.token == SESSION_LOST:
                        raise
                    log.debug("exec in %s: %s", local.short_name, problem.message)
            if self._clock.elapsed() >= deadline:
                raise Unavailable(
                    f"{local.short_name}: its agent did not answer within {patience:g} s",
                    reason="guestNotReady",
                    hint="weft vm logs shows its output",
                )
            await self._clock.sleep(AGAIN_SECONDS)

    async def _console(self, stream: Stream, claims: Claims, local: LocalAllocation) -> None:
        runtime = self._with_console(local)
        with self._consoles.hold(local, claims.subject):
            log, where = PrintedLog(runtime, local.id), self._watch(local)
            await serve_console(stream, runtime.console_socket(local.id), log, claims.printed, where, local.short_name)

    async def _logs(self, stream: Stream, claims: Claims, local: LocalAllocation) -> None:
        given, runtime = _read_input(claims, LogsInput), self._runtimes.of(local)
        if given.aggregate:
            late = importlib.import_module("weft.agent.stream.collected_log")  # with all that searches
            where = self._watch(local)
            of = late.Collected(
                self._with_collected(),
                local.spec.workload.uid,
                local.short_name,
                local,
                where,
                ends=isinstance(runtime, HasLog),
            )
            await late.follow_collected(stream, of, given, claims.printed, self._clock, claims.subject)
            return
        if isinstance(runtime, HasLog):
            await follow_lines(stream, runtime, local.id, given, self._watch(local), self._clock)
            return
        log, where = PrintedLog(self._with_console(local), local.id), self._watch(local)
        await follow_log(stream, log, given, claims.printed, where, self._clock)

    async def _show_left_log(self, stream: Stream, claims: Claims) -> None:
        """Show the log of what has no allocation here: the node itself, or a workload that was deleted."""
        late = importlib.import_module("weft.agent.stream.collected_log")  # with all that searches
        logs, of_gone = self._with_collected(), claims.log
        of = late.Collected(logs, self._node_uid, f"node/{logs.node}")
        if of_gone is not None:
            if logs.store.sources().get(of_gone.uid) != of_gone.what:
                raise NotFound("what it printed is no longer kept", hint="weft agent --log-age says how long it is")
            kind, _, rest = of_gone.what.partition("/")
            of = late.Collected(logs, of_gone.uid, f"{kind}/{rest.rpartition('/')[2]}")
        await late.follow_collected(
            stream, of, _read_input(claims, LogsInput), claims.printed, self._clock, claims.subject
        )

    def _with_collected(self) -> LogCollector:
        if self._collected is None:
            raise Unavailable("this node keeps no logs", reason="unsupported")
        return self._collected

    async def _metrics(self, stream: Stream, claims: Claims, local: LocalAllocation) -> None:
        uid = local.spec.workload.uid
        await self._show_metrics(stream, claims, uid, lambda: self._find_guest(local.uid) is not None)

    async def _show_metrics(self, stream: Stream, claims: Claims, uid: str, is_here: Callable[[], bool]) -> None:
        """Show the metrics of a workload, or of the node."""
        if self._samples is None:
            raise Unavailable("this node records no samples", reason="unsupported")
        given = _read_input(claims, SamplesInput)
        if given.watch:
            answers = self._samples.watch(uid, given, is_here)
            await run_until_first_ends(_send_pieces(stream, answers), _until_gone(stream))
            return
        await stream.send_data(FrameType.DATA_OUT, await self._samples.answer(uid, given))
        await stream.send(encode_exit(0))

    async def _forward(self, stream: Stream, claims: Claims, local: LocalAllocation) -> None:
        await serve_port(stream, self._network, local, _read_input(claims, ForwardInput), self._clock)

    async def _screen(self, stream: Stream, claims: Claims, local: LocalAllocation) -> None:
        await serve_screen(stream, self._runtimes.of(local), local, self._watch(local))

    async def _show_flows(self, stream: Stream, claims: Claims, local: LocalAllocation) -> None:
        assert self._flows is not None
        answers = self._flows.watch(local, _read_input(claims, FlowsInput))
        await run_until_first_ends(_send_lines(stream, answers), _until_gone(stream))

    async def _capture(self, stream: Stream, claims: Claims, local: LocalAllocation) -> None:
        given = _read_input(claims, CaptureInput)
        await self._captures.serve(stream, claims.subject, local, given, self._watch(local))

    async def _show_files(self, stream: Stream, claims: Claims) -> None:
        if self._backup_files is None:
            raise Unavailable("this node reads no backups", reason="unsupported")
        given = _read_input(claims, FilesInput) if claims.verb == "files" else None
        async with aclosing(self._backup_files.read(claims, given)) as pieces:
            await run_until_first_ends(_send_output(stream, pieces), _until_gone(stream))

    async def _receive(self, stream: Stream, claims: Claims) -> None:
        if self._receiver is None:
            raise Unavailable("this node takes no replicas in", reason="unsupported")
        number = await self._receiver.serve(stream, claims, _read_input(claims, ReceiveInput))
        await stream.send_data(FrameType.DATA_OUT, msgspec.json.encode({"number": number}))
        await stream.send(encode_exit(0))

    def _watch(self, local: LocalAllocation) -> GuestLocator:
        return GuestLocator(local, self._runtimes, self._find_guest, self._clock)

    def _with_console(self, local: LocalAllocation) -> HasConsole:
        runtime = self._runtimes.of(local)
        if not isinstance(runtime, HasConsole):
            raise Unavailable(f"runtime {runtime.name} has no consoles", reason="unsupported")
        return runtime

    async def _send_quietly(self, stream: Stream, frame: bytes) -> None:
        with contextlib.suppress(OSError, WeftError):
            await within(self._clock, stream.send(frame), LINGER_SECONDS, "sending the error to the client")


async def _pump_out(stream: Stream, session: ExecSession) -> None:
    async for chunk in session.output():
        if chunk.channel == "exit":
            await stream.send(encode_exit(chunk.code, chunk.signal))
            return
        await stream.send_output(chunk.channel, chunk.data)
    raise Unavailable("the command was cut off: its guest or its agent ended", reason="guestEnded")


async def _pump_in(stream: Stream, session: ExecSession) -> None:
    while (frame := await stream.receive()) is not None:
        if frame.type == FrameType.HANG_UP:
            await stream.close()  # the gateway waits for this
            break
        if frame.type == FrameType.DATA_IN:
            await session.write(frame.payload)
        elif frame.type == FrameType.END_IN:
            await session.close_stdin()
        elif frame.type == FrameType.RESIZE and isinstance(session, CanResize):
            size = frame.json()
            await session.resize(int(size.get("rows", 24)), int(size.get("columns", 80)))
    raise EOFError("the client has gone")


async def _send_lines(stream: Stream, answers: AsyncIterator[msgspec.Struct]) -> None:
    async for answer in answers:
        await stream.send_data(FrameType.DATA_OUT, msgspec.json.encode(answer) + b"\n")
    await stream.send(encode_exit(0))


async def _send_output(stream: Stream, pieces: AsyncIterator[tuple[str, bytes]]) -> None:
    async for channel, piece in pieces:
        await stream.send_output(channel, piece)
    await stream.send(encode_exit(0))


async def _send_pieces(stream: Stream, pieces: AsyncIterator[bytes]) -> None:
    async for piece in pieces:
        await stream.send_data(FrameType.DATA_OUT, piece)
    await stream.send(encode_exit(0))


async def _until_gone(stream: Stream) -> None:
    while await stream.receive() is not None:
        pass
    raise EOFError("the client has gone")


def _read_input(claims: Claims, type_: type[T]) -> T:
    try:
        return msgspec.convert(claims.input, type_)
    except msgspec.ValidationError as problem:
        raise InvalidInput(f"{claims.verb}: {problem}") from problem
