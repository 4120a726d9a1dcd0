"""Makes functions ready for invocations, and reports that in their status: a node prepares a new spec before that serves. The spec
before serves until then, and for good if the new one never starts.

Reads functions, versions and images out of a view; writes their status. Woken by changes; after a kill it finds unfinished work in
the status, and does it again.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.store import PreconditionFailed, Store
from weft.gateway.function.definition.catalogue import Catalogue, Function, Missing, Version
from weft.gateway.function.instance.agents import Agents
from weft.informer.cache import Cache
from weft.informer.commit import edit, put, unchanged
from weft.informer.view import Changed, Item, has_changed
from weft.kinds.function import FunctionSpec, FunctionStatus, note_named
from weft.kinds.function_version import FunctionVersionStatus
from weft.kinds.image import ImageStatus
from weft.kinds.node import SILENT_PHASES, NodeStatus
from weft.kinds.parts.function_code import base_of, code_of
from weft.objects.envelope import merge_part
from weft.objects.errors import NotFound, StoreUnavailable
from weft.objects.identity import named_key, object_key
from weft.objects.image.reference import held_name
from weft.protocol.invocations import InvocationRefused, Prepare, Prepared

log = logging.getLogger("weft.gateway.functions")
AT_ONCE = 8
PREPARE_SECONDS = 600.0  # base, code and image are fetched first, perhaps over a slow line
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 10.0
TRACE_LINES, LONGEST_LINE = 12, 500
SHOW_SECONDS = 1.0  # between two updates of the status' progress
NODES_FAULTS = ("Function.NotStarted", "Function.Reclaimed")
PreparationOutcome = Prepared | InvocationRefused | None  # None: the connection was lost, or nothing came in time


class _Preparation:
    """One ``Prepare`` that a node has got."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.news: asyncio.Queue[PreparationOutcome] = asyncio.Queue()


