"""The functions that this node serves at an address of its own: kept on disk with their code and their callers' tokens, so that
programs at the node can invoke them while no server can be reached, also after a restart of agent or machine.

Woken by the gateway's lists, and by time: what couldn't be fetched is tried again, and tokens follow the server's secrets.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec

from weft.agent.function.artifacts import Artifacts
from weft.agent.function.local.kept import read_kept, write_kept
from weft.agent.function.local.usage import Usage
from weft.agent.secret.sealed import SealedSecrets
from weft.agent.server.client import Server
from weft.contracts.clock import Clock
from weft.contracts.driver.function import Recipe
from weft.contracts.wakeup import Wake
from weft.kinds.secret import TOKEN
from weft.objects.errors import (
    DriverFailed,
    NotAuthenticated,
    NotFound,
    Throttled,
    Unavailable,
    WeftError,
)
from weft.objects.identity import Ref
from weft.protocol.invocations import InvocationAnswer, InvocationRefused, Invoke, LocalFunction, ServeLocally
from weft.protocol.report import EventType, OpenedSecrets

log = logging.getLogger("weft.agent")
FOLDER = "function-secrets"
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 2.0, 300.0
REFRESH_SECONDS = 900.0
SAVE_SECONDS = 5.0
REPORT_SECONDS = 900.0
MOST_AT_ONCE = 64  # invocations of all these functions
MOST_FUNCTIONS = 64
MOST_QUESTIONS, MOST_FETCHES = 4, 4  # at once: about tokens, and of code
START_SECONDS = 60.0  # for an instance to come up for an invocation
LEAST_TOKEN = 16  # characters

PutEvent = Callable[[Ref, EventType, str, str], None]


class LocalInstances(Protocol):
    """The runner of invocations on this node."""

    def learn_local(self, recipe: Recipe) -> None:
        """Instances may be of this recipe."""

    def drop_local(self, digest: str) -> None:
        """Drop the instances of this recipe, unless the gateway wants them."""

    def find_missing(self, isolation: str) -> str:
        """Why instances of that isolation can't run here; "" if they can."""

    def run_here(self, call: Invoke) -> asyncio.Future[InvocationAnswer | InvocationRefused]:
        """Run it once, now, or refuse it; the gateway hears nothing of it."""

    def give_up(self, call: str) -> bool:
        """Whether that one still waited for an instance to come up; then it doesn't begin any more."""


class LocalFunctionEntry:
    """One of these functions. A problem is None until it is known, and "" without one."""

    def __init__(self, function: LocalFunction, clock: Clock) -> None:
        self.function = function  # as it is served
        self.coming: LocalFunction | None = None  # with its new code, until all of that is here
        self.has_code = False
        self.token = b""  # its SHA-256; empty: not known
        self.unkept = ""  # why a restart without the server loses the token
        self.is_alone = False  # the server didn't answer the last question
        self.code_problem: str | None = None
        self.token_problem: str | None = None
        self.running = 0
        self.reported = ""  # the last event about it
        self.code_wake, self.token_wake = Wake(clock), Wake(clock)
        self.tasks: list[asyncio.Task[None]] = []

    @property
    def digests(self) -> set[str]:
        return {self.recipe.digest} | ({self.coming.recipe.digest} if self.coming is not None else set[str]())

    @property
    def recipe(self) -> Recipe:
        return self.function.recipe

    @property
    def ref(self) -> Ref:
        return Ref("function", self.recipe.name, self.function.uid, self.recipe.project)

    @property
    def path(self) -> str:
        return f"{self.recipe.project}/{self.recipe.name}"


