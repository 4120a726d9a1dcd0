"""Work done ahead of demand: a tag's digest; for instances that are clones, a recipe's template and paused clones."""

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
    """``changed`` is called when the paused clones or the templates have changed."""

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
        """Paused clones, by recipe; the pool of instances doesn't count them."""
        return {digest: ready for driver in self._drivers for digest, ready in driver.count_ready().items()}

    def templates(self) -> set[str]:
        """Digests of the recipes whose template is here."""
        return {digest for driver in self._drivers for digest in driver.templates()}

    def bound(self, memory: int) -> None:
        """Bound the memory of paused clones, in bytes."""
        for driver in self._drivers:
            driver.bound_ready(memory)

    async def resolve(self, request: str, recipe: Recipe) -> None:
        """Send a tag's current digest as ``Prepared``."""
        began = self._clock.elapsed()
        try:
            image = await self._parts.resolve(recipe, lambda word: self.record_progress(request, word))
        except WeftError as problem:
            self._send(Prepared(request, True, problem.token, problem.message))
            return
        self._send(Prepared(request, True, seconds=self._clock.elapsed() - began, image=image))

    async def prepare(self, driver: HasTemplates, request: str, recipe: Recipe) -> None:
        """Make the template, and send the result as ``Prepared``."""
        began = self._clock.elapsed()
        try:
            roots = await self._parts.ensure(recipe, lambda word: self.record_progress(request, word))
            self._send(Prepared(request, False, message="template"))
            await driver.prepare(recipe, roots)
        except WeftError as problem:
            message = fail_with(problem).message if is_own_fault(problem) else problem.message
            self._send(Prepared(request, True, problem.token, message, self._clock.elapsed() - began))
            return
        self._send(Prepared(request, True, seconds=self._clock.elapsed() - began))

    async def keep_ready(self, driver: HasTemplates, recipe: Recipe, count: int) -> None:
        """Keep ``count`` paused clones."""
        try:
            roots = await self._parts.ensure(recipe, lambda word: None)
            await driver.keep_ready(recipe, roots, count)
        except WeftError as problem:
            log.warning("%s: can't prewarm instances: %s", recipe.what, problem.message)

    def record_progress(self, request: str, word: str) -> None:
        """Send the progress, at most once a second for all: each becomes a write in the store."""
        now = self._clock.elapsed()
        if now - self._progress_at >= PROGRESS_SECONDS:
            self._progress_at = now
            self._send(Prepared(request, False, message=word))
