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
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Protocol

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
from weft.protocol.invocations import Answer, Invoke, LocalFunction, Refused, ServeLocally
from weft.protocol.report import EventType, OpenedSecrets

log = logging.getLogger("weft.agent")
FOLDER = "function-secrets"
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 2.0, 300.0
REFRESH_SECONDS = 900.0
SAVE_SECONDS = 5.0
REPORT_SECONDS = 900.0
MOST_AT_ONCE = 64  # invocations of all these functions
MOST_FUNCTIONS = 64
LEAST_TOKEN = 16  # characters

PutEvent = Callable[[Ref, EventType, str, str], None]


class LocalInstances(Protocol):
    """What runs invocations on this node."""

    def learn_local(self, recipe: Recipe) -> None:
        """Instances may be of this recipe."""

    def drop_local(self, digest: str) -> None:
        """Of this one no more, unless the gateway wants them."""

    def find_missing(self, isolation: str) -> str:
        """Why instances of that isolation can't run here; "" if they can."""

    def run_here(self, call: Invoke) -> asyncio.Future[Answer | Refused]:
        """Run it once, now, or refuse it; the gateway hears nothing of it."""


class Entry:
    """One of these functions."""

    def __init__(self, function: LocalFunction) -> None:
        self.function = function
        self.token = b""  # its SHA-256; empty: not known
        self.problem = ""  # why it can't be invoked, or could not be after a restart
        self.running = 0
        self.reported = ""  # the last event about it

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
        self._sealed = SealedSecrets(Path(state_dir), FOLDER)
        self._put_event, self.address = put_event, address
        self._entries: dict[str, Entry] = {}  # by PROJECT/NAME
        self._usage = Usage(self._folder)
        self._wake, self._unsaved = Wake(clock), False
        self._is_alone = False  # the server didn't answer the last question
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Know those that an earlier agent kept, with the tokens that are sealed here; then follow the server."""
        self._set([Entry(one) for one in await asyncio.to_thread(read_kept, self._folder)])
        for entry in self._entries.values():
            kept = await asyncio.to_thread(self._sealed.get, entry.function.uid)
            if kept is not None:
                entry.problem = await self._try(entry, partial(self._open, entry, kept))
        self._tasks = [asyncio.ensure_future(work) for work in (self._keep(), self._keep_usage())]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._usage.changed:
            await asyncio.to_thread(self._usage.write)

    @property
    def digests(self) -> set[str]:
        """Of their recipes."""
        return {entry.recipe.digest for entry in self._entries.values()}

    def take(self, listed: ServeLocally) -> None:
        """The server's list: any other function is served here no more."""
        known = {entry.function.uid: entry for entry in self._entries.values()}
        entries: list[Entry] = []
        for function in listed.functions[:MOST_FUNCTIONS]:
            entry = known.pop(function.uid, None) or Entry(function)
            if entry.function.secret != function.secret:
                entry.token = b""
            entry.function = function
            entries.append(entry)
        entries += [known.pop(uid) for uid in listed.unready if uid in known]
        for gone in known.values():
            log.info("%s: it is no longer served at this node", gone.recipe.what)
            self._sealed.drop(gone.function.uid)
        self._set(entries)
        self._unsaved = True
        self._wake.ring()

    def report_usage(self) -> None:
        """Put what was invoked into the outbox."""
        for function, message in self._usage.take():
            self._put_event(function, "Normal", "InvokedAtNode", message)
        if self._usage.changed:
            self._usage.write()

    # --- callers ---------------------------------------------------------------------------------------------------------

    def find(self, project: str, name: str, token: str) -> Entry:
        """The function, for a caller with its token. Raises NotAuthenticated, NotFound (``functionNotHere``), Unavailable
        (``tokenNotKept``, ``codeNotKept``)."""
        digest = hashlib.sha256(token.encode()).digest()
        of_project = [entry for entry in self._entries.values() if entry.recipe.project == project]
        opened = [entry for entry in of_project if entry.token and hmac.compare_digest(entry.token, digest)]
        found = self._entries.get(f"{project}/{name}")
        if found is not None and found in opened:
            return found
        if found is not None and not found.token:
            raise Unavailable(
                f"{found.recipe.what} can't be invoked at this node: {found.problem or 'its token is still being read'}",
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

    async def invoke(self, entry: Entry, payload: bytes) -> Answer:
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
            result = await self._instances.run_here(
                Invoke(str(uuid.uuid4()), recipe.digest, payload, recipe.timeout, arn)
            )
        finally:
            entry.running -= 1
        if isinstance(result, Refused):
            raise Unavailable(
                f"{recipe.what} can't run at this node now: {result.message or result.reason}",
                reason="codeNotKept" if result.reason in ("unavailable", "notFound") else result.reason,
                hint="what it is made of is fetched once the server answers" if entry.problem else None,
                retry_after_seconds=result.retry_after_seconds,
            )
        self._usage.count(ref, failed=bool(result.error), seconds=result.seconds)
        return result

    # --- what it takes ---------------------------------------------------------------------------------------------------

    def _set(self, entries: list[Entry]) -> None:
        before = self.digests
        self._entries = {entry.path: entry for entry in entries}
        for entry in entries:
            self._instances.learn_local(entry.recipe)
        for digest in before - self.digests:
            self._instances.drop_local(digest)

    async def _keep(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            whole = await self._save()
            for entry in list(self._entries.values()):
                whole = await self._prepare(entry) and whole
            pause = FIRST_PAUSE_SECONDS if whole else min(2 * pause, LONGEST_PAUSE_SECONDS)
            await self._wake.wait(REFRESH_SECONDS if whole else pause)

    async def _save(self) -> bool:
        if not self._unsaved:
            return True
        functions = [entry.function for entry in self._entries.values()]
        self._unsaved = False
        try:
            await asyncio.to_thread(write_kept, self._folder, functions)
        except OSError as problem:
            self._unsaved = True
            log.warning("functions: those of this node can't be kept: %s", problem.strerror)
        return not self._unsaved

    async def _prepare(self, entry: Entry) -> bool:
        """Whether nothing is left to do for it: its parts are here, and its token is as the server has it."""
        problem, kept = await self._try(entry, lambda: self._parts.keep(entry.recipe)), False

        async def read() -> None:
            nonlocal kept
            kept = await self._read_token(entry)

        entry.problem = problem or await self._try(entry, read) or self._instances.find_missing(entry.recipe.isolation)
        if entry.problem:
            self._report(entry, "Warning", "NotServedAtNode", entry.problem)
        elif not self.address:
            message = f"node {self._node} has no address for its functions: set local_functions in its agent.yaml"
            self._report(entry, "Warning", "NotServedAtNode", message)
        elif not kept:
            name = entry.function.secret
            message = f"at {self.address}/{entry.path}, but not after a restart without the server: secret {name} is not --offline"
            self._report(entry, "Warning", "ServedAtNode", message)
        else:
            self._report(entry, "Normal", "ServedAtNode", f"at {self.address}/{entry.path}, also without the server")
        return not entry.problem and not self._is_alone

    async def _open(self, entry: Entry, opened: OpenedSecrets) -> None:
        entry.token = self._digest(opened, entry)

    async def _try(self, entry: Entry, work: Callable[[], Awaitable[None]]) -> str:
        """Why it failed, if it did."""
        try:
            await work()
        except WeftError as problem:
            return problem.message
        except Exception as problem:  # a defect of one must not end the others
            log.exception("%s at this node", entry.recipe.what)
            return f"the node failed: {problem}"
        return ""

    async def _read_token(self, entry: Entry) -> bool:
        """Read its token, from the server or else from the node's disk, and whether it is kept there. Raises Unavailable without
        either; NotFound, and then it is forgotten; DriverFailed for one that is too short."""
        uid, self._is_alone = entry.function.uid, False
        try:
            opened = await asyncio.to_thread(self._server.read_function_secret, self._node, entry.path)
        except NotFound:
            entry.token = b""
            await asyncio.to_thread(self._sealed.drop, uid)
            raise
        except Unavailable:
            self._is_alone = True
            if not entry.token:
                raise
            return await asyncio.to_thread(self._sealed.get, uid) is not None
        await self._open(entry, opened)
        if entry.function.secret in opened.offline:
            await asyncio.to_thread(self._sealed.put, uid, OpenedSecrets(opened.secrets, offline=opened.offline))
            return True
        await asyncio.to_thread(self._sealed.drop, uid)
        return False

    def _digest(self, opened: OpenedSecrets, entry: Entry) -> bytes:
        token = opened.secrets.get(entry.function.secret, {}).get(TOKEN, "")
        if len(token) < LEAST_TOKEN:
            entry.token = b""
            raise DriverFailed(
                f"the token in secret {entry.function.secret} has fewer than {LEAST_TOKEN} characters",
                reason="weakToken",
            )
        return hashlib.sha256(token.encode()).digest()

    def _report(self, entry: Entry, type_: EventType, reason: str, message: str) -> None:
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