class LocalFunctions:
    """``address`` is where they are served, as people write it; "": nowhere. ``parts`` fetches what they are made of, and
    ``instances`` runs them."""

    def __init__(
        self,
        state_dir: str,
        node: str,
        server: Server,
        parts: Artifacts,
        instances: LocalInstances,
        put_event: PutEvent,
        clock: Clock,
        address: str = "",
    ) -> None:
        self._folder = Path(state_dir) / "functions"
        self._node, self._server, self._clock = node, server, clock
        self._parts, self._instances = parts, instances
        self._sealed = SealedSecrets(Path(state_dir), FOLDER, "function")
        self._put_event, self.address = put_event, address
        self._place_problem = ""  # why nothing can be asked at that address now
        self._entries: dict[str, LocalFunctionEntry] = {}  # by PROJECT/NAME
        self._usage = Usage(self._folder)
        self._list_wake, self._list_changes = Wake(clock), 0
        self._list_problem: str | None = ""  # why the present list isn't on disk; None: it is still to be written
        self._beyond: set[str] = set()  # uids of those that don't fit here, as events say
        self._questions, self._fetches = asyncio.Semaphore(MOST_QUESTIONS), asyncio.Semaphore(MOST_FETCHES)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Know those that an earlier agent kept, with the tokens that are sealed here; then follow the server."""
        self._set([LocalFunctionEntry(one, self._clock) for one in await asyncio.to_thread(read_kept, self._folder)])
        for entry in self._entries.values():
            kept = await asyncio.to_thread(self._sealed.get, entry.function.uid)
            if kept is not None:
                entry.token_problem = await self._try(entry, partial(self._open, entry, kept)) or None
        self._tasks = [asyncio.ensure_future(work) for work in (self._keep_list(), self._keep_usage())]
        self._keep_all(self._entries.values())

    async def close(self) -> None:
        tasks = self.tasks
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._usage.changed:
            await asyncio.to_thread(self._usage.write)

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """All that runs on behalf of these functions."""
        return [*self._tasks, *(task for entry in self._entries.values() for task in entry.tasks)]

    @property
    def digests(self) -> set[str]:
        """Digests of their recipes, also of those that are being fetched."""
        return {digest for entry in self._entries.values() for digest in entry.digests}

    def take(self, listed: ServeLocally) -> None:
        """The server's list: any other function is served here no more. One with new code serves the former until all of the new
        is here, since the line may be cut before."""
        known = {entry.function.uid: entry for entry in self._entries.values()}
        entries: list[LocalFunctionEntry] = []
        for function in listed.functions[:MOST_FUNCTIONS]:
            entry = known.pop(function.uid, None)
            if entry is None:
                entry = LocalFunctionEntry(function, self._clock)
            else:
                self._set_secret(entry, function.secret)
                if function.recipe.digest == entry.recipe.digest:
                    entry.function, entry.coming = function, None
                else:
                    entry.function = msgspec.structs.replace(entry.function, most=function.most)
                    entry.coming = function
                entry.code_problem = None
            entries.append(entry)
        for uid in listed.unready:
            if (entry := known.pop(uid, None)) is not None:
                self._set_secret(entry, listed.secrets.get(uid, entry.function.secret))
                entries.append(entry)
        for gone in known.values():
            log.info("%s of project %s is no longer served at this node", gone.recipe.what, gone.recipe.project)
            for task in gone.tasks:
                task.cancel()
            self._sealed.drop(gone.function.uid)
        if known:
            self.report_usage()  # what these did, while the node is still there
        for ref in listed.beyond:
            if ref.uid not in self._beyond:
                message = f"node {self._node} serves at most {MOST_FUNCTIONS} functions itself, the oldest ones: this one waits"
                self._put_event(ref, "Warning", "NotServedAtNode", message)
        self._beyond = {ref.uid for ref in listed.beyond}
        self._set(entries)
        self._change_list()
        self._keep_all(entries)

    def note_place(self, problem: str) -> None:
        """Why nothing can be asked at the address now; "" if it can."""
        if problem != self._place_problem:
            self._place_problem = problem
            for entry in self._entries.values():
                self._report_place(entry)

    def report_usage(self) -> None:
        """Put what was invoked into the outbox."""
        for function, message in self._usage.take():
            self._put_event(function, "Normal", "InvokedAtNode", message)
        if self._usage.changed:
            self._usage.write()

    # --- callers ---------------------------------------------------------------------------------------------------------

    def find(self, project: str, name: str, token: bytes) -> LocalFunctionEntry:
        """The function, for a caller with its token. Raises NotAuthenticated, NotFound (``functionNotHere``), Unavailable
        (``tokenNotKept``, ``codeNotKept``)."""
        digest = hashlib.sha256(token).digest()
        of_project = [entry for entry in self._entries.values() if entry.recipe.project == project]
        opened = [entry for entry in of_project if entry.token and hmac.compare_digest(entry.token, digest)]
        found = self._entries.get(f"{project}/{name}")
        if found is not None and found in opened:
            return found
        if found is not None and not found.token:
            raise Unavailable(
                f"{found.recipe.what} can't be invoked at this node: the node doesn't know its token",
                reason="tokenNotKept",
                hint="mark its secret with weft secret set NAME --offline; the node reads it again once the server answers",
                retry_after_seconds=30.0,
            )
        if found is not None or not opened:
            raise NotAuthenticated(
                "the token isn't that of a function of this project at this node",
                hint="send Authorization: Bearer TOKEN, with the key token of the function's spec.local_secret",
            )
        raise NotFound(
            f"function {name[:80]} of project {project[:80]} isn't served at node {self._node}",
            reason="functionNotHere",
            hint=f"weft function set {name[:80]} --local-node {self._node}, while the server can be reached",
        )

    async def invoke(self, entry: LocalFunctionEntry, payload: bytes) -> InvocationAnswer:
        """Run it once. Raises Throttled, Unavailable (``codeNotKept``, ``insufficientResources`` …)."""
        running = sum(one.running for one in self._entries.values())
        if entry.running >= entry.function.most or running >= MOST_AT_ONCE:
            most = min(entry.function.most, MOST_AT_ONCE)
            raise Throttled(
                f"{entry.recipe.what} is busy: {entry.running} of at most {most} invocations run at this node",
                hint="try again in a moment",
                retry_after_seconds=1.0,
            )
        recipe, ref = entry.recipe, entry.ref
        arn = f"arn:weft:lambda:weft:{recipe.project}:function:{recipe.name}"
        entry.running += 1
        try:
            result = await self._run(Invoke(str(uuid.uuid4()), recipe.digest, payload, recipe.timeout, arn), entry)
        finally:
            entry.running -= 1
        if isinstance(result, InvocationRefused):
            raise Unavailable(
                f"{recipe.what} can't run at this node now: {result.message or result.reason}",
                reason="codeNotKept" if result.reason in ("unavailable", "notFound") else result.reason,
                hint="what it is made of is fetched once the server answers" if entry.code_problem else None,
                retry_after_seconds=result.retry_after_seconds,
            )
        self._usage.count(ref, failed=bool(result.error), seconds=result.seconds)
        return result

    async def _run(self, call: Invoke, entry: LocalFunctionEntry) -> InvocationAnswer | InvocationRefused:
        """``seconds`` of ``call`` count from its begin, so the wait for an instance has a bound of its own. Raises Unavailable
        (``startTimedOut``)."""
        running = self._instances.run_here(call)
        while not (await asyncio.wait((running,), timeout=START_SECONDS))[0]:
            if self._instances.give_up(call.id):
                raise Unavailable(
                    f"{entry.recipe.what} can't run at this node now: no instance came up within {START_SECONDS:.0f} s",
                    reason="startTimedOut",
                    hint=f"weft events function/{entry.recipe.name} says what is missing",
                    retry_after_seconds=30.0,
                )
        return running.result()

    # --- what it takes ---------------------------------------------------------------------------------------------------

    def _set(self, entries: list[LocalFunctionEntry]) -> None:
        before = self.digests
        self._entries = {entry.path: entry for entry in entries}
        for entry in entries:
            self._instances.learn_local(entry.recipe)
            if entry.coming is not None:
                self._instances.learn_local(entry.coming.recipe)
        self._drop_recipes(before)

    def _drop_recipes(self, before: set[str]) -> None:
        for digest in before - self.digests:
            self._instances.drop_local(digest)

    def _set_secret(self, entry: LocalFunctionEntry, name: str) -> None:
        """Another secret's token opens it from now on; the former one's doesn't, also after a restart."""
        if entry.function.secret != name:
            entry.function = msgspec.structs.replace(entry.function, secret=name)
            entry.token, entry.token_problem = b"", None
            self._sealed.drop(entry.function.uid)

    def _keep_all(self, entries: Iterable[LocalFunctionEntry]) -> None:
        """Each function has tasks of its own, so that none waits for another's code, nor its token for its code."""
        for entry in entries:
            if not entry.tasks:
                works = ((entry.token_wake, self._keep_token), (entry.code_wake, self._keep_code))
                entry.tasks = [asyncio.ensure_future(self._repeat(entry, *work)) for work in works]
            entry.token_wake.ring()
            entry.code_wake.ring()

    async def _repeat(
        self, entry: LocalFunctionEntry, wake: Wake, work: Callable[[LocalFunctionEntry], Awaitable[bool]]
    ) -> None:
        """Do ``work`` whenever ``wake`` rings, and in time; sooner while it says that something is left to do."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            await wake.wait(0.0)
            whole = await work(entry)
            self._report_place(entry)
            pause = FIRST_PAUSE_SECONDS if whole else min(2 * pause, LONGEST_PAUSE_SECONDS)
            await wake.wait(REFRESH_SECONDS if whole else pause)

    async def _keep_code(self, entry: LocalFunctionEntry) -> bool:
        """Whether all that its newest recipe needs is here, and the node can run it."""
        wanted = (entry.coming or entry.function).recipe
        async with self._fetches:
            problem = await self._try(entry, lambda: self._parts.keep(wanted))
            if problem and entry.coming is not None and not entry.has_code:
                entry.has_code = not await self._try(entry, lambda: self._parts.keep(entry.recipe))
        if wanted.digest != (entry.coming or entry.function).recipe.digest:
            return False  # it is another one by now
        entry.has_code, entry.code_problem = entry.has_code or not problem, problem
        if entry.coming is not None and not problem:
            before = self.digests
            entry.function = msgspec.structs.replace(entry.coming, secret=entry.function.secret)
            entry.coming = None
            self._drop_recipes(before)
            self._change_list()
        return not problem and not self._instances.find_missing(wanted.isolation)

    async def _keep_token(self, entry: LocalFunctionEntry) -> bool:
        """Whether its token is as the server has it."""
        async with self._questions:
            entry.token_problem = await self._try(entry, partial(self._read_token, entry))
        return not entry.token_problem and not entry.is_alone

    def _change_list(self) -> None:
        self._list_problem = None
        self._list_changes += 1
        self._list_wake.ring()

    async def _keep_list(self) -> None:
        pause: float | None = None
        while True:
            await self._list_wake.wait(pause)
            is_kept = await self._save()
            pause = None if is_kept else min(2 * (pause or FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)

    async def _save(self) -> bool:
        changes, problem = self._list_changes, ""
        try:
            await asyncio.to_thread(write_kept, self._folder, [entry.function for entry in self._entries.values()])
            await asyncio.to_thread(self._drop_unlisted)
        except OSError as failed:
            problem = failed.strerror or "the disk failed"
            log.warning("functions: those of this node can't be kept: %s", problem)
        if changes == self._list_changes:
            self._list_problem = problem
        for entry in self._entries.values():
            self._report_place(entry)
        return not problem

    def _drop_unlisted(self) -> None:
        """Tokens of functions that the list had while an agent was killed. Blocking."""
        for uid in self._sealed.list_kept():
            if all(entry.function.uid != uid for entry in list(self._entries.values())):
                self._sealed.drop(uid)

    def _report_place(self, entry: LocalFunctionEntry) -> None:
        """Report the place as an event, once all of it is known and it isn't what the last one said."""
        if entry.code_problem is None or entry.token_problem is None or self._list_problem is None:
            return
        place, without = f"at {self.address}/{entry.path}", "but not after a restart without the server"
        code_problem = entry.code_problem if entry.coming is None or not entry.has_code else ""
        missing = self._instances.find_missing(entry.recipe.isolation)
        problem = code_problem or entry.token_problem or missing or self._place_problem
        if problem:
            self._report(entry, "Warning", "NotServedAtNode", problem)
        elif not self.address:
            message = f"node {self._node} has no address for its functions: set local_functions in its agent.yaml"
            self._report(entry, "Warning", "NotServedAtNode", message)
        elif entry.coming is not None:
            self._report(entry, "Warning", "ServedAtNode", f"{place}, with its former code: {entry.code_problem}")
        elif self._list_problem:
            message = f"{place}, {without}: the node can't write its list: {self._list_problem}"
            self._report(entry, "Warning", "ServedAtNode", message)
        elif entry.unkept:
            self._report(entry, "Warning", "ServedAtNode", f"{place}, {without}: {entry.unkept}")
        elif entry.recipe.network:
            message = f"{place}, {without}: its address in its network is the server's to give"
            self._report(entry, "Normal", "ServedAtNode", message)
        else:
            self._report(entry, "Normal", "ServedAtNode", f"{place}, also without the server")

    async def _open(self, entry: LocalFunctionEntry, opened: OpenedSecrets) -> None:
        entry.token = self._digest(opened, entry)

    async def _try(self, entry: LocalFunctionEntry, work: Callable[[], Awaitable[None]]) -> str:
        """Why it failed, if it did."""
        try:
            await work()
        except WeftError as problem:
            return problem.message
        except Exception as problem:  # a defect of one must not end the others
            log.exception("%s at this node", entry.recipe.what)
            return f"the node failed: {problem}"
        return ""

    async def _read_token(self, entry: LocalFunctionEntry) -> None:
        """Read its token, from the server or else from the node's disk, and keep it there if it may be. Raises Unavailable without
        either; NotFound, and then it is forgotten if the server says that there is none; DriverFailed for one that is too short."""
        uid, entry.is_alone = entry.function.uid, False
        try:
            opened = await asyncio.to_thread(self._server.read_function_secret, self._node, entry.path)
        except NotFound as problem:
            if problem.token in (
                "secretNotFound",
                "functionNotHere",
            ):  # an older server doesn't understand the question
                entry.token = b""
                await asyncio.to_thread(self._sealed.drop, uid)
            raise
        except Unavailable:
            entry.is_alone = True
            if not entry.token:
                raise
            return
        for name in opened.secrets:  # only one, which a list may not have named yet
            if name != entry.function.secret:
                self._set_secret(entry, name)
                self._change_list()
        name = entry.function.secret
        try:
            await self._open(entry, opened)
        except DriverFailed:  # the former token opens it no more, also after a restart
            await asyncio.to_thread(self._sealed.drop, uid)
            raise
        if name not in opened.offline:
            await asyncio.to_thread(self._sealed.drop, uid)
            entry.unkept = f"secret {name} is not --offline"
        elif await asyncio.to_thread(self._sealed.put, uid, OpenedSecrets(opened.secrets, offline=opened.offline)):
            entry.unkept = ""
        else:
            entry.unkept = f"the token in secret {name} can't be sealed on the node's disk, its agent's log says why"

    def _digest(self, opened: OpenedSecrets, entry: LocalFunctionEntry) -> bytes:
        token = (
            opened.secrets.get(entry.function.secret, {}).get(TOKEN, "").strip(" \t\r\n")
        )  # no header can end with these
        if len(token) < LEAST_TOKEN:
            entry.token = b""
            raise DriverFailed(
                f"the token in secret {entry.function.secret} has fewer than {LEAST_TOKEN} characters",
                reason="weakToken",
            )
        return hashlib.sha256(token.encode()).digest()

    def _report(self, entry: LocalFunctionEntry, type_: EventType, reason: str, message: str) -> None:
        if entry.reported != message:
            entry.reported = message
            self._put_event(entry.ref, type_, reason, message)

    async def _keep_usage(self) -> None:
        since = self._clock.elapsed()
        while True:
            await self._clock.sleep(SAVE_SECONDS)
            if self._clock.elapsed() - since >= REPORT_SECONDS:
                since = self._clock.elapsed()
                self.report_usage()
            elif self._usage.changed:
                await asyncio.to_thread(self._usage.write)