class FunctionReadiness:
    """``run`` it; ``notice`` gets the view's changes, ``on_prepared`` and ``on_disconnect`` follow the agents."""

    def __init__(self, catalogue: Catalogue, cache: Cache, store: Store, agents: Agents, clock: Clock) -> None:
        self._catalogue, self._cache, self._store = catalogue, cache, store
        self._agents, self._clock = agents, clock
        self._due: dict[str, None] = {}
        self._woken = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()  # keys that changed during their reconciliation
        self._preparations: dict[str, _Preparation] = {}
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self.preparing: set[str] = set()  # digests

    def notice(self, changes: Sequence[Changed]) -> None:
        for change in changes:
            if change.kind in ("function", "functionversion"):
                if has_changed(change, lambda item: (item.uid, item.envelope.generation, item.deleting)):
                    self._offer(change.key)
            elif change.kind == "node":
                if has_changed(change, _is_silent):
                    self._offer_awaiting(change.item.envelope.name)
            elif change.kind == "image" and change.new is not None and has_changed(change, _content):
                for item in self._cache.view.of_kind("function").values():
                    spec = item.spec(FunctionSpec)
                    held = named_key("image", item.envelope.project, held_name(spec.image))
                    if change.new.envelope.name == base_of(spec) or change.key == held:
                        self._offer(item.key)

    def _offer_awaiting(self, node: str) -> None:
        """The functions whose status says that the node is away."""
        for item in self._cache.view.of_kind("function").values():
            if node in item.status(FunctionStatus).away_nodes:
                self._offer(item.key)

    def on_prepared(self, node: str, message: Prepared | InvocationRefused) -> None:
        preparation = self._preparations.get(message.id)
        if preparation is not None and preparation.node == node:
            preparation.news.put_nowait(message)

    def on_disconnect(self, node: str) -> None:
        for preparation in self._preparations.values():
            if preparation.node == node:
                preparation.news.put_nowait(None)

    async def run(self) -> None:
        """Reconcile changed objects, for ever."""
        try:
            while True:
                await self._woken.wait()
                self._woken.clear()
                due, self._due = self._due, {}
                for key in due:
                    if key in self._tasks:
                        self._again.add(key)
                    else:
                        task = self._tasks[key] = asyncio.ensure_future(self._reconcile(key))
                        task.add_done_callback(partial(self._landed, key))
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _offer(self, key: str) -> None:
        self._due[key] = None
        self._woken.set()

    def _landed(self, key: str, task: asyncio.Task[None]) -> None:
        del self._tasks[key]
        if not task.cancelled() and (problem := task.exception()) is not None:
            log.error("%s", key, exc_info=problem)
        if key in self._again:
            self._again.discard(key)
            self._offer(key)

    async def _reconcile(self, key: str) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            self._again.discard(key)
            item = self._cache.view.get(key)
            if item is None or item.deleting:
                return
            try:
                if item.envelope.kind == "functionversion":
                    done = await self._settle_version(item)
                else:
                    done = await self._settle(item)
            except (PreconditionFailed, NotFound):
                await self._catch_up()
                continue
            except StoreUnavailable as problem:
                log.info("%s: %s", key, problem)
                done = False
            if done or key in self._again:
                return
            await self._clock.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _settle_version(self, item: Item) -> bool:
        """A version has the ready recipe of its function; nodes prepare it at its first invocation."""
        version = self._catalogue.version_recipe(item)
        if version is None:
            return False
        old = item.status(FunctionVersionStatus)
        status = msgspec.structs.replace(old, phase="Ready", reason="", message="", digest=version.recipe.digest)
        await self._write(item, old, status)
        return True

    async def _settle(self, item: Item) -> bool:
        """Whether nothing is left to do until something changes. Raises PreconditionFailed, StoreUnavailable."""
        function = self._catalogue.find(item.envelope.project or "", item.envelope.name)
        old, generation, spec = function.status, item.envelope.generation, function.spec
        if (named := note_named(old, spec)) != old.named_nodes:
            await self._write(item, old, msgspec.structs.replace(old, named_nodes=named))
            latest = self._cache.view.get(item.key)
            return latest is None or latest.deleting or await self._settle(latest)
        version = self._catalogue.specified(function)
        if isinstance(version, Missing):
            await self._write(item, old, _wait(old, generation, version.reason, version.message))
            return True
        if old.serving == version.code and not version.recipe.is_open:
            ready = msgspec.structs.replace(
                old,
                phase="Ready",
                reason="",
                message="",
                trace=[],
                digest=version.recipe.digest,
                version=function.asked.published,
                away_nodes=self._find_away(spec, old if old.observed_generation == generation else None),
                observed_generation=generation,
            )
            await self._write(item, old, ready)
            return True
        if old.phase in ("Failed", "Ready") and old.reason and old.observed_generation == generation:
            return True  # this spec was tried, and it failed
        async with self._at_once:
            return await self._prepare(item, function, version)

    def _find_away(self, spec: FunctionSpec, same: FunctionStatus | None) -> list[str]:
        """The silent ones of its own nodes; only those that were it before if nothing changed since ``same``, which others know."""
        nodes = ((name, self._cache.view.get(object_key("node", None, name))) for name in spec.local_nodes)
        silent = [name for name, node in nodes if node is not None and _is_silent(node)]
        return silent if same is None else [name for name in silent if name in same.away_nodes]

    async def _prepare(self, item: Item, function: Function, version: Version) -> bool:
        old, generation = function.status, item.envelope.generation
        ranking = self._agents.rank(version)
        if not ranking.nodes:
            nearest = f"; nearest fit: {ranking.nearest}" if ranking.nearest else ""
            await self._write(item, old, _wait(old, generation, ranking.reason, ranking.message + nearest))
            return False
        fleet, name_of = self._agents.fleet, self._agents.name_of
        reasons: list[str] = []
        digest = version.recipe.digest
        self.preparing.add(digest)
        try:
            for node in ranking.nodes:
                serving = fleet.nodes.get(node)
                if serving is None or not serving.open or not serving.runs(version.recipe.isolation):
                    continue
                outcome = await self._try(item, node, version)
                if version.recipe.is_open and isinstance(outcome, Prepared) and outcome.image:
                    version = self._catalogue.pinned(function, version, outcome.image)
                    self.preparing.add(version.recipe.digest)
                    outcome = await self._try(item, node, version)
                if key_changed(self._cache.view.get(item.key), generation):
                    return True  # there is a newer spec
                if isinstance(outcome, Prepared) and not outcome.error_type:
                    latest = self._cache.view.get(item.key)
                    assert latest is not None
                    before = latest.status(FunctionStatus)
                    ready = FunctionStatus(
                        phase="Ready",
                        digest=version.recipe.digest,
                        serving=code_of(function.spec),
                        image=version.recipe.image,
                        pulls=function.asked.pulls,
                        version=function.asked.published,
                        nodes=sorted({name_of(node), *self._prepared(version)}),
                        named_nodes=before.named_nodes,
                        away_nodes=self._find_away(function.spec, None),
                        observed_generation=generation,
                    )
                    await self._write(latest, before, ready)
                    log.info("%s is ready, prepared on %s", function.what, name_of(node))
                    return True
                if isinstance(outcome, Prepared) and _is_of_code(outcome.error_type):
                    latest = self._cache.view.get(item.key)
                    assert latest is not None
                    await self._write(latest, latest.status(FunctionStatus), _fail(old, outcome, generation))
                    return True
                reasons.append(f"{name_of(node)}: {_describe_outcome(outcome)}")
        finally:
            self.preparing -= {digest, version.recipe.digest}
        names = {node: name_of(node) for node in ranking.nodes}
        message = "; ".join(reasons[:5]) or fleet.why_not(version.recipe, names, ranking.nodes)
        latest = self._cache.view.get(item.key)
        if latest is not None:
            before = latest.status(FunctionStatus)
            await self._write(latest, before, _wait(before, generation, "noAvailableAgents", message))
        return False

    async def _try(self, item: Item, node: str, version: Version) -> PreparationOutcome:
        """Have one node prepare it, with its progress in the status."""
        id, name = str(uuid.uuid4()), self._agents.name_of(node)
        preparation = self._preparations[id] = _Preparation(node)
        ends_at = self._clock.elapsed() + PREPARE_SECONDS
        try:
            if not self._agents.send(node, version.recipe.digest, Prepare(id, version.recipe.digest)):
                return None
            shown, message = "", f"preparing on {name}"
            show_at = self._clock.elapsed()
            while self._clock.elapsed() < ends_at:
                if message != shown and self._clock.elapsed() >= show_at:
                    await self._show(item.key, message)
                    shown, show_at = message, self._clock.elapsed() + SHOW_SECONDS
                try:
                    news = await self._next(preparation, ends_at if message == shown else show_at)
                except TimeoutError:
                    continue
                if not isinstance(news, Prepared) or news.done:
                    return news
                message = f"preparing on {name}: {news.message}" if news.message else message
            return None
        finally:
            del self._preparations[id]

    async def _next(self, preparation: _Preparation, until: float) -> PreparationOutcome:
        """Raises TimeoutError."""
        getting = asyncio.ensure_future(preparation.news.get())
        limit = asyncio.ensure_future(self._clock.sleep(max(0.0, until - self._clock.elapsed())))
        try:
            await asyncio.wait((getting, limit), return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                return getting.result()
            raise TimeoutError
        finally:
            getting.cancel()
            limit.cancel()

    async def _show(self, key: str, message: str) -> None:
        """Show the progress in the status, if that can be written."""
        item = self._cache.view.get(key)
        if item is None:
            return
        old = item.status(FunctionStatus)
        try:
            await self._write(
                item,
                old,
                msgspec.structs.replace(old, phase=_while(old, "Preparing"), reason="", message=message, trace=[]),
            )
        except (PreconditionFailed, StoreUnavailable) as problem:
            log.debug("%s: %s", key, problem)

    async def _write(self, item: Item, old: msgspec.Struct, status: msgspec.Struct) -> None:
        if old == status:
            return
        envelope = edit(item)
        envelope.status = merge_part(envelope.status, status)
        revision = await self._store.commit([put(envelope)], [unchanged(item)])
        await self._cache.reached(revision)

    async def _catch_up(self) -> None:
        try:
            await self._cache.catch_up()
        except StoreUnavailable:
            await self._clock.sleep(FIRST_PAUSE_SECONDS)

    def _prepared(self, version: Version) -> list[str]:
        nodes = self._agents.fleet.nodes
        return [self._agents.name_of(n) for n, s in nodes.items() if version.recipe.digest in s.standing.recipes]


def key_changed(item: Item | None, generation: int) -> bool:
    """Whether the object's spec is newer than ``generation``, or the object is gone."""
    return item is None or item.deleting or item.envelope.generation != generation


def _is_silent(node: Item) -> bool:
    return node.status(NodeStatus).phase in SILENT_PHASES


def _is_of_code(error_type: str) -> bool:
    """Whether every node would report the same: an error of the code itself has a dot in its type, as in Lambda."""
    return "." in error_type and error_type not in NODES_FAULTS


def _content(image: Item) -> object:
    status = image.status(ImageStatus)
    return status.phase, status.sha256


def _wait(old: FunctionStatus, generation: int, reason: str, message: str) -> FunctionStatus:
    phase = _while(old, "Pending")
    return msgspec.structs.replace(
        old, phase=phase, reason=reason, message=message, trace=[], waiting_generation=generation
    )


def _while(old: FunctionStatus, phase: str) -> str:
    """The phase while a new spec isn't ready: the spec that serves meanwhile is."""
    return phase if old.serving is None else "Ready"


def _fail(old: FunctionStatus, outcome: Prepared, generation: int) -> FunctionStatus:
    """The new spec failed; the one before still serves."""
    lines = read_failure(outcome.message)
    return msgspec.structs.replace(
        old,
        phase="Failed" if old.serving is None else "Ready",
        reason=outcome.error_type,
        message=lines[0][:LONGEST_LINE] if lines else "",
        trace=[line[:LONGEST_LINE] for line in lines[1 : 1 + TRACE_LINES]],
        observed_generation=generation,
    )


def read_failure(message: str) -> list[str]:
    """The lines of a failure to start: a runtime reports it as JSON, weft itself as text."""
    try:
        failure = msgspec.json.decode(message, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return message.strip().splitlines()
    trace = failure.get("stackTrace")
    lines = "".join(map(str, trace)).splitlines() if isinstance(trace, list) else []
    return [
        *str(failure.get("errorMessage") or "the runtime gave no reason").strip().splitlines(),
        *filter(str.strip, lines),
    ]


def _describe_outcome(outcome: PreparationOutcome) -> str:
    match outcome:
        case None:
            return "the connection to the node was lost"
        case InvocationRefused():
            return outcome.message or outcome.reason
        case Prepared():
            return next(iter(read_failure(outcome.message)), outcome.error_type)[:LONGEST_LINE]
