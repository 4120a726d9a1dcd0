"""What is made ahead of demand: which image a tag means, now; where instances are copies, the template of a recipe, and copies
of it that stand still."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from weft.agent.function.artifacts import Artifacts
from weft.agent.function.failures import fail_with, is_own_fault
from weft.contracts.clock import Clock
from weft.contracts.driver.function import HasTemplates, InstanceDriver, Ready, Recipe
from weft.objects.errors import WeftError
from weft.protocol.invocations import FromAgent, Prepared

log = logging.getLogger("weft.agent")
PROGRESS_SECONDS = 1.0

Send = Callable[[FromAgent], None]


class Prewarmer:
    """``changed`` is called when there are other copies that stand still, or other templates."""

    def __init__(
        self,
        drivers: Iterable[InstanceDriver],
        parts: Artifacts,
        clock: Clock,
        send: Send,
        changed: Callable[[], None],
    ) -> None:
        self._parts, self._clock, self._send = parts, clock, send
        self._drivers = [driver for driver in drivers if isinstance(driver, HasTemplates)]
        for driver in self._drivers:
            driver.follow(changed)
        self._progress_at = 0.0

    def count_ready(self) -> dict[str, Ready]:
        """Copies that stand still, by recipe; the pool of instances doesn't count them."""
        return {digest: ready for driver in self._drivers for digest, ready in driver.count_ready().items()}

    def templates(self) -> set[str]:
        """Digests of the recipes whose template is here."""
        return {digest for driver in self._drivers for digest in driver.templates()}

    def bound(self, memory: int) -> None:
        """They may take so many bytes from now on."""
        for driver in self._drivers:
            driver.bound_ready(memory)

    async def look_up(self, request: str, recipe: Recipe) -> None:
        """Which image a tag means now is told as ``Prepared``."""
        began = self._clock.elapsed()
        try:
            image = await self._parts.look_up(recipe, lambda word: self.record_progress(request, word))
        except WeftError as problem:
            self._send(Prepared(request, True, problem.token, problem.message))
            return
        self._send(Prepared(request, True, seconds=self._clock.elapsed() - began, image=image))

    async def prepare(self, driver: HasTemplates, request: str, recipe: Recipe) -> None:
        """Make the template; how that went is told as ``Prepared``."""
        began = self._clock.elapsed()
        try:
            roots = await self._parts.ensure(recipe, lambda word: self.record_progress(request, word))
            self._send(Prepared(request, False, message="template"))
            await driver.prepare(recipe, roots)
        except WeftError as problem:
            told = fail_with(problem).message if is_own_fault(problem) else problem.message
            self._send(Prepared(request, True, problem.token, told, self._clock.elapsed() - began))
            return
        self._send(Prepared(request, True, seconds=self._clock.elapsed() - began))

    async def keep_ready(self, driver: HasTemplates, recipe: Recipe, count: int) -> None:
        """Have so many copies stand still."""
        try:
            roots = await self._parts.ensure(recipe, lambda word: None)
            await driver.keep_ready(recipe, roots, count)
        except WeftError as problem:
            log.warning("%s: instances can't be prewarmed: %s", recipe.what, problem.message)

    def record_progress(self, request: str, word: str) -> None:
        """At most one a second for all: each becomes a write in the store."""
        now = self._clock.elapsed()
        if now - self._progress_at >= PROGRESS_SECONDS:
            self._progress_at = now
            self._send(Prepared(request, False, message=word))
