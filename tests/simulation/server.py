"""A server of the fabric: the process with the API and that with the controllers, which are killed and started alone."""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tests.simulation.connections import Doorway, Socket
from tests.simulation.ledger import Ledger
from tests.simulation.virtual_loop import Clock, Part
from weft.api.app import build_app
from weft.api.context import ApiContext, Settings
from weft.contracts.journal import Event as JournalEvent
from weft.controllers.registry import Needs
from weft.launch.server import controllers
from weft.launch.server.membership.presence import keep_presence
from weft.objects.errors import StoreUnavailable
from weft.objects.identity import ServerIdentity
from weft.protocol.server.presence import Presence, name_holder
from weft.trust.audit_chain import AuditRecord
from weft.trust.seal import SealKeys

if TYPE_CHECKING:
    from tests.simulation.fabric import Fabric

_writer: contextvars.ContextVar[str] = contextvars.ContextVar("writer", default="API server")


def sign(name: str) -> None:
    """What this task commits from now on is ``name``'s."""
    _writer.set(name)


class Journal:
    """Knows which events of nodes were brought, and how often each."""

    def __init__(self) -> None:
        self.taken: Counter[tuple[str, str, int]] = Counter()
        self._through: dict[tuple[str, str], int] = {}

    def append(self, event: JournalEvent) -> None: ...

    async def take_soon(self, source: str, outbox: str, events: Sequence[tuple[int, JournalEvent]]) -> int:
        through = self._through.get((source, outbox), 0)
        fresh = [number for number, _ in events if number > through]
        self.taken.update((source, outbox, number) for number in fresh)
        self._through[source, outbox] = max([through, *fresh])
        return self._through[source, outbox]


class AuditToNowhere:
    def append(self, record: AuditRecord) -> None: ...
    def gather(self, records: Sequence[AuditRecord]) -> asyncio.Future[None]:
        written = asyncio.get_running_loop().create_future()
        written.set_result(None)
        return written

    def require_space(self) -> None: ...
    def takes(self, address: str) -> bool:
        return True

    async def keep(self) -> None: ...


class Server:
    """``ledger`` is how its processes reach the store; ``clock`` is of its machine."""

    def __init__(self, fabric: Fabric, name: str, ledger: Ledger, clock: Clock) -> None:
        self._fabric, self.name, self.ledger, self.clock = fabric, name, ledger, clock
        self.doorway = Doorway(name)
        self.controllers: Part | None = None
        self._uid = f"uid-{name}"
        self._terms = self._starts = 0

    @property
    def _several(self) -> bool:
        return self._fabric.cluster is not None

    def start(self) -> None:
        self.start_api()
        self.start_controllers()

    def kill(self) -> None:
        if self.doorway.up:
            self.kill_api()
        if self.controllers is not None and self.controllers.alive:
            self.kill_controllers()

    def start_api(self) -> None:
        if self.doorway.up:
            return
        fabric = self._fabric
        self._starts += 1
        part = Part(fabric.loop, f"API server {self.name} {self._starts}")
        store = Socket(self.ledger.of(part.name), fabric.fate, self.doorway, local=True, writer=lambda: "API server")
        settings = Settings(
            fabric.folder / "images", b"k" * 32, ("127.0.0.1:9",), "weft", seal_keys=SealKeys.of(b"s" * 32)
        )
        audit = AuditToNowhere()
        api = part.context.run(
            lambda: ApiContext(store, Journal(), self.clock, None, settings, audit)  # type: ignore[arg-type]
        )

        async def start() -> None:
            await self.ledger.open()
            self.doorway.app = build_app(api)
            api.start()
            if self._several:
                presence = Presence(uid=self._uid, address=self.doorway.url)
                await keep_presence(store, ServerIdentity(self.name, self._uid), lambda: presence, self.clock)

        self.doorway.part, self.doorway.app = part, None
        part.spawn(start()).add_done_callback(self._note_end)
        self.api = api

    def _note_end(self, task: asyncio.Task[Any]) -> None:
        """Without a store it ends, and is started again."""
        if self._several and not task.cancelled() and isinstance(task.exception(), StoreUnavailable):
            self.kill_api()
            self._fabric.later(1.0, self.start_api)
        else:
            self._fabric.note_end(task)

    def kill_api(self) -> None:
        part = self.doorway.part
        assert part is not None
        part.kill()
        self.ledger.forget(part)
        self.ledger.end_process()

    def start_controllers(self) -> None:
        if self.controllers is not None and self.controllers.alive:
            return
        fabric = self._fabric
        self._terms += 1
        self.controllers = part = Part(fabric.loop, f"controllers {self.name} {self._terms}")
        store = Socket(
            self.ledger.of(part.name), fabric.fate, self.doorway, local=False, writer=_writer.get,
            kill=self._lose_controllers,
        )  # fmt: skip
        work = controllers.decide(
            store, Journal(), self.clock, Needs(images=fabric.folder / "images", **fabric.needs),
            holder=name_holder(self.name, self._uid) if self._several else f"controllers {self._terms}",
            strategy="least_loaded",
        )  # fmt: skip
        part.spawn(work).add_done_callback(fabric.note_end)

    def kill_controllers(self) -> None:
        assert self.controllers is not None
        self.controllers.kill()
        self.ledger.forget(self.controllers)

    def _lose_controllers(self) -> None:
        self.kill_controllers()
        self._fabric.later(self._fabric.fate.draw.random() * 3.0, self.start_controllers)
